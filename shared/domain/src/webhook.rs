//! Signs webhooks as <https://www.standardwebhooks.com> says.

use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hmac::{KeyInit as _, Mac as _};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use secrecy::{ExposeSecret as _, SecretSlice, SecretString};
use sha2::Sha256;

const SECRET: &str = "whsec_";
const PRIVATE: &str = "whsk_";
const PUBLIC: &str = "whpk_";
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;
const SEED_BYTES: usize = 32;

/// What signs webhooks.
pub enum WebhookKey {
    /// HMAC-SHA256, `v1`: the receiver has the same secret.
    Secret(SecretSlice<u8>),
    /// Ed25519, `v1a`: the receiver has the public half.
    Pair(Box<Ed25519KeyPair>),
}

impl fmt::Debug for WebhookKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WebhookKey")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be '{SECRET}' and base64 of 24 to 64 bytes, or '{PRIVATE}' and base64 of the 32 bytes of a \
     private key of Ed25519, its public half after it or not"
)]
pub struct InvalidWebhookKey;

impl WebhookKey {
    pub fn parse(text: &SecretString) -> Result<Self, InvalidWebhookKey> {
        let text = text.expose_secret();
        let bytes = |digits: &str| BASE64_STANDARD.decode(digits).map_err(|_| InvalidWebhookKey);
        if let Some(digits) = text.strip_prefix(SECRET) {
            let secret = bytes(digits)?;
            let is_strong = SECRET_BYTES.contains(&secret.len());
            return is_strong.then(|| Self::Secret(secret.into())).ok_or(InvalidWebhookKey);
        }
        let digits = text.strip_prefix(PRIVATE).ok_or(InvalidWebhookKey)?;
        let private = SecretSlice::from(bytes(digits)?);
        let (seed, public) =
            private.expose_secret().split_at_checked(SEED_BYTES).ok_or(InvalidWebhookKey)?;
        let pair = match public {
            [] => Ed25519KeyPair::from_seed_unchecked(seed),
            public => Ed25519KeyPair::from_seed_and_public_key(seed, public),
        };
        pair.map(|pair| Self::Pair(Box::new(pair))).map_err(|_| InvalidWebhookKey)
    }

    /// Of a pair: what receivers verify with.
    pub fn public(&self) -> Option<String> {
        match self {
            Self::Secret(_) => None,
            Self::Pair(pair) => {
                Some(format!("{PUBLIC}{}", BASE64_STANDARD.encode(pair.public_key().as_ref())))
            }
        }
    }

    fn sign(&self, signed: &[u8]) -> String {
        match self {
            Self::Secret(secret) => {
                #[expect(clippy::expect_used, reason = "HMAC takes a key of any length")]
                let mac = hmac::Hmac::<Sha256>::new_from_slice(secret.expose_secret())
                    .expect("HMAC takes a key of any length");
                let signature = mac.chain_update(signed).finalize().into_bytes();
                format!("v1,{}", BASE64_STANDARD.encode(signature))
            }
            Self::Pair(pair) => format!("v1a,{}", BASE64_STANDARD.encode(pair.sign(signed))),
        }
    }
}

/// A private key, as [`WebhookKey::parse`] takes it.
pub fn private_key(seed: [u8; SEED_BYTES]) -> SecretString {
    format!("{PRIVATE}{}", BASE64_STANDARD.encode(seed)).into()
}

/// What stands in `webhook-signature`: one for each key.
pub fn sign(keys: &[WebhookKey], id: &str, timestamp: &str, body: &[u8]) -> String {
    let signed = [format!("{id}.{timestamp}.").as_bytes(), body].concat();
    keys.iter().map(|key| key.sign(&signed)).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use ring::signature::{ED25519, UnparsedPublicKey};

    use super::*;

    fn key(text: &str) -> Result<WebhookKey, InvalidWebhookKey> {
        WebhookKey::parse(&text.to_owned().into())
    }

    /// RFC 8032, section 7.1, test 1: its private and its public key.
    fn pair() -> ([u8; SEED_BYTES], Vec<u8>) {
        let seed = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
        let public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
        (hex::decode(seed).unwrap().try_into().unwrap(), hex::decode(public).unwrap())
    }

    #[test]
    fn a_pair_signs_what_its_public_half_verifies() {
        let (seed, public) = pair();
        let key = WebhookKey::parse(&private_key(seed)).unwrap();
        assert_eq!(key.public(), Some(format!("whpk_{}", BASE64_STANDARD.encode(&public))));
        let signature = sign(&[key], "msg_1", "1700000000", b"{}");
        let bytes = BASE64_STANDARD.decode(signature.strip_prefix("v1a,").unwrap()).unwrap();
        let verifies = |signed: &[u8]| {
            UnparsedPublicKey::new(&ED25519, &public).verify(signed, &bytes).is_ok()
        };
        assert!(verifies(b"msg_1.1700000000.{}") && !verifies(b"msg_1.1700000001.{}"));
    }

    #[test]
    fn each_key_signs() {
        let secret = key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        assert_eq!((secret.public(), format!("{secret:?}")), (None, "WebhookKey".to_owned()));
        let pair = WebhookKey::parse(&private_key(pair().0)).unwrap();
        // https://github.com/standard-webhooks/standard-webhooks has this in its libraries' tests.
        let body = br#"{"test": 2432232314}"#;
        let both = sign(&[secret, pair], "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", body);
        let (first, second) = both.split_once(' ').unwrap();
        assert_eq!(first, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        assert!(second.starts_with("v1a,"));
    }

    #[test]
    fn a_key_that_is_none_is_refused() {
        let (seed, public) = pair();
        let private = |bytes: &[u8]| key(&format!("whsk_{}", BASE64_STANDARD.encode(bytes)));
        assert!(private(&[&seed[..], &public].concat()).is_ok());
        for wrong in [&seed[..31], &[&seed[..], &seed].concat(), &[&seed[..], &[1]].concat()] {
            assert_eq!(private(wrong).unwrap_err(), InvalidWebhookKey);
        }
        for wrong in ["", "whsec_", "whsec_c2hvcnQ=", "whpk_AAAA", "whsk_%", "secret"] {
            assert_eq!(key(wrong).unwrap_err(), InvalidWebhookKey, "{wrong}");
        }
    }
}
