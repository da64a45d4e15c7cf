//! What the worker takes from the configuration, with its secrets read.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr as _;
use std::time::Duration;

use domain::fingerprint::FingerprintKeys;
use domain::fold::Retention;
use domain::id::SourceName;
use domain::key_ring::{KeyRing, SealingKey};
use eventlog::archive::Location;
use eventlog::connect::Endpoint;
use jiff::SignedDuration;
use secrecy::{ExposeSecret as _, SecretString};
use service::config::{Config, ConfigError, PostgresSettings, Resolver, Scope, WorkerSettings};
use service::http_client;
use service::oauth::OAuth;
use service::server::Limits;
use sqlx::postgres::PgConnectOptions;

const API_TOKEN_BYTES_MIN: usize = 20;

/// Looks a variable of the environment up.
pub(crate) type Env = fn(&str) -> Option<String>;

/// A place with less is not looked at.
const PLACE_EVENTS_LEAST: usize = 100;

/// For `worker run`.
pub(crate) struct RunSettings {
    pub(crate) nats: Endpoint,
    pub(crate) postgres: Postgres,
    pub(crate) ring: KeyRing,
    /// Where the ring is read again.
    pub(crate) path: PathBuf,
    pub(crate) callers: Vec<Caller>,
    pub(crate) listen: SocketAddr,
    pub(crate) limits: Limits,
    pub(crate) batch_events_max: usize,
    pub(crate) place_events_max: usize,
    pub(crate) retention: Retention,
    pub(crate) token_renewal: Option<TokenRenewalSettings>,
    /// Sources have tokens, and nobody is to renew them.
    pub(crate) tokens_unattended: bool,
    pub(crate) archive: Option<ArchiveAccess>,
    /// For metrics.
    pub(crate) sources: Vec<SourceName>,
}

/// How OAuth tokens are renewed.
pub(crate) struct TokenRenewalSettings {
    /// A user that may append events.
    pub(crate) nats: Endpoint,
    pub(crate) sealing_key: SealingKey,
    pub(crate) fingerprints: FingerprintKeys,
    pub(crate) data_key_unused_max: Duration,
    pub(crate) apps: BTreeMap<SourceName, OAuth>,
    pub(crate) before_expiry: Duration,
    pub(crate) every: Duration,
}

/// For the commands that work on log and projection.
pub(crate) struct BackendSettings {
    pub(crate) nats: Endpoint,
    pub(crate) postgres: Postgres,
    pub(crate) retention: Retention,
    pub(crate) archive: Option<ArchiveAccess>,
}

/// Where the archive is, and what goes there.
#[derive(Debug, Clone)]
pub(crate) struct ArchiveAccess {
    pub(crate) location: Location,
    pub(crate) policy: ArchivePolicy,
    /// A user that may delete from the log.
    pub(crate) nats: Option<Endpoint>,
    pub(crate) every: Duration,
}

/// What is due for the archive.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ArchivePolicy {
    pub(crate) retention: SignedDuration,
    pub(crate) log_full_percent: u64,
    pub(crate) segment_bytes: u64,
}

#[derive(Clone)]
pub(crate) struct Postgres {
    pub(crate) options: PgConnectOptions,
    pub(crate) connections_max: u32,
}

/// Someone who may call the read API.
pub(crate) struct Caller {
    pub(crate) name: String,
    pub(crate) token: SecretString,
    pub(crate) scopes: Vec<Scope>,
}

impl RunSettings {
    pub(crate) fn resolve(config: &Config, path: &Path, env: &Env) -> Result<Self, ConfigError> {
        let mut resolver = Resolver::new(env);
        let nats = nats(config, &mut resolver);
        let postgres = postgres(config, &mut resolver);
        let ring = resolver.key_ring(&config.sealing);
        let callers = callers(&config.worker, &mut resolver);
        if config.worker.batch_events_max == 0 {
            resolver.problem("worker.batch_events_max", "must be at least 1");
        }
        if config.worker.place_events_max < PLACE_EVENTS_LEAST {
            let least = format!("must be at least {PLACE_EVENTS_LEAST}");
            resolver.problem("worker.place_events_max", least);
        }
        let retention = retention(&config.worker);
        let token_renewal = token_renewal(config, &mut resolver);
        let archive = archive(config, &mut resolver);
        let settings = nats.zip(postgres).zip(ring).map(|((nats, postgres), ring)| Self {
            nats,
            postgres,
            ring,
            path: path.to_owned(),
            callers,
            listen: config.worker.listen,
            limits: Limits {
                connections_max: config.worker.connections_max,
                head_timeout: Duration::from_millis(config.worker.read_timeout_ms),
                idle_timeout: Duration::from_millis(config.worker.idle_timeout_ms),
                shutdown_timeout: Duration::from_millis(config.worker.shutdown_timeout_ms),
            },
            batch_events_max: config.worker.batch_events_max,
            place_events_max: config.worker.place_events_max,
            retention,
            token_renewal,
            tokens_unattended: config.worker.token_renewal.is_none()
                && config.sources.values().any(|source| source.oauth.is_some()),
            archive,
            sources: config.sources.keys().cloned().collect(),
        });
        resolver.finish(path, settings)
    }
}

impl BackendSettings {
    pub(crate) fn resolve(config: &Config, path: &Path, env: &Env) -> Result<Self, ConfigError> {
        let mut resolver = Resolver::new(env);
        let nats = nats(config, &mut resolver);
        let postgres = postgres(config, &mut resolver);
        let retention = retention(&config.worker);
        let archive = archive(config, &mut resolver);
        let settings =
            nats.zip(postgres).map(|(nats, postgres)| Self { nats, postgres, retention, archive });
        resolver.finish(path, settings)
    }
}

/// For the commands that open or make keys, too.
pub(crate) fn key_ring(config: &Config, path: &Path, env: &Env) -> Result<KeyRing, ConfigError> {
    let mut resolver = Resolver::new(env);
    let ring = resolver.key_ring(&config.sealing);
    resolver.finish(path, ring)
}

fn retention(settings: &WorkerSettings) -> Retention {
    if settings.keep_ended_credentials { Retention::Keep } else { Retention::Remove }
}

impl Postgres {
    pub(crate) fn resolve(config: &Config, path: &Path, env: &Env) -> Result<Self, ConfigError> {
        let mut resolver = Resolver::new(env);
        let postgres = postgres(config, &mut resolver);
        resolver.finish(path, postgres)
    }
}

fn nats(config: &Config, resolver: &mut Resolver<'_>) -> Option<Endpoint> {
    let password = resolver.optional_secret("nats.password", config.nats.password.as_ref())?;
    Some(Endpoint { url: config.nats.url.clone(), user: config.nats.user.clone(), password })
}

fn postgres(config: &Config, resolver: &mut Resolver<'_>) -> Option<Postgres> {
    let Some(settings) = &config.postgres else {
        resolver.problem("postgres", "the worker needs a [postgres] section with a url");
        return None;
    };
    let PostgresSettings { url, password, connections_max } = settings;
    let password = resolver.optional_secret("postgres.password", password.as_ref())?;
    let Ok(options) = PgConnectOptions::from_str(url) else {
        // The library's message may repeat the URL, which may hold a password.
        resolver.problem("postgres.url", "must look like postgres://user@host:5432/database");
        return None;
    };
    let options = options.application_name("mooring-worker");
    let options = match password {
        Some(password) => options.password(password.expose_secret()),
        None => options,
    };
    Some(Postgres { options, connections_max: *connections_max })
}

fn archive(config: &Config, resolver: &mut Resolver<'_>) -> Option<ArchiveAccess> {
    const DAY_S: i64 = 86_400;
    let settings = config.worker.archive.as_ref()?;
    let location = resolver.archive(settings)?;
    http_client::use_ring(); // for a bucket that is reached by TLS
    let at = "worker.archive.nats_password";
    let password = resolver.optional_secret(at, settings.nats_password.as_ref())?;
    let url = config.nats.url.clone();
    let user = settings.nats_user.clone();
    Some(ArchiveAccess {
        location,
        policy: ArchivePolicy {
            retention: SignedDuration::from_secs(DAY_S * i64::from(settings.retention_days)),
            log_full_percent: u64::from(settings.log_full_percent),
            segment_bytes: settings.segment_bytes,
        },
        nats: user.map(|user| Endpoint { url, user: Some(user), password }),
        every: Duration::from_millis(settings.every_ms.max(1)),
    })
}

/// `None` where no source has tokens, or nobody is to renew them.
fn token_renewal(config: &Config, resolver: &mut Resolver<'_>) -> Option<TokenRenewalSettings> {
    let settings = config.worker.token_renewal.as_ref()?;
    let mut apps = BTreeMap::new();
    for (name, settings) in &config.sources {
        if let Some(Some(app)) = resolver.oauth(name, settings) {
            apps.insert(name.clone(), app);
        }
    }
    if apps.is_empty() {
        return None;
    }
    let at = "worker.token_renewal.nats_password";
    let password = resolver.optional_secret(at, settings.nats_password.as_ref())?;
    let user = settings.nats_user.clone();
    let sealing_key = resolver.sealing_key(&config.sealing)?;
    let fingerprints = resolver.fingerprint_keys(&config.sealing)?;
    Some(TokenRenewalSettings {
        nats: Endpoint { url: config.nats.url.clone(), user, password },
        sealing_key,
        fingerprints,
        data_key_unused_max: config.sealing.data_key_unused_max(),
        apps,
        before_expiry: Duration::from_secs(settings.before_expiry_s),
        every: Duration::from_millis(settings.every_ms.max(1)),
    })
}

fn callers(settings: &WorkerSettings, resolver: &mut Resolver<'_>) -> Vec<Caller> {
    let mut callers = Vec::new();
    for (name, settings) in &settings.api_tokens {
        let at = format!("worker.api_tokens.{name}");
        let Some(token) = resolver.secret(&at, &settings.token) else { continue };
        if token.expose_secret().len() < API_TOKEN_BYTES_MIN {
            resolver
                .problem(&at, format!("the token must have at least {API_TOKEN_BYTES_MIN} bytes"));
            continue;
        }
        callers.push(Caller { name: name.clone(), token, scopes: settings.scopes.clone() });
    }
    callers
}
