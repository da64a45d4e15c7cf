//! What ingest takes from the configuration, with its secrets read.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use shared::config::{Config, ConfigError, Resolver};
use shared::id::{AppId, SourceName};
use shared::nats::Connection;
use shared::platform::Platform;
use shared::seal::KeyRing;
use shared::stream::Breach;
use shared::verify::Verification;

pub struct Settings {
    pub nats: Connection,
    pub monitor_url: Option<String>,
    pub accepted_breaches: Vec<Breach>,
    pub ring: KeyRing,
    pub sources: BTreeMap<SourceName, Source>,
    pub http: Http,
}

/// One configured callback endpoint.
pub struct Source {
    pub name: SourceName,
    pub platform: Platform,
    pub app_ids: Vec<AppId>,
    pub verification: Verification,
    pub ack_budget: Duration,
}

#[derive(Debug, Clone)]
pub struct Http {
    pub listen: SocketAddr,
    pub body_bytes_max: usize,
    pub read_timeout: Duration,
    pub connections_max: usize,
    pub shutdown_timeout: Duration,
}

impl Settings {
    pub fn resolve(
        config: &Config,
        path: &Path,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let mut resolver = Resolver::new(env);
        let password = resolver.optional_secret("nats.password", config.nats.password.as_ref());
        let ring = resolver.key_ring(&config.sealing);
        let sources = sources(config, &mut resolver);
        let http = Http {
            listen: config.ingest.listen,
            body_bytes_max: config.ingest.body_bytes_max,
            read_timeout: Duration::from_millis(config.ingest.read_timeout_ms),
            connections_max: config.ingest.connections_max,
            shutdown_timeout: Duration::from_millis(config.ingest.shutdown_timeout_ms),
        };
        let settings = password.zip(ring).map(|(password, ring)| Self {
            nats: Connection {
                url: config.nats.url.clone(),
                user: config.nats.user.clone(),
                password,
            },
            monitor_url: config.nats.monitor_url.clone(),
            accepted_breaches: config.stream.allow.clone(),
            ring,
            sources,
            http,
        });
        resolver.finish(path, settings)
    }
}

fn sources(config: &Config, resolver: &mut Resolver<'_>) -> BTreeMap<SourceName, Source> {
    if config.sources.is_empty() {
        resolver.problem("sources", "none is configured, so every callback would be refused");
    }
    let mut sources = BTreeMap::new();
    for (name, settings) in &config.sources {
        let contract = settings.platform.ack_contract();
        let budget = settings.ack_budget_ms.map_or(contract.default_budget, Duration::from_millis);
        if budget >= contract.deadline {
            resolver.problem(
                &format!("sources.{name}.ack_budget_ms"),
                format!(
                    "must be less than {} ms, after which {} gives up",
                    contract.deadline.as_millis(),
                    settings.platform
                ),
            );
        }
        let Some(verification) = resolver.verification(name, &settings.verification) else {
            continue;
        };
        let source = Source {
            name: name.clone(),
            platform: settings.platform,
            app_ids: settings.app_ids.clone(),
            verification,
            ack_budget: budget,
        };
        sources.insert(name.clone(), source);
    }
    sources
}
