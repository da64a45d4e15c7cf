//! What an operator writes about a platform of their own: where in a callback
//! each part is, and which event types mean what.

use std::fmt;

use http::HeaderName;
use schemars::JsonSchema;
use serde::Deserialize;

use super::Meaning;
use crate::event::Reinstall;

/// For editors: what [`Locator::try_from`] takes.
const LOCATOR_PATTERN: &str = "^(/|claim:/|(header|query|value):.|method$)";

/// Where the parts of a callback are. What has several locators is joined: by
/// '.' in an event type, by ':' in an id.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mapping {
    /// Locators of the event type. The parts that are present are joined by `.`, as in
    /// `installation.created`.
    #[schemars(length(min = 1))]
    pub event_type: Vec<Locator>,
    /// Event types that mean: installed. A repeated one is a reinstall. It may be empty only if
    /// `grant_installs` is set.
    #[serde(default)]
    pub installed: Vec<String>,
    /// The platform tells of no install: what a user grants by OAuth is one. The installation is
    /// `active` then, and not `pending`.
    #[serde(default)]
    pub grant_installs: bool,
    /// Event types that mean: uninstalled.
    #[serde(default)]
    pub uninstalled: Vec<String>,
    /// Event types that change the plan or the version and nothing else.
    #[serde(default)]
    pub updated: Vec<String>,
    /// Event types that stop an installation for a while.
    #[serde(default)]
    pub suspended: Vec<String>,
    /// Event types that end that.
    #[serde(default)]
    pub resumed: Vec<String>,
    /// Event types after which the installation has the permissions at `permissions`.
    #[serde(default)]
    pub permissions_changed: Vec<String>,
    /// The form of the body. A token that is the body is read as what it says.
    #[serde(default)]
    pub body: BodyFormat,
    /// JSON Pointers to strings that hold JSON themselves. Each is replaced by what it holds, one
    /// after the other, so that later pointers reach into earlier ones.
    #[serde(default)]
    pub json_strings: Vec<Locator>,
    /// Locator of the app.
    pub app_id: Locator,
    /// Locators of the installation id. Several are joined by `:`.
    #[schemars(length(min = 1))]
    pub installation_id: Vec<Locator>,
    /// Locators of where the app is installed, such as an account. At most one installation of an
    /// app is active in one place. Left out, the installation id is the place.
    #[serde(default)]
    pub place: Vec<Locator>,
    /// Locators in the token endpoint's answer that name the same parts, in the same order, as
    /// `installation_id` names in a callback. OAuth requires it.
    #[serde(default)]
    pub token_installation_id: Vec<Locator>,
    /// The same for `place`. OAuth requires it if `place` is given.
    #[serde(default)]
    pub token_place: Vec<Locator>,
    /// What a reinstall does to the installation id.
    #[serde(default)]
    pub reinstall: Reinstall,
    /// Locators of what is the same in every delivery of one event and differs between events.
    /// Several are joined by `:`. Left out, a digest of the body is the key.
    #[serde(default)]
    pub idempotency_key: Vec<Locator>,
    /// Locator of the event's time: RFC 3339, or seconds or milliseconds since 1970.
    pub occurred_at: Option<Locator>,
    /// Locator of the time in an install, if only installs have one.
    pub installed_at: Option<Locator>,
    /// Locator of the time in what is neither an install nor an uninstall, if only that has one.
    pub changed_at: Option<Locator>,
    /// Locator of the granted permissions: an array of strings, an object (`{"issues":"read"}`
    /// becomes `issues:read`), or a text with commas or spaces.
    pub permissions: Option<Locator>,
    /// Locator of the plan.
    pub plan_id: Option<Locator>,
    /// JSON Pointers to parts that are not kept, such as a list of a thousand repositories.
    #[serde(default)]
    pub omit: Vec<Locator>,
    /// JSON Pointers to the secrets of an install, each a string of at most 16 KiB. One secret
    /// becomes the credential as it is. Several become a JSON object whose names are these
    /// pointers.
    #[serde(default)]
    pub secrets: Vec<Locator>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum BodyFormat {
    /// A JSON object.
    #[default]
    Json,
    /// `application/x-www-form-urlencoded`: each field is a string, and a repeated one an array.
    Form,
}

/// Where one part of a callback is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String", extend("format" = "locator", "pattern" = LOCATOR_PATTERN))]
pub enum Locator {
    /// A JSON Pointer (RFC 6901) into the body: `/data/id`
    Body(String),
    /// `header:X-GitHub-Event`
    Header(HeaderName),
    /// A parameter of the URL's query: `query:event`
    Query(String),
    /// A JSON Pointer into what a signed token says: `claim:/iss`
    Claim(String),
    /// The method of the request, such as `DELETE`: `method`
    Method,
    /// The same for every callback: `value:my-app`
    Value(String),
}

#[derive(Debug, thiserror::Error)]
#[error(
    "'{0}' is not a locator: use a JSON Pointer such as /data/id, header:NAME, query:NAME, \
     claim:/NAME, method or value:TEXT"
)]
pub struct InvalidLocator(String);

impl TryFrom<String> for Locator {
    type Error = InvalidLocator;

    fn try_from(text: String) -> Result<Self, InvalidLocator> {
        if text.starts_with('/') {
            return Ok(Self::Body(text));
        }
        if text == "method" {
            return Ok(Self::Method);
        }
        match text.split_once(':') {
            Some(("claim", pointer)) if pointer.starts_with('/') => {
                Ok(Self::Claim(pointer.to_owned()))
            }
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
            Self::Claim(pointer) => write!(f, "claim:{pointer}"),
            Self::Method => f.write_str("method"),
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
        if self.installed.is_empty() && !self.grant_installs {
            return Some("installed must name at least one event type, or set grant_installs");
        }
        if self.grant_installs && self.token_installation_id.is_empty() {
            return Some("grant_installs needs token_installation_id: whose tokens they are");
        }
        if !self.permissions_changed.is_empty() && self.permissions.is_none() {
            return Some("permissions_changed needs permissions: where they are");
        }
        let mut types: Vec<&String> =
            self.meanings().into_iter().flat_map(|(types, _)| types).collect();
        types.sort_unstable();
        if types.iter().zip(types.iter().skip(1)).any(|(one, next)| one == next) {
            return Some("an event type must stand in one list only, and once");
        }
        let in_body = |locator: &Locator| matches!(locator, Locator::Body(_));
        if !self.secrets.iter().all(in_body) {
            return Some("secrets can be in the body only: use JSON Pointers");
        }
        if !self.json_strings.iter().chain(&self.omit).all(in_body) {
            return Some("json_strings and omit can be in the body only: use JSON Pointers");
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

    /// The event types, by what they mean.
    pub(super) fn meanings(&self) -> [(&Vec<String>, Meaning); 6] {
        [
            (&self.installed, Meaning::Installed),
            (&self.uninstalled, Meaning::Uninstalled),
            (&self.updated, Meaning::Updated),
            (&self.suspended, Meaning::Suspended),
            (&self.resumed, Meaning::Resumed),
            (&self.permissions_changed, Meaning::PermissionsChanged),
        ]
    }

    /// What decides which event it is and about what, with its setting.
    pub fn deciding(&self) -> impl Iterator<Item = (&'static str, &Locator)> {
        let lists = [
            ("event_type", &self.event_type),
            ("installation_id", &self.installation_id),
            ("place", &self.place),
            ("idempotency_key", &self.idempotency_key),
        ];
        let single = [
            ("app_id", Some(&self.app_id)),
            ("occurred_at", self.occurred_at.as_ref()),
            ("installed_at", self.installed_at.as_ref()),
            ("changed_at", self.changed_at.as_ref()),
        ];
        let lists = lists
            .into_iter()
            .flat_map(|(name, all)| all.iter().map(move |locator| (name, locator)));
        lists.chain(single.into_iter().filter_map(|(name, one)| Some((name, one?))))
    }

    /// The locators of what is stored in plaintext.
    fn stored_in_plaintext(&self) -> impl Iterator<Item = &Locator> {
        let lists = [&self.event_type, &self.installation_id, &self.place, &self.idempotency_key];
        let optional = [
            &self.occurred_at,
            &self.installed_at,
            &self.changed_at,
            &self.permissions,
            &self.plan_id,
        ];
        let single = optional.into_iter().flatten().chain([&self.app_id]);
        lists.into_iter().flatten().chain(single)
    }
}
