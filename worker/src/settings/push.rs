//! The endpoints that changes are pushed to.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use reqwest::Url;
use secrecy::{ExposeSecret as _, SecretSlice};
use service::config::{Config, PushSettings, Resolver};

use crate::live::changes::TYPES;

const KEY_BYTES: std::ops::RangeInclusive<usize> = 24..=64;
/// It stands in the environment, in metrics and in commands.
const NAME_BYTES_MAX: usize = 40;

/// Where changes are pushed to. No `Debug`: the URL may hold a token.
pub(crate) struct Endpoint {
    pub(crate) name: String,
    pub(crate) url: Url,
    /// Each signs.
    pub(crate) keys: Vec<SecretSlice<u8>>,
    /// Empty is all.
    pub(crate) sources: Vec<String>,
    pub(crate) types: Vec<String>,
    pub(crate) allow_private: bool,
}

pub(super) fn resolve(config: &Config, resolver: &mut Resolver<'_>) -> Vec<Endpoint> {
    let all = config.worker.push.iter();
    all.filter_map(|(name, settings)| endpoint(name, settings, config, resolver)).collect()
}

fn endpoint(
    name: &str,
    settings: &PushSettings,
    config: &Config,
    resolver: &mut Resolver<'_>,
) -> Option<Endpoint> {
    let at = |setting: &str| format!("worker.push.{name}.{setting}");
    let is_name =
        name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if !is_name || name.is_empty() || name.len() > NAME_BYTES_MAX {
        let form = format!(
            "its name must have 1 to {NAME_BYTES_MAX} lower-case letters, digits and hyphens"
        );
        resolver.problem(&format!("worker.push.{name}"), form);
    }
    if let Some(unknown) = settings.types.iter().find(|it| !TYPES.contains(&it.as_str())) {
        let known = TYPES.join(", ");
        resolver.problem(&at("types"), format!("there is no '{unknown}'; there are {known}"));
    }
    let unknown = settings
        .sources
        .iter()
        .find(|it| !config.sources.keys().any(|source| source.as_str() == it.as_str()));
    if let Some(unknown) = unknown {
        resolver.problem(&at("sources"), format!("no source '{unknown}' is configured"));
    }
    if !(1..=2).contains(&settings.secrets.len()) {
        resolver.problem(&at("secrets"), "give one secret, or two while it is rotated");
    }
    let mut keys = Vec::new();
    for secret in &settings.secrets {
        let Some(secret) = resolver.secret(&at("secrets"), secret) else { continue };
        match key(secret.expose_secret()) {
            Some(key) => keys.push(key),
            None => resolver
                .problem(&at("secrets"), "a secret is not 'whsec_' and base64 of 24 to 64 bytes"),
        }
    }
    let url = Url::parse(&settings.url).ok().filter(|url| url.has_host());
    let is_safe =
        |url: &Url| url.scheme() == "https" || (url.scheme() == "http" && settings.allow_private);
    match url {
        Some(url) if is_safe(&url) && keys.len() == settings.secrets.len() => Some(Endpoint {
            name: name.to_owned(),
            url,
            keys,
            sources: settings.sources.clone(),
            types: settings.types.clone(),
            allow_private: settings.allow_private,
        }),
        Some(url) if is_safe(&url) => None,
        _ => {
            let form = "must be an https:// URL; with allow_private, http:// will do";
            resolver.problem(&at("url"), form);
            None
        }
    }
}

fn key(secret: &str) -> Option<SecretSlice<u8>> {
    let bytes = BASE64_STANDARD.decode(secret.strip_prefix("whsec_")?).ok()?;
    KEY_BYTES.contains(&bytes.len()).then(|| bytes.into())
}
