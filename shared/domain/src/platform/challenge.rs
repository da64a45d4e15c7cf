//! What a platform asks of a URL before it sends callbacks there: to repeat a value, or to
//! show that the app knows a secret.

use std::collections::BTreeMap;

use hmac::{Hmac, KeyInit as _, Mac as _};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Map, Value};
use sha2::Sha256;

use super::generic::{self, Locator};
use crate::verify::Verified;

/// Longer than any platform's.
const VALUE_BYTES_MAX: usize = 2_048;

#[derive(Debug)]
pub struct Challenge {
    /// Where a callback says that it asks, and what it says there. Without it, whatever has the
    /// value asks.
    pub asks: Option<(Locator, String)>,
    pub value: Locator,
    pub answer: Answer,
}

#[derive(Debug)]
pub enum Answer {
    /// The value itself.
    Text,
    Json(BTreeMap<String, Part>),
}

#[derive(Debug)]
pub enum Part {
    Value,
    /// Its HMAC-SHA256, in hexadecimal digits.
    Hmac(SecretString),
    Text(String),
}

/// What is answered.
#[derive(Debug, PartialEq, Eq)]
pub enum Answered {
    Text(String),
    Json(String),
}

impl Challenge {
    /// `None` for a callback that does not ask.
    pub fn answer(&self, verified: &Verified<'_>) -> Option<Answered> {
        let is_it = match &self.asks {
            Some((at, is)) => generic::value_at(verified, at)? == *is,
            None => true,
        };
        let value = is_it.then(|| generic::value_at(verified, &self.value)).flatten()?;
        if value.len() > VALUE_BYTES_MAX {
            return None;
        }
        Some(match &self.answer {
            Answer::Text => Answered::Text(value),
            Answer::Json(parts) => {
                let field =
                    |(name, part): (&String, &Part)| (name.clone(), Value::String(part.of(&value)));
                let fields: Map<String, Value> = parts.iter().map(field).collect();
                Answered::Json(Value::Object(fields).to_string())
            }
        })
    }
}

impl Part {
    fn of(&self, value: &str) -> String {
        match self {
            Self::Value => value.to_owned(),
            Self::Text(text) => text.clone(),
            Self::Hmac(secret) => {
                let mac = Hmac::<Sha256>::new_from_slice(secret.expose_secret().as_bytes());
                // A key of any length is one for HMAC.
                mac.map_or_else(
                    |_| String::new(),
                    |mac| hex::encode(mac.chain_update(value).finalize().into_bytes()),
                )
            }
        }
    }
}
