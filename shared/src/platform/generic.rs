//! Any other platform, read as its source's configuration says: where in a
//! callback each part stands, and which event types mean what.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use http::{HeaderMap, HeaderName, StatusCode};
use jiff::Timestamp;
use secrecy::SecretString;
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

const SECRET_BYTES_MAX: usize = 16 * 1024;

/// Where the parts of a callback stand. What has several places is joined: by
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
    /// What a reinstall does to the installation id.
    #[serde(default)]
    pub reinstall: Reinstall,
    /// What is the same in every delivery of one event; left out, the body.
    #[serde(default)]
    pub idempotency_key: Vec<Locator>,
    pub occurred_at: Option<Locator>,
    pub permissions: Option<Locator>,
    pub plan_id: Option<Locator>,
    /// The secrets in an install, as JSON Pointers. One is kept as it is,
    /// several as one JSON object with these pointers as names.
    #[serde(default)]
    pub secrets: Vec<Locator>,
}

/// Where one part of a callback stands.
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
        None
    }

    pub(super) fn parse(&self, verified: &Verified<'_>) -> Result<Callback, Refusal> {
        let fields = fields::object(verified.body())?;
        let (headers, query) = (verified.headers(), verified.query().unwrap_or_default());
        let mut parts = Parts { body: Value::Object(fields), headers, query };
        let kind = parts.joined(&self.event_type, ".")?;
        let occurred_at = self.occurred_at.as_ref().map(|at| parts.time(at)).transpose()?;
        let idempotency_key = self.idempotency_key(&parts, verified.body(), &kind)?;
        let app_id = parts.text(&self.app_id).ok().and_then(|id| AppId::parse(id).ok());
        let is_one_of = |types: &[String]| types.contains(&kind);

        let fact = if is_one_of(&self.installed) {
            let identity = self.identity(&parts)?;
            let granted_permissions = self.permissions(&parts)?;
            let details = self.details(&parts)?;
            let credential = self.credential(&mut parts)?;
            Fact::Installed { identity, granted_permissions, credential, details }
        } else if is_one_of(&self.uninstalled) {
            Fact::Uninstalled { identity: self.identity(&parts)? }
        } else if is_one_of(&self.updated) {
            Fact::Updated { identity: self.identity(&parts)?, details: self.details(&parts)? }
        } else {
            let identity = self.identity(&parts).ok();
            let fields = parts.into_fields();
            let recorded =
                super::unrecognized(kind, identity, idempotency_key, occurred_at, fields);
            return Ok(Callback { app_id, ..recorded });
        };
        // An uninstall is not asked for secrets, but might repeat one.
        let payload = if matches!(fact, Fact::Installed { .. }) || self.secrets.is_empty() {
            Payload::Clear(parts.body)
        } else {
            Payload::Sealed(SecretString::from(parts.body.to_string()))
        };
        Ok(Callback { app_id, idempotency_key, occurred_at, fact, payload })
    }

    fn idempotency_key(
        &self,
        parts: &Parts<'_>,
        body: &[u8],
        kind: &str,
    ) -> Result<IdempotencyKey, Refusal> {
        let key = if self.idempotency_key.is_empty() {
            format!("{kind}:sha256:{}", hex::encode(Sha256::digest(body)))
        } else {
            parts.joined(&self.idempotency_key, ":")?
        };
        IdempotencyKey::parse(key).map_err(|why| Refusal::invalid("idempotency_key", why))
    }

    fn identity(&self, parts: &Parts<'_>) -> Result<Identity, Refusal> {
        let app_id = parts.text(&self.app_id)?;
        let app_id =
            AppId::parse(app_id).map_err(|why| Refusal::invalid(self.app_id.to_string(), why))?;
        let installation = parts.joined(&self.installation_id, ":")?;
        let mut place = vec![app_id.as_str().to_owned()];
        let located = if self.place.is_empty() { &self.installation_id } else { &self.place };
        let mut scope = BTreeMap::new();
        for locator in located {
            let part = parts.text(locator)?;
            scope.insert(locator.to_string(), part.clone());
            place.push(part);
        }
        let place = Place::of(&place.iter().map(String::as_str).collect::<Vec<_>>());
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

    fn details(&self, parts: &Parts<'_>) -> Result<Details, Refusal> {
        let Some(locator) = &self.plan_id else { return Ok(Details::default()) };
        let plan_id = parts.find(locator).map(|_| parts.text(locator)).transpose()?;
        Ok(Details { plan_id, ..Details::default() })
    }

    /// Takes the secrets out of the body.
    fn credential(&self, parts: &mut Parts<'_>) -> Result<Option<PlainCredential>, Refusal> {
        let mut taken = Vec::new();
        for locator in &self.secrets {
            let Locator::Body(pointer) = locator else { continue };
            let Some(place) = parts.body.pointer_mut(pointer) else { continue };
            match std::mem::replace(place, fields::sealed_marker(pointer)) {
                Value::Null => {}
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
        if taken.len() > 1 {
            let object: Map<String, Value> = taken
                .into_iter()
                .map(|(pointer, secret)| (pointer, Value::String(secret)))
                .collect();
            let secret = SecretString::from(Value::Object(object).to_string());
            return Ok(Some(PlainCredential { field: "secrets".to_owned(), prefix: None, secret }));
        }
        Ok(taken.pop().map(|(field, secret)| {
            let secret = SecretString::from(secret);
            PlainCredential { field, prefix: None, secret }
        }))
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

    /// RFC 3339, or seconds or milliseconds since 1970.
    fn time(&self, locator: &Locator) -> Result<Timestamp, Refusal> {
        const MILLISECONDS_FROM: i64 = 100_000_000_000;
        let text = self.text(locator)?;
        let time = match text.parse::<i64>() {
            Ok(number) if number >= MILLISECONDS_FROM => Timestamp::from_millisecond(number),
            Ok(number) => Timestamp::from_second(number),
            Err(_) => text.parse(),
        };
        time.map_err(|_| Refusal::invalid(locator.to_string(), fields::EXPECTED_TIME))
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
