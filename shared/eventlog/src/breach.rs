//! The durability contract: what a stream must be so that a callback may be
//! acknowledged from it.

use std::fmt;

use async_nats::jetstream::stream::{
    Config as StreamConfig, DiscardPolicy, PersistenceMode, RetentionPolicy, StorageType,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::keys;

/// One way in which a stream may lose what it acknowledged.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Breach {
    /// A restart of the server loses everything.
    MemoryStorage,
    /// Acknowledged events are deleted.
    NotLimitsRetention,
    /// A full stream drops its oldest events.
    DiscardsOld,
    /// `max_age` is set, so events expire.
    AgesOut,
    /// `max_messages_per_subject` is set, so older events are dropped.
    PerSubjectLimit,
    /// A publish is not acknowledged.
    NoAck,
    /// The server acknowledges before the event is on disk.
    AsyncPersistence,
    /// `deny_purge` is not set, so anyone with access can empty the log.
    AllowsPurge,
    /// A publish can delete older events.
    AllowsRollup,
    /// Retries are appended again.
    NoDuplicateWindow,
    /// The server takes a second page of data keys under the name of the first.
    PagesWrittenOver,
    /// The server's `sync_interval` is not `always`, so a power loss takes acknowledged events.
    SyncNotAlways,
    /// `nats.monitor_url` is not set, so nobody knows `sync_interval`.
    SyncNotChecked,
}

impl Breach {
    fn meaning(self) -> &'static str {
        match self {
            Self::MemoryStorage => "storage is memory: a restart loses everything; use file",
            Self::NotLimitsRetention => "retention is not limits: acknowledged events are deleted",
            Self::DiscardsOld => "discard is old: a full stream drops its oldest events; use new",
            Self::AgesOut => "max_age is set: events expire",
            Self::PerSubjectLimit => "max_messages_per_subject is set: older events are dropped",
            Self::NoAck => "no_ack is set: a publish is not acknowledged",
            Self::AsyncPersistence => "persist_mode is async: acknowledged before it is on disk",
            Self::AllowsPurge => "deny_purge is not set: anyone with access can empty the log",
            Self::AllowsRollup => "allow_rollup is set: a publish can delete older events",
            Self::NoDuplicateWindow => "duplicate_window is zero: retries are appended again",
            Self::PagesWrittenOver => {
                "a new page of data keys can be written over: set max_messages_per_subject to 1, \
                 and discard_new_per_subject"
            }
            Self::SyncNotAlways => {
                "the server's sync_interval is not 'always': a power loss takes acknowledged events"
            }
            Self::SyncNotChecked => {
                "whether sync_interval is 'always' is not known: set nats.monitor_url"
            }
        }
    }
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.meaning())
    }
}

/// What in the settings of one of our streams breaks the durability contract.
pub fn breaches_of(stream: &StreamConfig) -> Vec<Breach> {
    let takes_one = stream.max_messages_per_subject == 1 && stream.discard_new_per_subject;
    let drops_per_subject = stream.max_messages_per_subject > 0 && !stream.discard_new_per_subject;
    let checks = [
        (stream.storage != StorageType::File, Breach::MemoryStorage),
        (stream.retention != RetentionPolicy::Limits, Breach::NotLimitsRetention),
        (stream.discard != DiscardPolicy::New, Breach::DiscardsOld),
        (!stream.max_age.is_zero(), Breach::AgesOut),
        (drops_per_subject, Breach::PerSubjectLimit),
        (stream.no_ack, Breach::NoAck),
        (stream.persist_mode == Some(PersistenceMode::Async), Breach::AsyncPersistence),
        (!stream.deny_purge, Breach::AllowsPurge),
        (stream.allow_rollup, Breach::AllowsRollup),
        (stream.duplicate_window.is_zero(), Breach::NoDuplicateWindow),
        (stream.name == keys::NEW_STREAM && !takes_one, Breach::PagesWrittenOver),
    ];
    checks.into_iter().filter_map(|(broken, breach)| broken.then_some(breach)).collect()
}
