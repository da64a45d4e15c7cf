//! `[worker.push]`: where changes are pushed to.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::secret_ref::SecretRef;

/// An endpoint of yours that is told what became of installations.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PushSettings {
    /// Where changes are posted to. HTTPS, unless `allow_private` is set.
    pub url: String,
    /// One to four, so that each can be rotated. Each signs, as
    /// [Standard Webhooks](https://www.standardwebhooks.com) says: `whsec_` and base64 of 24 to 64
    /// bytes by HMAC, `whsk_` and a private key of Ed25519 for receivers that are to have its public
    /// half only. `worker push create-key` makes one.
    #[schemars(length(min = 1, max = 4))]
    pub secrets: Vec<SecretRef>,
    /// Only changes of these sources; empty is all.
    #[serde(default)]
    pub sources: Vec<String>,
    /// Only changes of these [types](feed.md#types); empty is all.
    #[serde(default)]
    pub types: Vec<String>,
    /// Whether the URL may lead to an address of a private network, or of this machine.
    #[serde(default)]
    pub allow_private: bool,
}
