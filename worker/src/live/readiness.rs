//! Whether this worker can do its work. Postgres is asked once a second, whoever
//! asks us: a flood of probes costs it nothing.

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};
use domain::key_ring::KeyRing;
use eventlog::connect::Connection;
use eventlog::keys::Current;
use serde_json::json;
use service::build;
use sqlx::PgPool;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::error_chain::chain;
use crate::live::active_key;
use crate::store::{database, installations};

const ASK_EVERY: Duration = Duration::from_secs(1);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(4);

/// Why something is of no use, where it is not.
type Found = Result<(), String>;

/// What Postgres answered.
#[derive(Clone)]
struct Answers {
    postgres: Found,
    /// Whether the ring lacks a key that pages may need.
    keys: Found,
}

#[derive(Clone)]
pub(crate) struct Readiness {
    connection: Connection,
    answers: watch::Receiver<Answers>,
}

impl Readiness {
    /// Starts the task that asks, until `shutdown`.
    pub(crate) fn start(
        connection: Connection,
        pool: PgPool,
        ring: Current<KeyRing>,
        shutdown: CancellationToken,
    ) -> Self {
        let not_asked = || Err("not asked yet".to_owned());
        let (sender, answers) =
            watch::channel(Answers { postgres: not_asked(), keys: not_asked() });
        tokio::spawn(async move {
            loop {
                let found = ask(&pool, &ring.get()).await;
                drop(sender.send_replace(found));
                tokio::select! {
                    () = tokio::time::sleep(ASK_EVERY) => {}
                    () = shutdown.cancelled() => return,
                }
            }
        });
        Self { connection, answers }
    }

    /// For whoever comes: whether, and no more.
    pub(crate) fn public(self) -> Router {
        Router::new()
            .route("/livez", get(build::livez))
            .route("/readyz", get(whether))
            .with_state(self)
    }

    /// For those who run it. It says why.
    pub(crate) fn admin(self) -> Router {
        Router::new()
            .route("/livez", get(build::livez_with_version))
            .route("/readyz", get(why))
            .with_state(self)
    }

    fn nats(&self) -> Found {
        if self.connection.is_connected() { Ok(()) } else { Err("not connected".to_owned()) }
    }

    fn status(&self) -> StatusCode {
        let Answers { postgres, keys } = self.answers.borrow().clone();
        let ready = self.nats().is_ok() && postgres.is_ok() && keys.is_ok();
        if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
    }
}

async fn whether(State(readiness): State<Readiness>) -> Response {
    let status = readiness.status();
    (status, Json(json!({ "ready": status == StatusCode::OK }))).into_response()
}

async fn why(State(readiness): State<Readiness>) -> Response {
    let say = |found: Found| found.map_or_else(|why| why, |()| "ready".to_owned());
    let status = readiness.status();
    let Answers { postgres, keys } = readiness.answers.borrow().clone();
    let nats = readiness.nats();
    let ready = status == StatusCode::OK;
    let body =
        json!({ "ready": ready, "nats": say(nats), "postgres": say(postgres), "keys": say(keys) });
    (status, Json(body)).into_response()
}

async fn ask(pool: &PgPool, ring: &KeyRing) -> Answers {
    let postgres = in_time(can_read(pool)).await;
    let keys = match &postgres {
        Ok(()) => {
            in_time(active_key::missing(pool, ring)).await.and_then(|missing| match missing {
                None => Ok(()),
                Some(missing) => Err(missing),
            })
        }
        Err(_) => Err("not known".to_owned()),
    };
    Answers { postgres, keys }
}

async fn in_time<T>(asked: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, String> {
    match tokio::time::timeout(ANSWER_TIMEOUT, asked).await {
        Ok(Ok(answer)) => Ok(answer),
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
