//! Configuration: one TOML file, environment overrides, secrets by reference.
//!
//! An override is named after its place in the file with `MOORING` in front and
//! two underscores between: `MOORING__INGEST__LISTEN=0.0.0.0:8080`.
//!
//! Both services read the same file; each reads only the secrets that it needs.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use secrecy::SecretString;
use serde::Deserialize;

use crate::secret_ref::SecretRef;
use domain::id::{AppId, KeyId, SourceName};
use domain::platform::generic::Mapping;
use domain::platform::{MissedAck, Platform, SuccessBody};
use domain::seal::{KeyRing, parse_key};
use eventlog::topology::StreamSettings;

mod install_page;
mod oauth;
pub mod reload;
mod source;
mod verification;

pub use install_page::{DeclaredSecret, InstallPage, InstallPageSettings};
pub use oauth::OAuthSettings;
pub use verification::VerificationSettings;

const ENV_PREFIX: &str = "MOORING";
/// Load balancers keep idle connections for a minute.
const IDLE_TIMEOUT_MS: u64 = 75_000;

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub nats: NatsSettings,
    #[serde(default)]
    pub stream: StreamSettings,
    /// Only the worker needs it.
    pub postgres: Option<PostgresSettings>,
    pub sealing: SealingSettings,
    #[serde(default)]
    pub ingest: IngestSettings,
    #[serde(default)]
    pub worker: WorkerSettings,
    #[serde(default)]
    pub sources: BTreeMap<SourceName, SourceSettings>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NatsSettings {
    /// One URL, or several separated by commas.
    pub url: String,
    pub user: Option<String>,
    pub password: Option<SecretRef>,
    /// The server's monitoring address, where `sync_interval` can be checked.
    pub monitor_url: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PostgresSettings {
    pub url: String,
    pub password: Option<SecretRef>,
    #[serde(default = "default_connections_max")]
    pub connections_max: u32,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealingSettings {
    pub active: KeyId,
    pub keys: BTreeMap<KeyId, SecretRef>,
    pub fingerprint_key: SecretRef,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IngestSettings {
    pub listen: SocketAddr,
    pub body_bytes_max: usize,
    /// For the headers of a request, and again for its body.
    pub read_timeout_ms: u64,
    /// How long a connection may be idle: longer than a load balancer pools it.
    pub idle_timeout_ms: u64,
    pub connections_max: usize,
    pub shutdown_timeout_ms: u64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WorkerSettings {
    pub listen: SocketAddr,
    /// For the headers of a request.
    pub read_timeout_ms: u64,
    /// How long a connection may be idle: longer than a load balancer pools it.
    pub idle_timeout_ms: u64,
    pub connections_max: usize,
    pub batch_events_max: usize,
    pub ack_wait_ms: u64,
    pub shutdown_timeout_ms: u64,
    /// Keep the sealed secret in the projection after an installation ended.
    pub keep_ended_credentials: bool,
    pub api_tokens: BTreeMap<String, ApiTokenSettings>,
    /// Left out, nobody renews the tokens of OAuth.
    pub token_renewal: Option<TokenRenewalSettings>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRenewalSettings {
    /// A NATS user that may append events, which the worker's own may not.
    pub nats_user: Option<String>,
    pub nats_password: Option<SecretRef>,
    /// Tokens are renewed when they last no longer than this, or than half of
    /// what they lasted at first.
    #[serde(default = "default_before_expiry_s")]
    pub before_expiry_s: u64,
    /// How often tokens are looked for that end soon.
    #[serde(default = "default_renewal_every_ms")]
    pub every_ms: u64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiTokenSettings {
    pub token: SecretRef,
    pub scopes: Vec<Scope>,
}

/// What a caller of the read API may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Scope {
    #[serde(rename = "installations:read")]
    ReadInstallations,
    #[serde(rename = "credentials:open")]
    OpenCredentials,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceSettings {
    pub platform: Platform,
    /// Apps whose callbacks are accepted; empty accepts all.
    #[serde(default)]
    pub app_ids: Vec<AppId>,
    /// A platform that signs may be left to its default.
    #[serde(default)]
    pub verification: VerificationSettings,
    /// Where it differs from what the platform expects.
    #[serde(default)]
    pub ack: AckSettings,
    /// Tokens of the platform's API, where it grants them by OAuth 2.0.
    pub oauth: Option<OAuthSettings>,
    /// The page where users type the app's secrets, where the platform sends them to one.
    pub install_page: Option<InstallPageSettings>,
    /// How callbacks are read; for the platform `generic`.
    pub mapping: Option<Mapping>,
    /// Callbacks that may wait for the log at once; more are told to come again.
    #[serde(default = "default_callbacks_max")]
    pub callbacks_max: usize,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AckSettings {
    /// When the platform stops waiting.
    pub deadline_ms: Option<u64>,
    /// How long to keep trying to publish.
    pub budget_ms: Option<u64>,
    pub success_status: Option<u16>,
    pub success_body: Option<SuccessBody>,
    pub unavailable_status: Option<u16>,
    pub missed: Option<MissedAck>,
}

impl Default for IngestSettings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            body_bytes_max: 64 * 1024,
            read_timeout_ms: 3_000,
            idle_timeout_ms: IDLE_TIMEOUT_MS,
            connections_max: 4_096,
            shutdown_timeout_ms: 15_000,
        }
    }
}

impl Default for WorkerSettings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8081)),
            read_timeout_ms: 3_000,
            idle_timeout_ms: IDLE_TIMEOUT_MS,
            connections_max: 1_024,
            batch_events_max: 500,
            ack_wait_ms: 30_000,
            shutdown_timeout_ms: 15_000,
            keep_ended_credentials: false,
            api_tokens: BTreeMap::new(),
            token_renewal: None,
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

/// As many as the queue to the log holds.
fn default_callbacks_max() -> usize {
    8_192
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
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let env = config::Environment::with_prefix(ENV_PREFIX)
            .prefix_separator("__")
            .separator("__")
            .try_parsing(true);
        config::Config::builder()
            .add_source(config::File::from(path).format(config::FileFormat::Toml))
            .add_source(env)
            .build()
            .and_then(config::Config::try_deserialize)
            .map_err(|why| ConfigError { path: path.to_owned(), problems: vec![why.to_string()] })
    }
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

    pub fn key_ring(&mut self, sealing: &SealingSettings) -> Option<KeyRing> {
        let mut key = |at: &str, reference: &SecretRef| {
            let text = self.secret(at, reference)?;
            parse_key(&text).map_err(|why| self.problem(at, why)).ok()
        };
        let fingerprint_key = key("sealing.fingerprint_key", &sealing.fingerprint_key);
        let mut keys = BTreeMap::new();
        for (id, reference) in &sealing.keys {
            if let Some(key) = key(&format!("sealing.keys.{id}"), reference) {
                keys.insert(id.clone(), key);
            }
        }
        if keys.len() < sealing.keys.len() {
            return None;
        }
        KeyRing::new(sealing.active.clone(), &keys, fingerprint_key?)
            .map_err(|why| self.problem("sealing.active", why))
            .ok()
    }
}

#[cfg(test)]
mod tests;
