//! What the server says of the streams and of the workers' consumer.

use async_nats::jetstream::consumer::AckPolicy;
use async_nats::jetstream::consumer::Info as ConsumerInfo;
use async_nats::jetstream::context::ConsumerInfoErrorKind;
use async_nats::jetstream::stream::Info as StreamInfo;
use jiff::Timestamp;

use crate::breach::{Breach, breaches_of};
use crate::connect::{Connection, Unanswered};
use crate::consume::CONSUMER;
use crate::message;

/// A stream as it is now.
#[derive(Debug, Clone)]
pub struct StreamStatus {
    pub created_at: Timestamp,
    pub messages: u64,
    pub bytes: u64,
    /// From which on it refuses messages; `None` without a limit.
    pub bytes_max: Option<u64>,
    pub first_sequence: u64,
    pub last_sequence: u64,
    /// What in its settings breaks the durability contract.
    pub breaches: Vec<Breach>,
    /// As many servers are to have it.
    pub replicas: usize,
    /// Those of them that lack something, or are away.
    pub replicas_behind: Vec<String>,
}

/// The log as it is now.
pub async fn log(connection: &Connection) -> anyhow::Result<StreamStatus> {
    stream(connection, message::STREAM).await
}

pub async fn stream(connection: &Connection, name: &str) -> anyhow::Result<StreamStatus> {
    let StreamInfo { config, created, state, cluster, .. } =
        connection.stream(name).await?.cached_info().clone();
    let peers = cluster.map(|cluster| cluster.replicas).unwrap_or_default();
    let behind = peers.into_iter().filter(|peer| peer.offline || !peer.current);
    Ok(StreamStatus {
        created_at: Timestamp::from_nanosecond(created.unix_timestamp_nanos())?,
        messages: state.messages,
        bytes: state.bytes,
        bytes_max: u64::try_from(config.max_bytes).ok().filter(|max| *max > 0),
        first_sequence: state.first_sequence,
        last_sequence: state.last_sequence,
        breaches: breaches_of(&config),
        replicas: config.num_replicas,
        replicas_behind: behind.map(|peer| peer.name).collect(),
    })
}

/// How far the workers are.
#[derive(Debug, Clone, Copy)]
pub struct ConsumerStatus {
    /// Not delivered yet.
    pub pending: u64,
    /// Delivered, and not acknowledged yet.
    pub unacknowledged: u64,
    /// Pulls that wait for events: without any nobody is asking.
    pub pulls_waiting: u64,
    /// Everything up to here is acknowledged.
    pub acknowledged_up_to: u64,
    /// The last sequence that was delivered.
    pub delivered_up_to: u64,
    /// Whether an event that was not acknowledged comes again, for ever.
    pub redelivers: bool,
}

impl ConsumerStatus {
    /// Up to where every event is applied.
    pub fn applied_up_to(&self) -> u64 {
        if self.behind() == 0 {
            self.acknowledged_up_to.max(self.delivered_up_to)
        } else {
            self.acknowledged_up_to
        }
    }

    /// Events that are not applied.
    pub fn behind(&self) -> u64 {
        self.pending + self.unacknowledged
    }
}

pub async fn consumer(connection: &Connection) -> anyhow::Result<ConsumerStatus> {
    let stream = connection.jetstream.get_stream_no_info(message::STREAM).await?;
    let what = format!("consumer {CONSUMER}");
    let api = format!("CONSUMER.INFO.{}.{CONSUMER}", message::STREAM);
    let answer = connection.unless_refused(&what, &api, stream.consumer_info(CONSUMER)).await?;
    let info: ConsumerInfo = answer.map_err(|error| match error.kind() {
        ConsumerInfoErrorKind::NotFound | ConsumerInfoErrorKind::StreamNotFound => {
            Unanswered::Missing { what }
        }
        _ => Unanswered::Away { what, why: error.to_string() },
    })?;
    Ok(ConsumerStatus {
        pending: info.num_pending,
        unacknowledged: u64::try_from(info.num_ack_pending).unwrap_or_default(),
        pulls_waiting: u64::try_from(info.num_waiting).unwrap_or_default(),
        acknowledged_up_to: info.ack_floor.stream_sequence,
        delivered_up_to: info.delivered.stream_sequence,
        redelivers: info.config.ack_policy == AckPolicy::Explicit && info.config.max_deliver <= 0,
    })
}
