//! OAuth 2.0 (RFC 6749): what is asked of a platform's token endpoint, and what
//! comes of its answers. Tokens are in memory only until they are sealed.

use std::collections::BTreeMap;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable as _};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use domain::id::AppId;
use domain::platform::Parentage;
use domain::tokens::{Issued, Tokens};
use reqwest::header::HeaderMap;
use reqwest::{RequestBuilder, Response, StatusCode, Url};
use schemars::JsonSchema;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

const ANSWER_BYTES_MAX: usize = 64 * 1024;
const ATTEMPTS: usize = 3;

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
    pub(crate) authorize_url: Option<Url>,
    pub(crate) token_url: Url,
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
    pub fn authorize_url(&self, state: &str, pkce: Option<&Pkce>) -> Option<Url> {
        let mut url = self.authorize_url.clone()?;
        url.query_pairs_mut()
            .append_pair("response_type", "code")
            .append_pair("client_id", &self.client_id)
            .append_pair("redirect_uri", self.redirect_uri.as_str())
            .append_pair("scope", &self.scopes.join(" "))
            .append_pair("state", state);
        if let Some(pkce) = pkce {
            url.query_pairs_mut()
                .append_pair("code_challenge", &pkce.challenge())
                .append_pair("code_challenge_method", "S256");
        }
        Some(url)
    }

    /// Section 4.1.3.
    pub async fn exchange(
        &self,
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
        self.ask_for_tokens(asked).await
    }

    /// Section 6. The new tokens hold the old refresh token if none was issued.
    pub async fn refresh(&self, refresh_token: &SecretString) -> Result<Issued, TokenError> {
        let asked =
            vec![("grant_type", "refresh_token"), ("refresh_token", refresh_token.expose_secret())];
        let mut issued = self.ask_for_tokens(asked).await?;
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
            read(request.bearer_auth(bearer).body(body.clone()).send().await).await
        })
        .await
    }

    async fn ask_for_tokens(&self, mut asked: Parameters<'_>) -> Result<Issued, TokenError> {
        let in_form = self.client_authentication == ClientAuthentication::ClientSecretPost;
        if in_form {
            asked.push(("client_id", &self.client_id));
            asked.push(("client_secret", self.client_secret.expose_secret()));
        }
        asked.extend(self.parameters.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let body = match self.field_names {
            FieldNames::SnakeCase => form(asked),
            FieldNames::CamelCase => {
                form(asked.iter().map(|(name, value)| (camel_case(name), *value)))
            }
        };
        retried(|| async {
            let request = self.http.post(self.token_url.clone()).headers(self.headers.clone());
            let request = if in_form { request } else { self.with_basic(request) };
            read(request.body(body.clone()).send().await).await
        })
        .await
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

async fn retried<F>(ask: impl FnMut() -> F) -> Result<Issued, TokenError>
where
    F: Future<Output = Result<Issued, TokenError>>,
{
    let waits = ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(200))
        .with_max_times(ATTEMPTS - 1)
        .with_jitter();
    ask.retry(waits).when(|error| matches!(error, TokenError::Unavailable { .. })).await
}

async fn read(sent: reqwest::Result<Response>) -> Result<Issued, TokenError> {
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
        let issued = Issued::parse(&body, crate::clock::now());
        return issued.map_err(|why| TokenError::Malformed { why: why.to_string() });
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
    fn of_a_refusal_only_a_code_is_kept() {
        assert_eq!(error_code(br#"{"error":"invalid_grant"}"#), "invalid_grant");
        for other in [&br#"{"error":"the code abc123 is used"}"#[..], b"<html>", b"{}", b""] {
            assert_eq!(error_code(other), "");
        }
    }
}
