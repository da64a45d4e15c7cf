//! What each running service has of the key ring, reported again and again: a key
//! is made active when every worker can open with it, and retired when nobody
//! seals with it any more.
//!
//! The last report of each service stands in a stream in memory and is forgotten
//! a minute after the service has ended.

use std::time::Duration;

use domain::id::KeyId;
use domain::key_ring::SealingKey;
use domain::seal::random_token;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::connect::Connection;
use crate::read::{Reader, Selection, Start};

/// The stream.
pub const STREAM: &str = "KEY_RINGS";
const SUBJECT_ROOT: &str = "key_rings";
/// A change is reported this soon.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const REPORT_EVERY: Duration = Duration::from_secs(10);
/// Several reports may be lost before a service is taken for ended.
pub(crate) const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);
const INSTANCE_BYTES: usize = 12;
const SILENCE_MAX: Duration = Duration::from_secs(2);

/// What a service has of the key ring.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// What it seals new pages with.
    pub active: KeyId,
    /// Its public half.
    pub public: String,
    /// What it can open with: nothing, if it is ingest.
    pub opens: Vec<KeyId>,
}

impl Held {
    pub fn of(sealing: &SealingKey, opens: Vec<KeyId>) -> Self {
        Self { active: sealing.id().clone(), public: sealing.public().to_string(), opens }
    }
}

/// One running service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingReport {
    /// `ingest`, `worker` or `renewer`, as the users of NATS are named.
    pub service: String,
    pub instance: String,
    #[serde(flatten)]
    pub held: Held,
}

pub(crate) fn subjects() -> String {
    format!("{SUBJECT_ROOT}.>")
}

/// Starts the task that reports what `held` says, until `shutdown`.
pub fn start(
    connection: Connection,
    service: &'static str,
    held: impl Fn() -> Held + Send + 'static,
    shutdown: CancellationToken,
) {
    let mut instance = random_token();
    instance.truncate(INSTANCE_BYTES);
    tokio::spawn(async move {
        let subject = format!("{SUBJECT_ROOT}.{service}.{instance}");
        let mut last: Option<(Instant, Held)> = None;
        loop {
            let now = held();
            let is_due =
                last.as_ref().is_none_or(|(at, was)| at.elapsed() >= REPORT_EVERY || *was != now);
            if is_due && connection.is_connected() {
                let (service, instance) = (service.to_owned(), instance.clone());
                let report = RingReport { service, instance, held: now.clone() };
                if let Ok(body) = serde_json::to_vec(&report) {
                    // The next one makes good for one that is lost.
                    connection.client.publish(subject.clone(), body.into()).await.ok();
                }
                last = Some((Instant::now(), now));
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = shutdown.cancelled() => return,
            }
        }
    });
}

/// The last report of each service that runs, or has ended a moment ago.
pub async fn reports(connection: &Connection) -> anyhow::Result<Vec<RingReport>> {
    let selection = Selection {
        silence_max: SILENCE_MAX,
        ..Selection::of_all(STREAM, subjects(), Start::LastOfEachSubject)
    };
    let mut reader = Reader::open(connection, selection).await?;
    let mut found = Vec::new();
    // Some may have been replaced since they were counted, and then nothing more comes.
    while let Ok(Some(message)) = reader.next().await {
        // One of another version is none that we know.
        found.extend(serde_json::from_slice::<RingReport>(&message.body).ok());
    }
    Ok(found)
}
