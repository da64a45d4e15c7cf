//! Applies the log to Postgres and serves what comes of it.
//!
//! It must never acknowledge an event before its effect is committed, drop one
//! that it cannot apply, or answer with a sealed or clear secret anywhere but
//! at the credential endpoint.

mod error_chain;
mod live;
mod metrics;
mod operate;
mod settings;
mod store;

pub use crate::operate::Cli;
