//! Identities as types: a platform's words checked once, where they enter.

use std::fmt;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Longest identity taken from a platform, in bytes. Real ones have 20 to 40.
pub const EXTERNAL_ID_BYTES_MAX: usize = 255;
/// Longest name an operator may give a source or a key, in bytes.
const NAME_BYTES_MAX: usize = 32;
/// For editors: what [`name`] takes.
const NAME_PATTERN: &str = "^[a-z0-9][a-z0-9_-]{0,31}$";
/// A page is one message of a few kilobytes, and rewritten whole for each key
/// that is destroyed.
pub const KEYS_IN_PAGE: u8 = 64;

/// Longest idempotency key that stands readable in a message ID, in bytes.
const READABLE_KEY_BYTES_MAX: usize = 128;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    #[error("must not be empty")]
    Empty,
    #[error("must have at most {max} bytes, has {found}")]
    TooLong { max: usize, found: usize },
    #[error("must not contain control characters")]
    ControlCharacter,
    #[error("must consist of a-z, 0-9, '-' and '_' only, and start with a letter or digit")]
    NotAName,
}

fn external(text: &str) -> Result<(), InvalidId> {
    if text.is_empty() {
        return Err(InvalidId::Empty);
    }
    if text.len() > EXTERNAL_ID_BYTES_MAX {
        return Err(InvalidId::TooLong { max: EXTERNAL_ID_BYTES_MAX, found: text.len() });
    }
    // NUL cannot be stored in Postgres, CR and LF would split a header.
    if text.chars().any(char::is_control) {
        return Err(InvalidId::ControlCharacter);
    }
    Ok(())
}

fn name(text: &str) -> Result<(), InvalidId> {
    if text.is_empty() {
        return Err(InvalidId::Empty);
    }
    if text.len() > NAME_BYTES_MAX {
        return Err(InvalidId::TooLong { max: NAME_BYTES_MAX, found: text.len() });
    }
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    let starts_well = text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    if !starts_well || !text.chars().all(allowed) {
        return Err(InvalidId::NotAName);
    }
    Ok(())
}

macro_rules! text_id {
    ($(#[$doc:meta])* $type:ident checked by $check:path) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            pub fn parse(text: impl Into<String>) -> Result<Self, InvalidId> {
                let text = text.into();
                $check(&text)?;
                Ok(Self(text))
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $type {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                Self::parse(text)
            }
        }

        impl From<$type> for String {
            fn from(id: $type) -> String {
                id.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_id! {
    /// One configured callback endpoint of one platform.
    #[derive(JsonSchema)]
    #[schemars(extend("pattern" = NAME_PATTERN))]
    SourceName checked by name
}
text_id! {
    /// The name of a platform. An event says it as text, so that a worker can read
    /// the events of a platform that it does not know yet.
    PlatformName checked by name
}
text_id! {
    /// The name of one sealing key in the key ring.
    #[derive(JsonSchema)]
    #[schemars(extend("pattern" = NAME_PATTERN))]
    KeyId checked by name
}
text_id! {
    /// The name of one page of data keys.
    PageId checked by name
}
text_id! {
    /// The platform's name for one installation, such as Blnk's `installed_app_id`.
    InstallationId checked by external
}
text_id! {
    /// The platform's name for one app.
    #[derive(JsonSchema)]
    #[schemars(extend("minLength" = 1, "maxLength" = EXTERNAL_ID_BYTES_MAX))]
    AppId checked by external
}
text_id! {
    /// The platform's name for one event.
    IdempotencyKey checked by external
}

impl PlatformName {
    /// Of a platform that is known here, whose name a test has checked.
    pub(crate) fn of_known(name: &'static str) -> Self {
        Self(name.to_owned())
    }
}

impl InstallationId {
    /// For a platform that has no id of its own: the parts that name the
    /// installation, as [`joined`] joins them.
    pub fn of(parts: &[&str]) -> Result<Self, InvalidId> {
        Self::parse(joined(parts))
    }
}

impl IdempotencyKey {
    /// For a platform that has no id of its own: the parts that name the event.
    pub fn of(parts: &[&str]) -> Result<Self, InvalidId> {
        Self::parse(joined(parts))
    }
}

/// Several parts joined with ':' and readable: a ':' in a part is encoded and
/// nothing else, so that no two lists of as many parts give the same text. A
/// single part stays as it is.
fn joined(parts: &[&str]) -> String {
    if let [only] = parts {
        return (*only).to_owned();
    }
    let encode = |part: &&str| part.replace('%', "%25").replace(':', "%3A");
    parts.iter().map(encode).collect::<Vec<_>>().join(":")
}

/// Where one app is installed: the unit that is locked, folded and
/// partitioned, because at most one installation in it can be active.
///
/// A platform adapter builds it from the parts that name the place, for Blnk
/// the app and the instance.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Place(String);

impl Place {
    /// Joins the parts with '/', each percent-encoded so that no two lists of
    /// parts give the same place.
    pub fn of(parts: &[&str]) -> Self {
        let encoded: Vec<String> = parts.iter().map(|part| percent_encode(part)).collect();
        Self(encoded.join("/"))
    }

    /// Takes a place that was stored before.
    pub fn from_stored(text: String) -> Self {
        Self(text)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Everything but unreserved characters (RFC 3986 section 2.3) is encoded.
pub fn percent_encode(text: &str) -> String {
    use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
    const RESERVED: &AsciiSet =
        &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
    utf8_percent_encode(text, RESERVED).to_string()
}

/// The `Nats-Msg-Id` of an event, and its identity in the journal.
///
/// `<source>:<idempotency key>#<fingerprint of the content, secrets included>`.
/// A retry of a callback has the same message ID. The same key with other
/// content is another event: Blnk's key names the installation and not the
/// attempt, so a new secret under it is a replaced credential.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct MessageId(String);

/// What somebody wrote into the log must not break the header that it will stand in.
impl TryFrom<String> for MessageId {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text.chars().any(char::is_control) {
            return Err("a message ID has no control characters");
        }
        Ok(Self(text))
    }
}

impl MessageId {
    pub fn new(source: &SourceName, key: &IdempotencyKey, content: &Fingerprint) -> Self {
        let key = key.as_str();
        let readable = key.len() <= READABLE_KEY_BYTES_MAX
            && !key.starts_with("sha256-")
            && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"._:-".contains(&b));
        let key = if readable {
            key.to_owned()
        } else {
            format!("sha256-{}", hex::encode(Sha256::digest(key.as_bytes())))
        };
        Self(format!("{source}:{key}#{content}"))
    }

    /// The ID of an event about this one. No ID of another kind ends so.
    pub(crate) fn about(&self, what: &str) -> Self {
        Self(format!("{}!{what}", self.0))
    }

    /// Takes a message ID that was stored before.
    pub fn from_stored(text: String) -> Self {
        Self(text)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A keyed digest (HMAC-SHA-256, cut to 128 bits): tells what was repeated from
/// what is new, and lets nobody without the key test a guess.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(String);

impl Fingerprint {
    pub(crate) fn of_digest(digest: &[u8]) -> Self {
        Self(hex::encode(digest))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a data key: its page, and its slot in it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DataKeyId {
    pub page: Arc<PageId>,
    pub slot: u8,
}

impl DataKeyId {
    /// Reads `<page>-<slot>`.
    pub fn parse(text: &str) -> Option<Self> {
        let (page, slot) = text.split_once('-')?;
        let page = Arc::new(PageId::parse(page).ok()?);
        let slot = slot.parse().ok().filter(|slot| *slot < KEYS_IN_PAGE)?;
        let id = Self { page, slot };
        // A number can be written in several ways, an id in one.
        (id.to_string() == text).then_some(id)
    }
}

/// Every name of a data key in a text that an envelope could begin with, wherever
/// it stands.
pub fn data_keys_in(text: &str) -> impl Iterator<Item = DataKeyId> {
    text.split("v2.").skip(1).filter_map(|rest| DataKeyId::parse(rest.split_once('.')?.0))
}

impl fmt::Display for DataKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.page, self.slot)
    }
}

/// The position of an event in the log (JetStream's stream sequence).
#[derive(
    Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct StreamSequence(pub u64);

impl fmt::Display for StreamSequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message_id(key: &str) -> String {
        let source = SourceName::parse("blnk").unwrap();
        let content: Fingerprint = serde_json::from_str("\"00ff\"").unwrap();
        MessageId::new(&source, &IdempotencyKey::parse(key).unwrap(), &content).0
    }

    #[test]
    fn a_plain_key_stays_readable_in_the_message_id() {
        assert_eq!(message_id("install:instapp_1"), "blnk:install:instapp_1#00ff");
    }

    #[test]
    fn long_unsafe_and_look_alike_keys_are_hashed() {
        for key in ["a b", "käse", &"x".repeat(200), "a#b", "sha256-00"] {
            assert!(message_id(key).starts_with("blnk:sha256-"), "{key}");
        }
    }

    #[test]
    fn ids_refuse_what_a_header_or_postgres_cannot_carry() {
        for bad in ["", "a\0b", "a\r\nb", "a\u{7f}"] {
            assert!(InstallationId::parse(bad).is_err(), "{bad:?}");
        }
        assert!(InstallationId::parse("x".repeat(EXTERNAL_ID_BYTES_MAX + 1)).is_err());
        assert!(InstallationId::parse("x".repeat(EXTERNAL_ID_BYTES_MAX)).is_ok());
    }

    #[test]
    fn names_are_safe_in_subjects_paths_and_variables() {
        for bad in ["", "Blnk", "a.b", "a b", "*", ">", "-a", &"a".repeat(33)] {
            assert!(SourceName::parse(bad).is_err(), "{bad:?}");
        }
        assert!(SourceName::parse("blnk-eu_2").is_ok());
    }

    #[test]
    fn places_with_separators_in_their_parts_stay_apart() {
        assert_ne!(Place::of(&["a/b", "c"]), Place::of(&["a", "b/c"]));
        assert_eq!(Place::of(&["app_1", "inst_1"]).as_str(), "app_1/inst_1");
    }
}
