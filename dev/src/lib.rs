//! The development environment: real nats-server and Postgres, and our own services, as child
//! processes on loopback. `cargo dev` is the command line; the pipeline tests use this library.
//!
//! It is blocking on purpose. Threads and `std::process` are enough, and a test that kills a server
//! must not share a runtime with what it tests. Every handle stops its child when it is dropped, and
//! no child outlives this process, however this process dies (see `child`).

mod child;
mod cluster;
pub mod config;
pub mod credentials;
pub mod data_dir;
mod durable;
pub mod environment;
pub mod http;
pub mod interrupt;
pub mod nats;
pub mod observe;
pub mod ports;
pub mod postgres;
mod processes;
pub mod progress;
mod run_as;
pub mod secrets;
pub mod services;
pub mod temporary;
pub mod tools;
pub mod wait;
mod wheels;

pub use child::Stopped;

use std::path::{Path, PathBuf};

/// The root of the workspace this crate was built in.
#[must_use]
pub fn workspace_root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}
