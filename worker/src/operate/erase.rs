//! `worker erase`: after it no secret of an installation opens any more, from
//! whatever copy of log, journal or projection.
//!
//! 1. That it was erased is appended to the log, so that the projection drops
//!    the credential, and every rebuild does, too.
//! 2. When the workers have applied that, log, journal and dead letters are read
//!    for every envelope of the installation up to there.
//! 3. The data keys of these envelopes are destroyed: their pages are stored
//!    without them, and what was stored before is overwritten.
//!
//! Interrupted, it is run again; what is destroyed already stays so.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use domain::event::Event;
use domain::id::{DataKeyId, InstallationId, PageId, Place, SourceName};
use domain::seal::{KeyRing, Sealed, SealedUnder};
use eventlog::append::Writer;
use eventlog::keys;
use eventlog::message::{LogMessage, header_subject, subjects_of};
use eventlog::read::{Reader, Selection, Start};
use eventlog::status;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::operate::backends::{Backends, wait_for_workers};
use crate::store::database;
use crate::store::dead_letters;
use crate::store::erasures::{self, ErasureOrder};
use crate::store::find::{self, FindError};
use crate::store::journal::{self, EventsOf, Known};

const APPEND_WITHIN: Duration = Duration::from_secs(30);
/// Others may change the same page at the same time.
const REPLACE_ATTEMPTS: usize = 20;

#[derive(Debug, Serialize)]
pub struct ErasureReport {
    pub source: SourceName,
    pub installation_id: InstallationId,
    /// Where it is, or was said to be by an uninstall.
    pub places: Vec<Place>,
    /// Where the log says that it was erased.
    pub sequence: u64,
    /// Secrets that were found.
    pub secrets: usize,
    pub keys_destroyed: usize,
    /// They were destroyed before.
    pub keys_gone_before: usize,
    /// Sealed by these keys of the ring itself, before there were data keys:
    /// such a secret opens until its key is retired.
    pub still_open_under: BTreeSet<String>,
}

pub async fn erase(
    backends: &Backends,
    ring: &KeyRing,
    order: &ErasureOrder,
    shutdown: &CancellationToken,
) -> anyhow::Result<ErasureReport> {
    let ErasureOrder { installation, which, .. } = order;
    // What is on its way may say where else it is installed.
    let end = status::log(&backends.connection).await?.last_sequence;
    wait_for_workers(backends, end, shutdown).await?;
    let mut connection =
        database::acquire(&backends.pool).await.context("connecting to Postgres")?;
    let chosen = match find::choose(&mut connection, which, installation).await {
        Err(FindError::NotFound) => bail!(
            "the journal has no event of an installation {installation} of this source, app and \
             place; is it in `worker dead-letters list`?"
        ),
        chosen => chosen?,
    };
    let of = chosen.events();
    let known = journal::known(&mut connection, Some(of.source.as_str()), installation).await?;
    let is_here = |known: &Known| !of.is_elsewhere(known.identity.place.as_str());
    let known: Vec<Known> = known.into_iter().filter(is_here).collect();
    let places: Vec<&Place> = known.iter().map(|known| &known.identity.place).collect();
    let erasure = erasures::begin(&mut connection, order, of.source, &places).await?;
    let sequence = append(backends, ring, &known).await?;
    wait_for_workers(backends, sequence, shutdown).await?;

    // What came after that is new, and is not erased.
    let mut envelopes = envelopes_in_log(backends, &of, sequence).await?;
    // The log may have been trimmed.
    for body in journal::bodies(&mut connection, &of, sequence).await? {
        collect(&body, &mut envelopes);
    }
    for body in dead_letters::bodies(&mut connection, &of, sequence).await? {
        collect(&body, &mut envelopes);
    }
    let (keys, still_open_under) = keys_of(&envelopes);
    let (mut destroyed, mut gone_before) = (0, 0);
    for (page, slots) in keys {
        let now = destroy(backends, ring, &page, &slots).await?;
        destroyed += now;
        gone_before += slots.len() - now;
    }
    erasures::end(&mut connection, erasure, sequence, destroyed).await?;
    Ok(ErasureReport {
        source: of.source.clone(),
        installation_id: installation.clone(),
        places: places.into_iter().cloned().collect(),
        sequence,
        secrets: destroyed + gone_before,
        keys_destroyed: destroyed,
        keys_gone_before: gone_before,
        still_open_under,
    })
}

/// The sequence of the last event that says it.
async fn append(backends: &Backends, ring: &KeyRing, known: &[Known]) -> anyhow::Result<u64> {
    let writer = Writer::new(backends.connection.clone());
    let now = Timestamp::now();
    let mut last = 0;
    for Known { source, platform, identity } in known {
        let what = ["erased", identity.installation_id.as_str(), identity.place.as_str()];
        let number = ring.fingerprint(&[&what[..], &[&now.to_string()]].concat());
        let event =
            Event::erased(source.clone(), platform.clone(), identity.clone(), now, &number)?;
        let message = LogMessage::new(&event)?;
        let appended = writer.append(&message, APPEND_WITHIN).await;
        let appended = appended.context("appending that the installation was erased")?;
        last = appended.sequence.0;
    }
    Ok(last)
}

async fn envelopes_in_log(
    backends: &Backends,
    of: &EventsOf<'_>,
    end: u64,
) -> anyhow::Result<Vec<Sealed>> {
    let all = Selection::of_log(subjects_of(of.source), Start::Sequence(1), end);
    let mut reader = Reader::open(&backends.connection, all).await?;
    let wanted = header_subject(of.installation);
    let mut found = Vec::new();
    while let Some(delivery) = reader.next().await? {
        if delivery.about() == Some(wanted.as_str()) {
            // What is not JSON was not written by us and holds no envelope.
            let event = serde_json::from_slice(&delivery.body).unwrap_or_default();
            if of.includes(&event) {
                collect(&event, &mut found);
            }
        }
    }
    Ok(found)
}

/// The envelopes of an event, where we put them and nowhere else: a payload may
/// hold anything, what looks like an envelope of another event included.
fn collect(event: &Value, found: &mut Vec<Sealed>) {
    for place in ["/fact/credential/sealed", "/payload/sealed"] {
        if let Some(Value::String(text)) = event.pointer(place) {
            found.push(Sealed::from_stored(text.clone()));
        }
    }
}

/// Slots by page, and the keys of the ring that secrets are sealed under.
fn keys_of(envelopes: &[Sealed]) -> (BTreeMap<PageId, BTreeSet<u8>>, BTreeSet<String>) {
    let (mut pages, mut ring_keys) = (BTreeMap::new(), BTreeSet::new());
    for envelope in envelopes {
        match envelope.under() {
            Ok(SealedUnder::DataKey(DataKeyId { page, slot })) => {
                let slots: &mut BTreeSet<u8> = pages.entry(PageId::clone(&page)).or_default();
                slots.insert(slot);
            }
            Ok(SealedUnder::RingKey(id)) => {
                ring_keys.insert(id.to_string());
            }
            Err(_) => {}
        }
    }
    (pages, ring_keys)
}

/// How many of the slots were not destroyed yet.
async fn destroy(
    backends: &Backends,
    ring: &KeyRing,
    id: &PageId,
    slots: &BTreeSet<u8>,
) -> anyhow::Result<usize> {
    let connection = &backends.connection;
    for _ in 0..REPLACE_ATTEMPTS {
        let stored = keys::page(connection, id).await?;
        let mut page = stored.open(ring)?;
        let destroyed = slots.iter().filter(|slot| page.destroy(**slot)).count();
        if destroyed == 0 {
            keys::destroy_former(connection, id, stored.sequence).await?;
            return Ok(0);
        }
        if keys::replace(connection, ring, &page, stored.sequence).await? {
            let now = keys::page(connection, id).await?.open(ring)?;
            let is_gone = slots.iter().all(|slot| now.key(*slot).is_none());
            ensure!(is_gone, "page {id} was stored and holds a destroyed key still");
            return Ok(destroyed);
        }
    }
    bail!("page {id} of data keys is changed by others all the time")
}
