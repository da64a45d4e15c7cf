//! Keyed digests: they tell what was repeated from what is new, and what we
//! issued from what somebody made up, and let nobody without the key test a
//! guess.
//!
//! One secret of ingest keys them all. A fingerprint is keyed by it directly,
//! because it is part of every message ID that was ever stored. Each other
//! purpose has a key of its own, derived by HKDF (RFC 5869).

use std::fmt;

use hkdf::Hkdf;
use hmac::{Hmac, KeyInit as _, Mac};
use secrecy::{ExposeSecret, SecretSlice};
use sha2::{Digest as _, Sha256};

use crate::id::Fingerprint;
use crate::seal::random_token;

const KEY_BYTES: usize = 32;
const FINGERPRINT_BYTES: usize = 16;
const TICKETS: &[u8] = b"mooring: tickets";

/// The keys of all purposes. They cannot open anything.
pub struct FingerprintKeys {
    stored: SecretSlice<u8>,
    tickets: SecretSlice<u8>,
}

impl fmt::Debug for FingerprintKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FingerprintKeys")
    }
}

impl FingerprintKeys {
    pub fn of(secret: SecretSlice<u8>) -> Self {
        let derived = Hkdf::<Sha256>::new(None, secret.expose_secret());
        let derive = |purpose: &[u8]| {
            let mut key = vec![0; KEY_BYTES];
            #[expect(clippy::expect_used, reason = "HKDF gives up to 8,160 bytes")]
            derived.expand(purpose, &mut key).expect("32 bytes are few");
            SecretSlice::from(key)
        };
        Self { tickets: derive(TICKETS), stored: secret }
    }

    /// Of what is stored: the content of a callback, or a name that an
    /// installation is known by.
    pub fn fingerprint(&self, parts: &[&str]) -> Fingerprint {
        digest(&self.stored, parts)
    }

    /// Of what a ticket is for.
    pub fn ticket(&self, parts: &[&str]) -> Fingerprint {
        digest(&self.tickets, parts)
    }
}

/// For an event that no content tells from another.
pub fn random() -> Fingerprint {
    let digest = Sha256::digest(random_token());
    Fingerprint::of_digest(digest.get(..FINGERPRINT_BYTES).unwrap_or_default())
}

/// The parts are kept apart by their lengths.
fn digest(key: &SecretSlice<u8>, parts: &[&str]) -> Fingerprint {
    #[expect(clippy::expect_used, reason = "HMAC takes a key of any length")]
    let mut mac = Hmac::<Sha256>::new_from_slice(key.expose_secret())
        .expect("HMAC takes a key of any length");
    for part in parts {
        mac.update(&(part.len() as u64).to_be_bytes());
        mac.update(part.as_bytes());
    }
    let digest: Vec<u8> = mac.finalize().into_bytes().into_iter().take(FINGERPRINT_BYTES).collect();
    Fingerprint::of_digest(&digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(byte: u8) -> FingerprintKeys {
        FingerprintKeys::of(vec![byte; KEY_BYTES].into())
    }

    #[test]
    fn a_fingerprint_depends_on_the_parts_the_key_and_the_purpose() {
        let print = keys(1).fingerprint(&["a", "bc"]);
        assert_eq!(print, keys(1).fingerprint(&["a", "bc"]));
        assert_ne!(print, keys(2).fingerprint(&["a", "bc"]));
        assert_ne!(print, keys(1).fingerprint(&["ab", "c"]));
        assert_ne!(print, keys(1).ticket(&["a", "bc"]));
    }

    /// It is part of message IDs: a later version must find the same.
    #[test]
    fn a_fingerprint_is_what_it_always_was() {
        let print = keys(9).fingerprint(&["secret", "blnk_test_0123456789"]);
        assert_eq!(print.to_string(), "ef4a8b868eef6f0ac80662609e766929");
        assert_eq!(format!("{:?}", keys(9)), "FingerprintKeys");
    }
}
