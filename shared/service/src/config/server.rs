//! What a server of HTTP allows, checked.

use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use ipnet::IpNet;

use super::{IngestSettings, Resolver, WorkerSettings};
use crate::server::tls::{Loaded, TlsSettings};
use crate::server::{ForwardedHeader, Limits, TrustedProxies};

/// More than a machine has file descriptors for.
const CONNECTIONS_MAX: usize = 1_000_000;
/// A day: what is longer is a slip of the finger.
const TIMEOUT_MS_MAX: u64 = 86_400_000;
/// The part of all connections that one client may have, unless it is set.
const CLIENTS_MIN: usize = 4;

/// What both services say of their server.
struct ServerSettings<'a> {
    section: &'static str,
    connections_max: usize,
    connections_per_client_max: Option<usize>,
    trusted_proxies: &'a [IpNet],
    forwarded_header: ForwardedHeader,
    read_timeout_ms: u64,
    write_timeout_ms: u64,
    idle_timeout_ms: u64,
    shutdown_timeout_ms: u64,
    listen: SocketAddr,
    admin_listen: Option<SocketAddr>,
    tls: Option<&'a TlsSettings>,
}

/// A server, ready to be started.
pub struct ServerConfig {
    pub listen: SocketAddr,
    pub admin_listen: Option<SocketAddr>,
    pub limits: Limits,
    pub tls: Option<Loaded>,
}

impl<'a> From<&'a IngestSettings> for ServerSettings<'a> {
    fn from(of: &'a IngestSettings) -> Self {
        Self {
            section: "ingest",
            connections_max: of.connections_max,
            connections_per_client_max: of.connections_per_client_max,
            trusted_proxies: &of.trusted_proxies,
            forwarded_header: of.forwarded_header,
            read_timeout_ms: of.read_timeout_ms,
            write_timeout_ms: of.write_timeout_ms,
            idle_timeout_ms: of.idle_timeout_ms,
            shutdown_timeout_ms: of.shutdown_timeout_ms,
            listen: of.listen,
            admin_listen: of.admin_listen,
            tls: of.tls.as_ref(),
        }
    }
}

impl<'a> From<&'a WorkerSettings> for ServerSettings<'a> {
    fn from(of: &'a WorkerSettings) -> Self {
        Self {
            section: "worker",
            connections_max: of.connections_max,
            connections_per_client_max: of.connections_per_client_max,
            trusted_proxies: &of.trusted_proxies,
            forwarded_header: of.forwarded_header,
            read_timeout_ms: of.read_timeout_ms,
            write_timeout_ms: of.write_timeout_ms,
            idle_timeout_ms: of.idle_timeout_ms,
            shutdown_timeout_ms: of.shutdown_timeout_ms,
            listen: of.listen,
            admin_listen: of.admin_listen,
            tls: of.tls.as_ref(),
        }
    }
}

impl Resolver<'_> {
    pub fn ingest_server(&mut self, settings: &IngestSettings) -> Option<ServerConfig> {
        self.server(&settings.into())
    }

    pub fn worker_server(&mut self, settings: &WorkerSettings) -> Option<ServerConfig> {
        self.server(&settings.into())
    }

    fn server(&mut self, of: &ServerSettings<'_>) -> Option<ServerConfig> {
        let at = |setting: &str| format!("{}.{setting}", of.section);
        let connections = 1..=CONNECTIONS_MAX;
        self.in_range(&at("connections_max"), of.connections_max, &connections);
        let per_client = of.connections_per_client_max.unwrap_or(of.connections_max / CLIENTS_MIN);
        if of.connections_per_client_max.is_some() {
            let share = 1..=of.connections_max.max(1);
            self.in_range(&at("connections_per_client_max"), per_client, &share);
        }
        let mut timeout = |setting: &str, ms: u64| {
            self.in_range(&at(setting), ms, &(1..=TIMEOUT_MS_MAX));
            Duration::from_millis(ms)
        };
        let limits = Limits {
            connections_max: of.connections_max,
            connections_per_client_max: per_client.max(1),
            trusted_proxies: TrustedProxies {
                networks: of.trusted_proxies.to_vec(),
                header: of.forwarded_header,
            },
            head_timeout: timeout("read_timeout_ms", of.read_timeout_ms),
            idle_timeout: timeout("idle_timeout_ms", of.idle_timeout_ms),
            write_timeout: timeout("write_timeout_ms", of.write_timeout_ms),
            shutdown_timeout: timeout("shutdown_timeout_ms", of.shutdown_timeout_ms),
        };
        let tls = match of.tls {
            None => None,
            Some(files) => {
                Some(Loaded::read(files).map_err(|why| self.problem(&at("tls"), why)).ok()?)
            }
        };
        Some(ServerConfig { listen: of.listen, admin_listen: of.admin_listen, limits, tls })
    }

    /// What is out of range is a problem, and not a panic later.
    pub fn in_range<T: PartialOrd + Display>(
        &mut self,
        at: &str,
        value: T,
        range: &RangeInclusive<T>,
    ) {
        if !range.contains(&value) {
            self.problem(at, format!("must be {} to {}, not {value}", range.start(), range.end()));
        }
    }
}
