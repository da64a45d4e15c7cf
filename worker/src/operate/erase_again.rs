//! `worker erase-again`: after data keys came back from an older copy, destroys
//! those again that erasures had destroyed.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use domain::id::SourceName;
use domain::key_ring::KeyRing;
use eventlog::status;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::operate::backends::{Backends, wait_for_workers};
use crate::operate::consent::{self, Consent};
use crate::operate::context::{Command, Context};
use crate::operate::erase::still_open;
use crate::operate::exit::Differs;
use crate::operate::output::Format;
use crate::operate::progress::note;
use crate::operate::sealed_secrets::{Found, Sought, found};
use crate::store::database;
use crate::store::erasures::{self, Erased};
use crate::store::journal::{self, EventsOf};
use crate::store::reach::Reach;

/// Destroy again what erasures had destroyed, after DATA_KEYS came back from an older copy
#[derive(Args)]
#[command(after_long_help = "\
A backup of the streams DATA_KEYS and NEW_DATA_KEYS from before an erasure has the keys that it
destroyed. This goes through every erasure that the log tells of, and destroys them again. What an
installation received after it was erased stays.

It asks before it destroys anything. Without a terminal it needs --yes. It can be run at any time: what
is destroyed already stays so.

Examples:
  worker erase-again --dry-run       how many erased keys are back?
  worker erase-again")]
pub(crate) struct Arguments {
    #[command(flatten)]
    consent: Consent,
    #[command(flatten)]
    format: Format,
}

#[derive(Debug, Serialize)]
struct Report {
    /// Erasures of one installation in one place.
    erasures: usize,
    /// Secrets that were found.
    secrets: usize,
    /// Erased keys that were there again.
    keys_back: usize,
    /// Whether they were destroyed.
    destroyed: bool,
    /// Sealed by these keys of the ring itself, before there were data keys.
    still_open_under: BTreeSet<String>,
}

impl Command for Arguments {
    const STOPS_WITHIN: Duration = Duration::from_secs(5);

    async fn run(self, context: &Context) -> anyhow::Result<()> {
        let Self { consent, format } = self;
        consent.can_be_given()?;
        let ring = context.key_ring()?;
        let backends = context.backends().await?;
        let report = erase_again(&backends, &ring, &consent, &context.shutdown).await?;
        format.print(&report, render)?;
        if !report.still_open_under.is_empty() {
            bail!(Differs(still_open(&report.still_open_under)));
        }
        Ok(())
    }
}

fn render(report: &Report) -> String {
    let Report { erasures, secrets, keys_back, destroyed, .. } = report;
    let told = format!("{erasures} erasures of {secrets} sealed secrets");
    match (*keys_back, *destroyed) {
        (0, _) => format!("{told}; none of their keys is there"),
        (keys, true) => format!("{told}; {keys} of their keys were there again, and are destroyed"),
        (keys, false) => format!("{told}; {keys} of their keys are there again"),
    }
}

async fn erase_again(
    backends: &Backends,
    ring: &KeyRing,
    consent: &Consent,
    shutdown: &CancellationToken,
) -> anyhow::Result<Report> {
    let (erasures, found) = erased(backends, shutdown).await?;
    let mut report = Report {
        erasures,
        secrets: found.secrets(),
        keys_back: found.keys_left(backends, ring).await?,
        destroyed: false,
        still_open_under: found.still_open_under.clone(),
    };
    if consent.dry_run || report.keys_back == 0 {
        return Ok(report);
    }
    if !consent.yes {
        note(&render(&report));
        ensure!(consent::ask("destroy them for good?", shutdown).await?, "nothing was destroyed");
    }
    report.keys_back = found.destroy(backends, ring).await?;
    report.destroyed = true;
    Ok(report)
}

/// How many erasures there were, and what they were of.
async fn erased(
    backends: &Backends,
    shutdown: &CancellationToken,
) -> anyhow::Result<(usize, Found)> {
    // What waits in the log may be an erasure.
    let end = status::log(&backends.connection).await?.last_sequence;
    wait_for_workers(backends, end, shutdown).await?;
    let mut connection =
        database::acquire(&backends.pool).await.context("connecting to Postgres")?;
    let erased = erasures::told(&mut connection).await?;
    let mut elsewhere = Vec::with_capacity(erased.len());
    for Erased { source, installation, place, .. } in &erased {
        let of_source = Reach::Everything.within(Some(SourceName::as_str(source)));
        let known = journal::known(&mut connection, &of_source, installation).await?;
        let places = known.into_iter().map(|known| known.identity.place);
        let others = places.filter(|other| other != place);
        elsewhere.push(others.map(|other| other.as_str().to_owned()).collect::<Vec<_>>());
    }
    let events: Vec<EventsOf<'_>> = erased
        .iter()
        .zip(&elsewhere)
        .map(|(Erased { source, installation, .. }, other_places)| EventsOf {
            source,
            installation,
            other_places,
        })
        .collect();
    let sought: Vec<Sought<'_>> = events
        .iter()
        .zip(&erased)
        .map(|(of, erased)| Sought { of, end: erased.position })
        .collect();
    let found = found(backends, &mut connection, &sought, shutdown).await?;
    Ok((erased.len(), found))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operate::tests::assert_view;

    #[test]
    fn what_is_back_is_told() {
        let mut report = Report {
            erasures: 4,
            secrets: 9,
            keys_back: 3,
            destroyed: false,
            still_open_under: BTreeSet::new(),
        };
        assert_view("erase-again-dry-run", &render(&report));
        report.destroyed = true;
        assert_view("erase-again", &render(&report));
        report.keys_back = 0;
        assert_view("erase-again-nothing", &render(&report));
    }
}
