//! `[sealing]`: who seals is given public halves, and only who opens the private
//! ones.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use domain::fingerprint::FingerprintKeys;
use domain::id::KeyId;
use domain::key_pair::{PrivateKey, PublicKey};
use domain::key_ring::{KeyRing, SealingKey};
use domain::seal::{SymmetricKey, parse_key};
use schemars::JsonSchema;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::Resolver;
use crate::secret_ref::SecretRef;

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SealingSettings {
    /// The id of the key pair that seals new data keys. It must be one of `keys`.
    pub active: KeyId,
    /// The keys by id. Keep a retired one until `worker keys retire <id>` says that nothing
    /// needs it.
    pub keys: BTreeMap<KeyId, KeySettings>,
    /// 32 bytes in base64 (`openssl rand -base64 32`). It tells a replaced secret from a repeated
    /// one. Ingest needs it, and a worker that renews tokens.
    /// [What a change of it does](operations.md#the-fingerprint-key).
    pub fingerprint_key: SecretRef,
    /// How long a data key waits for a callback that uses it; then it is never used. `worker keys
    /// collect` leaves pages alone that are younger than twice this.
    #[serde(default = "default_data_key_unused_max_s")]
    #[schemars(range(min = 1))]
    pub data_key_unused_max_s: u32,
}

fn default_data_key_unused_max_s() -> u32 {
    86_400
}

impl SealingSettings {
    pub fn data_key_unused_max(&self) -> Duration {
        Duration::from_secs(self.data_key_unused_max_s.max(1).into())
    }
}

/// One key of the ring.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
#[schemars(with = "Fields")]
pub enum KeySettings {
    Pair {
        public: PublicHalf,
        /// Ingest does not read it.
        private: Option<SecretRef>,
    },
    /// From before there were key pairs: it opens, and seals nothing any more.
    Symmetric(SecretRef),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublicHalf {
    Text(String),
    File(PathBuf),
}

/// As they stand in the file.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "only its schema is used")]
struct Fields {
    /// The public half of a key pair, as `worker keys rotate` prints it. It seals and opens
    /// nothing, so it may stand in the file.
    public: Option<String>,
    /// A file that holds the public half instead.
    public_file: Option<PathBuf>,
    /// The private half. Only the worker reads it; ingest must not have it.
    private: Option<SecretRef>,
    /// A symmetric key from before there were key pairs, in an environment variable. Only the
    /// worker reads it. It opens what it sealed, and cannot be active.
    env: Option<String>,
    /// The same, in a file.
    file: Option<PathBuf>,
    /// The same, printed by a command.
    command: Option<Vec<String>>,
}

impl<'de> Deserialize<'de> for KeySettings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const EXPECTED: &str = "a key pair has `public` or `public_file`, both texts, and for the \
                                worker `private`, which refers to a secret";
        // What is found instead is not shown: it may be a secret.
        let mut found = Value::deserialize(deserializer)?;
        let take = |found: &mut Value, name: &str| found.as_object_mut()?.remove(name);
        let (text, file) = (take(&mut found, "public"), take(&mut found, "public_file"));
        let private = take(&mut found, "private");
        let public = match (text, file) {
            (None, None) if private.is_none() => {
                let symmetric = serde_json::from_value(found).map_err(D::Error::custom)?;
                return Ok(Self::Symmetric(symmetric));
            }
            (Some(Value::String(text)), None) => PublicHalf::Text(text),
            (None, Some(Value::String(path))) => PublicHalf::File(path.into()),
            _ => return Err(D::Error::custom(EXPECTED)),
        };
        if found.as_object().is_none_or(|rest| !rest.is_empty()) {
            return Err(D::Error::custom(EXPECTED));
        }
        let private = private.map(serde_json::from_value).transpose().map_err(D::Error::custom)?;
        Ok(Self::Pair { public, private })
    }
}

impl Resolver<'_> {
    /// What seals new pages: all that ingest has of the ring.
    pub fn sealing_key(&mut self, sealing: &SealingSettings) -> Option<SealingKey> {
        let active = &sealing.active;
        match sealing.keys.get(active) {
            Some(KeySettings::Pair { public, .. }) => {
                let public = self.public(active, public)?;
                Some(SealingKey::new(active.clone(), public))
            }
            Some(KeySettings::Symmetric(_)) => {
                let why = format!(
                    "'{active}' is a symmetric key, which would open what it seals; it may stay among \
                     sealing.keys to open what it sealed, and a key pair must be active: make one with \
                     `worker keys rotate --id <new id> --file <path>`"
                );
                self.problem("sealing.active", why);
                None
            }
            None => {
                self.problem(
                    "sealing.active",
                    format!("there is no key '{active}' in sealing.keys"),
                );
                None
            }
        }
    }

    /// What opens every page: the worker's alone.
    pub fn key_ring(&mut self, sealing: &SealingSettings) -> Option<KeyRing> {
        self.sealing_key(sealing)?;
        let (mut pairs, mut symmetric) = (Vec::new(), Vec::new());
        for (id, key) in &sealing.keys {
            match key {
                KeySettings::Pair { public, private } => {
                    pairs
                        .extend(self.pair(id, public, private.as_ref()).map(|it| (id.clone(), it)));
                }
                KeySettings::Symmetric(reference) => {
                    symmetric.extend(self.symmetric(id, reference));
                }
            }
        }
        if pairs.len() + symmetric.len() < sealing.keys.len() {
            return None;
        }
        KeyRing::new(sealing.active.clone(), pairs, symmetric)
            .map_err(|why| self.problem("sealing.active", why))
            .ok()
    }

    /// What tells repeated from new.
    pub fn fingerprint_keys(&mut self, sealing: &SealingSettings) -> Option<FingerprintKeys> {
        let at = "sealing.fingerprint_key";
        let text = self.secret(at, &sealing.fingerprint_key)?;
        let key = parse_key(&text).map_err(|why| self.problem(at, why)).ok()?;
        Some(FingerprintKeys::of(key))
    }

    fn public(&mut self, id: &KeyId, half: &PublicHalf) -> Option<PublicKey> {
        let (at, text) = match half {
            PublicHalf::Text(text) => (format!("sealing.keys.{id}.public"), Ok(text.clone())),
            PublicHalf::File(path) => {
                let text = std::fs::read_to_string(path);
                let text = text.map_err(|why| format!("the file {}: {why}", path.display()));
                (format!("sealing.keys.{id}.public_file"), text)
            }
        };
        let key =
            text.and_then(|text| PublicKey::parse(text.trim()).map_err(|why| why.to_string()));
        key.map_err(|why| self.problem(&at, why)).ok()
    }

    fn pair(
        &mut self,
        id: &KeyId,
        public: &PublicHalf,
        private: Option<&SecretRef>,
    ) -> Option<PrivateKey> {
        let at = format!("sealing.keys.{id}.private");
        let public = self.public(id, public);
        let Some(private) = private else {
            self.problem(&at, "the worker needs the private half, to open what ingest seals");
            return None;
        };
        let text = self.secret(&at, private)?;
        let private = PrivateKey::parse(&text).map_err(|why| self.problem(&at, why)).ok()?;
        if private.public() != public? {
            let why =
                "it is not the other half of the public key: what ingest seals would not open";
            self.problem(&at, why);
            return None;
        }
        Some(private)
    }

    fn symmetric(&mut self, id: &KeyId, reference: &SecretRef) -> Option<SymmetricKey> {
        let at = format!("sealing.keys.{id}");
        let text = self.secret(&at, reference)?;
        let key = parse_key(&text).and_then(|key| SymmetricKey::new(id.clone(), &key));
        key.map_err(|why| self.problem(&at, why)).ok()
    }
}
