//! What ingest takes from the configuration, with its secrets read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::http::Method;
use domain::event_key::{Author, EventKey};
use domain::fingerprint::FingerprintKeys;
use domain::id::{AppId, PlatformName, SourceName};
use domain::key_ring::SealingKey;
use domain::platform::challenge::Challenge;
use domain::platform::{AckContract, Adapter};
use domain::verify::Verification;
use eventlog::breach::Breach;
use eventlog::connect::Endpoint;
use jiff::SignedDuration;
use opentelemetry::KeyValue;
use service::config::{CALLBACKS_MAX, Config, ConfigError, InstallPage, Resolver, ServerConfig};
use service::oauth::OAuth;
use service::telemetry::names::attribute;
use tokio::sync::Semaphore;

use crate::door::Quota;
use crate::ticket::VALID_FOR_MAX;

pub struct Settings {
    pub nats: Endpoint,
    pub monitor_url: Option<String>,
    pub accepted_breaches: Vec<Breach>,
    /// It seals new pages of data keys. Ingest has nothing that opens one.
    pub sealing_key: SealingKey,
    pub fingerprints: FingerprintKeys,
    /// It proves that ingest wrote an event.
    pub event_key: Option<EventKey>,
    pub data_key_unused_max: Duration,
    /// Where the key is read again.
    pub path: PathBuf,
    pub sources: BTreeMap<SourceName, Source>,
    pub http: Http,
    pub server: ServerConfig,
    /// The share of the log that is for whoever comes.
    pub open_log_percent_max: u64,
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
    /// Types of events that go to the app itself.
    pub forward: Vec<String>,
    pub adapter: Box<dyn Adapter>,
    /// By which callbacks come.
    pub methods: Vec<Method>,
    pub body_bytes_max: usize,
    /// Content types that are taken besides those that its platform sends.
    pub content_types: Vec<String>,
    pub challenges: Vec<Challenge>,
    pub verification: Verification,
    pub ack: AckContract,
    pub oauth: Option<OAuth>,
    pub install_page: Option<InstallPage>,
    /// For the callbacks that wait for the log.
    pub slots: Arc<Semaphore>,
    /// Users who come back from a platform, or send a form, at once: anybody can.
    pub visits: Semaphore,
    /// What whoever comes may write.
    pub quota: Quota,
}

const VISITS_MAX: usize = 32;

#[derive(Debug, Clone)]
pub struct Http {
    pub body_bytes_max: usize,
    /// Of tickets.
    pub ticket_valid_for: SignedDuration,
    /// For the body of a request.
    pub read_timeout: Duration,
}

impl Settings {
    pub fn resolve(
        config: &Config,
        path: &Path,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let mut resolver = Resolver::new(env);
        let nats = resolver.nats(config);
        let sealing_key = resolver.sealing_key(&config.sealing);
        let keys = sealing_key.zip(resolver.fingerprint_keys(&config.sealing));
        let keys = keys.zip(resolver.event_key(config.event_keys.as_ref(), Author::Ingest));
        let sources = sources(config, path, &mut resolver);
        if !(1..=100).contains(&config.ingest.open_log_percent_max) {
            resolver.problem("ingest.open_log_percent_max", "must be 1 to 100");
        }
        let http = Http {
            body_bytes_max: config.ingest.body_bytes_max,
            ticket_valid_for: ticket_valid_for(config),
            read_timeout: Duration::from_millis(config.ingest.read_timeout_ms),
        };
        let server = resolver.ingest_server(&config.ingest);
        let settings = nats.zip(keys).zip(server).map(|((nats, (keys, event_key)), server)| Self {
            nats,
            event_key,
            monitor_url: config.nats.monitor_url.clone(),
            accepted_breaches: config.stream.allow.clone(),
            sealing_key: keys.0,
            fingerprints: keys.1,
            data_key_unused_max: config.sealing.data_key_unused_max(),
            path: path.to_owned(),
            sources,
            http,
            server,
            open_log_percent_max: config.ingest.open_log_percent_max,
        });
        resolver.finish(path, settings)
    }
}

/// Not longer than the log remembers that one was used.
fn ticket_valid_for(config: &Config) -> SignedDuration {
    let remembered = i64::try_from(config.stream.duplicate_window_ms).unwrap_or(i64::MAX);
    SignedDuration::from_millis(remembered).min(VALID_FOR_MAX)
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
        let challenges = resolver.challenges(name, settings);
        let ack = resolver.ack_contract(name, settings);
        let oauth = resolver.oauth(name, settings);
        let install_page = resolver.install_page(path, name, settings);
        if settings.methods.is_empty() {
            resolver.problem(&format!("sources.{name}.methods"), "name at least one method");
        }
        let (Some(adapter), Some((verification, challenges)), Some(ack)) =
            (adapter, verification.zip(challenges), ack)
        else {
            continue;
        };
        let (Some(oauth), Some(install_page)) = (oauth, install_page) else { continue };
        let at = format!("sources.{name}.callbacks_max");
        resolver.in_range(&at, settings.callbacks_max, &(1..=CALLBACKS_MAX));
        let source = Source {
            name: name.clone(),
            attribute: KeyValue::new(attribute::SOURCE, Arc::<str>::from(name.as_str())),
            platform: settings.platform.to_name(),
            app_ids: settings.app_ids.clone(),
            ignore: settings.ignore.clone(),
            forward: settings.forward.clone(),
            adapter,
            methods: settings.methods.iter().map(|method| (*method).into()).collect(),
            body_bytes_max: settings.body_bytes_max.unwrap_or(config.ingest.body_bytes_max),
            content_types: settings.content_types.clone(),
            challenges,
            verification,
            ack,
            oauth,
            install_page,
            slots: Arc::new(Semaphore::new(settings.callbacks_max.min(CALLBACKS_MAX))),
            visits: Semaphore::new(VISITS_MAX),
            quota: Quota::new(settings.open),
        };
        sources.insert(name.clone(), source);
    }
    sources
}
