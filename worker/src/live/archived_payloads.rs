//! Payloads that have left the journal, for who asks for the events of an
//! installation. Each costs a part of a segment, so few are read at a time.

use std::time::Duration;

use domain::event::{Event, Payload};
use eventlog::archive::{Archive, ArchiveError, Chain, Storage};
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::settings::ArchiveAccess;
use crate::store::journal::HistoryEntry;

/// A caller is told quickly that the archive is away, or that others are before it.
const WITHIN: Duration = Duration::from_secs(10);

pub(crate) struct ArchivedPayloads {
    access: Option<ArchiveAccess>,
    /// Of each log, the last one first, once they were asked for. One reads at a time:
    /// unpacking must not take the processor from what is applied.
    opened: Mutex<Vec<(Archive, Chain)>>,
}

/// Why payloads are not there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unread {
    #[error("the payloads of old events are in the archive, and worker.archive is not configured")]
    NotConfigured,
    #[error("the archive does not answer; try again shortly")]
    Archive(#[source] ArchiveError),
    #[error("the archive does not answer in time; try again shortly")]
    TooSlow,
    #[error("the archive has no event at sequence {sequence}")]
    Missing { sequence: u64 },
}

impl ArchivedPayloads {
    pub(crate) fn new(access: Option<ArchiveAccess>) -> Self {
        Self { access, opened: Mutex::new(Vec::new()) }
    }

    /// Puts in the payloads that the journal does not have any more.
    pub(crate) async fn fill(&self, events: &mut [HistoryEntry]) -> Result<(), Unread> {
        let mut wanted: Vec<&mut HistoryEntry> =
            events.iter_mut().filter(|event| event.is_relieved).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        wanted.sort_unstable_by_key(|event| event.sequence);
        let read = timeout(WITHIN, self.read(&mut wanted)).await;
        read.unwrap_or(Err(Unread::TooSlow))?;
        match wanted.iter().find(|event| event.is_relieved) {
            Some(missing) => Err(Unread::Missing { sequence: missing.sequence.0 }),
            None => Ok(()),
        }
    }

    async fn read(&self, wanted: &mut [&mut HistoryEntry]) -> Result<(), Unread> {
        let access = self.access.as_ref().ok_or(Unread::NotConfigured)?;
        let mut opened = self.opened.lock().await;
        if !from_each(&mut opened, wanted).await.map_err(Unread::Archive)? {
            // Another log may have come since.
            *opened = open(access).await.map_err(Unread::Archive)?;
            from_each(&mut opened, wanted).await.map_err(Unread::Archive)?;
        }
        Ok(())
    }
}

async fn open(access: &ArchiveAccess) -> Result<Vec<(Archive, Chain)>, ArchiveError> {
    let storage = Storage::open(&access.location)?;
    let logs = Archive::logs(&storage).await?.into_iter().rev();
    Ok(logs.map(|log| (Archive::new(storage.clone(), log), Chain::default())).collect())
}

/// Reads what is missing from one archive after the other: a restored event was archived
/// where it stood at first. True if nothing is missing any more.
async fn from_each(
    archives: &mut [(Archive, Chain)],
    wanted: &mut [&mut HistoryEntry],
) -> Result<bool, ArchiveError> {
    for (archive, chain) in archives {
        let missing = wanted.iter().filter(|event| event.is_relieved);
        let sequences: Vec<u64> = missing.map(|event| event.sequence.0).collect();
        let Some(last) = sequences.last() else { return Ok(true) };
        if chain.last_sequence() < *last {
            archive.extend(chain).await?;
        }
        for archived in archive.events(chain, &sequences).await? {
            let is_it = |event: &HistoryEntry| {
                event.sequence == archived.sequence
                    && archived.message_id() == Some(event.message_id.as_str())
            };
            let event = wanted.iter_mut().find(|it| it.is_relieved && is_it(it));
            if let (Some(event), Ok(found)) = (event, Event::decode(&archived.body)) {
                event.is_relieved = false;
                if let Payload::Clear(payload) = found.payload {
                    event.payload = payload;
                }
            }
        }
    }
    Ok(wanted.iter().all(|event| !event.is_relieved))
}
