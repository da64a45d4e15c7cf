//! The shape of the log: the stream, its consumer, and the durability contract
//! that a stream must meet before a callback is acknowledged from it.

use std::fmt;
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::stream::{
    Config as StreamConfig, DiscardPolicy, PersistenceMode, RetentionPolicy, StorageType,
};
use serde::{Deserialize, Serialize};

use crate::audit;
use crate::config::{StreamSettings, WorkerSettings};
use crate::id::PageId;
use crate::log::SUBJECT_ROOT;

/// The stream that is the log.
pub const STREAM: &str = "INSTALLATIONS";
/// The stream that keeps the data keys.
pub const KEYS_STREAM: &str = "DATA_KEYS";
/// First token of its subjects; the second is the id of a page.
pub const KEYS_SUBJECT_ROOT: &str = "data_keys";
/// The one durable consumer, shared by all workers.
pub const CONSUMER: &str = "worker";

/// Sent, not yet acknowledged, over all workers. Past it the server waits.
const MAX_ACK_PENDING: i64 = 20_000;

pub fn stream_config(settings: &StreamSettings) -> StreamConfig {
    StreamConfig {
        name: STREAM.to_owned(),
        description: Some("Mooring's log of installation events: the source of truth".to_owned()),
        subjects: vec![format!("{SUBJECT_ROOT}.>")],
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        discard: DiscardPolicy::New,
        max_bytes: i64::try_from(settings.max_bytes).unwrap_or(i64::MAX),
        num_replicas: settings.replicas,
        duplicate_window: Duration::from_millis(settings.duplicate_window_ms),
        deny_purge: true,
        allow_rollup: false,
        allow_direct: true,
        allow_atomic_publish: true,
        ..StreamConfig::default()
    }
}

/// As durable as the log, but what it holds can be destroyed: to erase a secret
/// is to delete every version of its page but the last.
pub fn keys_stream_config(settings: &StreamSettings) -> StreamConfig {
    StreamConfig {
        name: KEYS_STREAM.to_owned(),
        description: Some(
            "Mooring's data keys, in sealed pages: without them no secret opens".to_owned(),
        ),
        subjects: vec![format!("{KEYS_SUBJECT_ROOT}.*")],
        // Small beside the log, whose size is what an operator limits.
        max_bytes: -1,
        ..stream_config(settings)
    }
}

/// For people who ask what became of a callback: in memory and bounded, so that
/// whoever sends forged callbacks fills nothing.
pub fn audit_stream_config(settings: &StreamSettings) -> StreamConfig {
    const DAY: Duration = Duration::from_secs(86_400);
    const BYTES_MAX: i64 = 32 << 20;
    StreamConfig {
        name: audit::STREAM.to_owned(),
        description: Some("Callbacks that are not in the log: refused, or repeated".to_owned()),
        subjects: vec![audit::subjects(None)],
        storage: StorageType::Memory,
        discard: DiscardPolicy::Old,
        max_age: 7 * DAY,
        max_bytes: BYTES_MAX,
        num_replicas: settings.replicas,
        ..StreamConfig::default()
    }
}

pub fn keys_subject(page: &PageId) -> String {
    format!("{KEYS_SUBJECT_ROOT}.{page}")
}

pub fn consumer_config(settings: &WorkerSettings) -> pull::Config {
    pull::Config {
        durable_name: Some(CONSUMER.to_owned()),
        description: Some("Applies the log to Postgres".to_owned()),
        deliver_policy: DeliverPolicy::All,
        ack_policy: AckPolicy::Explicit,
        ack_wait: Duration::from_millis(settings.ack_wait_ms),
        // Past a limit JetStream would stop delivering, which loses the event.
        // What cannot be applied becomes a dead letter instead.
        max_deliver: -1,
        max_ack_pending: MAX_ACK_PENDING,
        ..pull::Config::default()
    }
}

/// One way in which a stream may lose what it acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Breach {
    MemoryStorage,
    NotLimitsRetention,
    DiscardsOld,
    AgesOut,
    PerSubjectLimit,
    NoAck,
    AsyncPersistence,
    AllowsPurge,
    AllowsRollup,
    NoDuplicateWindow,
    /// `sync_interval` is not `always`: a power loss takes acknowledged events.
    SyncNotAlways,
    /// Nobody could check `sync_interval`: no `nats.monitor_url` is configured.
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

/// What in a stream's settings breaks the durability contract.
pub fn breaches(stream: &StreamConfig) -> Vec<Breach> {
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
    ];
    checks.into_iter().filter_map(|(broken, breach)| broken.then_some(breach)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_that_we_create_meets_the_contract() {
        assert_eq!(breaches(&stream_config(&StreamSettings::default())), []);
    }

    #[test]
    fn each_lax_setting_is_a_breach_of_its_own() {
        let ours = || stream_config(&StreamSettings::default());
        let day = Duration::from_secs(86_400);
        let lax = [
            (StreamConfig { storage: StorageType::Memory, ..ours() }, Breach::MemoryStorage),
            (
                StreamConfig { retention: RetentionPolicy::WorkQueue, ..ours() },
                Breach::NotLimitsRetention,
            ),
            (StreamConfig { discard: DiscardPolicy::Old, ..ours() }, Breach::DiscardsOld),
            (StreamConfig { max_age: day, ..ours() }, Breach::AgesOut),
            (StreamConfig { max_messages_per_subject: 1, ..ours() }, Breach::PerSubjectLimit),
            (StreamConfig { no_ack: true, ..ours() }, Breach::NoAck),
            (
                StreamConfig { persist_mode: Some(PersistenceMode::Async), ..ours() },
                Breach::AsyncPersistence,
            ),
            (StreamConfig { deny_purge: false, ..ours() }, Breach::AllowsPurge),
            (StreamConfig { allow_rollup: true, ..ours() }, Breach::AllowsRollup),
            (
                StreamConfig { duplicate_window: Duration::ZERO, ..ours() },
                Breach::NoDuplicateWindow,
            ),
        ];
        for (stream, breach) in lax {
            assert_eq!(breaches(&stream), [breach]);
        }
    }
}
