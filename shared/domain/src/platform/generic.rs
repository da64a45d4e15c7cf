//! Any other platform, read as its source's configuration says: where in a
//! callback each part is, and which event types mean what.

use std::collections::BTreeMap;
use std::time::Duration;

use http::{HeaderMap, Method, StatusCode};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::fields;
use super::hint::{self, TimeHint};
use super::payload;
use super::refusal::Refusal;
use super::rules::{AckContract, Adapter, MissedAck, OAuthRules, Problem, Rules, SuccessBody};
use crate::details::Details;
use crate::event::{Callback, Fact, Identity, Payload, PlainCredential, Reinstall};
use crate::id::{AppId, IdempotencyKey, InstallationId, InvalidId, Place};
use crate::verify::Verified;

mod body;
pub(super) mod mapping;
mod parts;

use parts::Parts;

pub use mapping::{BodyFormat, InvalidLocator, Locator, Mapping};

const SECRET_BYTES_MAX: usize = 16 * 1024;
/// A place is part of a key in Postgres, whose entries hold 2,704 bytes.
const PLACE_BYTES_MAX: usize = 2_000;

/// A text of a callback, or a number as text.
pub(super) fn value_at(verified: &Verified<'_>, locator: &Locator) -> Option<String> {
    let body = body::read(verified, BodyFormat::Json, &[]);
    let body = body.unwrap_or_else(|_| Value::Object(Map::new()));
    Parts::of(verified, body).text(locator).ok()
}

#[derive(Debug)]
pub(super) struct Generic;

impl Rules for Generic {
    /// Cautious where nothing is configured.
    fn ack_contract(&self) -> AckContract {
        AckContract {
            deadline: Duration::from_secs(5),
            budget: Duration::from_secs(4),
            success: StatusCode::OK,
            body: SuccessBody::Json,
            unavailable: StatusCode::SERVICE_UNAVAILABLE,
            missed: MissedAck::Stands,
        }
    }

    fn needs_mapping(&self) -> bool {
        true
    }

    fn adapter(
        &self,
        _app_ids: &[AppId],
        mapping: Option<&Mapping>,
    ) -> Result<Box<dyn Adapter>, Vec<Problem>> {
        let problem = |what| vec![Problem::new("mapping", what)];
        let mapping =
            mapping.ok_or_else(|| problem("the platform 'generic' needs a mapping"))?.clone();
        match mapping.problem() {
            None => Ok(Box::new(mapping)),
            Some(what) => Err(problem(what)),
        }
    }

    fn oauth(&self, mapping: Option<&Mapping>) -> Option<OAuthRules> {
        let names_owner = mapping.is_some_and(|mapping| !mapping.token_installation_id.is_empty());
        names_owner.then(OAuthRules::default)
    }
}

/// What an event type says of an installation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    Installed,
    Uninstalled,
    Updated,
    Suspended,
    Resumed,
    PermissionsChanged,
}

impl Adapter for Mapping {
    fn parse(&self, verified: &Verified<'_>) -> Result<Callback, Refusal> {
        let body = body::read(verified, self.body, &self.json_strings)?;
        let mut parts = Parts::of(verified, body);
        let kind = parts.event_type(&self.event_type)?;
        let Some(meaning) = self.meaning(&kind) else {
            return self.unrecognized(kind, parts, verified);
        };
        let own = match meaning {
            Meaning::Installed => self.installed_at.as_ref(),
            Meaning::Uninstalled => None,
            Meaning::Updated
            | Meaning::Suspended
            | Meaning::Resumed
            | Meaning::PermissionsChanged => self.changed_at.as_ref(),
        };
        let time = parts.time(own.or(self.occurred_at.as_ref()));
        let idempotency_key = if self.idempotency_key.is_empty() {
            self.key_of_content(&kind, time, &parts, verified)?
        } else {
            let key = joined(&parts.texts(&self.idempotency_key)?, IdempotencyKey::of);
            key.map_err(|why| Refusal::invalid("idempotency_key", why))?
        };
        let identity = self.identity(&parts)?;
        let app_id = Some(identity.app_id.clone());
        let mut has_all_secrets = self.secrets.is_empty();
        let fact = match meaning {
            Meaning::Installed => {
                let granted_permissions = self.permissions(&parts).unwrap_or_default();
                let details = self.details(&parts);
                let secrets = self.take_secrets(&mut parts)?;
                has_all_secrets = secrets.len() == self.secrets.len();
                let credential = self.credential(secrets);
                Fact::Installed { identity, granted_permissions, credential, details }
            }
            Meaning::Uninstalled => Fact::Uninstalled { identity },
            Meaning::Updated => Fact::Updated { identity, details: self.details(&parts) },
            Meaning::Suspended => Fact::Suspended { identity },
            Meaning::Resumed => Fact::Resumed { identity },
            Meaning::PermissionsChanged => match self.permissions(&parts) {
                Some(granted_permissions) => {
                    Fact::PermissionsChanged { identity, granted_permissions }
                }
                // A list that cannot be read is not an empty one.
                None => Fact::Unrecognized { kind, identity: Some(identity) },
            },
        };
        for locator in &self.omit {
            let Locator::Body(pointer) = locator else { continue };
            if let Some(value) = parts.body.pointer_mut(pointer) {
                *value = Value::Null;
            }
        }
        // A secret that is not where it was said to be may be elsewhere, and what was not understood
        // may hold one.
        let is_understood = !matches!(fact, Fact::Unrecognized { .. });
        let payload = if has_all_secrets && is_understood {
            Payload::Clear(parts.body)
        } else {
            payload::sealed(parts.body)
        };
        Ok(Callback { app_id, idempotency_key, occurred_at: time.at(), fact, payload })
    }

    fn grant_installs(&self, _owner: &Identity) -> bool {
        self.grant_installs
    }

    fn reads_form(&self) -> bool {
        self.body == BodyFormat::Form
    }

    /// Both lists of locators name the same parts in the same order, so that the
    /// tokens are matched to their install.
    fn token_owner(
        &self,
        app_id: &AppId,
        answer: &Map<String, Value>,
        query: &str,
    ) -> Result<Identity, Refusal> {
        let (body, headers) = (Value::Object(answer.clone()), &HeaderMap::new());
        let parts = Parts { body, headers, query, method: &Method::GET, claims: None };
        self.identity_at(app_id.clone(), &self.token_installation_id, &self.token_place, &parts)
    }
}

impl Mapping {
    fn meaning(&self, kind: &str) -> Option<Meaning> {
        let of = |(types, meaning): (&Vec<String>, Meaning)| {
            types.iter().any(|it| it == kind).then_some(meaning)
        };
        self.meanings().into_iter().find_map(of)
    }

    /// Recorded with what can be read of it.
    fn unrecognized(
        &self,
        kind: String,
        parts: Parts<'_>,
        verified: &Verified<'_>,
    ) -> Result<Callback, Refusal> {
        let time = parts.time(self.occurred_at.as_ref());
        let configured = Some(&self.idempotency_key).filter(|locators| !locators.is_empty());
        let texts = configured.and_then(|locators| parts.texts(locators).ok());
        let key = match texts.and_then(|texts| joined(&texts, IdempotencyKey::of).ok()) {
            Some(key) => key,
            None => self.key_of_content(&kind, time, &parts, verified)?,
        };
        let app_id = parts.text(&self.app_id).ok().and_then(|id| AppId::parse(id).ok());
        let identity = self.identity(&parts).ok();
        let fields = parts.into_fields();
        let recorded = payload::unrecognized(kind, identity, key, time.at(), fields);
        Ok(Callback { app_id, ..recorded })
    }

    /// Where a reinstall has the same id and events say no time, nothing tells a
    /// retry from a reinstall with the same body: every delivery is an event.
    fn key_of_content(
        &self,
        kind: &str,
        time: TimeHint,
        parts: &Parts<'_>,
        verified: &Verified<'_>,
    ) -> Result<IdempotencyKey, Refusal> {
        // A token is signed anew for each delivery.
        let digest = match verified.claims_in_body() {
            None if verified.body().is_empty() => Sha256::digest(parts.query.as_bytes()),
            None => Sha256::digest(verified.body()),
            Some(_) => {
                let mut said = parts.body.clone();
                said.sort_all_objects();
                Sha256::digest(said.to_string().as_bytes())
            }
        };
        let digest = hex::encode(digest);
        let key = if self.reinstall == Reinstall::SameId && !time.tells_events_apart() {
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

    fn identity_at(
        &self,
        app_id: AppId,
        installation_id: &[Locator],
        place: &[Locator],
        parts: &Parts<'_>,
    ) -> Result<Identity, Refusal> {
        let installation = parts.texts(installation_id)?;
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
        let installation_id = joined(&installation, InstallationId::of)
            .map_err(|why| Refusal::invalid("installation_id", why))?;
        Ok(Identity { installation_id, place, app_id, scope, reinstall: self.reinstall })
    }

    /// An array of strings, an object of levels, or a text with commas or spaces.
    /// `None` if there is none of these.
    fn permissions(&self, parts: &Parts<'_>) -> Option<Vec<String>> {
        let locator = self.permissions.as_ref()?;
        let list = match parts.find(locator)? {
            Value::Object(levels) => {
                let level = |value: &Value| value.as_str().map_or(value.to_string(), str::to_owned);
                let joined = levels.iter().map(|(name, value)| format!("{name}:{}", level(value)));
                let mut joined: Vec<String> = joined.collect();
                joined.sort(); // the order of the fields means nothing
                joined.into_iter().map(Value::String).collect()
            }
            Value::String(text) => {
                let words = text.split(|letter: char| letter == ',' || letter.is_whitespace());
                words.filter(|word| !word.is_empty()).map(Value::from).collect()
            }
            other => other,
        };
        // A list that cannot be stored stays in the payload.
        fields::permissions(&list, &locator.to_string()).ok()
    }

    fn details(&self, parts: &Parts<'_>) -> Details {
        let plan_id = self.plan_id.as_ref().and_then(|locator| parts.text(locator).ok());
        let plan_id = hint::text(plan_id.map(Value::String).as_ref());
        Details { plan_id, ..Details::default() }
    }

    /// Takes the secrets out of the body, with their JSON Pointers.
    fn take_secrets(&self, parts: &mut Parts<'_>) -> Result<Vec<(String, String)>, Refusal> {
        let mut taken = Vec::new();
        for locator in &self.secrets {
            let Locator::Body(pointer) = locator else { continue };
            let Some(value) = parts.body.pointer_mut(pointer) else { continue };
            match std::mem::replace(value, payload::sealed_marker(pointer)) {
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
            payload::replace_secret(&mut parts.body, secret, pointer);
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

/// An id of several parts.
fn joined<T>(
    parts: &[String],
    of: impl Fn(&[&str]) -> Result<T, InvalidId>,
) -> Result<T, InvalidId> {
    of(&parts.iter().map(String::as_str).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests;
