//! Where a secret of the configuration is found. The configuration file never
//! holds one itself.

use std::fmt;
use std::path::PathBuf;

use schemars::JsonSchema;
use secrecy::SecretString;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// `{ env = "NAME" }` or `{ file = "/path" }`.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "snake_case")]
pub enum SecretRef {
    /// The environment variable that holds the secret.
    Env(String),
    /// The file that holds the secret. A newline at its end is not part of it.
    File(PathBuf),
}

#[derive(Debug, thiserror::Error)]
pub enum SecretRefError {
    #[error("the environment variable {0} is not set (or is not UTF-8)")]
    Env(String),
    #[error("the file {path} cannot be read: {why}")]
    File { path: PathBuf, why: std::io::Error },
    #[error("{0} is empty")]
    Empty(String),
}

impl SecretRef {
    /// Reads the secret. A newline at the end is not part of it.
    pub fn read(
        &self,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<SecretString, SecretRefError> {
        let text = match self {
            Self::Env(name) => env(name).ok_or_else(|| SecretRefError::Env(name.clone()))?,
            Self::File(path) => std::fs::read_to_string(path)
                .map_err(|why| SecretRefError::File { path: path.clone(), why })?,
        };
        let text = SecretString::from(text.trim_end_matches(['\r', '\n']));
        if secrecy::ExposeSecret::expose_secret(&text).is_empty() {
            return Err(SecretRefError::Empty(self.to_string()));
        }
        Ok(text)
    }
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env(name) => write!(f, "the environment variable {name}"),
            Self::File(path) => write!(f, "the file {}", path.display()),
        }
    }
}

impl<'de> Deserialize<'de> for SecretRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const EXPECTED: &str = "a secret must not stand in the configuration: refer to it by \
                                { env = \"NAME\" } or { file = \"/path\" }";
        // A derived implementation would show what it found instead, which may be the secret.
        let Value::Object(found) = Value::deserialize(deserializer)? else {
            return Err(D::Error::custom(EXPECTED));
        };
        let mut found = found.into_iter();
        match (found.next(), found.next()) {
            (Some((key, Value::String(name))), None) if key == "env" => Ok(Self::Env(name)),
            (Some((key, Value::String(path))), None) if key == "file" => {
                Ok(Self::File(path.into()))
            }
            _ => Err(D::Error::custom(EXPECTED)),
        }
    }
}
