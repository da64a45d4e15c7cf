//! What an operator writes about a platform of their own: where in a callback
//! each part is, and which event types mean what.

use std::fmt;

use http::HeaderName;
use serde::Deserialize;

use crate::event::Reinstall;

/// Where the parts of a callback are. What has several locators is joined: by
/// '.' in an event type, by ':' in an id.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mapping {
    pub event_type: Vec<Locator>,
    /// Event types that mean: installed. A repeated one is a reinstall.
    pub installed: Vec<String>,
    #[serde(default)]
    pub uninstalled: Vec<String>,
    /// Event types that change the plan or the version and nothing else.
    #[serde(default)]
    pub updated: Vec<String>,
    pub app_id: Locator,
    pub installation_id: Vec<Locator>,
    /// Where at most one installation can be active; the installation itself
    /// where this is left out.
    #[serde(default)]
    pub place: Vec<Locator>,
    /// Where an answer with tokens (OAuth 2.0) says what `installation_id` and
    /// `place` say in a callback.
    #[serde(default)]
    pub token_installation_id: Vec<Locator>,
    #[serde(default)]
    pub token_place: Vec<Locator>,
    /// What a reinstall does to the installation id.
    #[serde(default)]
    pub reinstall: Reinstall,
    /// What is the same in every delivery of one event; left out, the body.
    #[serde(default)]
    pub idempotency_key: Vec<Locator>,
    pub occurred_at: Option<Locator>,
    /// In an install, where only that says when it happened.
    pub installed_at: Option<Locator>,
    pub permissions: Option<Locator>,
    pub plan_id: Option<Locator>,
    /// The secrets in an install, as JSON Pointers. One is kept as it is,
    /// several as one JSON object with these pointers as names.
    #[serde(default)]
    pub secrets: Vec<Locator>,
}

/// Where one part of a callback is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Locator {
    /// A JSON Pointer (RFC 6901) into the body: `/data/id`
    Body(String),
    /// `header:X-GitHub-Event`
    Header(HeaderName),
    /// A parameter of the URL's query: `query:event`
    Query(String),
    /// The same for every callback: `value:my-app`
    Value(String),
}

#[derive(Debug, thiserror::Error)]
#[error(
    "'{0}' is not a locator: use a JSON Pointer such as /data/id, header:NAME, query:NAME or \
     value:TEXT"
)]
pub struct InvalidLocator(String);

impl TryFrom<String> for Locator {
    type Error = InvalidLocator;

    fn try_from(text: String) -> Result<Self, InvalidLocator> {
        if text.starts_with('/') {
            return Ok(Self::Body(text));
        }
        match text.split_once(':') {
            Some(("header", name)) => {
                name.parse().map(Self::Header).map_err(|_| InvalidLocator(text.clone()))
            }
            Some(("query", name)) if !name.is_empty() => Ok(Self::Query(name.to_owned())),
            Some(("value", value)) if !value.is_empty() => Ok(Self::Value(value.to_owned())),
            _ => Err(InvalidLocator(text)),
        }
    }
}

impl fmt::Display for Locator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Body(pointer) => f.write_str(pointer),
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Query(name) => write!(f, "query:{name}"),
            Self::Value(value) => write!(f, "value:{value}"),
        }
    }
}

impl Mapping {
    /// What is wrong with it, if anything is.
    pub(super) fn problem(&self) -> Option<&'static str> {
        if self.event_type.is_empty() || self.installation_id.is_empty() {
            return Some("event_type and installation_id must each have at least one locator");
        }
        if self.installed.is_empty() {
            return Some("installed must name at least one event type");
        }
        let in_body = |locator: &Locator| matches!(locator, Locator::Body(_));
        if !self.secrets.iter().all(in_body) {
            return Some("secrets can be in the body only: use JSON Pointers");
        }
        if !self.token_installation_id.is_empty()
            && self.token_place.is_empty() != self.place.is_empty()
        {
            return Some(
                "give token_place as well as place; otherwise tokens are not matched to their \
                 install",
            );
        }
        if self.stored_in_plaintext().any(|locator| self.secrets.contains(locator)) {
            return Some(
                "a locator in secrets must not also be an id, key, plan, permission or time",
            );
        }
        None
    }

    /// The locators of what is stored in plaintext.
    fn stored_in_plaintext(&self) -> impl Iterator<Item = &Locator> {
        let lists = [&self.event_type, &self.installation_id, &self.place, &self.idempotency_key];
        let optional = [&self.occurred_at, &self.installed_at, &self.permissions, &self.plan_id];
        let single = optional.into_iter().flatten().chain([&self.app_id]);
        lists.into_iter().flatten().chain(single)
    }
}
