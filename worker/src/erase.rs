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

use anyhow::{Context as _, bail, ensure};
use async_nats::jetstream;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use shared::data_key::DataKeyId;
use shared::event::{Event, Identity};
use shared::id::{InstallationId, PageId, SourceName};
use shared::log::{LogMessage, SUBJECT_ROOT, header_subject};
use shared::platform::Platform;
use shared::seal::{KeyRing, Sealed, SealedUnder};
use sqlx::PgConnection;
use tokio_util::sync::CancellationToken;

use crate::log_reader::{self, LogReader, Start};
use crate::operator::{Backends, wait_for_workers};
use crate::timestamp::sequence_to_sql;
use crate::{data_keys, database, dead_letter, journal};

/// Others may change the same page at the same time.
const REPLACE_ATTEMPTS: usize = 20;

#[derive(Debug, Clone)]
pub struct ErasureOrder {
    pub source: SourceName,
    pub installation: InstallationId,
    pub by: String,
    pub why: String,
}

#[derive(Debug, Serialize)]
pub struct ErasureReport {
    pub source: SourceName,
    pub installation_id: InstallationId,
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
    let ErasureOrder { source, installation, .. } = order;
    // What is on its way may say where else it is installed.
    let end = log_reader::info(&backends.client).await?.state.last_sequence;
    wait_for_workers(backends, end, shutdown).await?;
    let mut connection =
        database::acquire(&backends.pool).await.context("connecting to Postgres")?;
    let identities = journal::identities(&mut connection, source, installation).await?;
    if identities.is_empty() {
        bail!(
            "source {source} has no event of an installation {installation} in the journal; is \
             it in `worker dead-letters list`?"
        );
    }
    let erasure = begin_record(&mut connection, order).await?;
    let sequence = append(backends, ring, source, &identities).await?;
    wait_for_workers(backends, sequence, shutdown).await?;

    // What came after that is new, and is not erased.
    let mut envelopes = envelopes_in_log(backends, source, installation, sequence).await?;
    // The log may have been trimmed.
    for body in journal::bodies(&mut connection, source, installation, sequence).await? {
        collect(&body, &mut envelopes);
    }
    for body in dead_letter::bodies(&mut connection, source, installation, sequence).await? {
        collect(&body, &mut envelopes);
    }
    let (keys, still_open_under) = keys_of(&envelopes);
    let (mut destroyed, mut gone_before) = (0, 0);
    for (page, slots) in keys {
        let now = destroy(backends, ring, &page, &slots).await?;
        destroyed += now;
        gone_before += slots.len() - now;
    }
    end_record(&mut connection, erasure, sequence, destroyed).await?;
    Ok(ErasureReport {
        source: source.clone(),
        installation_id: installation.clone(),
        sequence,
        secrets: destroyed + gone_before,
        keys_destroyed: destroyed,
        keys_gone_before: gone_before,
        still_open_under,
    })
}

/// The sequence of the last event that says it.
async fn append(
    backends: &Backends,
    ring: &KeyRing,
    source: &SourceName,
    identities: &[(Platform, Identity)],
) -> anyhow::Result<u64> {
    let jetstream = jetstream::new(backends.client.clone());
    let now = Timestamp::now();
    let mut last = 0;
    for (platform, identity) in identities {
        let what = ["erased", identity.installation_id.as_str(), identity.place.as_str()];
        let number = ring.fingerprint(&[&what[..], &[&now.to_string()]].concat());
        let event = Event::erased(source.clone(), *platform, identity.clone(), now, &number)?;
        let message = LogMessage::new(&event)?;
        let (subject, headers) = (message.subject.clone(), message.headers());
        let sent = jetstream.publish_with_headers(subject, headers, message.body).await?;
        last = sent.await.context("appending that the installation was erased")?.sequence;
    }
    Ok(last)
}

async fn envelopes_in_log(
    backends: &Backends,
    source: &SourceName,
    installation: &InstallationId,
    end: u64,
) -> anyhow::Result<Vec<Sealed>> {
    let subjects = format!("{SUBJECT_ROOT}.{source}.>");
    let mut reader = LogReader::open(&backends.client, Start::Sequence(1), end, subjects).await?;
    let wanted = header_subject(installation);
    let mut found = Vec::new();
    while let Some((_, message)) = reader.next().await? {
        let headers = message.headers.as_ref();
        let about = headers.and_then(|headers| headers.get("ce-subject"));
        if about.is_some_and(|about| about.as_str() == wanted) {
            // What is no JSON was not written by us and holds no envelope.
            collect(&serde_json::from_slice(&message.payload).unwrap_or_default(), &mut found);
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
    let stream = data_keys::stream(&backends.client).await?;
    for _ in 0..REPLACE_ATTEMPTS {
        let stored = data_keys::page(&stream, id).await?;
        let mut page = stored.open(ring)?;
        let destroyed = slots.iter().filter(|slot| page.destroy(**slot)).count();
        if destroyed == 0 {
            data_keys::destroy_former(&backends.client, id, stored.sequence).await?;
            return Ok(0);
        }
        if data_keys::replace(&backends.client, ring, &page, stored.sequence).await? {
            let now = data_keys::page(&stream, id).await?.open(ring)?;
            let is_gone = slots.iter().all(|slot| now.key(*slot).is_none());
            ensure!(is_gone, "page {id} was stored and holds a destroyed key still");
            return Ok(destroyed);
        }
    }
    bail!("page {id} of data keys is changed by others all the time")
}

/// Before the first key is destroyed, so that an interrupted erasure is known.
async fn begin_record(
    connection: &mut PgConnection,
    order: &ErasureOrder,
) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar!(
        r#"
        INSERT INTO mooring.erasures (source, installation_id, erased_by, why)
        VALUES ($1, $2, $3, $4)
        RETURNING id
        "#,
        order.source.as_str(),
        order.installation.as_str(),
        order.by,
        order.why,
    )
    .fetch_one(connection)
    .await
}

async fn end_record(
    connection: &mut PgConnection,
    erasure: i64,
    sequence: u64,
    keys_destroyed: usize,
) -> anyhow::Result<()> {
    sqlx::query!(
        r#"
        UPDATE mooring.erasures
        SET finished_at = now(), stream_sequence = $2, keys_destroyed = $3
        WHERE id = $1
        "#,
        erasure,
        sequence_to_sql(sequence),
        i32::try_from(keys_destroyed)?,
    )
    .execute(connection)
    .await?;
    Ok(())
}
