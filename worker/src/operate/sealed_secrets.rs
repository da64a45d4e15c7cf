//! The sealed secrets of installations, wherever they are kept, and the data keys
//! that open them: for the commands that destroy these.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{bail, ensure};
use domain::id::{DataKeyId, PageId};
use domain::key_ring::KeyRing;
use domain::seal::{Sealed, SealedUnder};
use eventlog::archive::History;
use eventlog::connect::Connection;
use eventlog::keys::{self as data_keys, NoSuchPage, Replaced};
use eventlog::message::{all_subjects, header_subject, source_of};
use eventlog::read::{Selection, Start};
use serde_json::Value;
use sqlx::PgConnection;
use tokio_util::sync::CancellationToken;

use crate::operate::backends::Backends;
use crate::operate::exit::Interrupted;
use crate::operate::progress::Progress;
use crate::store::journal::{self, EventsOf};
use crate::store::{archived, dead_letters};

/// Others may change the same page at the same time.
const REPLACE_ATTEMPTS: usize = 20;
const PROGRESS_EVERY: u64 = 1_000;

/// What an installation had up to a position of the log.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sought<'a> {
    pub(super) of: &'a EventsOf<'a>,
    pub(super) end: u64,
}

/// What seals the secrets that were found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Slots by page.
    data_keys: BTreeMap<PageId, BTreeSet<u8>>,
    /// Keys of the ring itself, from before there were data keys.
    pub(super) still_open_under: BTreeSet<String>,
}

/// Finds every sealed secret of these installations, in archive, log, journal and
/// dead letters. The history is read once.
pub(super) async fn found(
    backends: &Backends,
    connection: &mut PgConnection,
    sought: &[Sought<'_>],
    shutdown: &CancellationToken,
) -> anyhow::Result<Found> {
    let untrimmed = backends.history().await?;
    if archived::last_sequence(connection).await? > 0 {
        // What left the journal for the archive must be found there.
        untrimmed.history.require_whole()?;
    }
    let mut found = Found::default();
    found.in_history(&backends.connection, &untrimmed.history, sought, shutdown).await?;
    for Sought { of, end } in sought {
        // The log may lack what was trimmed before there was an archive.
        for body in journal::bodies(connection, of, *end).await? {
            found.collect(&body);
        }
        for body in dead_letters::bodies(connection, of, *end).await? {
            found.collect(&body);
        }
    }
    Ok(found)
}

impl Found {
    async fn in_history(
        &mut self,
        connection: &Connection,
        history: &History,
        sought: &[Sought<'_>],
        shutdown: &CancellationToken,
    ) -> anyhow::Result<()> {
        let mut by_name: BTreeMap<(&str, String), Vec<Sought<'_>>> = BTreeMap::new();
        for it in sought {
            let name = (it.of.source.as_str(), header_subject(it.of.installation));
            by_name.entry(name).or_default().push(*it);
        }
        // To the end of the log, where restored events stand.
        let last = history.log.last_sequence;
        let all = Selection::of_log(all_subjects(), Start::Sequence(1), last);
        let mut reader = history.read(connection, all).await?;
        let (mut progress, mut unreported) = (Progress::new("reading events", last), 0);
        while let Some(delivery) = reader.next().await? {
            unreported += 1;
            if unreported == PROGRESS_EVERY {
                progress.add(std::mem::take(&mut unreported));
                if shutdown.is_cancelled() {
                    bail!(Interrupted);
                }
            }
            let (Some(source), Some(about)) = (source_of(&delivery.subject), delivery.about())
            else {
                continue;
            };
            let Some(sought) = by_name.get(&(source, about.to_owned())) else { continue };
            // What is not JSON was not written by us and holds no envelope.
            let event = serde_json::from_slice(&delivery.body).unwrap_or_default();
            let position = delivery.position().0;
            if sought.iter().any(|it| position <= it.end && it.of.includes(&event)) {
                self.collect(&event);
            }
        }
        progress.add(unreported);
        progress.finish();
        Ok(())
    }

    /// The envelopes of an event, where we put them and nowhere else: a payload may
    /// hold anything, what looks like an envelope of another event included.
    fn collect(&mut self, event: &Value) {
        for place in ["/fact/credential/sealed", "/payload/sealed"] {
            let Some(Value::String(text)) = event.pointer(place) else { continue };
            match Sealed::from_stored(text.clone()).under() {
                Ok(SealedUnder::DataKey(DataKeyId { page, slot })) => {
                    self.data_keys.entry(PageId::clone(&page)).or_default().insert(slot);
                }
                Ok(SealedUnder::SymmetricKey(id) | SealedUnder::KeyPair(id)) => {
                    self.still_open_under.insert(id.to_string());
                }
                Err(_) => {}
            }
        }
    }

    /// How many secrets are sealed under data keys.
    pub(super) fn secrets(&self) -> usize {
        self.data_keys.values().map(BTreeSet::len).sum()
    }

    /// How many of the data keys were not destroyed yet.
    pub(super) async fn keys_left(
        &self,
        backends: &Backends,
        ring: &KeyRing,
    ) -> anyhow::Result<usize> {
        let mut left = 0;
        for (page, slots) in &self.data_keys {
            let page = match data_keys::page(&backends.connection, page).await {
                Ok(stored) => stored.open(ring)?,
                Err(error) if error.is::<NoSuchPage>() => continue,
                Err(error) => return Err(error),
            };
            left += slots.iter().filter(|slot| page.key(**slot).is_some()).count();
        }
        Ok(left)
    }

    /// Destroys the data keys. Says how many were not before.
    pub(super) async fn destroy(
        &self,
        backends: &Backends,
        ring: &KeyRing,
    ) -> anyhow::Result<usize> {
        let mut destroyed = 0;
        for (page, slots) in &self.data_keys {
            destroyed += destroy(&backends.connection, ring, page, slots).await?;
        }
        Ok(destroyed)
    }
}

/// How many of the slots were not destroyed yet.
async fn destroy(
    connection: &Connection,
    ring: &KeyRing,
    id: &PageId,
    slots: &BTreeSet<u8>,
) -> anyhow::Result<usize> {
    for _ in 0..REPLACE_ATTEMPTS {
        let stored = match data_keys::page(connection, id).await {
            Ok(stored) => stored,
            Err(error) if error.is::<NoSuchPage>() => return Ok(0),
            Err(error) => return Err(error),
        };
        let mut page = stored.open(ring)?;
        let destroyed = slots.iter().filter(|slot| page.destroy(**slot)).count();
        if destroyed == 0 {
            data_keys::destroy_former(connection, &stored, &page).await?;
            return Ok(0);
        }
        if data_keys::replace(connection, ring, &page, stored.version).await? == Replaced::Yes {
            let now = data_keys::page(connection, id).await?.open(ring)?;
            let is_gone = slots.iter().all(|slot| now.key(*slot).is_none());
            ensure!(is_gone, "page {id} was stored and holds a destroyed key still");
            return Ok(destroyed);
        }
    }
    bail!("page {id} of data keys is changed by others all the time")
}
