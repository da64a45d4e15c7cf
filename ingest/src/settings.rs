//! What ingest takes from the configuration, with its secrets read.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use domain::fingerprint::FingerprintKeys;
use domain::id::{AppId, PlatformName, SourceName};
use domain::key_ring::SealingKey;
use domain::platform::{AckContract, Adapter};
use domain::verify::Verification;
use eventlog::breach::Breach;
use eventlog::connect::Endpoint;
use opentelemetry::KeyValue;
use service::config::{Config, ConfigError, InstallPage, Resolver};
use service::oauth::OAuth;
use service::server::Limits;
use service::telemetry::names::attribute;
use tokio::sync::Semaphore;

pub struct Settings {
    pub nats: Endpoint,
    pub monitor_url: Option<String>,
    pub accepted_breaches: Vec<Breach>,
    /// It seals new pages of data keys. Ingest has nothing that opens one.
    pub sealing_key: SealingKey,
    pub fingerprints: FingerprintKeys,
    pub data_key_unused_max: Duration,
    /// Where the key is read again.
    pub path: PathBuf,
    pub sources: BTreeMap<SourceName, Source>,
    pub http: Http,
}

/// One configured callback endpoint.
pub struct Source {
    pub name: SourceName,
    /// Its name as metrics carry it.
    pub attribute: KeyValue,
    pub platform: PlatformName,
    pub app_ids: Vec<AppId>,
    /// Types of events that are acknowledged and not kept.
    pub ignore: Vec<String>,
    pub adapter: Box<dyn Adapter>,
    pub verification: Verification,
    pub ack: AckContract,
    pub oauth: Option<OAuth>,
    pub install_page: Option<InstallPage>,
    /// For the callbacks that wait for the log.
    pub slots: Arc<Semaphore>,
    /// Users who come back from a platform, or send a form, at once: anybody can.
    pub visits: Semaphore,
}

const VISITS_MAX: usize = 32;

#[derive(Debug, Clone)]
pub struct Http {
    pub listen: SocketAddr,
    pub body_bytes_max: usize,
    /// For the body of a request.
    pub read_timeout: Duration,
    pub limits: Limits,
}

impl Settings {
    pub fn resolve(
        config: &Config,
        path: &Path,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let mut resolver = Resolver::new(env);
        let password = resolver.optional_secret("nats.password", config.nats.password.as_ref());
        let sealing_key = resolver.sealing_key(&config.sealing);
        let fingerprints = resolver.fingerprint_keys(&config.sealing);
        let sources = sources(config, path, &mut resolver);
        let http = Http {
            listen: config.ingest.listen,
            body_bytes_max: config.ingest.body_bytes_max,
            read_timeout: Duration::from_millis(config.ingest.read_timeout_ms),
            limits: Limits {
                connections_max: config.ingest.connections_max,
                head_timeout: Duration::from_millis(config.ingest.read_timeout_ms),
                idle_timeout: Duration::from_millis(config.ingest.idle_timeout_ms),
                shutdown_timeout: Duration::from_millis(config.ingest.shutdown_timeout_ms),
            },
        };
        let keys = sealing_key.zip(fingerprints);
        let settings = password.zip(keys).map(|(password, (sealing_key, fingerprints))| Self {
            nats: Endpoint {
                url: config.nats.url.clone(),
                user: config.nats.user.clone(),
                password,
            },
            monitor_url: config.nats.monitor_url.clone(),
            accepted_breaches: config.stream.allow.clone(),
            sealing_key,
            fingerprints,
            data_key_unused_max: config.sealing.data_key_unused_max(),
            path: path.to_owned(),
            sources,
            http,
        });
        resolver.finish(path, settings)
    }
}

fn sources(
    config: &Config,
    path: &Path,
    resolver: &mut Resolver<'_>,
) -> BTreeMap<SourceName, Source> {
    if config.sources.is_empty() {
        resolver.problem("sources", "none is configured, so every callback would be refused");
    }
    let mut sources = BTreeMap::new();
    for (name, settings) in &config.sources {
        let adapter = resolver.adapter(name, settings);
        let verification = resolver.verification(name, settings);
        let ack = resolver.ack_contract(name, settings);
        let oauth = resolver.oauth(name, settings);
        let install_page = resolver.install_page(path, name, settings);
        let (Some(adapter), Some(verification), Some(ack), Some(oauth), Some(install_page)) =
            (adapter, verification, ack, oauth, install_page)
        else {
            continue;
        };
        let source = Source {
            name: name.clone(),
            attribute: KeyValue::new(attribute::SOURCE, Arc::<str>::from(name.as_str())),
            platform: settings.platform.to_name(),
            app_ids: settings.app_ids.clone(),
            ignore: settings.ignore.clone(),
            adapter,
            verification,
            ack,
            oauth,
            install_page,
            slots: Arc::new(Semaphore::new(settings.callbacks_max)),
            visits: Semaphore::new(VISITS_MAX),
        };
        sources.insert(name.clone(), source);
    }
    sources
}
