//! `worker keys reseal`: every page is opened, and sealed under the active key if
//! it is not. A page that does not open is mended from an earlier version of it
//! that does; nothing is destroyed that has no version which was opened.

use std::collections::HashSet;

use anyhow::{Context as _, bail};
use domain::data_key::Page;
use domain::id::PageId;
use domain::key_ring::KeyRing;
use domain::seal::OpenError;
use eventlog::connect::Connection;
use eventlog::keys::{self as data_keys, NoSuchPage, Pages, Replaced, StoredPage, Version};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::sealed_by;
use crate::operate::backends::Backends;
use crate::operate::exit::{Differs, Interrupted};
use crate::operate::progress::Progress;

/// Pages that are named one by one.
const NAMED_MAX: usize = 20;

#[derive(Debug, Default, Serialize)]
pub(super) struct Resealed {
    active: String,
    resealed: u64,
    /// Sealed under the active key before.
    up_to_date: u64,
    /// The last version did not open, and one before it did.
    mended: u64,
    /// They stay as they are.
    not_opened: u64,
    /// The first of those, with why.
    first_not_opened: Vec<String>,
}

/// What became of a page.
enum Outcome {
    Resealed,
    UpToDate,
    Mended,
    NotOpened(OpenError),
}

impl Resealed {
    fn count(&mut self, page: &PageId, outcome: &Outcome) {
        match outcome {
            Outcome::Resealed => self.resealed += 1,
            Outcome::UpToDate => self.up_to_date += 1,
            Outcome::Mended => self.mended += 1,
            Outcome::NotOpened(why) => {
                self.not_opened += 1;
                if self.first_not_opened.len() < NAMED_MAX {
                    self.first_not_opened.push(format!("{page}: {why}"));
                }
            }
        }
    }

    pub(super) fn require_all_opened(&self) -> anyhow::Result<()> {
        match self.not_opened {
            0 => Ok(()),
            count => bail!(Differs(format!("{count} pages do not open; they stay as they are"))),
        }
    }
}

pub(super) fn render(report: &Resealed) -> String {
    let Resealed { active, resealed, up_to_date, mended, not_opened, first_not_opened } = report;
    let mut text =
        format!("resealed {resealed} pages under {active}; {up_to_date} were up to date");
    if *mended > 0 {
        text += &format!("\nmended {mended} pages: an earlier version opened, the last did not");
    }
    if *not_opened > 0 {
        text += &format!("\n{not_opened} pages do not open; they stay as they are:");
    }
    for named in first_not_opened {
        text += &format!("\n  {named}");
    }
    text
}

/// Run again it goes on where it was.
pub(super) async fn reseal(
    backends: &Backends,
    ring: &KeyRing,
    shutdown: &CancellationToken,
) -> anyhow::Result<Resealed> {
    let mut report = Resealed { active: ring.active().to_string(), ..Resealed::default() };
    let mut pages = Pages::open(&backends.connection).await?;
    let mut progress = Progress::new("resealing pages", pages.count());
    // Of one that was interrupted.
    let former_versions = data_keys::former_versions(&backends.connection).await? > 0;
    let mut new_pages: HashSet<PageId> = HashSet::new();
    while let Some(stored) = pages.next().await? {
        if shutdown.is_cancelled() {
            bail!(Interrupted);
        }
        let has_former = former_versions || new_pages.contains(&stored.id);
        if is_new(&stored) {
            new_pages.insert(stored.id.clone());
        }
        let id = stored.id.clone();
        let outcome = reseal_page(backends, ring, stored, has_former).await;
        report.count(&id, &outcome.with_context(|| format!("page {id}"))?);
        progress.add(1);
    }
    progress.finish();
    Ok(report)
}

async fn reseal_page(
    backends: &Backends,
    ring: &KeyRing,
    mut stored: StoredPage,
    mut has_former: bool,
) -> anyhow::Result<Outcome> {
    let connection = &backends.connection;
    loop {
        let (opened, outcome) = match stored.open(ring) {
            Ok(opened) => (opened, Outcome::Resealed),
            Err(_) if is_new(&stored) && changed(connection, &mut stored).await? => {
                has_former = true;
                continue;
            }
            Err(why) => match earlier(backends, ring, &stored, &why).await? {
                Some(opened) => (opened, Outcome::Mended),
                None => return Ok(Outcome::NotOpened(why)),
            },
        };
        let is_active = sealed_by(&stored).as_ref() == Some(ring.active());
        if is_active && matches!(outcome, Outcome::Resealed) {
            if has_former {
                data_keys::destroy_former(connection, &stored, &opened).await?;
            }
            return Ok(Outcome::UpToDate);
        }
        match data_keys::replace(connection, ring, &opened, stored.version).await? {
            Replaced::Yes => return Ok(outcome),
            Replaced::ChangedMeanwhile => {}
        }
        // An erasure came between, or the page was changed long ago and this is how it was made.
        has_former = true;
        stored = match data_keys::page(connection, &stored.id).await {
            Err(error) if error.is::<NoSuchPage>() => return Ok(Outcome::UpToDate),
            found => found?,
        };
    }
}

fn is_new(page: &StoredPage) -> bool {
    matches!(page.version, Version::New { .. })
}

/// Whether there is a changed version of this page, which counts before it.
async fn changed(connection: &Connection, stored: &mut StoredPage) -> anyhow::Result<bool> {
    let counts = data_keys::page(connection, &stored.id).await?;
    let has_changed = counts.version != stored.version;
    *stored = counts;
    Ok(has_changed)
}

/// The last version before this one that opens. One that only lacks its key is
/// not damaged, and what came before it may hold keys that were destroyed since.
async fn earlier(
    backends: &Backends,
    ring: &KeyRing,
    damaged: &StoredPage,
    why: &OpenError,
) -> anyhow::Result<Option<Page>> {
    match why {
        OpenError::UnknownKey(_) | OpenError::Erased => return Ok(None),
        OpenError::Envelope | OpenError::Authentication => {}
    }
    let versions = data_keys::versions(&backends.connection, &damaged.id).await?;
    let before = versions.iter().skip_while(|found| found.version != damaged.version).skip(1);
    for found in before {
        match found.open(ring) {
            Ok(opened) => return Ok(Some(opened)),
            Err(OpenError::UnknownKey(_) | OpenError::Erased) => return Ok(None),
            Err(OpenError::Envelope | OpenError::Authentication) => {}
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operate::tests::assert_view;

    #[test]
    fn what_became_of_the_pages_is_told() {
        let mut report = Resealed { active: "k2".to_owned(), ..Resealed::default() };
        let page = PageId::parse("p1").unwrap();
        report.count(&page, &Outcome::Resealed);
        report.count(&page, &Outcome::UpToDate);
        assert_view("keys-reseal", &render(&report));
        assert!(report.require_all_opened().is_ok());
        report.count(&page, &Outcome::Mended);
        report.count(&page, &Outcome::NotOpened(OpenError::Authentication));
        assert_view("keys-reseal-not-opened", &render(&report));
        assert!(report.require_all_opened().is_err());
    }
}
