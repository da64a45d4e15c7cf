//! OAuth 2.0 at a source's platform.

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::Url;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Resolver, SourceSettings};
use crate::http_client;
use crate::oauth::{ClientAuthentication, FieldNames, OAuth, StatePolicy};
use crate::secret_ref::SecretRef;
use domain::id::SourceName;

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OAuthSettings {
    /// The app's id at the platform's authorization server.
    pub client_id: String,
    /// The secret that belongs to `client_id`.
    pub client_secret: SecretRef,
    /// The URL of `/oauth/<source>/callback`, as registered at the platform.
    pub redirect_uri: String,
    /// What to ask for.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// Whether a user may come back without the `state` that was given here. A wrong state is
    /// never accepted.
    #[serde(default)]
    pub state: StatePolicy,
    /// Where the browser goes when the app is connected. Without it a page says so.
    pub after_url: Option<String>,
    /// Where users grant access. Built in for HighLevel; needed for `generic` only if users start
    /// at `/oauth/<source>/authorize`. Parameters in the URL are kept.
    pub authorize_url: Option<String>,
    /// Where a code is exchanged for tokens. Built in for HighLevel, required for `generic`.
    pub token_url: Option<String>,
    /// Where the token of a company is exchanged for one of its location. Built in for HighLevel.
    pub location_token_url: Option<String>,
    /// How requests name their fields. Answers are read in both forms.
    #[serde(default)]
    pub field_names: FieldNames,
    /// How the app shows the token endpoint that it is itself.
    #[serde(default)]
    pub client_authentication: ClientAuthentication,
    /// Whether codes are bound to who was sent for them
    /// ([RFC 7636](https://www.rfc-editor.org/rfc/rfc7636), `S256`). Each user must start here then.
    #[serde(default)]
    pub pkce: bool,
    /// Headers of every request for tokens. HighLevel's `Version` is built in, and left out if
    /// this is given.
    pub headers: Option<BTreeMap<String, String>>,
    /// Parameters added to every request for tokens, such as HighLevel's `user_type`.
    #[serde(default)]
    pub parameters: BTreeMap<String, String>,
    /// The timeout of each of three attempts to get tokens.
    #[serde(default = "default_timeout_ms")]
    #[schemars(range(min = 1, max = TIMEOUT_MS_MAX))]
    pub timeout_ms: u64,
}

/// All attempts together are shorter than a worker's claim on a refresh token.
const TIMEOUT_MS_MAX: u64 = 15_000;

fn default_timeout_ms() -> u64 {
    5_000
}

impl Resolver<'_> {
    /// `None` if it is not usable; the problems are noted.
    pub fn oauth(&mut self, source: &SourceName, of: &SourceSettings) -> Option<Option<OAuth>> {
        let Some(settings) = &of.oauth else { return Some(None) };
        let at = format!("sources.{source}.oauth");
        if settings.timeout_ms == 0 || settings.timeout_ms > TIMEOUT_MS_MAX {
            self.problem(&at, format!("timeout_ms must be 1 to {TIMEOUT_MS_MAX}"));
        }
        let [app_id] = &of.app_ids[..] else {
            self.problem(&at, "app_ids must name the one app whose client_id this is");
            return None;
        };
        if settings.pkce && settings.state == StatePolicy::WhenPresent {
            self.problem(
                &at,
                "pkce needs state = \"required\": who starts elsewhere has no verifier",
            );
        }
        let rules = of.platform.oauth(of.mapping.as_ref());
        let rules = rules.map_err(|what| self.problem(&at, what)).ok()?;
        let url = |given: &Option<String>, default: Option<&str>| {
            given.clone().or_else(|| default.map(str::to_owned))
        };
        let Some(token_url) = url(&settings.token_url, rules.token_url) else {
            self.problem(&at, "token_url is needed for this platform");
            return None;
        };
        let authorize_url = url(&settings.authorize_url, rules.authorize_url);
        let location_token_url = url(&settings.location_token_url, rules.location_token_url);
        if settings.location_token_url.is_some() && rules.parentage.is_none() {
            self.problem(&at, "this platform has no location_token_url; remove it");
        }
        let token_url = self.https(&at, "token_url", &token_url);
        let redirect_uri = self.https(&at, "redirect_uri", &settings.redirect_uri);
        let authorize_url = self.optional_https(&at, "authorize_url", authorize_url);
        let location_token_url = self.optional_https(&at, "location_token_url", location_token_url);
        let after_url = self.optional_https(&at, "after_url", settings.after_url.clone());
        let client_secret = self.secret(&format!("{at}.client_secret"), &settings.client_secret);
        let headers = self.token_headers(&at, settings, rules.headers);
        let timeout = Duration::from_millis(settings.timeout_ms);
        let http = http_client::builder().timeout(timeout).build();
        let http = http.map_err(|error| self.problem(&at, error)).ok();
        Some(Some(OAuth {
            app_id: app_id.clone(),
            state: settings.state,
            after_url: after_url?,
            authorize_url: authorize_url?,
            token_url: token_url?,
            for_parts: location_token_url?.zip(rules.parentage),
            redirect_uri: redirect_uri?,
            scopes: settings.scopes.clone(),
            client_id: settings.client_id.clone(),
            client_secret: client_secret?,
            client_authentication: settings.client_authentication,
            pkce: settings.pkce,
            field_names: settings.field_names,
            headers: headers?,
            parameters: settings.parameters.clone(),
            http: http?,
        }))
    }

    fn token_headers(
        &mut self,
        at: &str,
        settings: &OAuthSettings,
        defaults: &[(&str, &str)],
    ) -> Option<HeaderMap> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        let form = HeaderValue::from_static("application/x-www-form-urlencoded");
        headers.insert(CONTENT_TYPE, form);
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let given = settings.headers.clone();
        for (name, value) in given.unwrap_or_else(|| defaults.iter().map(owned).collect()) {
            match (HeaderName::try_from(&name), HeaderValue::try_from(value)) {
                (Ok(name), Ok(value)) => headers.insert(name, value),
                _ => {
                    self.problem(at, format!("the header '{name}' or its value is not valid"));
                    return None;
                }
            };
        }
        Some(headers)
    }

    pub(super) fn optional_https(
        &mut self,
        at: &str,
        field: &str,
        text: Option<String>,
    ) -> Option<Option<Url>> {
        match text {
            None => Some(None),
            Some(text) => self.https(at, field, &text).map(Some),
        }
    }

    /// What carries secrets is encrypted, except to this machine itself.
    pub(super) fn https(&mut self, at: &str, field: &str, text: &str) -> Option<Url> {
        let url = Url::parse(text).ok().filter(|url| {
            let is_local = matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
            url.scheme() == "https" || (url.scheme() == "http" && is_local)
        });
        if url.is_none() {
            self.problem(at, format!("{field} must be an https:// URL"));
        }
        url
    }
}
