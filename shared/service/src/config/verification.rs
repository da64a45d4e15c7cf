//! How a source says what proof its callbacks must carry.

use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::HeaderName;
use http::header::AUTHORIZATION;
use jiff::SignedDuration;
use schemars::JsonSchema;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;

use super::{CallbackMethod, Resolver, SourceSettings};
use crate::identity::KeyCache;
use crate::secret_ref::SecretRef;
use domain::id::SourceName;
use domain::jwt::{Algorithm, Jwt, Keys, TokenIn};
use domain::platform::generic::Locator;
use domain::platform::highlevel::SignatureSettings;
use domain::signature::{
    Encoding, Hmac, HmacAlgorithm, PublicKey, PublicKeySignature, Scheme, SignedTimestamp,
    StandardWebhooks,
};
use domain::verify::{Check, Verification};

/// A shared secret that can be guessed verifies nothing.
const SHARED_SECRET_BYTES_MIN: usize = 20;
/// The value in use and the one it is rotated to.
const SHARED_SECRET_VALUES_MAX: usize = 2;

/// All that is given must pass.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct VerificationSettings {
    /// Accepts callbacks from anyone. A source without any verification must say so.
    pub unverified: bool,
    /// The last segment of the callback URL is one of these tokens. A source without this setting
    /// refuses a URL with a token.
    pub path_tokens: Vec<SecretRef>,
    /// A header that holds a shared secret.
    pub header: Option<HeaderSettings>,
    /// A user and password ([RFC 7617](https://www.rfc-editor.org/rfc/rfc7617)).
    pub basic_auth: Option<BasicAuthSettings>,
    /// An HMAC of the raw body ([RFC 2104](https://www.rfc-editor.org/rfc/rfc2104)).
    pub hmac: Option<HmacSettings>,
    /// An Ed25519 signature of the raw body
    /// ([RFC 8032](https://www.rfc-editor.org/rfc/rfc8032)).
    pub ed25519: Option<Ed25519Settings>,
    /// A `v1` signature of [Standard Webhooks](https://www.standardwebhooks.com), at most five
    /// minutes old.
    pub standard_webhooks: Option<StandardWebhooksSettings>,
    /// A token that the platform signed ([RFC 7519](https://www.rfc-editor.org/rfc/rfc7519)).
    pub jwt: Option<JwtSettings>,
    /// HighLevel's signature. Required by default for that platform.
    pub highlevel: Option<SignatureSettings>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HeaderSettings {
    /// The header's name. It must be there exactly once.
    pub name: String,
    /// The secret that the header holds, or two while it is rotated; each at least 20 bytes.
    pub values: Vec<SecretRef>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BasicAuthSettings {
    /// The user's name.
    pub user: String,
    /// The password, or two while it is rotated; each at least 20 bytes.
    pub passwords: Vec<SecretRef>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HmacSettings {
    /// The headers that may hold the signature: more than one if the platform also signs with the
    /// old secret while a new one is introduced.
    pub headers: Vec<String>,
    /// The hash function of the HMAC.
    #[serde(default)]
    pub algorithm: HmacAlgorithm,
    /// How the signature is written.
    #[serde(default)]
    pub encoding: Encoding,
    /// What precedes the signature in the header, such as `sha256=`.
    #[serde(default)]
    pub prefix: String,
    /// If the header is a list such as `t=1,v1=ab`: the name of the signatures in it, here `v1`.
    pub field: Option<String>,
    /// The shared secret, or two while it is rotated; each at least 20 bytes.
    pub secrets: Vec<SecretRef>,
    /// The time of sending, if it is signed with the body.
    pub timestamp: Option<SignedTimestampSettings>,
}

/// A header with the time of sending, which is signed with the body.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SignedTimestampSettings {
    /// The header that holds it, in seconds or milliseconds since 1970.
    pub header: String,
    /// If the header is a list such as `t=1,v1=ab`: the name of the time in it, here `t`.
    pub field: Option<String>,
    /// What is signed, such as `v0:{timestamp}:{body}`. It must end with `{body}`.
    #[serde(default = "default_signed")]
    pub signed: String,
    /// How old a callback may be, or how far in the future.
    #[serde(default = "default_tolerance_s")]
    #[schemars(range(min = 1, max = 3600))]
    pub tolerance_s: u32,
}

fn default_signed() -> String {
    "{timestamp}.{body}".to_owned()
}

fn default_tolerance_s() -> u32 {
    300
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ed25519Settings {
    /// The header that holds the signature.
    pub header: String,
    /// How the signature is written.
    #[serde(default)]
    pub encoding: Encoding,
    /// The platform's public keys in PEM, of which one must have signed.
    pub public_keys: Vec<String>,
    /// The time of sending, if it is signed with the body.
    pub timestamp: Option<SignedTimestampSettings>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StandardWebhooksSettings {
    /// The secret as the platform shows it (`whsec_…`), or two while it is rotated.
    pub secrets: Vec<SecretRef>,
}

/// The token must have an `exp`, and be of now. A token in a header proves who sent the callback and
/// not what its body says, so that a path token must, too.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JwtSettings {
    /// The header that holds the token, alone or after `Bearer`. Left out, the body is the token.
    pub header: Option<String>,
    /// The one algorithm that is accepted.
    pub algorithm: Algorithm,
    /// For `HS256`: the shared secret, or two while it is rotated; each at least 20 bytes.
    #[serde(default)]
    pub secrets: Vec<SecretRef>,
    /// For the others: the platform's public keys in PEM.
    #[serde(default)]
    pub public_keys: Vec<String>,
    /// Or where the platform publishes them ([RFC 7517](https://www.rfc-editor.org/rfc/rfc7517)).
    /// They are kept for five minutes, and for a day while the platform cannot be asked.
    pub jwks_url: Option<String>,
    /// What `iss` must be.
    pub issuer: Option<String>,
    /// What `aud` must be or hold.
    pub audience: Option<String>,
    /// By how much the clocks may differ.
    #[serde(default = "default_jwt_tolerance_s")]
    #[schemars(range(min = 0, max = 3600))]
    pub tolerance_s: u32,
}

fn default_jwt_tolerance_s() -> u32 {
    60
}

impl Resolver<'_> {
    pub fn verification(
        &mut self,
        source: &SourceName,
        settings: &SourceSettings,
    ) -> Option<Verification> {
        let at = format!("sources.{source}.verification");
        let given = settings.verification.clone();
        let unverified = given.unverified;
        let default = settings.platform.default_check().filter(|_| !unverified);
        let checks = self.checks(&at, given, default)?;
        match (unverified, checks.is_empty()) {
            (true, true) => Some(Verification::Unverified),
            (true, false) => {
                self.problem(&at, "'unverified = true' cannot be combined with other checks");
                None
            }
            (false, true) => {
                self.problem(
                    &at,
                    "give path_tokens, header, basic_auth, hmac, ed25519, standard_webhooks or jwt, \
                     or say 'unverified = true' to accept callbacks from anyone",
                );
                None
            }
            (false, false) => {
                let verification = Verification::All(checks);
                self.proof_decides(source, settings, &verification);
                Some(verification)
            }
        }
    }

    /// What is read from where no proof reaches could be changed in a captured callback,
    /// so that an install becomes an uninstall, or one event two.
    fn proof_decides(
        &mut self,
        source: &SourceName,
        settings: &SourceSettings,
        verification: &Verification,
    ) {
        let Some(mapping) = &settings.mapping else { return };
        // Of a GET the query is read as the body.
        let reads_query = settings.methods.contains(&CallbackMethod::Get);
        for (setting, locator) in mapping.deciding() {
            let is_open = match locator {
                Locator::Claim(_) | Locator::Value(_) => false,
                Locator::Body(_) => {
                    verification.leaves_body_open()
                        || reads_query && verification.leaves_query_open()
                }
                Locator::Header(name) => verification.leaves_open(name),
                Locator::Query(_) | Locator::Method => verification.leaves_query_open(),
            };
            if is_open {
                let at = format!("sources.{source}.mapping.{setting}");
                let what = format!(
                    "'{locator}' is not covered by the signature, so a captured callback could be \
                     sent again as another event; ask for verification.path_tokens (or header, or \
                     basic_auth), too"
                );
                self.problem(&at, what);
            }
        }
    }

    /// `None` if one of them cannot be made; the problem is noted.
    fn checks(
        &mut self,
        at: &str,
        given: VerificationSettings,
        default: Option<Result<Check, String>>,
    ) -> Option<Vec<Check>> {
        let VerificationSettings {
            unverified: _,
            path_tokens,
            header,
            basic_auth,
            hmac,
            ed25519,
            standard_webhooks,
            jwt,
            highlevel,
        } = given;
        let mut checks = Vec::new();
        if !path_tokens.is_empty() {
            let tokens = self.shared_secrets(&format!("{at}.path_tokens"), &path_tokens);
            checks.push(tokens.map(Check::PathToken));
        }
        if let Some(settings) = header {
            checks.push(self.header(&format!("{at}.header"), &settings));
        }
        if let Some(settings) = basic_auth {
            checks.push(self.basic_auth(&format!("{at}.basic_auth"), &settings));
        }
        if let Some(settings) = hmac {
            checks.push(self.hmac(&format!("{at}.hmac"), settings));
        }
        if let Some(settings) = ed25519 {
            let at = format!("{at}.ed25519");
            let name = self.header_name(&at, &settings.header);
            let keys = PublicKey::all_from_pem(&settings.public_keys);
            let keys = keys.map_err(|what| self.problem(&at, what)).ok();
            let timestamp = self.timestamp(&at, settings.timestamp);
            checks.push(name.zip(keys).zip(timestamp).map(|((header, keys), timestamp)| {
                let scheme = Scheme { header, encoding: settings.encoding, keys };
                Check::PublicKey(PublicKeySignature { schemes: vec![scheme], timestamp })
            }));
        }
        if let Some(settings) = standard_webhooks {
            checks.push(self.standard_webhooks(&format!("{at}.standard_webhooks"), &settings));
        }
        if let Some(settings) = jwt {
            checks.push(self.jwt(&format!("{at}.jwt"), &settings).map(Check::Jwt));
        }
        if let Some(check) = highlevel.map(|settings| settings.check()).or(default) {
            let at = format!("{at}.highlevel");
            checks.push(check.map_err(|what| self.problem(&at, what)).ok());
        }
        checks.into_iter().collect()
    }

    fn header(&mut self, at: &str, settings: &HeaderSettings) -> Option<Check> {
        let name = self.header_name(at, &settings.name);
        let values = self.shared_secrets(at, &settings.values);
        Some(Check::Header { name: name?, values: values? })
    }

    fn basic_auth(&mut self, at: &str, settings: &BasicAuthSettings) -> Option<Check> {
        let passwords = self.shared_secrets(at, &settings.passwords)?;
        let value = |password: SecretString| {
            let pair = format!("{}:{}", settings.user, password.expose_secret());
            SecretString::from(format!("Basic {}", BASE64_STANDARD.encode(pair)))
        };
        let values = passwords.into_iter().map(value).collect();
        Some(Check::Header { name: AUTHORIZATION, values })
    }

    fn hmac(&mut self, at: &str, settings: HmacSettings) -> Option<Check> {
        if settings.headers.is_empty() {
            self.problem(at, "headers must name the header of the signature");
        }
        let headers: Vec<Option<HeaderName>> =
            settings.headers.iter().map(|name| self.header_name(at, name)).collect();
        let secrets = self.shared_secrets(at, &settings.secrets);
        let HmacSettings { algorithm, encoding, prefix, field, timestamp, .. } = settings;
        let timestamp = self.timestamp(at, timestamp);
        let headers = headers.into_iter().collect::<Option<Vec<_>>>()?;
        let (secrets, timestamp) = (secrets?, timestamp?);
        Some(Check::Hmac(Hmac { headers, algorithm, encoding, prefix, field, secrets, timestamp }))
    }

    fn jwt(&mut self, at: &str, settings: &JwtSettings) -> Option<Jwt> {
        self.in_range(&format!("{at}.tolerance_s"), settings.tolerance_s, &(0..=3_600));
        let token_in = match &settings.header {
            None => TokenIn::Body,
            Some(name) => TokenIn::Header(self.header_name(at, name)?),
        };
        let is_shared = settings.algorithm == Algorithm::Hs256;
        let given = (
            !settings.secrets.is_empty(),
            !settings.public_keys.is_empty(),
            settings.jwks_url.as_ref(),
        );
        let keys = match (is_shared, given) {
            (true, (_, false, None)) => Keys::Secrets(self.shared_secrets(at, &settings.secrets)?),
            (false, (false, true, None)) => {
                let keys = PublicKey::all_from_pem(&settings.public_keys);
                Keys::Public(keys.map_err(|what| self.problem(at, what)).ok()?)
            }
            (false, (false, false, Some(url))) => {
                let url = self.https(at, "jwks_url", url)?;
                let keys = KeyCache::new(at.to_owned(), Some(url));
                Keys::Published(Arc::new(keys.map_err(|error| self.problem(at, error)).ok()?))
            }
            (true, _) => {
                self.problem(at, "HS256 takes secrets, and no public_keys or jwks_url");
                return None;
            }
            (false, _) => {
                self.problem(at, "give either public_keys or jwks_url, and no secrets");
                return None;
            }
        };
        domain::jwt::use_ring();
        Some(Jwt {
            token_in,
            algorithm: settings.algorithm,
            keys,
            issuer: settings.issuer.clone(),
            audience: settings.audience.clone(),
            tolerance: SignedDuration::from_secs(settings.tolerance_s.into()),
        })
    }

    fn timestamp(
        &mut self,
        at: &str,
        settings: Option<SignedTimestampSettings>,
    ) -> Option<Option<SignedTimestamp>> {
        let Some(SignedTimestampSettings { header, field, signed, tolerance_s }) = settings else {
            return Some(None);
        };
        let at = format!("{at}.timestamp");
        self.in_range(&format!("{at}.tolerance_s"), tolerance_s, &(1..=3_600));
        let parts = signed.strip_suffix("{body}").and_then(|rest| rest.split_once("{timestamp}"));
        if parts.is_none() {
            self.problem(&at, "signed must hold '{timestamp}' and end with '{body}'");
        }
        let (header, (before, between)) = self.header_name(&at, &header).zip(parts)?;
        Some(Some(SignedTimestamp {
            header,
            field,
            before: before.to_owned(),
            between: between.to_owned(),
            tolerance: SignedDuration::from_secs(tolerance_s.into()),
        }))
    }

    fn standard_webhooks(
        &mut self,
        at: &str,
        settings: &StandardWebhooksSettings,
    ) -> Option<Check> {
        let texts = self.shared_secrets(at, &settings.secrets)?;
        let mut secrets = Vec::new();
        for text in &texts {
            // The error would not say more than that it is not base64.
            match standardwebhooks::Webhook::new(text.expose_secret()) {
                Ok(secret) => secrets.push(secret),
                Err(_) => self.problem(at, "a secret is not 'whsec_' and base64"),
            }
        }
        let usable = secrets.len() == texts.len();
        usable.then_some(Check::StandardWebhooks(StandardWebhooks { secrets }))
    }

    fn header_name(&mut self, at: &str, name: &str) -> Option<HeaderName> {
        let parsed = HeaderName::try_from(name);
        parsed.map_err(|_| self.problem(at, format!("'{name}' is not a header name"))).ok()
    }

    fn shared_secrets(&mut self, at: &str, refs: &[SecretRef]) -> Option<Vec<SecretString>> {
        if refs.is_empty() || refs.len() > SHARED_SECRET_VALUES_MAX {
            self.problem(at, "give one secret, or two while it is rotated");
            return None;
        }
        let mut values = Vec::new();
        for reference in refs {
            let Some(value) = self.secret(at, reference) else { continue };
            if value.expose_secret().len() < SHARED_SECRET_BYTES_MIN {
                self.problem(
                    at,
                    format!(
                        "{reference} holds fewer than {SHARED_SECRET_BYTES_MIN} bytes, which can be \
                         guessed (make one: `openssl rand -hex 32`)"
                    ),
                );
                continue;
            }
            values.push(value);
        }
        (values.len() == refs.len()).then_some(values)
    }
}
