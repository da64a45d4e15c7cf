//! OAuth 2.0 at a source's platform.

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::Url;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Resolver, SourceSettings};
use crate::http_client;
use crate::oauth::{ClientAuthentication, Endpoint, FieldNames, OAuth, StatePolicy, Tenants};
use crate::secret_ref::SecretRef;
use domain::id::SourceName;
use domain::tokens::AnswerForm;

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
    /// Where the platform says whose a token is, if the answer with tokens does not: asked once with
    /// the token, by GET. The answer is added to that of the tokens as `/owner`, for the locators of
    /// the mapping.
    pub owner_url: Option<String>,
    /// If the platform has a host for each customer, such as a shop: the three URLs may begin with
    /// `https://{tenant}/` then.
    pub tenant: Option<TenantSettings>,
    /// What separates scopes: in the request, and in the answer.
    #[serde(default)]
    pub scope_separator: ScopeSeparator,
    /// A JSON Pointer to the object in the answer that holds the tokens, if that is not the answer
    /// itself.
    pub tokens_at: Option<String>,
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

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TenantSettings {
    /// The parameter that names the host, where a user starts and where they come back.
    pub parameter: String,
    /// The hosts that are the platform's, such as `*.example.com`, where the star is one name. No
    /// other one is asked: it would be sent the app's secret.
    pub hosts: Vec<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ScopeSeparator {
    /// As in RFC 6749.
    #[default]
    Space,
    /// As Slack, Shopify and GitHub do.
    Comma,
}

impl OAuthSettings {
    fn answer_form(&self) -> AnswerForm {
        AnswerForm {
            tokens_at: self.tokens_at.clone(),
            scopes_by_comma: self.scope_separator == ScopeSeparator::Comma,
        }
    }
}

impl ScopeSeparator {
    fn text(self) -> &'static str {
        match self {
            Self::Space => " ",
            Self::Comma => ",",
        }
    }
}

/// What is not given, or usable.
fn flattened<T>(given: Option<Option<T>>) -> Option<Option<T>> {
    match given {
        None => Some(None),
        Some(usable) => usable.map(Some),
    }
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
        let tenants = self.tenants(&at, settings.tenant.as_ref());
        let has_tenants = settings.tenant.is_some();
        let token_url = self.endpoint(&at, "token_url", &token_url, has_tenants);
        let owner_url = settings.owner_url.as_ref();
        let owner_url = owner_url.map(|url| self.endpoint(&at, "owner_url", url, has_tenants));
        let redirect_uri = self.https(&at, "redirect_uri", &settings.redirect_uri);
        let authorize_url = authorize_url.as_ref();
        let authorize_url =
            authorize_url.map(|url| self.endpoint(&at, "authorize_url", url, has_tenants));
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
            authorize_url: flattened(authorize_url)?,
            token_url: token_url?,
            tenants: tenants?,
            owner_url: flattened(owner_url)?,
            answer: settings.answer_form(),
            scope_separator: settings.scope_separator.text(),
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

    fn tenants(&mut self, at: &str, settings: Option<&TenantSettings>) -> Option<Option<Tenants>> {
        let Some(TenantSettings { parameter, hosts }) = settings else { return Some(None) };
        let is_host = |host: &String| {
            let name = host.strip_prefix("*.").unwrap_or(host);
            // A star before a top-level domain would be everybody's.
            let has_owner = name.contains('.') || !host.starts_with("*.");
            !name.is_empty() && has_owner && !name.contains(['*', '/', ':', '@'])
        };
        if hosts.is_empty() || !hosts.iter().all(is_host) {
            let what = "tenant.hosts must name hosts of the platform, such as '*.example.com'";
            self.problem(at, what);
            return None;
        }
        Some(Some(Tenants { parameter: parameter.clone(), hosts: hosts.clone() }))
    }

    fn endpoint(
        &mut self,
        at: &str,
        field: &str,
        text: &str,
        has_tenants: bool,
    ) -> Option<Endpoint> {
        match text.strip_prefix("https://{tenant}") {
            Some(path) if has_tenants && path.starts_with('/') => {
                Some(Endpoint::PerTenant { path: path.to_owned() })
            }
            Some(_) => {
                let what = "'https://{tenant}/' needs a path, and 'tenant' beside it";
                self.problem(at, format!("{field}: {what}"));
                None
            }
            None => self.https(at, field, text).map(Endpoint::Same),
        }
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
