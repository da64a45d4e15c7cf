//! What the worker takes from the configuration, with its secrets read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr as _;
use std::time::Duration;

use domain::event_key::{Author, EventKey, EventKeys};
use domain::fingerprint::FingerprintKeys;
use domain::fold::Retention;
use domain::id::SourceName;
use domain::key_ring::{KeyRing, SealingKey};
use eventlog::archive::Location;
use eventlog::connect::Endpoint;
use jiff::SignedDuration;
use secrecy::ExposeSecret as _;
use service::config::{
    Config, ConfigError, NatsUser, PlainTransport, Portal, PostgresSettings, Resolver,
    ServerConfig, SourceSettings, WorkerSettings, is_local_host,
};
use service::http_client;
use service::oauth::OAuth;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

pub(crate) mod callers;
mod push;

pub(crate) use callers::CallerSettings;
pub(crate) use push::Endpoint as PushEndpoint;

/// As many as may be on their way to all workers.
const BATCH_EVENTS_MAX: usize = 20_000;

/// Looks a variable of the environment up.
pub(crate) type Env = fn(&str) -> Option<String>;

/// A place with less is not looked at.
const PLACE_EVENTS_LEAST: usize = 100;

/// For `worker run`.
pub(crate) struct RunSettings {
    pub(crate) nats: Endpoint,
    pub(crate) postgres: Postgres,
    pub(crate) ring: KeyRing,
    pub(crate) event_keys: EventKeys,
    /// Where the ring and the callers are read again.
    pub(crate) path: PathBuf,
    pub(crate) callers: CallerSettings,
    pub(crate) server: ServerConfig,
    pub(crate) batch_events_max: usize,
    pub(crate) place_events_max: usize,
    /// How long a change stays in the feed.
    pub(crate) changes_keep_for: Duration,
    pub(crate) retention: Retention,
    pub(crate) token_renewal: Option<TokenRenewalSettings>,
    /// Sources have tokens, and nobody is to renew them.
    pub(crate) tokens_unattended: bool,
    pub(crate) archive: Option<ArchiveAccess>,
    pub(crate) push: Vec<PushEndpoint>,
    /// Whether changes go to a stream of NATS, too.
    pub(crate) changes_stream: bool,
    /// Where users open the apps, by source.
    pub(crate) portals: BTreeMap<String, Portal>,
    /// For metrics.
    pub(crate) sources: Vec<SourceName>,
}

/// How OAuth tokens are renewed.
pub(crate) struct TokenRenewalSettings {
    /// A user that may append events.
    pub(crate) nats: Endpoint,
    pub(crate) sealing_key: SealingKey,
    pub(crate) fingerprints: FingerprintKeys,
    /// It proves that a renewal wrote an event.
    pub(crate) event_key: Option<EventKey>,
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

impl RunSettings {
    pub(crate) fn resolve(config: &Config, path: &Path, env: &Env) -> Result<Self, ConfigError> {
        let mut resolver = Resolver::new(env);
        let nats = resolver.nats(config);
        let postgres = postgres(config, &mut resolver);
        let ring = resolver.key_ring(&config.sealing);
        let event_keys = resolver.event_keys(config.event_keys.as_ref());
        let callers = CallerSettings::resolve(config, &mut resolver);
        if config.worker.place_events_max < PLACE_EVENTS_LEAST {
            let least = format!("must be at least {PLACE_EVENTS_LEAST}");
            resolver.problem("worker.place_events_max", least);
        }
        let days = config.worker.changes_keep_days;
        resolver.in_range("worker.changes_keep_days", days, &(1..=3_650));
        check_ranges(config, &mut resolver);
        let retention = retention(&config.worker);
        let token_renewal = token_renewal(config, &mut resolver);
        let archive = archive(config, &mut resolver);
        let push = push::resolve(config, &mut resolver);
        let portals = portals(config, &mut resolver);
        let server = resolver.worker_server(&config.worker);
        resolver.read_api(config, config.worker.listen, config.worker.tls.is_some());
        let all = nats.zip(postgres).zip(ring.zip(event_keys)).zip(server);
        let settings = all.map(|(((nats, postgres), (ring, event_keys)), server)| Self {
            nats,
            postgres,
            ring,
            event_keys,
            path: path.to_owned(),
            callers,
            server,
            batch_events_max: config.worker.batch_events_max,
            place_events_max: config.worker.place_events_max,
            changes_keep_for: Duration::from_secs(
                u64::from(config.worker.changes_keep_days) * 86_400,
            ),
            retention,
            token_renewal,
            tokens_unattended: config.worker.token_renewal.is_none()
                && config.sources.values().any(|source| source.oauth.is_some()),
            archive,
            push,
            changes_stream: config.worker.changes_stream,
            portals,
            sources: config.sources.keys().cloned().collect(),
        });
        resolver.finish(path, settings)
    }
}

fn portals(config: &Config, resolver: &mut Resolver<'_>) -> BTreeMap<String, Portal> {
    let of = |(name, settings): (&SourceName, &SourceSettings)| {
        Some((name.to_string(), resolver.portal(name, settings)?))
    };
    config.sources.iter().filter_map(of).collect()
}

/// What is beyond them is a slip of the finger, and would be a panic or a server's refusal later.
fn check_ranges(config: &Config, resolver: &mut Resolver<'_>) {
    const DAY_MS: u64 = 86_400_000;
    const YEAR_S: u64 = 366 * 86_400;
    let worker = &config.worker;
    let (batch, ack_wait) = (worker.batch_events_max, worker.ack_wait_ms);
    resolver.in_range("worker.batch_events_max", batch, &(1..=BATCH_EVENTS_MAX));
    resolver.in_range("worker.ack_wait_ms", ack_wait, &(1..=DAY_MS));
    let window = config.stream.duplicate_window_ms;
    resolver.in_range("stream.duplicate_window_ms", window, &(0..=30 * DAY_MS));
    if let Some(postgres) = &config.postgres {
        resolver.in_range("postgres.connections_max", postgres.connections_max, &(1..=10_000));
    }
    if let Some(renewal) = &worker.token_renewal {
        let at = "worker.token_renewal";
        resolver.in_range(&format!("{at}.before_expiry_s"), renewal.before_expiry_s, &(0..=YEAR_S));
        resolver.in_range(&format!("{at}.every_ms"), renewal.every_ms, &(1..=DAY_MS));
    }
}

impl BackendSettings {
    pub(crate) fn resolve(config: &Config, path: &Path, env: &Env) -> Result<Self, ConfigError> {
        let mut resolver = Resolver::new(env);
        check_ranges(config, &mut resolver);
        let nats = resolver.nats(config);
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

/// For the commands that apply events, or put them back.
pub(crate) fn event_keys(
    config: &Config,
    path: &Path,
    env: &Env,
) -> Result<EventKeys, ConfigError> {
    let mut resolver = Resolver::new(env);
    let keys = resolver.event_keys(config.event_keys.as_ref());
    resolver.finish(path, keys)
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

fn postgres(config: &Config, resolver: &mut Resolver<'_>) -> Option<Postgres> {
    let Some(settings) = &config.postgres else {
        resolver.problem("postgres", "the worker needs a [postgres] section with a url");
        return None;
    };
    let PostgresSettings { url, password, ca, connections_max } = settings;
    let password = resolver.optional_secret("postgres.password", password.as_ref())?;
    let Ok(options) = PgConnectOptions::from_str(url) else {
        // The library's message may repeat the URL, which may hold a password.
        resolver.problem("postgres.url", "must look like postgres://user@host:5432/database");
        return None;
    };
    let is_local = options.get_socket().is_some() || is_local_host(options.get_host());
    if !is_local && !matches!(options.get_ssl_mode(), PgSslMode::VerifyFull) {
        let host = options.get_host();
        let what = format!("{host} could be anyone, in plaintext; use ?sslmode=verify-full");
        resolver.plain(config, PlainTransport::PlainPostgres, "postgres.url", &what);
    }
    let options = match ca {
        Some(file) => options.ssl_root_cert(file),
        None => options,
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
    if let Some(endpoint) = &settings.endpoint {
        resolver.archive_endpoint(config, endpoint);
    }
    let location = resolver.archive(settings)?;
    http_client::use_ring(); // for a bucket that is reached by TLS
    let nats = match &settings.nats_user {
        None => None,
        Some(name) => {
            let (at, password) = ("worker.archive.nats_", settings.nats_password.as_ref());
            let user = NatsUser { at, name: Some(name), password, nkey_seed: None };
            Some(resolver.nats_as(config, &user)?)
        }
    };
    Some(ArchiveAccess {
        location,
        policy: ArchivePolicy {
            retention: SignedDuration::from_secs(DAY_S * i64::from(settings.retention_days)),
            log_full_percent: u64::from(settings.log_full_percent),
            segment_bytes: settings.segment_bytes,
        },
        nats,
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
    let user = NatsUser {
        at: "worker.token_renewal.nats_",
        name: settings.nats_user.as_ref(),
        password: settings.nats_password.as_ref(),
        nkey_seed: settings.nats_nkey_seed.as_ref(),
    };
    let sealing_key = resolver.sealing_key(&config.sealing)?;
    let fingerprints = resolver.fingerprint_keys(&config.sealing)?;
    let event_key = resolver.event_key(config.event_keys.as_ref(), Author::TokenRenewal)?;
    Some(TokenRenewalSettings {
        nats: resolver.nats_as(config, &user)?,
        sealing_key,
        fingerprints,
        event_key,
        data_key_unused_max: config.sealing.data_key_unused_max(),
        apps,
        before_expiry: Duration::from_secs(settings.before_expiry_s),
        every: Duration::from_millis(settings.every_ms.max(1)),
    })
}
