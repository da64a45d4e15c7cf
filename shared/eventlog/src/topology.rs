//! The streams and the workers' consumer: how they are made, and brought to
//! this version.

use std::time::Duration;

use anyhow::{Context as _, bail};
use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy};
use async_nats::jetstream::context::{
    CreateStreamError, CreateStreamErrorKind, GetStreamError, GetStreamErrorKind,
};
use async_nats::jetstream::stream::{
    Config as StreamConfig, DiscardPolicy, Info, RetentionPolicy, StorageType,
};
use async_nats::jetstream::{Context, ErrorCode};
use backon::{ConstantBuilder, Retryable as _};
use domain::id::StreamSequence;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::breach::{Breach, breaches_of};
use crate::connect::Connection;
use crate::consume::CONSUMER;
use crate::message::{STREAM, all_subjects};
use crate::{audit, changes, forward, keys, quota};

/// A cluster that has just started, or is choosing a leader, loses a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
const RETRY_DELAY: Duration = Duration::from_millis(500);
const RETRIES: usize = 20;

/// Sent, not yet acknowledged, over all workers. Past it the server waits.
const MAX_ACK_PENDING: i64 = 20_000;

/// `[stream]` of the configuration.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StreamSettings {
    /// Copies of the log on servers of the cluster: 1, 3 or 5. Use 3 in production.
    #[schemars(range(min = 1, max = 5))]
    pub replicas: usize,
    /// The size at which the log refuses new events. It never drops old ones.
    pub max_bytes: u64,
    /// How long the server remembers message IDs. Postgres recognizes duplicates that come later.
    pub duplicate_window_ms: u64,
    /// The size at which the stream of [forwarded callbacks](platforms.md#forwarding) refuses more.
    pub forwarded_max_bytes: u64,
    /// The size at which the stream of [changes](feed.md#over-nats) drops the oldest.
    pub changes_max_bytes: u64,
    /// [Breaches of the durability contract](#the-durability-contract) that you accept, by name.
    pub allow: Vec<Breach>,
}

impl Default for StreamSettings {
    fn default() -> Self {
        const HOUR_MS: u64 = 3_600_000;
        const GIB: u64 = 1 << 30;
        Self {
            replicas: 1,
            max_bytes: 4 * GIB,
            duplicate_window_ms: HOUR_MS,
            forwarded_max_bytes: GIB,
            changes_max_bytes: GIB,
            allow: vec![],
        }
    }
}

/// Streams that not everybody has.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Of callbacks for the app.
    pub forwarded: bool,
    /// Of changes, and how long it keeps them.
    pub changes: Option<Duration>,
}

/// Makes the streams and the consumer, or brings them to these settings. A log that
/// is not there begins behind `known_to`. Safe to run again and again.
pub async fn migrate(
    connection: &Connection,
    settings: &StreamSettings,
    ack_wait: Duration,
    known_to: StreamSequence,
    wanted: Wanted,
) -> anyhow::Result<()> {
    let jetstream = connection.with_timeout(REQUEST_TIMEOUT);
    let first_sequence = match existing_log(&jetstream).await? {
        Some(found) => found.first_sequence,
        None => (known_to.0 > 0).then_some(known_to.0 + 1),
    };
    let log = StreamConfig { first_sequence, ..log_config(settings) };
    for config in [log, keys_config(settings), new_keys_config(settings)] {
        let stream = create_or_update(&jetstream, &config).await?;
        // The server may keep a setting that cannot be changed on a stream.
        let kept = breaches_of(&stream.config);
        if !kept.is_empty() {
            let why: Vec<String> = kept.iter().map(ToString::to_string).collect();
            let (name, why) = (&config.name, why.join("; "));
            bail!("stream {name} exists and keeps settings that break durability: {why}");
        }
    }
    create_or_update(&jetstream, &audit_config(settings)).await?;
    create_or_update(&jetstream, &rings_config(settings)).await?;
    create_or_update(&jetstream, &quota_config(settings)).await?;
    if wanted.forwarded {
        create_or_update(&jetstream, &forward_config(settings)).await?;
        let stream = jetstream.get_stream(forward::STREAM).await?;
        stream.create_consumer(app_consumer_config()).await?;
    }
    if let Some(keep_for) = wanted.changes {
        create_or_update(&jetstream, &changes_config(settings, keep_for)).await?;
    }
    let stream = jetstream.get_stream(STREAM).await?;
    stream.create_consumer(consumer_config(ack_wait)).await?;
    tracing::info!("consumer {CONSUMER} is up to date");
    Ok(())
}

async fn existing_log(jetstream: &Context) -> anyhow::Result<Option<StreamConfig>> {
    let look = || async {
        match jetstream.get_stream(STREAM).await {
            Ok(found) => Ok(Some(found.cached_info().config.clone())),
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(server)
                    if server.error_code() == ErrorCode::STREAM_NOT_FOUND =>
                {
                    Ok(None)
                }
                _ => Err(error),
            },
        }
    };
    look.retry(ConstantBuilder::new().with_delay(RETRY_DELAY).with_max_times(RETRIES))
        .when(is_starting_to_look)
        .notify(|error, _| tracing::warn!(%error, "waiting for the log"))
        .await
        .with_context(|| format!("looking for stream {STREAM}"))
}

async fn create_or_update(jetstream: &Context, config: &StreamConfig) -> anyhow::Result<Info> {
    let name = &config.name;
    let create = || jetstream.create_or_update_stream(config.clone());
    let stream = create
        .retry(ConstantBuilder::new().with_delay(RETRY_DELAY).with_max_times(RETRIES))
        .when(is_starting)
        .notify(|error, _| tracing::warn!(%error, "waiting for the log"))
        .await
        .with_context(|| {
            format!("creating or updating stream {name} (see `stream` in the configuration)")
        })?;
    tracing::info!(replicas = stream.config.num_replicas, "stream {name} is up to date");
    Ok(stream)
}

/// Whether the cluster may only need a moment more.
fn is_starting(error: &CreateStreamError) -> bool {
    match error.kind() {
        CreateStreamErrorKind::TimedOut => true,
        CreateStreamErrorKind::JetStream(server) => is_forming(server.error_code()),
        _ => false,
    }
}

fn is_starting_to_look(error: &GetStreamError) -> bool {
    match error.kind() {
        GetStreamErrorKind::Request => true,
        GetStreamErrorKind::JetStream(server) => is_forming(server.error_code()),
        _ => false,
    }
}

fn is_forming(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::CLUSTER_NO_PEERS | ErrorCode::CLUSTER_NOT_AVAILABLE)
}

/// The log, as it is to be.
pub fn log_config(settings: &StreamSettings) -> StreamConfig {
    StreamConfig {
        name: STREAM.to_owned(),
        description: Some("Mooring's log of installation events: the source of truth".to_owned()),
        subjects: vec![all_subjects()],
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
pub fn keys_config(settings: &StreamSettings) -> StreamConfig {
    StreamConfig {
        name: keys::STREAM.to_owned(),
        description: Some(
            "Mooring's data keys, in sealed pages that were changed: without them no secret opens"
                .to_owned(),
        ),
        subjects: vec![keys::changed_subjects()],
        // Small beside the log, whose size is what an operator limits.
        max_bytes: -1,
        ..log_config(settings)
    }
}

/// A page is stored once: the server refuses a second message of its subject,
/// whatever the headers of the client say.
pub fn new_keys_config(settings: &StreamSettings) -> StreamConfig {
    StreamConfig {
        name: keys::NEW_STREAM.to_owned(),
        description: Some(
            "Mooring's data keys, in sealed pages as they were made: without them no secret opens"
                .to_owned(),
        ),
        subjects: vec![keys::new_subjects()],
        max_messages_per_subject: 1,
        discard_new_per_subject: true,
        allow_atomic_publish: false,
        ..keys_config(settings)
    }
}

/// For people who ask what became of a callback: in memory and bounded, so that a
/// flood of forged callbacks cannot fill a disk. What one kind of one source leaves is
/// bounded, too, so that it pushes out no other, as long as all of them fit: those of
/// some forty sources.
fn audit_config(settings: &StreamSettings) -> StreamConfig {
    const DAY: Duration = Duration::from_secs(86_400);
    const BYTES_MAX: i64 = 64 << 20;
    StreamConfig {
        name: audit::STREAM.to_owned(),
        description: Some("Callbacks that are not in the log: refused, or repeated".to_owned()),
        subjects: vec![audit::subjects(None)],
        storage: StorageType::Memory,
        discard: DiscardPolicy::Old,
        max_age: 7 * DAY,
        max_bytes: BYTES_MAX,
        max_messages_per_subject: audit::RECORDS_OF_SUBJECT_MAX,
        num_replicas: settings.replicas,
        ..StreamConfig::default()
    }
}

/// The last report of each running service; what it holds is of the moment.
fn rings_config(settings: &StreamSettings) -> StreamConfig {
    const BYTES_MAX: i64 = 1 << 20;
    StreamConfig {
        name: keys::report::STREAM.to_owned(),
        description: Some("What each running service has of the key ring".to_owned()),
        subjects: vec![keys::report::subjects()],
        storage: StorageType::Memory,
        discard: DiscardPolicy::Old,
        max_age: keys::report::FORGOTTEN_AFTER,
        max_messages_per_subject: 1,
        max_bytes: BYTES_MAX,
        num_replicas: settings.replicas,
        ..StreamConfig::default()
    }
}

/// On disk, so that no restart gives a stranger another hour's worth. It holds the
/// last sum of each counter of this hour and the one before.
fn quota_config(settings: &StreamSettings) -> StreamConfig {
    const HOUR: Duration = Duration::from_secs(3_600);
    /// Thousands of sources.
    const BYTES_MAX: i64 = 4 << 20;
    StreamConfig {
        name: quota::STREAM.to_owned(),
        description: Some("What was written by whoever came, by source and hour".to_owned()),
        subjects: vec![quota::all_subjects()],
        storage: StorageType::File,
        max_messages_per_subject: 1,
        max_bytes: BYTES_MAX,
        max_age: 2 * HOUR,
        num_replicas: settings.replicas,
        allow_message_counter: true,
        ..StreamConfig::default()
    }
}

/// As durable as the log. What the app has acknowledged leaves it, and what it has not
/// taken is never dropped: the stream refuses more, and the platform sends it again.
fn forward_config(settings: &StreamSettings) -> StreamConfig {
    StreamConfig {
        name: forward::STREAM.to_owned(),
        description: Some(
            "Callbacks about no installation, until the app has taken them".to_owned(),
        ),
        subjects: vec![forward::all_subjects()],
        retention: RetentionPolicy::WorkQueue,
        storage: StorageType::File,
        discard: DiscardPolicy::New,
        max_bytes: i64::try_from(settings.forwarded_max_bytes).unwrap_or(i64::MAX),
        num_replicas: settings.replicas,
        duplicate_window: Duration::from_millis(settings.duplicate_window_ms),
        ..StreamConfig::default()
    }
}

/// A copy of the feed, which has what no longer fits.
fn changes_config(settings: &StreamSettings, keep_for: Duration) -> StreamConfig {
    StreamConfig {
        name: changes::STREAM.to_owned(),
        description: Some("What became of installations, in order".to_owned()),
        subjects: vec![changes::all_subjects()],
        storage: StorageType::File,
        discard: DiscardPolicy::Old,
        max_age: keep_for,
        max_bytes: i64::try_from(settings.changes_max_bytes).unwrap_or(i64::MAX),
        num_replicas: settings.replicas,
        duplicate_window: Duration::from_millis(settings.duplicate_window_ms),
        allow_direct: true,
        ..StreamConfig::default()
    }
}

/// By which the app takes. It may make none by itself: one that delivers to a subject of
/// its choice would publish there with the server's rights.
fn app_consumer_config() -> pull::Config {
    pull::Config {
        durable_name: Some(forward::CONSUMER.to_owned()),
        description: Some("The app's own service".to_owned()),
        ack_policy: AckPolicy::Explicit,
        ..pull::Config::default()
    }
}

fn consumer_config(ack_wait: Duration) -> pull::Config {
    pull::Config {
        durable_name: Some(CONSUMER.to_owned()),
        description: Some("Applies the log to Postgres".to_owned()),
        deliver_policy: DeliverPolicy::All,
        ack_policy: AckPolicy::Explicit,
        ack_wait,
        // Past a limit JetStream would stop delivering, which loses the event.
        // What cannot be applied becomes a dead letter instead.
        max_deliver: -1,
        max_ack_pending: MAX_ACK_PENDING,
        ..pull::Config::default()
    }
}

#[cfg(test)]
mod tests {
    use async_nats::jetstream::stream::PersistenceMode;

    use super::*;

    #[test]
    fn the_streams_that_we_create_meet_the_contract() {
        let settings = StreamSettings::default();
        for config in [log_config(&settings), keys_config(&settings), new_keys_config(&settings)] {
            assert_eq!(breaches_of(&config), []);
        }
    }

    #[test]
    fn each_lax_setting_is_a_breach_of_its_own() {
        let ours = || log_config(&StreamSettings::default());
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
            assert_eq!(breaches_of(&stream), [breach]);
        }
        let new_keys = || new_keys_config(&StreamSettings::default());
        for lax in [
            StreamConfig { max_messages_per_subject: -1, ..new_keys() },
            StreamConfig { max_messages_per_subject: 2, ..new_keys() },
        ] {
            assert_eq!(breaches_of(&lax), [Breach::PagesWrittenOver]);
        }
    }
}
