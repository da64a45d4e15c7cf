//! The event: the fact that is appended to the log, and its JSON form there.
//!
//! A [`Callback`] is what an adapter read. It holds plaintext secrets, in memory only,
//! and cannot be serialized. Sealing turns it into an [`Event`], which holds only
//! ciphertext and is what everything downstream sees.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use schemars::JsonSchema;
use secrecy::{ExposeSecret, SecretString};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::data_key::DataKey;
use crate::details::Details;
use crate::fingerprint::FingerprintKeys;
use crate::id::{
    AppId, Fingerprint, IdempotencyKey, InstallationId, InvalidId, MessageId, Place, PlatformName,
    SourceName,
};
use crate::seal::{AssociatedData, SealError, Sealed, SealingNonce};

/// Version of the JSON form in the log. Older versions are upcast in
/// [`Event::decode`]; a newer one is refused, which makes it a dead letter that
/// can be redriven once the worker is upgraded.
pub const SCHEMA_VERSION: u32 = 1;

/// A day: a time without its offset may be one of any time zone.
const CLOCK_AHEAD_MAX: SignedDuration = SignedDuration::from_hours(24);

/// The field name that a wholly sealed payload is bound to.
const PAYLOAD_FIELD: &str = "payload";

/// One fact about one installation, as appended to the log. `P` is the payload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event<P = Payload<Sealed>> {
    pub message_id: MessageId,
    pub source: SourceName,
    pub platform: PlatformName,
    pub idempotency_key: IdempotencyKey,
    /// When ingest received the callback.
    pub received_at: Timestamp,
    /// When it happened by the platform's clock, where the platform says.
    pub occurred_at: Option<Timestamp>,
    /// What the platform said, where that was so far in the future that it does not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub occurred_at_claimed: Option<Timestamp>,
    /// Tells a replaced secret from a repeated one; `None` without a secret.
    pub secret_fingerprint: Option<Fingerprint>,
    pub fact: Fact<SealedCredential>,
    pub payload: P,
}

/// What happened. `C` is the credential: plaintext in a callback, sealed in an
/// event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Fact<C> {
    Installed {
        identity: Identity,
        granted_permissions: Vec<String>,
        credential: Option<C>,
        #[serde(default, skip_serializing_if = "Details::is_empty")]
        details: Details,
    },
    /// Something about an installation changed, such as its plan.
    Updated {
        identity: Identity,
        details: Details,
    },
    Uninstalled {
        identity: Identity,
    },
    /// The platform has stopped it for a while. Its credential may not work until it is resumed.
    Suspended {
        identity: Identity,
    },
    Resumed {
        identity: Identity,
    },
    /// These are the permissions from now on.
    PermissionsChanged {
        identity: Identity,
        granted_permissions: Vec<String>,
    },
    /// Its credential arrived separately from its install: OAuth 2.0 tokens, or
    /// secrets that a user typed.
    Authorized {
        identity: Identity,
        grant: Grant,
        granted_permissions: Vec<String>,
        /// When the access token ends, where there is one and it is known.
        expires_at: Option<Timestamp>,
        credential: C,
        /// The platform tells of no install, so that the user's grant is one.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        is_install: bool,
    },
    /// The platform may not have got our 2xx for `answer_to`: it had hung up,
    /// its deadline had passed, or we could not tell whether the event was in
    /// the log. It may have cancelled the installation and revoked the key.
    AckMissed {
        identity: Identity,
        answer_to: MessageId,
    },
    /// A later delivery of `answer_to` was answered in time.
    AckDelivered {
        identity: Identity,
        answer_to: MessageId,
    },
    /// An operator destroyed the keys of every secret that came before.
    Erased {
        identity: Identity,
    },
    /// An event of a kind this version does not know: recorded, not applied.
    Unrecognized {
        kind: String,
        identity: Option<Identity>,
    },
}

/// How a credential was got. The first and the last are a user's doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grant {
    /// RFC 6749, section 4.1.
    AuthorizationCode,
    /// RFC 6749, section 6.
    RefreshToken,
    /// The company's token was exchanged for one of its location.
    Location,
    /// Typed into the install page.
    Form,
}

impl Grant {
    pub fn name(self) -> &'static str {
        match self {
            Self::AuthorizationCode => "authorization_code",
            Self::RefreshToken => "refresh_token",
            Self::Location => "location",
            Self::Form => "form",
        }
    }

    /// Whether it is a sign that somebody has just installed the app.
    pub fn is_by_user(self) -> bool {
        matches!(self, Self::AuthorizationCode | Self::Form)
    }
}

/// Which installation an event is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub installation_id: InstallationId,
    pub place: Place,
    pub app_id: AppId,
    /// The platform's names for where it is installed, such as `instance_id`
    /// and `organization_id`.
    pub scope: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Reinstall::is_default")]
    pub reinstall: Reinstall,
}

/// What the platform does to the installation id when the app is installed
/// again in the same place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reinstall {
    /// An id names one generation for ever.
    #[default]
    NewId,
    /// The id names the place; the times of its events tell its generations.
    SameId,
}

impl Reinstall {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A plaintext credential. It lives between parsing and sealing.
#[derive(Debug)]
pub struct PlainCredential {
    pub field: String,
    pub prefix: Option<String>,
    pub secret: SecretString,
}

/// A credential as it is stored, with what it needs to be opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedCredential {
    pub field: String,
    /// The start of the secret, published by the platform to tell keys apart.
    pub prefix: Option<String>,
    pub sealed: Sealed,
}

/// The payload as received.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Payload<S> {
    /// Every secret in it is replaced by `{"$sealed": "<field>"}`.
    Clear(Value),
    /// Sealed as a whole, because where its secrets are is not known.
    Sealed(S),
}

/// A callback as an adapter read it.
#[derive(Debug)]
pub struct Callback {
    /// The app that it is about, where that is known.
    pub app_id: Option<AppId>,
    pub idempotency_key: IdempotencyKey,
    pub occurred_at: Option<Timestamp>,
    pub fact: Fact<PlainCredential>,
    pub payload: Payload<SecretString>,
}

/// The body of a log message.
#[derive(Serialize)]
struct Versioned<E> {
    schema_version: u32,
    #[serde(flatten)]
    event: E,
}

/// The names of all kinds of facts.
pub const KINDS: [&str; 11] = [
    "installed",
    "updated",
    "uninstalled",
    "suspended",
    "resumed",
    "permissions_changed",
    "authorized",
    "ack_missed",
    "ack_delivered",
    "erased",
    "unrecognized",
];

#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("the body is not an event: {what}")]
    NotAnEvent { what: String },
    #[error("schema version {found} is newer than {SCHEMA_VERSION}, the newest this version reads")]
    NewerSchema { found: u32 },
}

impl DecodeError {
    /// serde_json repeats names out of the body. What is stored as text holds no NUL.
    fn of(error: &serde_json::Error) -> Self {
        let is_odd = |letter: char| letter.is_control();
        Self::NotAnEvent { what: error.to_string().replace(is_odd, "\u{fffd}") }
    }
}

impl<C> Fact<C> {
    /// Whether a worker has written it, who renews tokens. Once others have taken their
    /// place nobody asks for these again.
    pub fn is_renewal(&self) -> bool {
        matches!(self, Self::Authorized { grant, .. } if !grant.is_by_user())
    }

    /// The same fact with its credential, if it has one, in another form.
    fn try_map_credential<D, E>(self, map: impl FnOnce(C) -> Result<D, E>) -> Result<Fact<D>, E> {
        Ok(match self {
            Fact::Installed { identity, granted_permissions, credential, details } => {
                let credential = credential.map(map).transpose()?;
                Fact::Installed { identity, granted_permissions, credential, details }
            }
            Fact::Updated { identity, details } => Fact::Updated { identity, details },
            Fact::Uninstalled { identity } => Fact::Uninstalled { identity },
            Fact::Suspended { identity } => Fact::Suspended { identity },
            Fact::Resumed { identity } => Fact::Resumed { identity },
            Fact::PermissionsChanged { identity, granted_permissions } => {
                Fact::PermissionsChanged { identity, granted_permissions }
            }
            Fact::Authorized {
                identity,
                grant,
                granted_permissions,
                expires_at,
                credential,
                is_install,
            } => Fact::Authorized {
                identity,
                grant,
                granted_permissions,
                expires_at,
                credential: map(credential)?,
                is_install,
            },
            Fact::AckMissed { identity, answer_to } => Fact::AckMissed { identity, answer_to },
            Fact::AckDelivered { identity, answer_to } => {
                Fact::AckDelivered { identity, answer_to }
            }
            Fact::Erased { identity } => Fact::Erased { identity },
            Fact::Unrecognized { kind, identity } => Fact::Unrecognized { kind, identity },
        })
    }

    pub fn identity(&self) -> Option<&Identity> {
        match self {
            Self::Installed { identity, .. }
            | Self::Updated { identity, .. }
            | Self::Uninstalled { identity }
            | Self::Suspended { identity }
            | Self::Resumed { identity }
            | Self::PermissionsChanged { identity, .. }
            | Self::Authorized { identity, .. }
            | Self::AckMissed { identity, .. }
            | Self::AckDelivered { identity, .. }
            | Self::Erased { identity } => Some(identity),
            Self::Unrecognized { identity, .. } => identity.as_ref(),
        }
    }

    /// The name of the kind, the same in the log, in SQL, in metrics and in
    /// answers.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Installed { .. } => "installed",
            Self::Updated { .. } => "updated",
            Self::Uninstalled { .. } => "uninstalled",
            Self::Suspended { .. } => "suspended",
            Self::Resumed { .. } => "resumed",
            Self::PermissionsChanged { .. } => "permissions_changed",
            Self::Authorized { .. } => "authorized",
            Self::AckMissed { .. } => "ack_missed",
            Self::AckDelivered { .. } => "ack_delivered",
            Self::Erased { .. } => "erased",
            Self::Unrecognized { .. } => "unrecognized",
        }
    }
}

/// A time by the platform's clock, as far as it can be: what lies further in the
/// future would come after everything that ever happens. And that it was not.
fn believed(
    claimed: Option<Timestamp>,
    received_at: Timestamp,
) -> (Option<Timestamp>, Option<Timestamp>) {
    let latest = received_at.checked_add(CLOCK_AHEAD_MAX).unwrap_or(Timestamp::MAX);
    match claimed {
        Some(time) if time > latest => (Some(received_at), claimed),
        _ => (claimed, None),
    }
}

impl Callback {
    /// Whether a data key is needed to seal it.
    pub fn holds_secret(&self) -> bool {
        self.secret().is_some() || matches!(self.payload, Payload::Sealed(_))
    }

    /// Turns the callback into the event to append; only ciphertext is left.
    ///
    /// `next_nonce` is called once for each secret. Without a data key a
    /// callback that holds a secret is refused.
    pub fn seal(
        self,
        source: SourceName,
        platform: PlatformName,
        received_at: Timestamp,
        keys: &FingerprintKeys,
        data_key: Option<&DataKey>,
        mut next_nonce: impl FnMut() -> SealingNonce,
    ) -> Result<Event, SealError> {
        let secret = self.secret().map(ExposeSecret::expose_secret);
        let secret_fingerprint = secret.map(|secret| keys.fingerprint(&["secret", secret]));
        let content = self.content()?;
        // The kind and the installation may have been read from outside the body.
        let identity = self.fact.identity();
        let content = keys.fingerprint(&[
            "content",
            self.fact.kind(),
            identity.map_or("", |found| found.installation_id.as_str()),
            identity.map_or("", |found| found.place.as_str()),
            secret.unwrap_or_default(),
            content.expose_secret(),
        ]);
        let content = self.used_once(keys).unwrap_or(content);
        let message_id = MessageId::new(&source, &self.idempotency_key, &content);
        let (occurred_at, occurred_at_claimed) = believed(self.occurred_at, received_at);
        let installation = self.fact.identity().map(|identity| identity.installation_id.clone());
        let mut seal = |secret: &SecretString, field: &str| {
            let bound_to = AssociatedData {
                source: &source,
                installation: installation.as_ref(),
                event: &message_id,
                field,
            };
            data_key.ok_or(SealError)?.seal(secret, bound_to, &next_nonce())
        };
        let credential_sealed = |PlainCredential { field, prefix, secret }| {
            let sealed = seal(&secret, &field)?;
            Ok(SealedCredential { field, prefix, sealed })
        };

        let fact = self.fact.try_map_credential(credential_sealed)?;
        let payload = match self.payload {
            Payload::Clear(value) => Payload::Clear(value),
            Payload::Sealed(secret) => Payload::Sealed(seal(&secret, PAYLOAD_FIELD)?),
        };
        Ok(Event {
            message_id,
            source,
            platform,
            idempotency_key: self.idempotency_key,
            received_at,
            occurred_at,
            occurred_at_claimed,
            secret_fingerprint,
            fact,
            payload,
        })
    }

    /// Where a user brings something, the key is what lets them bring it, once. Whatever
    /// else comes with the same key is the same event: the log keeps the first.
    fn used_once(&self, keys: &FingerprintKeys) -> Option<Fingerprint> {
        match &self.fact {
            Fact::Authorized { grant, .. } if grant.is_by_user() => {
                Some(keys.fingerprint(&["used once", self.idempotency_key.as_str()]))
            }
            Fact::Authorized { .. }
            | Fact::Installed { .. }
            | Fact::Updated { .. }
            | Fact::Uninstalled { .. }
            | Fact::Suspended { .. }
            | Fact::Resumed { .. }
            | Fact::PermissionsChanged { .. }
            | Fact::AckMissed { .. }
            | Fact::AckDelivered { .. }
            | Fact::Erased { .. }
            | Fact::Unrecognized { .. } => None,
        }
    }

    fn secret(&self) -> Option<&SecretString> {
        match &self.fact {
            Fact::Installed { credential, .. } => credential.as_ref().map(|plain| &plain.secret),
            Fact::Authorized { credential, .. } => Some(&credential.secret),
            Fact::Updated { .. }
            | Fact::Uninstalled { .. }
            | Fact::Suspended { .. }
            | Fact::Resumed { .. }
            | Fact::PermissionsChanged { .. }
            | Fact::AckMissed { .. }
            | Fact::AckDelivered { .. }
            | Fact::Erased { .. }
            | Fact::Unrecognized { .. } => None,
        }
    }

    /// The payload in a form that does not depend on the order of its fields.
    fn content(&self) -> Result<SecretString, SealError> {
        match &self.payload {
            Payload::Clear(payload) => {
                let sorted = serde_json::to_string(&Sorted(payload)).map_err(|_| SealError)?;
                Ok(sorted.into())
            }
            Payload::Sealed(payload) => Ok(payload.clone()),
        }
    }
}

/// A value that is written with the fields of its objects in the order of their
/// names.
struct Sorted<'a>(&'a Value);

impl Serialize for Sorted<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Object(fields) => {
                let mut fields: Vec<_> = fields.iter().collect();
                fields.sort_unstable_by_key(|(name, _)| *name);
                serializer.collect_map(fields.into_iter().map(|(name, it)| (name, Sorted(it))))
            }
            Value::Array(items) => serializer.collect_seq(items.iter().map(Sorted)),
            other => other.serialize(serializer),
        }
    }
}

impl Event {
    /// That the secrets of an installation were erased; `number` tells one
    /// erasure of it from another.
    pub fn erased(
        source: SourceName,
        platform: PlatformName,
        identity: Identity,
        now: Timestamp,
        number: &Fingerprint,
    ) -> Result<Self, InvalidId> {
        let idempotency_key = IdempotencyKey::parse(format!("erase:{number}"))?;
        Ok(Self {
            message_id: MessageId::new(&source, &idempotency_key, number).about("erased"),
            source,
            platform,
            idempotency_key,
            received_at: now,
            occurred_at: Some(now),
            occurred_at_claimed: None,
            secret_fingerprint: None,
            fact: Fact::Erased { identity },
            payload: Payload::Clear(Value::Null),
        })
    }

    /// That the platform may not have got our answer to this event. `None`
    /// where no installation depends on it.
    ///
    /// Each attempt at the event, told by when it was received, has a note of its
    /// own: what is known of one says nothing of the next.
    pub fn ack_missed(&self, now: Timestamp) -> Option<Self> {
        let (identity, answer_to) = (self.changes()?.clone(), self.message_id.clone());
        let attempt = format!("ack_missed@{}", self.received_at.as_nanosecond());
        Some(self.about(&attempt, now, Fact::AckMissed { identity, answer_to }))
    }

    /// That the platform got our answer to this event after all.
    pub fn ack_delivered(&self, now: Timestamp) -> Option<Self> {
        let (identity, answer_to) = (self.changes()?.clone(), self.message_id.clone());
        Some(self.about("ack_delivered", now, Fact::AckDelivered { identity, answer_to }))
    }

    /// The installation that this event changes.
    fn changes(&self) -> Option<&Identity> {
        match &self.fact {
            Fact::Installed { identity, .. } | Fact::Uninstalled { identity } => Some(identity),
            Fact::Updated { .. }
            | Fact::Suspended { .. }
            | Fact::Resumed { .. }
            | Fact::PermissionsChanged { .. }
            | Fact::Authorized { .. }
            | Fact::AckMissed { .. }
            | Fact::AckDelivered { .. }
            | Fact::Erased { .. }
            | Fact::Unrecognized { .. } => None,
        }
    }

    fn about(&self, what: &str, now: Timestamp, fact: Fact<SealedCredential>) -> Self {
        Self {
            message_id: self.message_id.about(what),
            source: self.source.clone(),
            platform: self.platform.clone(),
            idempotency_key: self.idempotency_key.clone(),
            received_at: now,
            occurred_at: None,
            occurred_at_claimed: None,
            secret_fingerprint: None,
            fact,
            payload: Payload::Clear(Value::Null),
        }
    }

    pub fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(&Versioned { schema_version: SCHEMA_VERSION, event: self })
    }

    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        decode(body)
    }

    /// The event with an empty payload: the fold does not look at it, and to
    /// read it costs as much as all the rest.
    pub fn decode_without_payload(body: &[u8]) -> Result<Self, DecodeError> {
        decode::<Event<IgnoredAny>>(body).map(|event| Self {
            message_id: event.message_id,
            source: event.source,
            platform: event.platform,
            idempotency_key: event.idempotency_key,
            received_at: event.received_at,
            occurred_at: event.occurred_at,
            occurred_at_claimed: event.occurred_at_claimed,
            secret_fingerprint: event.secret_fingerprint,
            fact: event.fact,
            payload: Payload::Clear(Value::Null),
        })
    }
}

/// The body of an event without its payload, for where the fact is enough: it folds
/// to the same. `None` if there is no payload in clear to leave out. One that is sealed
/// stays, because whoever erases secrets must find it.
pub fn without_payload(body: &str) -> Option<String> {
    const PAYLOAD: &str = "payload";
    let mut fields: BTreeMap<&str, &RawValue> = serde_json::from_str(body).ok()?;
    let payload: BTreeMap<&str, &RawValue> =
        serde_json::from_str(fields.get(PAYLOAD)?.get()).ok()?;
    let clear = payload.get("clear")?;
    if payload.len() != 1 || clear.get() == "null" {
        return None;
    }
    let nothing = RawValue::from_string(r#"{"clear":null}"#.to_owned()).ok()?;
    fields.insert(PAYLOAD, &nothing);
    serde_json::to_string(&fields).ok()
}

fn decode<E: DeserializeOwned>(body: &[u8]) -> Result<E, DecodeError> {
    #[derive(Deserialize)]
    struct VersionOnly {
        schema_version: u32,
    }
    let version = serde_json::from_slice(body).map_err(|error| DecodeError::of(&error))?;
    let VersionOnly { schema_version } = version;
    if schema_version > SCHEMA_VERSION {
        return Err(DecodeError::NewerSchema { found: schema_version });
    }
    serde_json::from_slice(body).map_err(|error| DecodeError::of(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_an_event_is_none_can_be_stored_as_text() {
        let body = GOLDEN_V1.replace("\"type\": \"installed\"", "\"type\": \"a\\u0000b\"");
        let why = Event::decode(body.as_bytes()).unwrap_err().to_string();
        assert!(why.contains("unknown variant `a\u{fffd}b`"), "{why}");
    }

    #[test]
    fn without_its_payload_an_event_says_the_same_and_a_sealed_one_stays() {
        let body = include_str!("event/installed.v1.json");
        let left = without_payload(body).unwrap();
        assert!(left.len() < body.len() && !left.contains("a_field_of_tomorrow"), "{left}");
        let whole = Event::decode_without_payload(body.as_bytes()).unwrap();
        assert_eq!(Event::decode(left.as_bytes()).unwrap(), whole);
        assert_eq!(without_payload(&left), None, "there is nothing more to leave out");
        let sealed = r#"{"payload":{"sealed":"v1.k1.AAAA.AAAA"}}"#;
        assert_eq!(without_payload(sealed), None);
        for odd in ["", "[]", "{}", r#"{"payload":1}"#, r#"{"payload":{}}"#] {
            assert_eq!(without_payload(odd), None, "{odd}");
        }
    }

    /// One event of schema version 1 as it stands in a log. Never change it:
    /// what is in a log must be readable for ever.
    const GOLDEN_V1: &str = include_str!("event/installed.v1.json");

    #[test]
    fn an_event_of_schema_version_1_is_read_and_written_unchanged() {
        let event = Event::decode(GOLDEN_V1.as_bytes()).unwrap();
        assert_eq!(
            event.message_id.as_str(),
            "blnk:install:instapp_1#00112233445566778899aabbccddeeff"
        );
        let written: Value = serde_json::from_slice(&event.encode().unwrap()).unwrap();
        let golden: Value = serde_json::from_str(GOLDEN_V1).unwrap();
        assert_eq!(written, golden);
    }

    /// A float that is parsed in a hurry may be another one when it is read again.
    #[test]
    fn a_number_is_read_again_as_it_was_written() {
        let number = "\"clear\": { \"a_number\": -9.223223372036856e21,";
        let body = GOLDEN_V1.replacen("\"clear\": {", number, 1);
        let event = Event::decode(body.as_bytes()).unwrap();
        assert_eq!(Event::decode(&event.encode().unwrap()).unwrap(), event);
        assert!(matches!(&event.payload, Payload::Clear(it) if it["a_number"].is_f64()));
    }

    #[test]
    fn every_kind_has_its_name_in_the_list() {
        let unknown = serde_json::json!({ "type": "?" });
        let refused = serde_json::from_value::<Fact<SealedCredential>>(unknown).unwrap_err();
        let known = KINDS.map(|kind| format!("`{kind}`")).join(", ");
        assert_eq!(refused.to_string(), format!("unknown variant `?`, expected one of {known}"));
    }

    #[test]
    fn a_newer_schema_is_refused_by_number() {
        let newer = GOLDEN_V1.replace("\"schema_version\": 1", "\"schema_version\": 2");
        let refused = Event::decode(newer.as_bytes()).unwrap_err();
        assert!(matches!(refused, DecodeError::NewerSchema { found: 2 }), "{refused}");
    }

    #[test]
    fn a_time_far_in_the_future_does_not_count_and_is_told() {
        let received_at: Timestamp = "2026-07-01T10:00:00Z".parse().unwrap();
        let time = |text: &str| Some(text.parse::<Timestamp>().unwrap());
        let (past, ahead) = (time("2020-01-01T00:00:00Z"), time("2026-07-02T10:00:00Z"));
        for honest in [None, past, ahead] {
            assert_eq!(believed(honest, received_at), (honest, None));
        }
        let far = time("2199-01-01T00:00:00Z");
        assert_eq!(believed(far, received_at), (Some(received_at), far));
        assert_eq!(believed(far, Timestamp::MAX), (far, None));
    }

    #[test]
    fn what_is_not_an_event_is_refused() {
        let broken_id = GOLDEN_V1.replace("blnk:install:instapp_1", "blnk\\r\\n");
        for body in ["", "{}", "[]", "{\"schema_version\":1}", "\u{0}", &broken_id] {
            assert!(
                matches!(Event::decode(body.as_bytes()), Err(DecodeError::NotAnEvent { .. })),
                "{body}"
            );
        }
    }
}
