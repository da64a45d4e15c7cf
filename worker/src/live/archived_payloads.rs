//! Payloads that have left the journal, for who asks for the events of an
//! installation. Each costs a part of a segment, so few are read at a time.

use std::time::Duration;

use domain::event::{Event, Payload};
use eventlog::archive::{Archive, ArchiveError, Chain, LogIdentity, Storage};
use eventlog::connect::Connection;
use eventlog::status;
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::settings::ArchiveAccess;
use crate::store::journal::HistoryEntry;

/// A caller is told quickly that the archive is away, or that others are before it.
const WITHIN: Duration = Duration::from_secs(10);

pub(crate) struct ArchivedPayloads {
    connection: Connection,
    access: Option<ArchiveAccess>,
    /// Of the log that is there, once it was asked for. One reads at a time: unpacking
    /// must not take the processor from what is applied.
    opened: Mutex<Option<(Archive, Chain)>>,
}

/// Why payloads are not there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unread {
    #[error("the payloads of old events are in the archive, and worker.archive is not configured")]
    NotConfigured,
    #[error("the archive does not answer; try again shortly")]
    Archive(#[source] ArchiveError),
    #[error("the log does not answer; try again shortly")]
    Log(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the archive does not answer in time; try again shortly")]
    TooSlow,
    #[error("the archive has no event at sequence {sequence}")]
    Missing { sequence: u64 },
}

impl ArchivedPayloads {
    pub(crate) fn new(connection: Connection, access: Option<ArchiveAccess>) -> Self {
        Self { connection, access, opened: Mutex::new(None) }
    }

    /// Puts in the payloads that the journal does not have any more.
    pub(crate) async fn fill(&self, events: &mut [HistoryEntry]) -> Result<(), Unread> {
        let relieved = events.iter().filter(|event| event.is_relieved);
        let mut sequences: Vec<u64> = relieved.map(|event| event.sequence.0).collect();
        let Some(last) = sequences.iter().max().copied() else { return Ok(()) };
        sequences.sort_unstable();
        let read = timeout(WITHIN, self.read(last, &sequences)).await;
        let archived = read.unwrap_or(Err(Unread::TooSlow))?;
        for event in events.iter_mut().filter(|event| event.is_relieved) {
            let sequence = event.sequence.0;
            let body = archived.iter().find(|archived| archived.sequence.0 == sequence);
            let found = body.and_then(|body| Event::decode(&body.body).ok());
            let found = found.filter(|found| found.message_id.as_str() == event.message_id);
            match found.ok_or(Unread::Missing { sequence })?.payload {
                Payload::Clear(payload) => event.payload = payload,
                Payload::Sealed(_) => {}
            }
        }
        Ok(())
    }

    async fn read(
        &self,
        last: u64,
        sequences: &[u64],
    ) -> Result<Vec<eventlog::delivery::Delivery>, Unread> {
        let access = self.access.as_ref().ok_or(Unread::NotConfigured)?;
        let mut opened = self.opened.lock().await;
        if opened.is_none() {
            let log = status::log(&self.connection).await;
            let log = log.map_err(|error| Unread::Log(error.into()))?;
            let storage = Storage::open(&access.location).map_err(Unread::Archive)?;
            let archive = Archive::new(storage, LogIdentity::new(log.created_at));
            *opened = Some((archive, Chain::default()));
        }
        let Some((archive, chain)) = opened.as_mut() else { return Err(Unread::TooSlow) };
        if chain.last_sequence() < last {
            archive.extend(chain).await.map_err(Unread::Archive)?;
        }
        archive.events(chain, sequences).await.map_err(Unread::Archive)
    }
}
