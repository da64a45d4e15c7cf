//! Whether this worker can do its work. Postgres is asked once a second, whoever
//! asks us: a flood of probes costs it nothing.

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};
use eventlog::connect::Connection;
use serde_json::json;
use sqlx::PgPool;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::live::commit::chain;
use crate::store::{database, installations};

const ASK_EVERY: Duration = Duration::from_secs(1);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(4);

/// Why Postgres is of no use, where it is not.
type Found = Result<(), String>;

#[derive(Clone)]
pub(crate) struct Readiness {
    connection: Connection,
    postgres: watch::Receiver<Found>,
}

impl Readiness {
    /// Starts the task that asks, until `shutdown`.
    pub(crate) fn start(connection: Connection, pool: PgPool, shutdown: CancellationToken) -> Self {
        let (sender, postgres) = watch::channel(Err("not asked yet".to_owned()));
        tokio::spawn(async move {
            loop {
                let found = ask(&pool).await;
                drop(sender.send_replace(found));
                tokio::select! {
                    () = tokio::time::sleep(ASK_EVERY) => {}
                    () = shutdown.cancelled() => return,
                }
            }
        });
        Self { connection, postgres }
    }

    /// For whoever comes: whether, and no more.
    pub(crate) fn public(self) -> Router {
        Router::new().route("/livez", get(livez)).route("/readyz", get(whether)).with_state(self)
    }

    /// For those who run it. It says why.
    pub(crate) fn admin(self) -> Router {
        Router::new().route("/livez", get(livez)).route("/readyz", get(why)).with_state(self)
    }

    fn nats(&self) -> Found {
        if self.connection.is_connected() { Ok(()) } else { Err("not connected".to_owned()) }
    }

    fn status(&self) -> StatusCode {
        let ready = self.nats().is_ok() && self.postgres.borrow().is_ok();
        if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
    }
}

async fn livez() -> &'static str {
    "ok\n"
}

async fn whether(State(readiness): State<Readiness>) -> Response {
    let status = readiness.status();
    (status, Json(json!({ "ready": status == StatusCode::OK }))).into_response()
}

async fn why(State(readiness): State<Readiness>) -> Response {
    let say = |found: Found| found.map_or_else(|why| why, |()| "ready".to_owned());
    let status = readiness.status();
    let (nats, postgres) = (readiness.nats(), readiness.postgres.borrow().clone());
    let ready = status == StatusCode::OK;
    let body = json!({ "ready": ready, "nats": say(nats), "postgres": say(postgres) });
    (status, Json(body)).into_response()
}

async fn ask(pool: &PgPool) -> Found {
    match tokio::time::timeout(ANSWER_TIMEOUT, can_read(pool)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(why_unreadable(&error)),
        Err(_elapsed) => Err("no answer in time".to_owned()),
    }
}

async fn can_read(pool: &PgPool) -> Result<(), sqlx::Error> {
    let mut connection = database::acquire_or_find_out(pool).await?;
    installations::can_be_read(&mut connection).await
}

fn why_unreadable(error: &sqlx::Error) -> String {
    /// `undefined_table` of Postgres.
    const NO_SUCH_TABLE: &str = "42P01";
    let code = error.as_database_error().and_then(|error| error.code());
    if code.as_deref() == Some(NO_SUCH_TABLE) {
        return "the schema is not there: run `worker migrate`".to_owned();
    }
    chain(error)
}
