//! What `ingest` and `worker` both need: the words of the domain as types, the
//! fold, the platform adapters, sealing, the shape of the log, configuration
//! and telemetry set-up.
//!
//! Pure where it can be: the fold and the adapters take values and return
//! values. Nothing here opens a socket except [`nats::connect`], [`oauth`] and
//! what [`telemetry::run`] exports with. Nothing here knows SQL, or HTTP
//! handlers but the one that Prometheus scrapes.

pub mod audit;
pub mod config;
pub mod data_key;
pub mod data_key_pool;
pub mod details;
pub mod event;
pub mod fold;
pub mod http_client;
pub mod id;
pub mod log;
pub mod nats;
pub mod oauth;
pub mod platform;
pub mod problem;
pub mod seal;
pub mod secret_ref;
pub mod shutdown;
pub mod signature;
pub mod stream;
pub mod telemetry;
pub mod verify;
