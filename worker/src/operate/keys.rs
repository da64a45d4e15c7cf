//! `worker keys`: which keys are in use, sealing anew under the active one, and
//! whether one can be retired.
//!
//! The log holds nothing that a key of the ring seals, but for secrets from
//! before there were data keys; so to rotate is to seal the pages anew.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail};
use domain::id::KeyId;
use domain::seal::{KeyRing, SealedUnder};
use eventlog::keys::{self as data_keys, Pages, StoredPage};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::operate::backends::{Backends, Interrupted};
use crate::operate::progress::Progress;
use crate::store::database;
use crate::store::journal;

#[derive(Debug, Clone, Default, Serialize)]
pub struct KeyUse {
    /// In the configuration.
    pub configured: bool,
    pub active: bool,
    /// Pages of data keys that it seals.
    pub pages: u64,
    /// Events with secrets that it seals itself, from before there were data
    /// keys.
    pub events: u64,
}

/// Every key that is configured or needed.
pub async fn list(
    backends: &Backends,
    ring: &KeyRing,
    shutdown: &CancellationToken,
) -> anyhow::Result<BTreeMap<String, KeyUse>> {
    let mut found: BTreeMap<String, KeyUse> = BTreeMap::new();
    for id in ring.key_ids() {
        let active = id == ring.active();
        found.insert(id.to_string(), KeyUse { configured: true, active, ..KeyUse::default() });
    }
    let mut pages = Pages::open(&backends.connection).await?;
    while let Some(page) = pages.next().await? {
        found.entry(sealed_by(&page)?.to_string()).or_default().pages += 1;
        if shutdown.is_cancelled() {
            bail!(Interrupted);
        }
    }
    let mut connection =
        database::acquire(&backends.pool).await.context("connecting to Postgres")?;
    for (id, events) in journal::sealed_by_ring_keys(&mut connection).await? {
        found.entry(id).or_default().events = events;
    }
    Ok(found)
}

fn sealed_by(page: &StoredPage) -> anyhow::Result<KeyId> {
    match page.sealed.under() {
        Ok(SealedUnder::RingKey(id)) => Ok(id),
        _ => bail!("page {} of data keys is damaged", page.id),
    }
}

#[derive(Debug, Default, Serialize)]
pub struct ResealReport {
    pub active: String,
    pub resealed: u64,
    /// Sealed under the active key before.
    pub up_to_date: u64,
}

/// Seals every page under the active key that is not. Run again it goes on.
pub async fn reseal(
    backends: &Backends,
    ring: &KeyRing,
    shutdown: &CancellationToken,
) -> anyhow::Result<ResealReport> {
    let mut report = ResealReport { active: ring.active().to_string(), ..ResealReport::default() };
    let mut pages = Pages::open(&backends.connection).await?;
    let mut progress = Progress::new("resealing pages", pages.count());
    // Of one that was interrupted.
    let cleans_up = data_keys::former_versions(&backends.connection).await? > 0;
    while let Some(stored) = pages.next().await? {
        if shutdown.is_cancelled() {
            bail!(Interrupted);
        }
        if sealed_by(&stored)? == *ring.active() {
            report.up_to_date += 1;
            if cleans_up {
                data_keys::destroy_former(&backends.connection, &stored.id, stored.sequence)
                    .await?;
            }
        } else {
            reseal_page(backends, ring, stored).await?;
            report.resealed += 1;
        }
        progress.add(1);
    }
    progress.finish();
    Ok(report)
}

async fn reseal_page(
    backends: &Backends,
    ring: &KeyRing,
    mut stored: StoredPage,
) -> anyhow::Result<()> {
    loop {
        let page = stored.open(ring).with_context(|| format!("page {}", stored.id))?;
        if data_keys::replace(&backends.connection, ring, &page, stored.sequence).await? {
            return Ok(());
        }
        // An erasure came between.
        stored = data_keys::page(&backends.connection, &stored.id).await?;
    }
}

/// An error that says what still needs the key, if anything does.
pub async fn check_retirable(
    backends: &Backends,
    ring: &KeyRing,
    id: &KeyId,
    shutdown: &CancellationToken,
) -> anyhow::Result<Result<(), String>> {
    if id == ring.active() {
        return Ok(Err(format!("{id} is the active key: make another one active first")));
    }
    let found = list(backends, ring, shutdown).await?;
    let KeyUse { pages, events, .. } = found.get(id.as_str()).cloned().unwrap_or_default();
    if pages > 0 {
        return Ok(Err(format!(
            "{pages} pages of data keys are sealed with {id}: `worker keys reseal`"
        )));
    }
    if data_keys::former_versions(&backends.connection).await? > 0 {
        let why = "former versions of pages are stored still: `worker keys reseal` destroys them";
        return Ok(Err(why.to_owned()));
    }
    if events > 0 {
        return Ok(Err(format!(
            "{events} events hold a secret sealed with {id} itself, from before there were data keys"
        )));
    }
    Ok(Ok(()))
}
