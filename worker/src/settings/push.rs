//! The endpoints that changes are pushed to.

use domain::webhook::WebhookKey;
use reqwest::Url;
use service::config::{Config, PushSettings, Resolver};

use crate::live::changes::TYPES;

/// A secret and a private key, and what each of them replaces.
const KEYS: std::ops::RangeInclusive<usize> = 1..=4;
/// It stands in the environment, in metrics and in commands.
const NAME_BYTES_MAX: usize = 40;

/// Where changes are pushed to. No `Debug`: the URL may hold a token.
pub(crate) struct Endpoint {
    pub(crate) name: String,
    pub(crate) url: Url,
    /// Each signs.
    pub(crate) keys: Vec<WebhookKey>,
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
    if !KEYS.contains(&settings.secrets.len()) {
        resolver.problem(&at("secrets"), "give one secret, or up to four while they are rotated");
    }
    let mut keys = Vec::new();
    for secret in &settings.secrets {
        let Some(secret) = resolver.secret(&at("secrets"), secret) else { continue };
        match WebhookKey::parse(&secret) {
            Ok(key) => keys.push(key),
            Err(why) => resolver.problem(&at("secrets"), why),
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
