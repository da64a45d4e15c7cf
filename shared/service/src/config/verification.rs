//! How a source says what proof its callbacks must carry.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::HeaderName;
use http::header::AUTHORIZATION;
use schemars::JsonSchema;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};

use super::{Resolver, SourceSettings};
use crate::secret_ref::SecretRef;
use domain::id::SourceName;
use domain::platform::{Platform, highlevel};
use domain::signature::{
    Encoding, Hmac, HmacAlgorithm, PublicKey, PublicKeySignature, Scheme, StandardWebhooks,
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
    /// HighLevel's signature. Required by default for that platform.
    pub highlevel: Option<HighLevelSettings>,
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
    /// The shared secret, or two while it is rotated; each at least 20 bytes.
    pub secrets: Vec<SecretRef>,
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
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StandardWebhooksSettings {
    /// The secret as the platform shows it (`whsec_…`), or two while it is rotated.
    pub secrets: Vec<SecretRef>,
}

/// Which of HighLevel's signatures are accepted, and whose.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HighLevelSettings {
    /// The signatures that are accepted. If both are sent, `ed25519` decides.
    pub schemes: Vec<HighLevelScheme>,
    /// Ed25519 keys in PEM; they replace the published one, which is built in.
    pub ed25519_keys: Vec<String>,
    /// RSA keys in PEM; they replace the published one, which is built in.
    pub rsa_keys: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum HighLevelScheme {
    /// The header `X-GHL-Signature`.
    Ed25519,
    /// The header `X-WH-Signature`, which HighLevel ends on 2026-09-01.
    Rsa,
}

impl Default for HighLevelSettings {
    fn default() -> Self {
        Self {
            schemes: vec![HighLevelScheme::Ed25519],
            ed25519_keys: vec![highlevel::ED25519_KEY.to_owned()],
            rsa_keys: vec![highlevel::RSA_KEY.to_owned()],
        }
    }
}

impl Resolver<'_> {
    pub fn verification(
        &mut self,
        source: &SourceName,
        settings: &SourceSettings,
    ) -> Option<Verification> {
        let at = format!("sources.{source}.verification");
        let mut given = settings.verification.clone();
        if settings.platform == Platform::HighLevel && !given.unverified {
            given.highlevel.get_or_insert_default();
        }
        let VerificationSettings { unverified, .. } = given;
        let checks = self.checks(&at, given)?;
        match (unverified, checks.is_empty()) {
            (true, true) => Some(Verification::Unverified),
            (true, false) => {
                self.problem(&at, "'unverified = true' contradicts what stands beside it");
                None
            }
            (false, true) => {
                self.problem(
                    &at,
                    "give path_tokens, header, basic_auth, hmac, ed25519 or standard_webhooks, or \
                     say 'unverified = true' to accept callbacks from anyone",
                );
                None
            }
            (false, false) => Some(Verification::All(checks)),
        }
    }

    /// `None` if one of them cannot be made; the problem is noted.
    fn checks(&mut self, at: &str, given: VerificationSettings) -> Option<Vec<Check>> {
        let VerificationSettings {
            unverified: _,
            path_tokens,
            header,
            basic_auth,
            hmac,
            ed25519,
            standard_webhooks,
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
            let keys = self.public_keys(&at, &settings.public_keys);
            checks.push(name.zip(keys).map(|(header, keys)| {
                let scheme = Scheme { header, encoding: settings.encoding, keys };
                Check::PublicKey(PublicKeySignature { schemes: vec![scheme] })
            }));
        }
        if let Some(settings) = standard_webhooks {
            checks.push(self.standard_webhooks(&format!("{at}.standard_webhooks"), &settings));
        }
        if let Some(settings) = highlevel {
            checks.push(self.highlevel(&format!("{at}.highlevel"), &settings));
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
        let HmacSettings { algorithm, encoding, prefix, .. } = settings;
        let headers = headers.into_iter().collect::<Option<Vec<_>>>()?;
        Some(Check::Hmac(Hmac { headers, algorithm, encoding, prefix, secrets: secrets? }))
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

    fn highlevel(&mut self, at: &str, settings: &HighLevelSettings) -> Option<Check> {
        if settings.schemes.is_empty() {
            self.problem(at, "schemes must name 'ed25519', 'rsa' or both");
            return None;
        }
        let mut schemes = Vec::new();
        // The current one first: where both are sent it decides.
        let known = [
            (HighLevelScheme::Ed25519, highlevel::SIGNATURE_HEADER, &settings.ed25519_keys),
            (HighLevelScheme::Rsa, highlevel::LEGACY_SIGNATURE_HEADER, &settings.rsa_keys),
        ];
        for (scheme, header, keys) in known {
            if settings.schemes.contains(&scheme) {
                let header = HeaderName::from_static(header);
                let keys = self.public_keys(at, keys)?;
                schemes.push(Scheme { header, encoding: Encoding::Base64, keys });
            }
        }
        Some(Check::PublicKey(PublicKeySignature { schemes }))
    }

    fn public_keys(&mut self, at: &str, pems: &[String]) -> Option<Vec<PublicKey>> {
        if pems.is_empty() {
            self.problem(at, "give at least one public key");
            return None;
        }
        let keys = pems.iter().map(|pem| {
            PublicKey::from_pem(pem).map_err(|why| self.problem(at, format!("a key {why}"))).ok()
        });
        keys.collect()
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
