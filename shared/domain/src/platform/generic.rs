//! Any other platform, read as its source's configuration says: where in a
//! callback each part stands, and which event types mean what.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use http::{HeaderMap, HeaderName, StatusCode};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::fields::{self, Fields};
use super::{AckContract, MissedAck, Refusal, SuccessBody};
use crate::details::Details;
use crate::event::{Callback, Fact, Identity, Payload, PlainCredential, Reinstall};
use crate::id::{AppId, IdempotencyKey, InstallationId, Place};
use crate::verify::Verified;

/// Cautious where nothing is configured.
pub(super) const ACK_CONTRACT: AckContract = AckContract {
    deadline: Duration::from_secs(5),
    budget: Duration::from_secs(4),
    success: StatusCode::OK,
    body: SuccessBody::Json,
    unavailable: StatusCode::SERVICE_UNAVAILABLE,
    missed: MissedAck::Stands,
};

/// For editors: what [`Locator::try_from`] takes.
const LOCATOR_PATTERN: &str = "^(/|(header|query|value):.)";
const SECRET_BYTES_MAX: usize = 16 * 1024;
/// A place is part of a key in Postgres, whose entries hold 2,704 bytes.
const PLACE_BYTES_MAX: usize = 2_000;

/// Where the parts of a callback stand. What has several places is joined: by
/// '.' in an event type, by ':' in an id.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mapping {
    /// Locators of the event type. The parts that are present are joined by `.`, as in
    /// `installation.created`.
    #[schemars(length(min = 1))]
    pub event_type: Vec<Locator>,
    /// Event types that mean: installed. A repeated one is a reinstall.
    #[schemars(length(min = 1))]
    pub installed: Vec<String>,
    /// Event types that mean: uninstalled.
    #[serde(default)]
    pub uninstalled: Vec<String>,
    /// Event types that change the plan or the version and nothing else.
    #[serde(default)]
    pub updated: Vec<String>,
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
    /// Locator of the granted permissions: an array of strings, an object (`{"issues":"read"}`
    /// becomes `issues:read`), or a text with spaces.
    pub permissions: Option<Locator>,
    /// Locator of the plan.
    pub plan_id: Option<Locator>,
    /// JSON Pointers to the secrets of an install, each a string of at most 16 KiB. One secret
    /// becomes the credential as it is. Several become a JSON object whose names are these
    /// pointers.
    #[serde(default)]
    pub secrets: Vec<Locator>,
}

/// Where one part of a callback stands.
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
    /// The same for every callback: `value:my-app`
    Value(String),
}

#[derive(Debug, thiserror::Error)]
#[error(
    "'{0}' is not a place in a callback: give a JSON Pointer such as /data/id, header:NAME, \
     query:NAME or value:TEXT"
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

/// What the parts are looked for in.
struct Parts<'a> {
    body: Value,
    headers: &'a HeaderMap,
    query: &'a str,
}

impl Mapping {
    /// What is wrong with it, if anything is.
    pub fn problem(&self) -> Option<&'static str> {
        if self.event_type.is_empty() || self.installation_id.is_empty() {
            return Some("event_type and installation_id must each name at least one place");
        }
        if self.installed.is_empty() {
            return Some("installed must name at least one event type");
        }
        let in_body = |locator: &Locator| matches!(locator, Locator::Body(_));
        if !self.secrets.iter().all(in_body) {
            return Some("secrets can stand in the body only: give JSON Pointers");
        }
        if !self.token_installation_id.is_empty()
            && self.token_place.is_empty() != self.place.is_empty()
        {
            return Some("token_place must be given where place is, or tokens miss their install");
        }
        if self.read_in_clear().any(|locator| self.secrets.contains(locator)) {
            return Some("what is a secret cannot be an id, a key, a plan, a permission or a time");
        }
        None
    }

    /// The places of what is stored in clear.
    fn read_in_clear(&self) -> impl Iterator<Item = &Locator> {
        let lists = [&self.event_type, &self.installation_id, &self.place, &self.idempotency_key];
        let optional = [&self.occurred_at, &self.installed_at, &self.permissions, &self.plan_id];
        let single = optional.into_iter().flatten().chain([&self.app_id]);
        lists.into_iter().flatten().chain(single)
    }

    pub(super) fn parse(&self, verified: &Verified<'_>) -> Result<Callback, Refusal> {
        let fields = fields::object(verified.body())?;
        let (headers, query) = (verified.headers(), verified.query().unwrap_or_default());
        let mut parts = Parts { body: Value::Object(fields), headers, query };
        let kind = parts.kind(&self.event_type)?;
        if ![&self.installed, &self.uninstalled, &self.updated].iter().any(|it| it.contains(&kind))
        {
            return self.unrecognized(kind, parts, verified);
        }
        let is_one_of = |types: &[String]| types.contains(&kind);
        let installed_at = self.installed_at.as_ref().filter(|_| is_one_of(&self.installed));
        let time = installed_at.or(self.occurred_at.as_ref());
        let occurred_at = parts.optional(time, Parts::time)?;
        let idempotency_key = if self.idempotency_key.is_empty() {
            self.key_of_content(&kind, occurred_at, verified)?
        } else {
            let key = parts.joined(&self.idempotency_key, ":")?;
            IdempotencyKey::parse(key).map_err(|why| Refusal::invalid("idempotency_key", why))?
        };
        let app_id = parts.text(&self.app_id).ok().and_then(|id| AppId::parse(id).ok());

        let identity = self.identity(&parts)?;
        let mut all_secrets_found = self.secrets.is_empty();
        let fact = if is_one_of(&self.installed) {
            let granted_permissions = self.permissions(&parts)?;
            let details = self.details(&parts);
            let secrets = self.take_secrets(&mut parts)?;
            all_secrets_found = secrets.len() == self.secrets.len();
            let credential = self.credential(secrets);
            Fact::Installed { identity, granted_permissions, credential, details }
        } else if is_one_of(&self.uninstalled) {
            Fact::Uninstalled { identity }
        } else {
            Fact::Updated { identity, details: self.details(&parts) }
        };
        // A secret that is not where it was said to be may stand elsewhere.
        let payload =
            if all_secrets_found { Payload::Clear(parts.body) } else { super::sealed(parts.body) };
        Ok(Callback { app_id, idempotency_key, occurred_at, fact, payload })
    }

    /// Recorded with what can be read of it.
    fn unrecognized(
        &self,
        kind: String,
        parts: Parts<'_>,
        verified: &Verified<'_>,
    ) -> Result<Callback, Refusal> {
        let occurred_at = self.occurred_at.as_ref().and_then(|at| parts.time(at).ok());
        let joined = Some(&self.idempotency_key).filter(|places| !places.is_empty());
        let key = joined.and_then(|places| parts.joined(places, ":").ok());
        let key = match key.and_then(|key| IdempotencyKey::parse(key).ok()) {
            Some(key) => key,
            None => self.key_of_content(&kind, occurred_at, verified)?,
        };
        let app_id = parts.text(&self.app_id).ok().and_then(|id| AppId::parse(id).ok());
        let identity = self.identity(&parts).ok();
        let recorded = super::unrecognized(kind, identity, key, occurred_at, parts.into_fields());
        Ok(Callback { app_id, ..recorded })
    }

    /// Where a reinstall has the same id and events say no time, nothing tells a
    /// retry from a reinstall with the same body: every delivery is an event.
    fn key_of_content(
        &self,
        kind: &str,
        occurred_at: Option<Timestamp>,
        verified: &Verified<'_>,
    ) -> Result<IdempotencyKey, Refusal> {
        let digest = hex::encode(Sha256::digest(verified.body()));
        let key = if self.reinstall == Reinstall::SameId && occurred_at.is_none() {
            format!("{kind}:sha256:{digest}:{}", verified.received_at().as_nanosecond())
        } else {
            format!("{kind}:sha256:{digest}")
        };
        IdempotencyKey::parse(key).map_err(|why| Refusal::invalid("event_type", why))
    }

    fn identity(&self, parts: &Parts<'_>) -> Result<Identity, Refusal> {
        let app_id = parts.text(&self.app_id)?;
        let app_id =
            AppId::parse(app_id).map_err(|why| Refusal::invalid(self.app_id.to_string(), why))?;
        self.identity_at(app_id, &self.installation_id, &self.place, parts)
    }

    /// Whose tokens they are. Both lists of places name the same parts in the
    /// same order, so that the tokens meet their install.
    pub(super) fn token_owner(&self, app_id: AppId, answer: &Fields) -> Result<Identity, Refusal> {
        let (body, headers) = (Value::Object(answer.clone()), &HeaderMap::new());
        let parts = Parts { body, headers, query: "" };
        self.identity_at(app_id, &self.token_installation_id, &self.token_place, &parts)
    }

    fn identity_at(
        &self,
        app_id: AppId,
        installation_id: &[Locator],
        place: &[Locator],
        parts: &Parts<'_>,
    ) -> Result<Identity, Refusal> {
        let installation = parts.joined(installation_id, ":")?;
        let located = if place.is_empty() { installation_id } else { place };
        let mut place = vec![app_id.as_str().to_owned()];
        let mut scope = BTreeMap::new();
        for locator in located {
            let part = InstallationId::parse(parts.text(locator)?)
                .map_err(|why| Refusal::invalid(locator.to_string(), why))?;
            scope.insert(locator.to_string(), part.to_string());
            place.push(part.into());
        }
        let place = Place::of(&place.iter().map(String::as_str).collect::<Vec<_>>());
        if place.as_str().len() > PLACE_BYTES_MAX {
            let expected = format!("must have at most {PLACE_BYTES_MAX} bytes, encoded");
            return Err(Refusal::invalid("place", expected));
        }
        let installation_id = InstallationId::parse(installation)
            .map_err(|why| Refusal::invalid("installation_id", why))?;
        Ok(Identity { installation_id, place, app_id, scope, reinstall: self.reinstall })
    }

    /// An array of strings, an object of levels, or a text with spaces.
    fn permissions(&self, parts: &Parts<'_>) -> Result<Vec<String>, Refusal> {
        let Some(locator) = &self.permissions else { return Ok(Vec::new()) };
        let found = match parts.find(locator) {
            None => return Ok(Vec::new()),
            Some(Value::Object(levels)) => {
                let level = |value: &Value| value.as_str().map_or(value.to_string(), str::to_owned);
                let joined = levels.iter().map(|(name, value)| format!("{name}:{}", level(value)));
                let mut joined: Vec<String> = joined.collect();
                joined.sort(); // the order of the fields means nothing
                joined.into_iter().map(Value::String).collect()
            }
            Some(Value::String(text)) => {
                text.split_whitespace().map(|word| Value::String(word.to_owned())).collect()
            }
            Some(other) => other,
        };
        fields::permissions(&found, &locator.to_string())
    }

    fn details(&self, parts: &Parts<'_>) -> Details {
        let plan_id = self.plan_id.as_ref().and_then(|locator| parts.text(locator).ok());
        let plan_id = plan_id.and_then(|text| fields::short_text(&Value::String(text)));
        Details { plan_id, ..Details::default() }
    }

    /// Takes the secrets out of the body, with the places where they stood.
    fn take_secrets(&self, parts: &mut Parts<'_>) -> Result<Vec<(String, String)>, Refusal> {
        let mut taken = Vec::new();
        for locator in &self.secrets {
            let Locator::Body(pointer) = locator else { continue };
            let Some(place) = parts.body.pointer_mut(pointer) else { continue };
            match std::mem::replace(place, fields::sealed_marker(pointer)) {
                Value::Null => {}
                Value::String(secret) if secret.is_empty() => {}
                Value::String(secret) if secret.len() <= SECRET_BYTES_MAX => {
                    taken.push((pointer.clone(), secret));
                }
                _ => {
                    let expected = format!("must be a string of at most {SECRET_BYTES_MAX} bytes");
                    return Err(Refusal::invalid(pointer.clone(), expected));
                }
            }
        }
        for (pointer, secret) in &taken {
            fields::replace_secret(&mut parts.body, secret, pointer);
        }
        Ok(taken)
    }

    fn credential(&self, mut taken: Vec<(String, String)>) -> Option<PlainCredential> {
        let (field, secret) = if self.secrets.len() > 1 && !taken.is_empty() {
            let object: Map<String, Value> = taken
                .into_iter()
                .map(|(pointer, secret)| (pointer, Value::String(secret)))
                .collect();
            ("secrets".to_owned(), Value::Object(object).to_string())
        } else {
            taken.pop()?
        };
        Some(PlainCredential { field, prefix: None, secret: secret.into() })
    }
}

impl Parts<'_> {
    fn find(&self, locator: &Locator) -> Option<Value> {
        let text = |text: &str| Value::String(text.to_owned());
        match locator {
            Locator::Body(pointer) => {
                self.body.pointer(pointer).filter(|value| !value.is_null()).cloned()
            }
            Locator::Header(name) => self.headers.get(name)?.to_str().ok().map(text),
            Locator::Query(name) => {
                let mut pairs = form_urlencoded::parse(self.query.as_bytes());
                pairs.find(|(key, _)| key == name).map(|(_, value)| text(&value))
            }
            Locator::Value(value) => Some(text(value)),
        }
    }

    /// A text, or a number as text.
    fn text(&self, locator: &Locator) -> Result<String, Refusal> {
        match self.find(locator) {
            None => Err(Refusal::missing(locator.to_string())),
            Some(Value::String(text)) => Ok(text),
            Some(Value::Number(number)) => Ok(number.to_string()),
            Some(_) => Err(Refusal::invalid(locator.to_string(), "must be a string or a number")),
        }
    }

    fn joined(&self, locators: &[Locator], separator: &str) -> Result<String, Refusal> {
        let parts: Result<Vec<String>, Refusal> =
            locators.iter().map(|locator| self.text(locator)).collect();
        Ok(parts?.join(separator))
    }

    /// Of the places of the event type those that are there: an event of a kind
    /// that we do not know may lack one.
    fn kind(&self, locators: &[Locator]) -> Result<String, Refusal> {
        let found: Vec<String> =
            locators.iter().filter_map(|locator| self.text(locator).ok()).collect();
        match (found.is_empty(), locators.first()) {
            (true, Some(locator)) => Err(Refusal::missing(locator.to_string())),
            _ => Ok(found.join(".")),
        }
    }

    /// `None` if nothing is configured, or there.
    fn optional<T>(
        &self,
        locator: Option<&Locator>,
        read: impl Fn(&Self, &Locator) -> Result<T, Refusal>,
    ) -> Result<Option<T>, Refusal> {
        let there = locator.filter(|locator| self.find(locator).is_some());
        there.map(|locator| read(self, locator)).transpose()
    }

    /// RFC 3339, or seconds or milliseconds since 1970.
    fn time(&self, locator: &Locator) -> Result<Timestamp, Refusal> {
        const MILLISECONDS_FROM: i64 = 100_000_000_000;
        let text = self.text(locator)?;
        let time = match text.parse::<i64>() {
            Ok(number) if number >= MILLISECONDS_FROM => Timestamp::from_millisecond(number).ok(),
            Ok(number) => Timestamp::from_second(number).ok(),
            Err(_) => fields::time(&text),
        };
        time.filter(fields::is_storable)
            .ok_or_else(|| Refusal::invalid(locator.to_string(), fields::EXPECTED_TIME))
    }

    fn into_fields(self) -> Fields {
        match self.body {
            Value::Object(fields) => fields,
            _ => Fields::new(),
        }
    }
}

#[cfg(test)]
mod tests;
