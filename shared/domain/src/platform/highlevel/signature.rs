//! HighLevel's signatures over the raw body.

use http::HeaderName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::signature::{Encoding, PublicKey, PublicKeySignature, Scheme as SignatureScheme};
use crate::verify::Check;

const HEADER: &str = "x-ghl-signature";
const LEGACY_HEADER: &str = "x-wh-signature";

/// HighLevel's published Ed25519 key, one for all apps.
/// Source: the webhook integration guide.
const ED25519_KEY: &str = include_str!("ed25519.pem");
/// Its legacy key (RSA, 4096 bits), announced to end on 2026-09-01.
const RSA_KEY: &str = include_str!("rsa.pem");

/// Which of HighLevel's signatures are accepted, and by which keys.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SignatureSettings {
    /// The signatures that are accepted. If both are sent, `ed25519` decides.
    schemes: Vec<Scheme>,
    /// Ed25519 keys in PEM. They replace the published one, which is built in.
    ed25519_keys: Vec<String>,
    /// RSA keys in PEM. They replace the published one, which is built in.
    rsa_keys: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Scheme {
    /// The header `X-GHL-Signature`.
    Ed25519,
    /// The legacy header `X-WH-Signature`, which HighLevel ends on 2026-09-01.
    Rsa,
}

impl Default for SignatureSettings {
    fn default() -> Self {
        Self {
            schemes: vec![Scheme::Ed25519],
            ed25519_keys: vec![ED25519_KEY.to_owned()],
            rsa_keys: vec![RSA_KEY.to_owned()],
        }
    }
}

impl SignatureSettings {
    /// The check, or what is wrong with the settings.
    pub fn check(&self) -> Result<Check, String> {
        if self.schemes.is_empty() {
            return Err("schemes must name 'ed25519', 'rsa' or both".to_owned());
        }
        // The current one first: where both are sent it decides.
        let known = [
            (Scheme::Ed25519, HEADER, &self.ed25519_keys),
            (Scheme::Rsa, LEGACY_HEADER, &self.rsa_keys),
        ];
        let accepted = known.into_iter().filter(|(scheme, ..)| self.schemes.contains(scheme));
        let schemes = accepted.map(|(_, header, keys)| {
            let header = HeaderName::from_static(header);
            Ok(SignatureScheme {
                header,
                encoding: Encoding::Base64,
                keys: PublicKey::all_from_pem(keys)?,
            })
        });
        Ok(Check::PublicKey(PublicKeySignature {
            timestamp: None,
            schemes: schemes.collect::<Result<_, String>>()?,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_keys_are_keys() {
        let ed25519 = PublicKey::from_pem(ED25519_KEY).unwrap();
        assert!(matches!(ed25519, PublicKey::Ed25519(key) if key.len() == 32));
        assert!(matches!(PublicKey::from_pem(RSA_KEY), Ok(PublicKey::RsaSha256(_))));
    }

    #[test]
    fn settings_that_accept_nothing_are_refused() {
        let settings = |json: &str| serde_json::from_str::<SignatureSettings>(json).unwrap();
        assert!(settings(r#"{ "schemes": ["ed25519", "rsa"] }"#).check().is_ok());
        for empty in [r#"{ "schemes": [] }"#, r#"{ "ed25519_keys": [] }"#] {
            assert!(settings(empty).check().is_err(), "{empty}");
        }
        let other = settings(r#"{ "ed25519_keys": ["no key"] }"#).check().unwrap_err();
        assert!(other.starts_with("a key is not a public key in PEM"), "{other}");
    }
}
