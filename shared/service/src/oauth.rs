//! OAuth 2.0 (RFC 6749): what is asked of a platform's token endpoint, and what
//! comes of its answers. Tokens are in memory only until they are sealed.

use std::collections::BTreeMap;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable as _};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use domain::id::AppId;
use domain::platform::Parentage;
use domain::tokens::{AnswerForm, Issued, Tokens};
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap};
use reqwest::{RequestBuilder, Response, StatusCode, Url};
use schemars::JsonSchema;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

const ANSWER_BYTES_MAX: usize = 64 * 1024;
const ATTEMPTS: usize = 3;
const JSON: &str = "application/json";

/// The names of the fields in requests. Answers are read in both forms.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FieldNames {
    /// As in RFC 6749: `client_id`.
    #[default]
    SnakeCase,
    /// As in HighLevel's version 3: `clientId`.
    CamelCase,
}

/// Whether a redirect without `state` is accepted. One with a wrong `state`
/// never is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StatePolicy {
    /// The user must start here.
    #[default]
    Required,
    /// The user may start at the platform and bring no state.
    WhenPresent,
}

/// How an app shows the token endpoint that it is itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClientAuthentication {
    /// `client_id` and `client_secret` in the form.
    #[default]
    ClientSecretPost,
    /// Both in the header `Authorization` (RFC 6749, section 2.3.1).
    ClientSecretBasic,
    /// All parameters in a JSON object in place of a form, which is not of RFC 6749.
    ClientSecretJson,
}

/// An address of the platform, which may be another one for each of its customers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Same(Url),
    /// `https://`, the customer's host, and this.
    PerTenant {
        path: String,
    },
}

impl Endpoint {
    fn url(&self, tenant: Option<&Tenant>) -> Result<Url, TokenError> {
        match (self, tenant) {
            (Self::Same(url), _) => Ok(url.clone()),
            (Self::PerTenant { path }, Some(Tenant(host))) => {
                let url = Url::parse(&format!("https://{host}{path}"));
                url.map_err(|_| TokenError::Malformed { why: "the host is not one".to_owned() })
            }
            (Self::PerTenant { .. }, None) => {
                Err(TokenError::Malformed { why: "it is not known whose host to ask".to_owned() })
            }
        }
    }
}

/// Where a platform has a host for each customer: what names it, and which are the platform's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenants {
    pub(crate) parameter: String,
    /// `name.example` or `*.name.example`.
    pub(crate) hosts: Vec<String>,
}

/// A host of the platform, of one customer. Only [`OAuth::tenant`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant(String);

impl Tenants {
    fn find(&self, host: &str) -> Option<Tenant> {
        let is_label = |label: &str| {
            !label.is_empty()
                && !label.starts_with('-')
                && label
                    .bytes()
                    .all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || it == b'-')
        };
        let is_host = host.len() <= 253 && host.split('.').all(is_label);
        let is_known = |known: &String| match known.strip_prefix("*.") {
            None => host == known,
            // One label, so that nobody's host below a customer's is taken for the platform's.
            Some(of) => host.split_once('.').is_some_and(|(_, rest)| rest == of),
        };
        (is_host && self.hosts.iter().any(is_known)).then(|| Tenant(host.to_owned()))
    }
}

/// What a code is bound to (RFC 7636): who exchanges it must know what was hashed
/// when the user was sent for it.
pub struct Pkce(SecretString);

impl Pkce {
    /// `verifier` has 43 to 128 letters and digits.
    pub fn new(verifier: SecretString) -> Self {
        Self(verifier)
    }

    /// By the method `S256`.
    fn challenge(&self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(self.0.expose_secret()))
    }
}

/// An app at a platform's authorization server.
#[derive(Debug, Clone)]
pub struct OAuth {
    pub app_id: AppId,
    pub state: StatePolicy,
    /// Where the browser goes when all is done.
    pub after_url: Option<Url>,
    pub(crate) authorize_url: Option<Endpoint>,
    pub(crate) token_url: Endpoint,
    pub(crate) tenants: Option<Tenants>,
    /// Where the platform says whose a token is, if its answer does not.
    pub(crate) owner_url: Option<Endpoint>,
    pub(crate) answer: AnswerForm,
    pub(crate) scope_separator: &'static str,
    /// Where the tokens of a parent are exchanged for those of its parts.
    pub(crate) for_parts: Option<(Url, Parentage)>,
    pub(crate) redirect_uri: Url,
    pub(crate) scopes: Vec<String>,
    pub(crate) client_id: String,
    pub(crate) client_secret: SecretString,
    pub(crate) client_authentication: ClientAuthentication,
    /// Whether codes are bound to who was sent for them.
    pub pkce: bool,
    pub(crate) field_names: FieldNames,
    pub(crate) headers: HeaderMap,
    pub(crate) parameters: BTreeMap<String, String>,
    pub(crate) http: reqwest::Client,
}

/// Why there are no tokens. None of them repeats what was sent or answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("the token endpoint refused with {status} {code}")]
    Refused { status: u16, code: String },
    #[error("the token endpoint is not available: {why}")]
    Unavailable { why: String },
    #[error("the token endpoint's answer is not understood: {why}")]
    Malformed { why: String },
}

impl TokenError {
    /// The value of `mooring.result` in metrics.
    pub fn result(&self) -> &'static str {
        match self {
            Self::Refused { .. } => "refused",
            Self::Unavailable { .. } | Self::Malformed { .. } => "failed",
        }
    }
}

type Parameters<'a> = Vec<(&'a str, &'a str)>;

impl OAuth {
    /// Where a user grants access; `None` if only the platform itself sends
    /// users there.
    pub fn authorize_url(
        &self,
        tenant: Option<&Tenant>,
        state: &str,
        pkce: Option<&Pkce>,
    ) -> Option<Url> {
        let mut url = self.authorize_url.as_ref()?.url(tenant).ok()?;
        url.query_pairs_mut()
            .append_pair("response_type", "code")
            .append_pair("client_id", &self.client_id)
            .append_pair("redirect_uri", self.redirect_uri.as_str())
            .append_pair("scope", &self.scopes.join(self.scope_separator))
            .append_pair("state", state);
        if let Some(pkce) = pkce {
            url.query_pairs_mut()
                .append_pair("code_challenge", &pkce.challenge())
                .append_pair("code_challenge_method", "S256");
        }
        Some(url)
    }

    /// Whose host is asked, by the query of the user's request. A host that is not the platform's
    /// is none: it would be sent the app's secret.
    pub fn tenant(&self, query: &str) -> Option<Tenant> {
        let tenants = self.tenants.as_ref()?;
        let mut pairs = form_urlencoded::parse(query.as_bytes());
        let (_, host) = pairs.find(|(name, _)| *name == tenants.parameter)?;
        tenants.find(&host)
    }

    /// The same of an installation that a user granted so, by its scope.
    pub fn tenant_of(&self, scope: &BTreeMap<String, String>) -> Option<Tenant> {
        let tenants = self.tenants.as_ref()?;
        tenants.find(scope.get(&format!("query:{}", tenants.parameter))?)
    }

    /// Section 4.1.3.
    pub async fn exchange(
        &self,
        tenant: Option<&Tenant>,
        code: &SecretString,
        pkce: Option<&Pkce>,
    ) -> Result<Issued, TokenError> {
        let mut asked = vec![
            ("grant_type", "authorization_code"),
            ("code", code.expose_secret()),
            ("redirect_uri", self.redirect_uri.as_str()),
        ];
        if let Some(Pkce(verifier)) = pkce {
            asked.push(("code_verifier", verifier.expose_secret()));
        }
        let issued = self.ask_for_tokens(tenant, asked).await?;
        let Some(url) = &self.owner_url else { return Ok(issued) };
        let owner = self.owner(url.url(tenant)?, &issued.tokens).await?;
        Ok(issued.with_owner(owner))
    }

    /// Whose the tokens are, as the platform says to who has them.
    async fn owner(&self, url: Url, tokens: &Tokens) -> Result<Map<String, Value>, TokenError> {
        let bearer = tokens.access_token.expose_secret();
        retried(|| async {
            let request = self.http.get(url.clone()).header(ACCEPT, "application/json");
            let body = answer(request.bearer_auth(bearer).send().await).await?;
            let owner = serde_json::from_slice(&body);
            owner.map_err(|_| TokenError::Malformed { why: "the owner is not JSON".to_owned() })
        })
        .await
    }

    /// Section 6. The new tokens hold the old refresh token if none was issued.
    pub async fn refresh(
        &self,
        tenant: Option<&Tenant>,
        refresh_token: &SecretString,
    ) -> Result<Issued, TokenError> {
        let asked =
            vec![("grant_type", "refresh_token"), ("refresh_token", refresh_token.expose_secret())];
        let mut issued = self.ask_for_tokens(tenant, asked).await?;
        issued.tokens.refresh_token.get_or_insert_with(|| refresh_token.clone());
        Ok(issued)
    }

    /// Which installations are parts of others whose tokens can be exchanged.
    pub fn parentage(&self) -> Option<&Parentage> {
        self.for_parts.as_ref().map(|(_, parentage)| parentage)
    }

    /// A token of one part, for that of its parent. `request` names both.
    pub async fn for_part(
        &self,
        parent: &Tokens,
        request: &[(&'static str, String)],
    ) -> Result<Issued, TokenError> {
        let Some((url, _)) = &self.for_parts else {
            return Err(TokenError::Unavailable { why: "no location_token_url is set".into() });
        };
        let body = form(request.iter().map(|(name, value)| (*name, value.as_str())));
        let bearer = parent.access_token.expose_secret();
        retried(|| async {
            let request = self.http.post(url.clone()).headers(self.headers.clone());
            self.read(request.bearer_auth(bearer).body(body.clone()).send().await).await
        })
        .await
    }

    async fn ask_for_tokens(
        &self,
        tenant: Option<&Tenant>,
        mut asked: Parameters<'_>,
    ) -> Result<Issued, TokenError> {
        let url = self.token_url.url(tenant)?;
        let in_header = self.client_authentication == ClientAuthentication::ClientSecretBasic;
        if !in_header {
            asked.push(("client_id", &self.client_id));
            asked.push(("client_secret", self.client_secret.expose_secret()));
        }
        asked.extend(self.parameters.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let named = asked.iter().map(|(name, value)| match self.field_names {
            FieldNames::SnakeCase => ((*name).to_owned(), *value),
            FieldNames::CamelCase => (camel_case(name), *value),
        });
        let in_json = self.client_authentication == ClientAuthentication::ClientSecretJson;
        let body = if in_json {
            let fields: Map<String, Value> =
                named.map(|(name, value)| (name, Value::from(value))).collect();
            Value::Object(fields).to_string()
        } else {
            form(named)
        };
        retried(|| async {
            let request = self.http.post(url.clone()).headers(self.headers.clone());
            let request = if in_json { request.header(CONTENT_TYPE, JSON) } else { request };
            let request = if in_header { self.with_basic(request) } else { request };
            self.read(request.body(body.clone()).send().await).await
        })
        .await
    }

    async fn read(&self, sent: reqwest::Result<Response>) -> Result<Issued, TokenError> {
        let issued = Issued::parse(&answer(sent).await?, crate::clock::now(), &self.answer);
        issued.map_err(|why| TokenError::Malformed { why: why.to_string() })
    }

    /// Each is encoded as in a form, before both are joined.
    fn with_basic(&self, request: RequestBuilder) -> RequestBuilder {
        let encoded =
            |text: &str| -> String { form_urlencoded::byte_serialize(text.as_bytes()).collect() };
        let secret = encoded(self.client_secret.expose_secret());
        request.basic_auth(encoded(&self.client_id), Some(secret))
    }
}

fn form<N: AsRef<str>, V: AsRef<str>>(parameters: impl IntoIterator<Item = (N, V)>) -> String {
    form_urlencoded::Serializer::new(String::new()).extend_pairs(parameters).finish()
}

async fn retried<T, F>(ask: impl FnMut() -> F) -> Result<T, TokenError>
where
    F: Future<Output = Result<T, TokenError>>,
{
    let waits = ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(200))
        .with_max_times(ATTEMPTS - 1)
        .with_jitter();
    ask.retry(waits).when(|error| matches!(error, TokenError::Unavailable { .. })).await
}

/// The body of a success.
async fn answer(sent: reqwest::Result<Response>) -> Result<Vec<u8>, TokenError> {
    let unavailable = |error: reqwest::Error| {
        let why = if error.is_timeout() { "no answer in time" } else { "no connection" };
        TokenError::Unavailable { why: why.to_owned() }
    };
    let mut response = sent.map_err(unavailable)?;
    let status = response.status();
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(unavailable)? {
        body.extend_from_slice(&chunk);
        if body.len() > ANSWER_BYTES_MAX {
            let why = format!("it has more than {ANSWER_BYTES_MAX} bytes");
            return Err(TokenError::Malformed { why });
        }
    }
    if status.is_success() {
        return Ok(body);
    }
    let come_again = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS];
    if status.is_server_error() || come_again.contains(&status) {
        return Err(TokenError::Unavailable { why: format!("it answered {status}") });
    }
    Err(TokenError::Refused { status: status.as_u16(), code: error_code(&body) })
}

/// The `error` of section 5.2, which is one of a few words; what else the
/// answer says might repeat a secret.
fn error_code(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Refusal {
        error: String,
    }
    const CODE_BYTES_MAX: usize = 40;
    let code =
        serde_json::from_slice(body).map_or_else(|_| String::new(), |Refusal { error }| error);
    let is_word = |code: &str| code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    if code.len() <= CODE_BYTES_MAX && is_word(&code) { code } else { String::new() }
}

fn camel_case(name: &str) -> String {
    let mut parts = name.split('_');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |mut camel, part| {
        let mut chars = part.chars();
        camel.extend(chars.next().map(|first| first.to_ascii_uppercase()));
        camel.push_str(chars.as_str());
        camel
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_written_in_both_forms() {
        assert_eq!(camel_case("client_id"), "clientId");
        assert_eq!(camel_case("code"), "code");
        assert_eq!(camel_case("user_type"), "userType");
    }

    /// The example of RFC 7636, appendix B.
    #[test]
    fn a_challenge_is_the_hash_of_its_verifier() {
        let pkce = Pkce::new("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk".into());
        assert_eq!(pkce.challenge(), "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
    }

    #[test]
    fn only_a_host_of_the_platform_is_a_tenants() {
        let tenants = Tenants {
            parameter: "shop".to_owned(),
            hosts: vec!["*.shops.example".to_owned(), "one.example".to_owned()],
        };
        for host in ["a.shops.example", "a-1.shops.example", "one.example"] {
            assert!(tenants.find(host).is_some(), "{host}");
        }
        for host in [
            "",
            "shops.example",
            ".shops.example",
            "a.b.shops.example",
            "evil.example",
            "a.shops.example.evil.example",
            "evil.example/.shops.example",
            "a.shops.example:8080",
            "a@evil.example#.shops.example",
            "user:a.shops.example",
            "A.shops.example",
            "-a.shops.example",
            "a.one.example",
        ] {
            assert!(tenants.find(host).is_none(), "{host}");
        }
        let endpoint = Endpoint::PerTenant { path: "/token".to_owned() };
        let tenant = tenants.find("a.shops.example");
        let url = endpoint.url(tenant.as_ref()).unwrap();
        assert_eq!(url.as_str(), "https://a.shops.example/token");
        assert!(endpoint.url(None).is_err());
    }

    #[test]
    fn of_a_refusal_only_a_code_is_kept() {
        assert_eq!(error_code(br#"{"error":"invalid_grant"}"#), "invalid_grant");
        for other in [&br#"{"error":"the code abc123 is used"}"#[..], b"<html>", b"{}", b""] {
            assert_eq!(error_code(other), "");
        }
    }
}
