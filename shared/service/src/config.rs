//! Configuration: one TOML file, environment overrides, secrets by reference.
//!
//! An override is named after its place in the file with `MOORING` in front and
//! two underscores between: `MOORING__INGEST__LISTEN=0.0.0.0:8080`.
//!
//! Both services read the same file; each reads only the secrets that it needs.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use schemars::JsonSchema;
use secrecy::SecretString;
use serde::Deserialize;

use crate::secret_ref::SecretRef;
use crate::server::ForwardedHeader;
use crate::server::tls::TlsSettings;
use domain::id::{AppId, SourceName};
use domain::platform::generic::Mapping;
use domain::platform::{MissedAck, Platform, SuccessBody};
use eventlog::topology::StreamSettings;

mod api_tokens;
mod archive;
mod challenge;
mod event_keys;
mod identity;
mod install_page;
mod oauth;
mod portal;
mod push;
pub mod reload;
mod sealing;
mod server;
mod source;
mod transport;
mod verification;
pub mod watch;

pub use api_tokens::{ApiTokenSettings, Scope, SourceChoice, TokenHash};
pub use archive::ArchiveSettings;
pub use challenge::ChallengeSettings;
pub use event_keys::{AuthorKeys, EventKeysSettings};
pub use identity::{IdentityCallerSettings, IdentityProviderSettings};
pub use install_page::{DeclaredSecret, InstallPage, InstallPageSettings};
pub use oauth::OAuthSettings;
pub use portal::{Portal, PortalSettings};
pub use push::PushSettings;
pub use sealing::{KeySettings, PublicHalf, SealingSettings};
pub use server::ServerConfig;
pub use transport::{NatsTlsSettings, NatsUser, PlainTransport, TransportSettings, is_local_host};
pub use verification::VerificationSettings;

const ENV_PREFIX: &str = "MOORING";
/// Load balancers keep idle connections for a minute.
const IDLE_TIMEOUT_MS: u64 = 75_000;
const WRITE_TIMEOUT_MS: u64 = 10_000;
/// As many as the queue to the log holds.
pub const CALLBACKS_MAX: usize = 8_192;

/// What both services are configured by.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "mooring.toml")]
pub struct Config {
    /// How to reach NATS.
    pub nats: NatsSettings,
    /// What may go over a network in plaintext.
    #[serde(default)]
    pub transport: TransportSettings,
    /// The streams of the log. Takes effect when `worker migrate` runs, except `allow`.
    #[serde(default)]
    pub stream: StreamSettings,
    /// How to reach Postgres. Only the worker needs it.
    pub postgres: Option<PostgresSettings>,
    /// The keys that data keys are sealed to, and what fingerprints are keyed by.
    pub sealing: SealingSettings,
    /// What events prove with who wrote them.
    pub event_keys: Option<EventKeysSettings>,
    /// The service that receives callbacks.
    #[serde(default)]
    pub ingest: IngestSettings,
    /// The service that keeps the state of installations and answers the read API.
    #[serde(default)]
    pub worker: WorkerSettings,
    /// The callback endpoints by name. Each is served at `/callbacks/<name>`.
    #[serde(default)]
    pub sources: BTreeMap<SourceName, SourceSettings>,
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NatsSettings {
    /// One URL, or several separated by commas. `tls://` encrypts the connection.
    pub url: String,
    /// The user to connect as. [deploy/nats/nats.conf](../deploy/nats/nats.conf) has one for
    /// each role, with the least privilege it needs.
    pub user: Option<String>,
    /// The password of `user`.
    pub password: Option<SecretRef>,
    /// The seed of an NKey (`nk -gen user`), if the user has that instead of a password. `user` is
    /// still its name: the inbox is called after it.
    pub nkey_seed: Option<SecretRef>,
    /// TLS, with a private authority or a certificate of our own. Without it `tls://` in the URL
    /// trusts the system's authorities.
    pub tls: Option<NatsTlsSettings>,
    /// The server's monitoring address, where `sync_interval` is checked; those of all servers of a
    /// cluster, separated by commas. Without it ingest is not ready, unless `stream.allow` accepts
    /// `sync_not_checked`.
    pub monitor_url: Option<String>,
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PostgresSettings {
    /// `postgres://user@host:5432/database`, with the role `mooring_worker`. Give the owner's URL
    /// only to `worker migrate` and the operator's commands. `?sslmode=verify-full`
    /// in the URL encrypts the connection and checks who answers.
    pub url: String,
    /// The password of the URL's role.
    pub password: Option<SecretRef>,
    /// The file with the certificates of who issues the server's, in PEM. The system's unless given.
    pub ca: Option<PathBuf>,
    /// How many connections each worker opens at most.
    #[serde(default = "default_connections_max")]
    pub connections_max: u32,
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct IngestSettings {
    /// The address and port that callbacks are received at.
    pub listen: SocketAddr,
    /// The address and port of probes that say why: `/livez` and `/readyz`, in plain HTTP. Keep it
    /// private. A full public port does not fail them. Without it only the public port has them,
    /// where they do not say why.
    pub admin_listen: Option<SocketAddr>,
    /// TLS, by certificate and key in files. They are read again when they change. Without it the
    /// port speaks plain HTTP.
    pub tls: Option<TlsSettings>,
    /// The largest body of a callback. A larger one is answered 413.
    pub body_bytes_max: usize,
    /// How long a caller may take to send the headers of a request, and again to send its body.
    pub read_timeout_ms: u64,
    /// How long a connection may be idle: longer than a load balancer keeps it for reuse.
    pub idle_timeout_ms: u64,
    /// Open connections. Further ones wait to be accepted.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub connections_max: usize,
    /// Open connections of one address, of one network of 64 bits for IPv6; further ones are closed.
    /// Behind a trusted proxy it is requests in flight, and further ones are answered 429. A quarter
    /// of `connections_max` unless given.
    pub connections_per_client_max: Option<usize>,
    /// The networks of proxies that are believed when they say whom they speak for, such as
    /// `10.0.0.0/8`, or `10.1.2.3/32` for one.
    #[schemars(with = "Vec<String>")]
    pub trusted_proxies: Vec<IpNet>,
    /// The header in which they say it. They must append to it or replace it.
    pub forwarded_header: ForwardedHeader,
    /// How long a caller may take none of an answer.
    #[schemars(range(min = 1, max = 86_400_000))]
    pub write_timeout_ms: u64,
    /// How long callbacks in flight may take to finish when ingest is asked to stop.
    pub shutdown_timeout_ms: u64,
    /// What anybody may write is refused once the log is this full, in percent. The rest is kept for
    /// callbacks of verified platforms, renewed tokens and erasures.
    #[schemars(range(min = 1, max = 100))]
    pub open_log_percent_max: u64,
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WorkerSettings {
    /// The address and port of the read API.
    pub listen: SocketAddr,
    /// The address and port of probes that say why: `/livez` and `/readyz`, in plain HTTP. Keep it
    /// private. A full public port does not fail them. Without it only the public port has them,
    /// where they do not say why.
    pub admin_listen: Option<SocketAddr>,
    /// TLS, by certificate and key in files. They are read again when they change. Without it the
    /// port speaks plain HTTP.
    pub tls: Option<TlsSettings>,
    /// How long a caller may take to send the headers of a request.
    pub read_timeout_ms: u64,
    /// How long a connection may be idle: longer than a load balancer keeps it for reuse.
    pub idle_timeout_ms: u64,
    /// Open connections. Further ones wait to be accepted.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub connections_max: usize,
    /// Open connections of one address, of one network of 64 bits for IPv6; further ones are closed.
    /// Behind a trusted proxy it is requests in flight, and further ones are answered 429. A quarter
    /// of `connections_max` unless given.
    pub connections_per_client_max: Option<usize>,
    /// The networks of proxies that are believed when they say whom they speak for, such as
    /// `10.0.0.0/8`, or `10.1.2.3/32` for one.
    #[schemars(with = "Vec<String>")]
    pub trusted_proxies: Vec<IpNet>,
    /// The header in which they say it. They must append to it or replace it.
    pub forwarded_header: ForwardedHeader,
    /// How long a caller may take none of an answer.
    #[schemars(range(min = 1, max = 86_400_000))]
    pub write_timeout_ms: u64,
    /// Events in one transaction.
    #[schemars(range(min = 1, max = 20_000))]
    pub batch_events_max: usize,
    /// How many events of one place may matter, such as installs and uninstalls of an app in one
    /// location. Further ones become dead letters: each would cost as much as all of them.
    #[schemars(range(min = 100))]
    pub place_events_max: usize,
    /// After this time JetStream delivers an unacknowledged event again. Takes effect when
    /// `worker migrate` runs.
    pub ack_wait_ms: u64,
    /// How long the batch and the requests in flight may take to finish when the worker is asked
    /// to stop.
    pub shutdown_timeout_ms: u64,
    /// How many days a change stays in the [feed](feed.md). A reader that comes later starts over.
    #[schemars(range(min = 1, max = 3650))]
    pub changes_keep_days: u32,
    /// Whether changes are copied to the NATS stream [`INSTALLATION_CHANGES`](feed.md#over-nats), too.
    /// Run `worker migrate` after you have set it.
    pub changes_stream: bool,
    /// Whether the projection keeps the sealed secret of an installation that has ended.
    pub keep_ended_credentials: bool,
    /// The callers of the read API by name.
    pub api_tokens: BTreeMap<String, ApiTokenSettings>,
    /// OpenID issuers whose tokens are accepted beside `api_tokens`, by names of yours.
    pub identity_providers: BTreeMap<String, IdentityProviderSettings>,
    /// How workers renew OAuth tokens. Without it none does.
    pub token_renewal: Option<TokenRenewalSettings>,
    /// [Where old events go](operations.md#the-archive). Without it the log keeps everything.
    pub archive: Option<ArchiveSettings>,
    /// [Where changes are pushed to](feed.md#push), by names of yours.
    pub push: BTreeMap<String, PushSettings>,
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenRenewalSettings {
    /// A NATS user that may append events, which the worker's own may not: `renewer` in
    /// nats.conf.
    pub nats_user: Option<String>,
    /// The password of `nats_user`.
    pub nats_password: Option<SecretRef>,
    /// The seed of its NKey, if it has that instead.
    pub nats_nkey_seed: Option<SecretRef>,
    /// Tokens are renewed this long before they expire, or halfway through their lifetime if that
    /// is later.
    #[serde(default = "default_before_expiry_s")]
    pub before_expiry_s: u64,
    /// How often the worker looks for tokens that expire soon.
    #[serde(default = "default_renewal_every_ms")]
    pub every_ms: u64,
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SourceSettings {
    /// The platform that sends the callbacks.
    pub platform: Platform,
    /// The apps whose callbacks are accepted; empty accepts all. HighLevel requires it; OAuth and
    /// the install page need exactly one.
    #[serde(default)]
    pub app_ids: Vec<AppId>,
    /// Event types, as the platform names them, that are acknowledged and not kept. Of what
    /// installs, updates or uninstalls an app nothing is ignored.
    #[serde(default)]
    pub ignore: Vec<String>,
    /// Event types that are [forwarded](platforms.md#forwarding) to the app as they came, and not
    /// kept; `*` is every one that Mooring does not know and `ignore` does not name.
    #[serde(default)]
    pub forward: Vec<String>,
    /// The methods by which callbacks come. `DELETE` is also taken at `/oauth/<source>/callback`.
    #[serde(default = "default_methods")]
    #[schemars(length(min = 1))]
    pub methods: Vec<CallbackMethod>,
    /// The largest body of a callback of this source, in place of `ingest.body_bytes_max`.
    pub body_bytes_max: Option<usize>,
    /// Content types that are taken besides those of JSON, or of a form if the mapping reads one.
    #[serde(default)]
    pub content_types: Vec<String>,
    /// [What a platform asks of a URL](platforms.md#challenges) before it sends callbacks to it.
    #[serde(default)]
    pub challenges: Vec<ChallengeSettings>,
    /// [What a callback must prove](platforms.md#verification). All that is given must pass. Only
    /// HighLevel may leave it out.
    #[serde(default)]
    pub verification: VerificationSettings,
    /// [What a callback is answered](platforms.md#answers), where it differs from what the
    /// platform expects.
    #[serde(default)]
    pub ack: AckSettings,
    /// [Where tokens come from](platforms.md#oauth-20), if the platform grants them by OAuth 2.0.
    pub oauth: Option<OAuthSettings>,
    /// [The page where users type the app's secrets](platforms.md#the-install-page), for
    /// `securityscorecard`.
    pub install_page: Option<InstallPageSettings>,
    /// [Where users open the app](platforms.md#the-portal-of-an-app), for `blnk`.
    pub portal: Option<PortalSettings>,
    /// [How a callback is read](platforms.md#any-other-platform). `generic` requires it, and no
    /// other platform takes it.
    pub mapping: Option<Mapping>,
    /// Callbacks that may wait for the log at once. Further ones are told to come again.
    #[serde(default = "default_callbacks_max")]
    #[schemars(range(min = 1, max = CALLBACKS_MAX))]
    pub callbacks_max: usize,
    /// [How much anybody may write](platforms.md#where-anybody-may-write): by the install page, by
    /// OAuth, and by callbacks if the source is `unverified`.
    #[serde(default)]
    pub open: OpenSettings,
}

/// A method by which callbacks come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum CallbackMethod {
    /// Without a body the query is read in its place.
    Get,
    /// As almost every platform does.
    Post,
    /// Like `POST`.
    Put,
    /// A body may be left out.
    Delete,
}

fn default_methods() -> Vec<CallbackMethod> {
    vec![CallbackMethod::Post]
}

impl From<CallbackMethod> for http::Method {
    fn from(method: CallbackMethod) -> Self {
        match method {
            CallbackMethod::Get => Self::GET,
            CallbackMethod::Post => Self::POST,
            CallbackMethod::Put => Self::PUT,
            CallbackMethod::Delete => Self::DELETE,
        }
    }
}

/// Over all ingests, in each hour of the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OpenSettings {
    /// Events in an hour. What comes after them is answered 429.
    pub events_per_hour: u64,
    /// Bytes in an hour, as they were received. What comes after them is answered 429.
    pub bytes_per_hour: u64,
}

impl Default for OpenSettings {
    fn default() -> Self {
        Self { events_per_hour: 1_000, bytes_per_hour: 16 << 20 }
    }
}

#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AckSettings {
    /// After this time the platform no longer waits.
    pub deadline_ms: Option<u64>,
    /// How long ingest keeps trying to append. It must be less than the deadline. If only the
    /// deadline is given, at most 80 % of it.
    pub budget_ms: Option<u64>,
    /// The status that says: stored. Any 2xx.
    #[schemars(range(min = 200, max = 299))]
    pub success_status: Option<u16>,
    /// The body that says: stored.
    pub success_body: Option<SuccessBody>,
    /// The status that says: not stored, send it again. 429 or any 5xx.
    #[schemars(range(min = 429, max = 599))]
    pub unavailable_status: Option<u16>,
    /// What the platform does without a success in time.
    pub missed: Option<MissedAck>,
}

impl Default for IngestSettings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            admin_listen: None,
            tls: None,
            body_bytes_max: 64 * 1024,
            read_timeout_ms: 3_000,
            idle_timeout_ms: IDLE_TIMEOUT_MS,
            connections_max: 4_096,
            connections_per_client_max: None,
            trusted_proxies: Vec::new(),
            forwarded_header: ForwardedHeader::default(),
            write_timeout_ms: WRITE_TIMEOUT_MS,
            shutdown_timeout_ms: 15_000,
            open_log_percent_max: 70,
        }
    }
}

impl Default for WorkerSettings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8081)),
            admin_listen: None,
            tls: None,
            read_timeout_ms: 3_000,
            idle_timeout_ms: IDLE_TIMEOUT_MS,
            connections_max: 1_024,
            connections_per_client_max: None,
            trusted_proxies: Vec::new(),
            forwarded_header: ForwardedHeader::default(),
            write_timeout_ms: WRITE_TIMEOUT_MS,
            batch_events_max: 500,
            place_events_max: 10_000,
            ack_wait_ms: 30_000,
            shutdown_timeout_ms: 15_000,
            changes_keep_days: 30,
            keep_ended_credentials: false,
            api_tokens: BTreeMap::new(),
            identity_providers: BTreeMap::new(),
            token_renewal: None,
            archive: None,
            push: BTreeMap::new(),
            changes_stream: false,
        }
    }
}

fn default_connections_max() -> u32 {
    8
}

fn default_before_expiry_s() -> u64 {
    3_600
}

fn default_renewal_every_ms() -> u64 {
    30_000
}

fn default_callbacks_max() -> usize {
    CALLBACKS_MAX
}

/// Everything that is wrong with a configuration, so that it is mended in one go.
#[derive(Debug, thiserror::Error)]
pub struct ConfigError {
    pub path: PathBuf,
    pub problems: Vec<String>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the configuration {} is not usable:", self.path.display())?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n  - {problem}"))
    }
}

/// Reads secrets and collects what is wrong.
pub struct Resolver<'a> {
    env: &'a dyn Fn(&str) -> Option<String>,
    problems: Vec<String>,
}

impl Config {
    /// Whether any callback goes to an app itself.
    pub fn forwards(&self) -> bool {
        self.sources.values().any(|source| !source.forward.is_empty())
    }

    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let problem = |what| ConfigError { path: path.to_owned(), problems: vec![what] };
        let text = std::fs::read_to_string(path).map_err(|why| problem(why.to_string()))?;
        Self::read(&text, environment()).map_err(problem)
    }

    /// A configuration as it stands in a file, without what variables override.
    pub fn parse(text: &str) -> Result<Self, String> {
        Self::read(text, environment().source(Some(HashMap::default())))
    }

    fn read(text: &str, variables: config::Environment) -> Result<Self, String> {
        config::Config::builder()
            .add_source(config::File::from_str(text, config::FileFormat::Toml))
            .add_source(variables)
            .build()
            .and_then(config::Config::try_deserialize)
            .map_err(|why| without_excerpt(&why.to_string()))
    }
}

/// The parser shows the line that it cannot read, which may hold a secret.
fn without_excerpt(why: &str) -> String {
    let is_excerpt = |line: &&str| {
        line.trim_start_matches(|c: char| c == ' ' || c.is_ascii_digit()).starts_with('|')
    };
    let told: Vec<&str> = why.lines().filter(|line| !is_excerpt(line)).collect();
    told.join(": ")
}

fn environment() -> config::Environment {
    config::Environment::with_prefix(ENV_PREFIX)
        .prefix_separator("__")
        .separator("__")
        .try_parsing(true)
}

impl<'a> Resolver<'a> {
    pub fn new(env: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self { env, problems: Vec::new() }
    }

    /// The value if nothing was wrong with the whole configuration.
    pub fn finish<T>(self, path: &Path, value: Option<T>) -> Result<T, ConfigError> {
        match value {
            Some(value) if self.problems.is_empty() => Ok(value),
            _ => Err(ConfigError { path: path.to_owned(), problems: self.problems }),
        }
    }

    /// What was wrong, for who goes on without it.
    pub fn into_problems(self) -> Vec<String> {
        self.problems
    }

    pub fn problem(&mut self, at: &str, what: impl fmt::Display) {
        self.problems.push(format!("{at}: {what}"));
    }

    pub fn secret(&mut self, at: &str, reference: &SecretRef) -> Option<SecretString> {
        reference.read(self.env).map_err(|why| self.problem(at, why)).ok()
    }

    pub fn optional_secret(
        &mut self,
        at: &str,
        reference: Option<&SecretRef>,
    ) -> Option<Option<SecretString>> {
        match reference {
            None => Some(None),
            Some(reference) => self.secret(at, reference).map(Some),
        }
    }
}

#[cfg(test)]
mod tests;
