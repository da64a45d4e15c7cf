//! What a service of Mooring needs besides its own work: configuration,
//! telemetry, problems over HTTP, a server with limits, OAuth, shutdown.

pub mod build;
pub mod clock;
pub mod config;
pub mod http_client;
pub mod identity;
pub mod manual;
pub mod oauth;
pub mod problem;
pub mod process;
pub mod secret_ref;
pub mod server;
pub mod shutdown;
pub mod telemetry;
