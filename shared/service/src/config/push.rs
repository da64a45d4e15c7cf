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
    /// One secret, or two while it is rotated: `whsec_` and base64 of 24 to 64 bytes. Each signs, as
    /// [Standard Webhooks](https://www.standardwebhooks.com) says.
    #[schemars(length(min = 1, max = 2))]
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
