//! The two ports of a service: the public one, and one for those who run it.

use std::io;
use std::net::SocketAddr;

use axum::Router;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Limits, Listener, serve};
use crate::config::ServerConfig;

/// Probes, and an operator who looks.
const ADMIN_CONNECTIONS_MAX: usize = 64;

#[derive(Debug, thiserror::Error)]
#[error("listening on {address} ({setting}): is it taken by another process?")]
pub struct BindError {
    address: SocketAddr,
    setting: String,
    source: io::Error,
}

/// Ports that listen and are not served yet.
pub struct Ports {
    public: Listener,
    admin: Option<TcpListener>,
    limits: Limits,
}

impl Ports {
    /// `section` is that of the configuration.
    pub async fn bind(
        config: ServerConfig,
        section: &str,
        shutdown: &CancellationToken,
    ) -> Result<Self, BindError> {
        let ServerConfig { listen, admin_listen, limits, tls } = config;
        let public = bind(listen, format!("{section}.listen")).await?;
        let admin = match admin_listen {
            None => None,
            Some(address) => Some(bind(address, format!("{section}.admin_listen")).await?),
        };
        let encrypted = tls.is_some();
        tracing::info!(%listen, encrypted, admin = ?admin_listen, "{section} is listening");
        let tls = tls.map(|loaded| loaded.follow(shutdown.clone()));
        Ok(Self { public: Listener::new(public, tls), admin, limits })
    }

    /// Serves both until `shutdown`.
    pub async fn serve(
        self,
        public: Router,
        admin: Router,
        in_flight: &TaskTracker,
        shutdown: CancellationToken,
    ) {
        let probes = TaskTracker::new();
        let of_admin = async {
            if let Some(listener) = self.admin {
                let limits = Limits {
                    connections_max: ADMIN_CONNECTIONS_MAX,
                    connections_per_client_max: ADMIN_CONNECTIONS_MAX,
                    ..self.limits.clone()
                };
                serve(listener, admin, limits, &probes, shutdown.clone()).await;
            }
        };
        let of_public =
            serve(self.public, public, self.limits.clone(), in_flight, shutdown.clone());
        tokio::join!(of_public, of_admin);
    }
}

async fn bind(address: SocketAddr, setting: String) -> Result<TcpListener, BindError> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|source| BindError { address, setting, source })
}
