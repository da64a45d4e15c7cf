//! `worker keys collect`: destroys data keys that nothing needs. Whole pages that
//! no event used are removed; a page that some event needs is stored again
//! without the other keys.
//!
//! A key that is not used yet may be used until it is
//! `sealing.data_key_unused_max_s` old, and its event is in the log soon after.
//! So pages younger than twice that are left alone, and the log is read after the
//! list of pages: what uses a page of the list is in the log by then.

use std::collections::HashMap;

use anyhow::{Context as _, bail, ensure};
use domain::id::{DataKeyId, KEYS_IN_PAGE, PageId, data_keys_in};
use domain::key_ring::KeyRing;
use eventlog::keys::{self as data_keys, NoSuchPage, Pages, Replaced};
use eventlog::message::all_subjects;
use eventlog::read::{Selection, Start};
use eventlog::status;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use service::clock;
use tokio_util::sync::CancellationToken;

use crate::live::archive::is_renewal;
use crate::operate::backends::Backends;
use crate::operate::consent::{self, Consent};
use crate::operate::context::Context;
use crate::operate::exit::{Differs, Interrupted};
use crate::operate::output::Format;
use crate::operate::progress::{Progress, note};
use crate::store::archived;
use crate::store::{database, dead_letters, installations, journal, log_identity};

pub(super) const AFTER_HELP: &str = "\
A key is needed by an event in the log, the archive, the journal or the dead letters, and by a
credential in the projection. Archived tokens that were renewed and replaced need none. It is safe beside running services: pages that a service may still
use are too young. It refuses to go on if the log is not the one that the journal was filled from,
or if archive and log together do not begin with the first event.

It asks before it destroys anything. Without a terminal it needs --yes.";

/// Others may change the same page at the same time.
const REPLACE_ATTEMPTS: usize = 20;

/// What there is to destroy, or was.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Collected {
    /// Which may be used still.
    young_pages: u64,
    /// Of which each key is needed, or destroyed already.
    pages_kept: u64,
    /// Of which no key is needed.
    pages_removed: u64,
    /// Of which some key is not needed.
    pages_changed: u64,
    /// In the latter.
    keys_destroyed: u64,
    /// They hold needed keys, and cannot be opened.
    pages_not_opened: u64,
}

/// By page: one bit for each slot whose key is needed.
type Needed = HashMap<PageId, u64>;

fn bit(slot: u8) -> u64 {
    debug_assert!(slot < KEYS_IN_PAGE && u32::from(KEYS_IN_PAGE) <= u64::BITS);
    1_u64.checked_shl(slot.into()).unwrap_or_default()
}

fn mark(needed: &mut Needed, id: &DataKeyId) {
    if let Some(slots) = needed.get_mut(&*id.page) {
        *slots |= bit(id.slot);
    }
}

pub(super) async fn run(
    context: &Context,
    ring: &KeyRing,
    consent: &Consent,
    format: &Format,
) -> anyhow::Result<()> {
    consent.can_be_given()?;
    let shutdown = &context.shutdown;
    let backends = context.backends().await?;
    log_identity::check(&backends.connection, &backends.pool).await?;
    let spared = context.config.sealing.data_key_unused_max() * 2;
    let before = clock::now().checked_sub(SignedDuration::try_from(spared)?)?;
    let (mut needed, young_pages) = old_pages(&backends, before, shutdown).await?;
    mark_all(&backends, &mut needed, shutdown).await?;
    let report = Collected { young_pages, ..Collected::default() };
    if !consent.yes {
        let plan = collect(&backends, ring, &needed, report.clone(), Act::Look, shutdown).await?;
        if consent.dry_run {
            return format.print(&plan, |plan| render(plan, "would be "));
        }
        note(&render(&plan, "would be "));
        ensure!(consent::ask("destroy them for good?", shutdown).await?, "nothing was destroyed");
    }
    let report = collect(&backends, ring, &needed, report, Act::Destroy, shutdown).await?;
    format.print(&report, |report| render(report, ""))?;
    if report.pages_not_opened > 0 {
        bail!(Differs(format!("{} pages do not open", report.pages_not_opened)));
    }
    Ok(())
}

fn render(report: &Collected, would: &str) -> String {
    let Collected {
        young_pages,
        pages_kept,
        pages_removed,
        pages_changed,
        keys_destroyed,
        pages_not_opened,
    } = report;
    let mut text = format!(
        "{pages_removed} pages of data keys {would}removed, which no event needs; in {pages_changed} \
         others {keys_destroyed} keys {would}destroyed\n\
         {pages_kept} pages are needed as they are, {young_pages} are too young to tell"
    );
    if *pages_not_opened > 0 {
        text +=
            &format!("\n{pages_not_opened} pages are needed and do not open: `worker keys reseal`");
    }
    text
}

/// Pages that were stored before this time, with nothing marked as needed, and how
/// many others there are.
async fn old_pages(
    backends: &Backends,
    before: Timestamp,
    shutdown: &CancellationToken,
) -> anyhow::Result<(Needed, u64)> {
    let (mut old, mut young) = (Needed::new(), 0);
    let mut pages = Pages::open(&backends.connection).await?;
    while let Some(page) = pages.next().await? {
        if shutdown.is_cancelled() {
            bail!(Interrupted);
        }
        if page.stored_at < before {
            old.insert(page.id, 0);
        } else {
            // Perhaps an old page that was changed lately; its turn comes.
            old.remove(&page.id);
            young += 1;
        }
    }
    Ok((old, young))
}

async fn mark_all(
    backends: &Backends,
    needed: &mut Needed,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let untrimmed = backends.history().await?;
    // An event that is not here may need a key that seems to be needed by none.
    untrimmed.history.require_whole().context("nothing was destroyed")?;
    let end = status::log(&backends.connection).await?.last_sequence;
    let all = Selection::of_log(all_subjects(), Start::Sequence(1), end);
    let mut reader = untrimmed.history.read(&backends.connection, all).await?;
    let mut postgres = database::acquire(&backends.pool).await.context("connecting to Postgres")?;
    let relieved_to = archived::relieved_to(&mut postgres).await?;
    let mut progress = Progress::new("reading events", end);
    while let Some(delivery) = reader.next().await? {
        if shutdown.is_cancelled() {
            bail!(Interrupted);
        }
        // Tokens that were renewed and replaced have left the journal; what it has still
        // is marked below.
        let may_be_forgotten = delivery.sequence.0 <= relieved_to && is_renewal(&delivery);
        if !may_be_forgotten {
            mark_in(needed, &delivery.body);
        }
        progress.add(1);
    }
    progress.finish();
    let mark_name = |name: &str| DataKeyId::parse(name).iter().for_each(|id| mark(needed, id));
    journal::data_keys(&mut postgres, mark_name).await?;
    dead_letters::all_bodies(&mut postgres, |body| mark_in(needed, body)).await?;
    let mark_envelope = |envelope: &str| mark_in(needed, envelope.as_bytes());
    installations::envelopes(&mut postgres, mark_envelope).await?;
    Ok(())
}

fn mark_in(needed: &mut Needed, body: &[u8]) {
    for id in data_keys_in(&String::from_utf8_lossy(body)) {
        mark(needed, &id);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Look,
    Destroy,
}

async fn collect(
    backends: &Backends,
    ring: &KeyRing,
    needed: &Needed,
    mut report: Collected,
    act: Act,
    shutdown: &CancellationToken,
) -> anyhow::Result<Collected> {
    let mut progress = Progress::new("going through pages", needed.len().try_into()?);
    for (id, slots) in needed {
        if shutdown.is_cancelled() {
            bail!(Interrupted);
        }
        progress.add(1);
        if *slots == 0 {
            report.pages_removed += 1;
            if act == Act::Destroy {
                data_keys::remove(&backends.connection, id).await?;
            }
            continue;
        }
        match destroy_others(backends, ring, id, *slots, act).await? {
            Some(0) => report.pages_kept += 1,
            Some(keys) => {
                report.pages_changed += 1;
                report.keys_destroyed += keys;
            }
            None => report.pages_not_opened += 1,
        }
    }
    progress.finish();
    Ok(report)
}

/// How many keys of the page are not needed; `None` if it does not open.
async fn destroy_others(
    backends: &Backends,
    ring: &KeyRing,
    id: &PageId,
    needed: u64,
    act: Act,
) -> anyhow::Result<Option<u64>> {
    let connection = &backends.connection;
    for _ in 0..REPLACE_ATTEMPTS {
        let stored = match data_keys::page(connection, id).await {
            Err(error) if error.is::<NoSuchPage>() => return Ok(Some(0)),
            found => found?,
        };
        let Ok(mut page) = stored.open(ring) else { return Ok(None) };
        let others: Vec<u8> = page.slots().filter(|slot| needed & bit(*slot) == 0).collect();
        let count = u64::try_from(others.len())?;
        if others.is_empty() || act == Act::Look {
            return Ok(Some(count));
        }
        for slot in others {
            page.destroy(slot);
        }
        if data_keys::replace(connection, ring, &page, stored.version).await? == Replaced::Yes {
            return Ok(Some(count));
        }
    }
    bail!("page {id} of data keys is changed by others all the time")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operate::tests::assert_view;

    #[test]
    fn what_is_collected_is_told_before_and_after() {
        let report = Collected {
            young_pages: 128,
            pages_kept: 3,
            pages_removed: 120,
            pages_changed: 2,
            keys_destroyed: 90,
            pages_not_opened: 1,
        };
        assert_view("keys-collect-dry-run", &render(&report, "would be "));
        assert_view("keys-collect", &render(&report, ""));
    }

    #[test]
    fn only_what_is_named_is_needed() {
        let page = |text: &str| PageId::parse(text).unwrap();
        let mut needed = Needed::from([(page("aa"), 0), (page("bb"), 0)]);
        let body =
            br#"{"x":"v2.aa-63.AAAA.BBBB","y":["v2.cc-1.AAAA.BBBB","v2.aa-64.x.y v2.aa-0."]}"#;
        mark_in(&mut needed, body);
        assert_eq!(needed, Needed::from([(page("aa"), 1 << 63 | 1), (page("bb"), 0)]));
    }
}
