//! The secrets that SecurityScorecard sends with each action of an app, in the
//! header `x-ssc-app-secrets`: for apps that answer actions themselves.

use std::collections::BTreeMap;

use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// The name of the header. Keep it out of logs and traces: nothing else says
/// who the caller is.
pub const APP_SECRETS_HEADER: &str = "x-ssc-app-secrets";

const HEADER_BYTES_MAX: usize = 16 * 1024;
const SECRETS_MAX: usize = 64;

/// The secrets by their keys in the manifest.
#[derive(Debug)]
pub struct AppSecrets(BTreeMap<String, SecretString>);

/// It holds nothing of the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAppSecrets {
    #[error("the header has more than {HEADER_BYTES_MAX} bytes")]
    TooLarge,
    #[error("the header must be a JSON object of strings, or null")]
    NotAnObjectOfStrings,
    #[error("the header has more than {SECRETS_MAX} secrets")]
    TooMany,
}

impl AppSecrets {
    pub fn parse(header: &[u8]) -> Result<Self, InvalidAppSecrets> {
        if header.len() > HEADER_BYTES_MAX {
            return Err(InvalidAppSecrets::TooLarge);
        }
        let secrets: BTreeMap<String, Option<SecretString>> =
            serde_json::from_slice(header).map_err(|_| InvalidAppSecrets::NotAnObjectOfStrings)?;
        if secrets.len() > SECRETS_MAX {
            return Err(InvalidAppSecrets::TooMany);
        }
        // One that the user left empty is null.
        let given = secrets.into_iter().filter_map(|(key, secret)| Some((key, secret?)));
        Ok(Self(given.collect()))
    }

    pub fn get(&self, key: &str) -> Option<&SecretString> {
        self.0.get(key)
    }

    /// Whether the caller knows a secret that was stored when the app was
    /// installed; compared in constant time.
    pub fn matches(&self, key: &str, stored: &SecretString) -> bool {
        let digest = |secret: &SecretString| Sha256::digest(secret.expose_secret().as_bytes());
        self.get(key).is_some_and(|given| digest(given).ct_eq(&digest(stored)).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_found_by_their_keys_and_shown_nowhere() {
        let secrets = AppSecrets::parse(br#"{"ACCESS_TOKEN":"do-not-show","EMPTY":""}"#).unwrap();
        assert_eq!(secrets.get("ACCESS_TOKEN").unwrap().expose_secret(), "do-not-show");
        assert!(secrets.get("OTHER").is_none());
        assert!(secrets.matches("ACCESS_TOKEN", &"do-not-show".into()));
        assert!(!secrets.matches("ACCESS_TOKEN", &"do-not-sho".into()));
        assert!(!secrets.matches("OTHER", &"".into()));
        assert!(!format!("{secrets:?}").contains("do-not-show"));
        let one_is_null = AppSecrets::parse(br#"{"ACCESS_TOKEN":"do-not-show","OTHER":null}"#);
        let one_is_null = one_is_null.unwrap();
        assert!(one_is_null.matches("ACCESS_TOKEN", &"do-not-show".into()));
        assert!(one_is_null.get("OTHER").is_none() && !one_is_null.matches("OTHER", &"".into()));
    }

    #[test]
    fn what_is_no_object_of_strings_is_refused_and_not_echoed() {
        for header in
            ["", "null", "[]", "\"do-not-show\"", "{\"a\":1}", "{\"a\":{\"b\":\"c\"}}", "{"]
        {
            let refused = AppSecrets::parse(header.as_bytes()).unwrap_err();
            assert_eq!(refused, InvalidAppSecrets::NotAnObjectOfStrings, "{header}");
        }
        let large = format!("{{\"a\":\"{}\"}}", "x".repeat(HEADER_BYTES_MAX));
        assert_eq!(AppSecrets::parse(large.as_bytes()).unwrap_err(), InvalidAppSecrets::TooLarge);
        let many: BTreeMap<String, &str> = (0..65).map(|n| (n.to_string(), "x")).collect();
        let many = serde_json::to_vec(&many).unwrap();
        assert_eq!(AppSecrets::parse(&many).unwrap_err(), InvalidAppSecrets::TooMany);
    }
}
