//! What else one would write, as processes of their own: axum with one publish
//! or one insert for each request, and axum alone.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::Result;
use async_nats::HeaderMap;
use async_nats::jetstream;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio::net::TcpListener;

use crate::Peer;

/// What most applications have; more did not make it faster here.
const POSTGRES_CONNECTIONS: u32 = 32;

type Answer = (StatusCode, Json<Value>);

#[tokio::main]
pub(crate) async fn serve(peer: Peer) -> Result<()> {
    match peer {
        Peer::Nothing { port } => {
            let route = post(|Json(_): Json<Value>| async { acknowledged() });
            listen(port, Router::new().route("/callback", route)).await
        }
        Peer::Receiver { port } => {
            listen(port, Router::new().fallback(|_: Bytes| async { StatusCode::OK })).await
        }
        Peer::PlainPublish { port, nats_url, password } => {
            let options = async_nats::ConnectOptions::new()
                .user_and_password("ingest".to_owned(), password)
                .custom_inbox_prefix("_INBOX_ingest");
            let client = options.connect(nats_url).await?;
            let jetstream = jetstream::ContextBuilder::new()
                .max_ack_inflight(usize::from(u16::MAX))
                .build(client);
            let router = Router::new().route("/callback", post(publish)).with_state(jetstream);
            listen(port, router).await
        }
        Peer::PostgresInsert { port, postgres_url } => {
            let pool = PgPoolOptions::new()
                .max_connections(POSTGRES_CONNECTIONS)
                .min_connections(POSTGRES_CONNECTIONS)
                .connect(&postgres_url)
                .await?;
            let router = Router::new().route("/callback", post(insert)).with_state(Arc::new(pool));
            listen(port, router).await
        }
    }
}

async fn listen(port: u16, router: Router) -> Result<()> {
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await?;
    let router = router.route("/readyz", get(|| async { "ok" }));
    Ok(axum::serve(listener, router).await?)
}

fn acknowledged() -> Answer {
    (StatusCode::OK, Json(json!({ "ok": true })))
}

fn failed() -> Answer {
    (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "ok": false })))
}

fn text<'a>(callback: &'a Value, field: &str) -> &'a str {
    callback.get(field).and_then(Value::as_str).unwrap_or_default()
}

async fn publish(
    State(jetstream): State<jetstream::Context>,
    Json(callback): Json<Value>,
) -> Answer {
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", text(&callback, "idempotency_key"));
    let body = callback.to_string().into();
    let Ok(sent) = jetstream.publish_with_headers("installations.bench.0", headers, body).await
    else {
        return failed();
    };
    if sent.await.is_ok() { acknowledged() } else { failed() }
}

async fn insert(State(pool): State<Arc<PgPool>>, Json(callback): Json<Value>) -> Answer {
    let inserted = sqlx::query(
        "INSERT INTO installs (installed_app_id, app_id, instance_id, api_key_encrypted, \
         api_key_prefix, granted_permissions, status, idempotency_key) \
         VALUES ($1, $2, $3, $4, $5, $6, 'active', $7) ON CONFLICT (idempotency_key) DO NOTHING",
    )
    .bind(text(&callback, "installed_app_id"))
    .bind(text(&callback, "app_id"))
    .bind(text(&callback, "instance_id"))
    .bind(text(&callback, "api_key"))
    .bind(text(&callback, "api_key_prefix"))
    .bind(callback.get("granted_permissions").cloned().unwrap_or_default())
    .bind(text(&callback, "idempotency_key"))
    .execute(&*pool)
    .await;
    if inserted.is_ok() { acknowledged() } else { failed() }
}
