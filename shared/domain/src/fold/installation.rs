//! What the fold takes and gives.

use jiff::Timestamp;

use crate::details::Details;
use crate::event::{Event, Identity, SealedCredential};
use crate::id::{InstallationId, MessageId, StreamSequence};

/// An event with its position in the log.
#[derive(Debug, Clone, PartialEq)]
pub struct Recorded {
    pub sequence: StreamSequence,
    pub event: Event,
}

/// What becomes of the sealed secret in the projection when an installation
/// ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retention {
    Remove,
    Keep,
}

/// The state of one installation.
#[derive(Debug, Clone, PartialEq)]
pub struct Installation {
    pub identity: Identity,
    /// Counts the installations in this place; the first is 1.
    pub generation: u32,
    pub status: Status,
    pub granted_permissions: Vec<String>,
    /// `None` until an install arrives.
    pub installed_at: Option<Timestamp>,
    /// The start of the last secret, to tell keys apart. It stays when the
    /// secret is removed.
    pub credential_prefix: Option<String>,
    pub credential: Option<Credential>,
    /// When the credential ends, where that is known.
    pub credential_expires_at: Option<Timestamp>,
    pub details: Details,
    pub last_event: LastEvent,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// It was authorized; its install has not arrived.
    Pending,
    Active,
    /// It is installed, and the platform has stopped it until it is resumed.
    Suspended,
    /// A newer installation took its place.
    Superseded {
        by: InstallationId,
    },
    Inactive {
        uninstalled_at: Timestamp,
    },
    /// The platform may have cancelled its last change.
    Unconfirmed,
    /// It ended, and then a secret came for it that is none of those before.
    Unverified,
}

/// A sealed credential and the event that brought it, which it is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    pub event: MessageId,
    pub sealed: SealedCredential,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastEvent {
    pub sequence: StreamSequence,
    pub kind: &'static str,
}

impl Status {
    /// What [`Status::name`] may say.
    pub const NAMES: [&'static str; 7] =
        ["pending", "active", "suspended", "superseded", "inactive", "unconfirmed", "unverified"];

    pub fn name(&self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Suspended => "suspended",
            Self::Superseded { .. } => "superseded",
            Self::Inactive { .. } => "inactive",
            Self::Unconfirmed => "unconfirmed",
            Self::Unverified => "unverified",
        }
    }
}
