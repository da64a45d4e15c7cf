//! The log in NATS JetStream, and the only crate that names its client.
//!
//! It must never call an event appended before the server has acknowledged it,
//! or skip one while reading. It knows nothing of HTTP, Postgres or the fold.

pub mod append;
pub mod archive;
pub mod audit;
pub mod breach;
pub mod changes;
pub mod connect;
pub mod consume;
pub mod contract;
pub mod delivery;
pub mod forward;
pub mod keys;
pub mod loss;
pub mod message;
pub mod quota;
pub mod read;
pub mod status;
pub mod topology;
pub mod trim;
