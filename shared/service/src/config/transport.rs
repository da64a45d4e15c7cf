//! How NATS and Postgres are reached, and that nothing leaves this machine in
//! plaintext unless the configuration accepts it by name.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use eventlog::connect::{ClientCertificate, Endpoint, EndpointTls};
use reqwest::Url;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Config, Resolver};
use crate::secret_ref::SecretRef;

/// What may go over a network in plaintext.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TransportSettings {
    /// Connections that may be in plaintext beyond this machine, by name. Who reads the network then
    /// reads what they carry, passwords included.
    pub allow: Vec<PlainTransport>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PlainTransport {
    /// To NATS: events and sealed keys, and the password of `nats.user`.
    PlainNats,
    /// To Postgres, or without a check of who answers (any `sslmode` but `verify-full`).
    PlainPostgres,
    /// To the read API: bearer tokens, and credentials in plaintext.
    PlainReadApi,
    /// To the archive: whoever is in between reads old events, and can refuse to keep them.
    PlainArchive,
}

impl PlainTransport {
    fn name(self) -> &'static str {
        match self {
            Self::PlainNats => "plain_nats",
            Self::PlainPostgres => "plain_postgres",
            Self::PlainReadApi => "plain_read_api",
            Self::PlainArchive => "plain_archive",
        }
    }
}

/// TLS to NATS.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NatsTlsSettings {
    /// The file with the certificates of who issues the server's, in PEM. The system's unless given.
    pub ca: Option<PathBuf>,
    /// The file with the certificate that is shown to the server. It is read again at each connect.
    pub certificate: Option<PathBuf>,
    /// The file with its private key.
    pub key: Option<PathBuf>,
}

/// As whom to connect to NATS, and the setting that says it.
pub struct NatsUser<'a> {
    pub at: &'a str,
    pub name: Option<&'a String>,
    pub password: Option<&'a SecretRef>,
    pub nkey_seed: Option<&'a SecretRef>,
}

impl Resolver<'_> {
    /// As the user of the section `nats`.
    pub fn nats(&mut self, config: &Config) -> Option<Endpoint> {
        let (name, password) = (config.nats.user.as_ref(), config.nats.password.as_ref());
        let nkey_seed = config.nats.nkey_seed.as_ref();
        self.nats_as(config, &NatsUser { at: "nats.", name, password, nkey_seed })
    }

    pub fn nats_as(&mut self, config: &Config, user: &NatsUser<'_>) -> Option<Endpoint> {
        let NatsUser { at, name, password, nkey_seed } = *user;
        let password = self.optional_secret(&format!("{at}password"), password);
        let nkey_seed = self.optional_secret(&format!("{at}nkey_seed"), nkey_seed);
        if let (Some(Some(_)), Some(Some(_))) = (&password, &nkey_seed) {
            self.problem(&format!("{at}nkey_seed"), "give this or a password, not both");
        }
        let tls = self.nats_tls(config);
        let is_encrypted =
            |url: &str| config.nats.tls.is_some() || url.starts_with("tls://") || is_local(url);
        for url in config.nats.url.split(',').map(str::trim).filter(|url| !is_encrypted(url)) {
            // A URL may hold a password.
            let host = parsed(url).and_then(|url| url.host_str().map(str::to_owned));
            let host = host.unwrap_or_else(|| "a server".to_owned());
            let what = format!("{host} would be reached in plaintext; use tls://");
            self.plain(config, PlainTransport::PlainNats, "nats.url", &what);
        }
        Some(Endpoint {
            url: config.nats.url.clone(),
            user: name.cloned(),
            password: password?,
            nkey_seed: nkey_seed?,
            tls: tls?,
        })
    }

    fn nats_tls(&mut self, config: &Config) -> Option<Option<EndpointTls>> {
        let Some(NatsTlsSettings { ca, certificate, key }) = &config.nats.tls else {
            return Some(None);
        };
        for file in [ca, certificate, key].into_iter().flatten() {
            if let Err(why) = std::fs::File::open(file) {
                self.problem("nats.tls", format!("the file {}: {why}", file.display()));
                return None;
            }
        }
        let client = match (certificate.clone(), key.clone()) {
            (Some(certificate), Some(key)) => Some(ClientCertificate { certificate, key }),
            (None, None) => None,
            _ => {
                self.problem("nats.tls", "give certificate and key, or neither");
                return None;
            }
        };
        Some(Some(EndpointTls { ca: ca.clone(), client }))
    }

    /// Where the read API listens.
    pub fn read_api(&mut self, config: &Config, listen: SocketAddr, has_tls: bool) {
        if !has_tls && !listen.ip().is_loopback() {
            let what = format!("{listen} would serve in plaintext; set worker.tls");
            self.plain(config, PlainTransport::PlainReadApi, "worker.listen", &what);
        }
    }

    /// What is wrong with an archive that would be reached in plaintext.
    pub fn archive_endpoint(&mut self, config: &Config, endpoint: &str) {
        if !endpoint.starts_with("https://") && !is_local(endpoint) {
            let what = format!("{endpoint} would be reached in plaintext; use https://");
            self.plain(config, PlainTransport::PlainArchive, "worker.archive.endpoint", &what);
        }
    }

    /// A problem, unless it is accepted by name.
    pub fn plain(&mut self, config: &Config, what: PlainTransport, at: &str, found: &str) {
        if !config.transport.allow.contains(&what) {
            let name = what.name();
            self.problem(at, format!("{found}, or accept it by transport.allow = [\"{name}\"]"));
        }
    }
}

/// Whether what is sent there stays on this machine.
fn is_local(url: &str) -> bool {
    parsed(url).is_some_and(|url| url.host_str().is_some_and(is_local_host))
}

/// The scheme may be left out.
fn parsed(url: &str) -> Option<Url> {
    let url = if url.contains("://") { url.to_owned() } else { format!("nats://{url}") };
    Url::parse(&url).ok()
}

pub fn is_local_host(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.to_canonical().is_loopback())
}
