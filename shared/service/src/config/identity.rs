//! Issuers of workload identities.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use reqwest::Url;
use schemars::JsonSchema;
use serde::Deserialize;

use super::api_tokens::default_requests_per_second;
use super::{Resolver, Scope, SourceChoice};
use crate::identity::{Algorithm, IssuerOptions};
use domain::id::AppId;

/// What platforms issue for workloads lasts an hour.
const LIFETIME_MAX_S: u64 = 24 * 3_600;

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IdentityProviderSettings {
    /// The `iss` of its tokens, and where its OpenID configuration is found.
    pub issuer: String,
    /// The `aud` of tokens that are meant for Mooring.
    pub audience: String,
    /// Where its keys are. Without it, its OpenID configuration says so.
    pub jwks_url: Option<String>,
    /// The algorithms that its tokens may be signed with.
    #[serde(default = "default_algorithms")]
    pub algorithms: Vec<Algorithm>,
    /// A token that ends later than this from now is refused: nobody can call it back.
    #[serde(default = "default_lifetime_max_s")]
    #[schemars(range(min = 1))]
    pub lifetime_max_s: u64,
    /// Who of those that it knows may call, by names of yours.
    pub callers: BTreeMap<String, IdentityCallerSettings>,
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IdentityCallerSettings {
    /// The claims that tell the caller, all of them: `{ sub = "…" }`. A name that begins with `/`
    /// is a JSON Pointer into the claims. A claim that is a list must contain the text.
    pub claims: BTreeMap<String, String>,
    /// What the caller may do.
    pub scopes: Vec<Scope>,
    /// The sources whose installations the caller reaches. `["*"]` is every source.
    pub sources: Vec<SourceChoice>,
    /// The apps whose installations the caller reaches; empty is every app of `sources`.
    #[serde(default)]
    pub app_ids: Vec<AppId>,
    /// Requests a second that each worker answers. Further ones get 429.
    #[serde(default = "default_requests_per_second")]
    pub requests_per_second: NonZeroU32,
}

fn default_algorithms() -> Vec<Algorithm> {
    vec![Algorithm::Rs256, Algorithm::Es256, Algorithm::EdDsa]
}

fn default_lifetime_max_s() -> u64 {
    LIFETIME_MAX_S
}

impl Resolver<'_> {
    pub fn issuer(
        &mut self,
        at: &str,
        settings: &IdentityProviderSettings,
    ) -> Option<IssuerOptions> {
        let issuer = self.issuer_url(&format!("{at}.issuer"), &settings.issuer);
        let jwks_url = match &settings.jwks_url {
            None => Some(None),
            Some(url) => self.issuer_url(&format!("{at}.jwks_url"), url).map(Some),
        };
        if settings.audience.is_empty() {
            self.problem(&format!("{at}.audience"), "must not be empty");
            return None;
        }
        if settings.algorithms.is_empty() {
            self.problem(&format!("{at}.algorithms"), "must name at least one");
            return None;
        }
        issuer?;
        Some(IssuerOptions {
            // As it is written: an `iss` is compared letter by letter.
            issuer: settings.issuer.clone(),
            audience: settings.audience.clone(),
            jwks_url: jwks_url?,
            algorithms: settings.algorithms.clone(),
            lifetime_max: Duration::from_secs(settings.lifetime_max_s),
        })
    }

    /// Keys that come over plain HTTP may be anybody's.
    fn issuer_url(&mut self, at: &str, text: &str) -> Option<Url> {
        let url = Url::parse(text).ok();
        let is_loopback = |url: &Url| {
            let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
            host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
        };
        let is_right =
            |url: &Url| url.scheme() == "https" || (url.scheme() == "http" && is_loopback(url));
        let url = url.filter(is_right);
        if url.is_none() {
            self.problem(at, "must be an https:// URL (http:// on loopback only)");
        }
        url
    }
}
