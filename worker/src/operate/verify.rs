//! `worker verify`: are log, journal and projection of one mind? It repairs
//! nothing and leaves nothing behind.

use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use eventlog::archive::History;
use eventlog::delivery::Delivery;
use eventlog::message::all_subjects;
use eventlog::read::{Selection, Start};
use serde::Serialize;
use sqlx::PgConnection;
use tokio_util::sync::CancellationToken;

use crate::operate::backends::{Backends, wait_for_workers};
use crate::operate::context::{Command, Context};
use crate::operate::exit::Differs;
use crate::operate::indexing::index_log;
use crate::operate::output::Format;
use crate::operate::progress::note;
use crate::operate::rebuild::{self, Effort, Loaded, Options};
use crate::store::database;
use crate::store::installations::compare::Comparison;
use crate::store::late_places::{self, Mark};
use crate::store::log_identity;
use crate::store::log_index::{self, JournalFindings};
use crate::store::rebuilds::{Origin, Rebuild};
use crate::store::schema::{self, Schema};

/// Compare log, journal and projection; repairs nothing
#[derive(Args)]
#[command(after_long_help = "\
It folds every event of archive and log in a schema of its own, which it drops at the end, and
compares the result with the live projection. It also compares each body with the journal.
Workers and readers continue. Exit code 0: all agree, 3: there is a difference, 1: it could not
be found out, for example because the stream was recreated or truncated. It needs the rights of
`worker migrate`.")]
pub(crate) struct Arguments {
    #[command(flatten)]
    effort: Effort,
    #[command(flatten)]
    format: Format,
}

#[derive(Debug, Serialize)]
struct Report {
    /// Up to here everything was compared.
    sequence: u64,
    /// Where archive and log begin. What is older is only in the journal.
    first_sequence: u64,
    /// Up to here it was read from the archive; 0 if the log has everything.
    archived_to: u64,
    /// What the projection was folded from anew.
    folded_from: Origin,
    events: u64,
    dead_letters: u64,
    journal: JournalFindings,
    projection: Comparison,
}

impl Command for Arguments {
    /// The schema is dropped first.
    const STOPS_WITHIN: Duration = Duration::from_secs(5);

    async fn run(self, context: &Context) -> anyhow::Result<()> {
        let backends = context.backends().await?;
        let report = verify(&backends, &self.effort, &context.shutdown).await?;
        self.format.print(&report, render)?;
        if !report.is_sound() {
            bail!(Differs("log, journal and projection do not agree".to_owned()));
        }
        Ok(())
    }
}

impl Report {
    fn is_sound(&self) -> bool {
        let JournalFindings { missing, different, only_in_journal } = &self.journal;
        let journal = missing.is_empty() && different.is_empty() && only_in_journal.is_empty();
        journal && self.projection.different == 0
    }
}

fn render(report: &Report) -> String {
    let mut lines = vec![format!(
        "compared {} events up to sequence {}, and {} installations",
        report.events, report.sequence, report.projection.live_rows
    )];
    if report.archived_to > 0 {
        lines.push(format!("up to sequence {} they are in the archive", report.archived_to));
    }
    if report.folded_from == Origin::Journal {
        lines.push(format!(
            "log and archive begin at sequence {}, or lack events: the projection was folded from the journal",
            report.first_sequence
        ));
    }
    lines.extend(rebuild::left_out(report.dead_letters));
    let JournalFindings { missing, different, only_in_journal } = &report.journal;
    for (what, sequences) in [
        ("in the log, not in the journal", missing),
        ("in the journal, not in the log", only_in_journal),
        ("different in the journal and in the log", different),
    ] {
        if !sequences.is_empty() {
            let listed: Vec<String> = sequences.iter().map(ToString::to_string).collect();
            lines.push(format!("{what}, at sequence {}", listed.join(", ")));
        }
    }
    lines.push(rebuild::render_comparison(&report.projection));
    lines.join("\n")
}

async fn verify(
    backends: &Backends,
    effort: &Effort,
    shutdown: &CancellationToken,
) -> anyhow::Result<Report> {
    let mut alone = database::acquire(&backends.pool).await.context("connecting to Postgres")?;
    rebuild::alone_or_bail(&mut alone).await?;
    log_identity::check(&backends.connection, &backends.pool).await?;
    let untrimmed = backends.history().await?;
    let target = untrimmed.history.log.last_sequence;

    wait_for_workers(backends, target, shutdown).await?;
    schema::drop(&mut alone, Schema::Scratch).await?;
    schema::create(&mut alone, Schema::Scratch).await?;
    let report = compare(backends, &untrimmed.history, effort, &mut alone, shutdown).await;
    // Whatever came of it.
    schema::drop(&mut alone, Schema::Scratch).await?;
    report
}

async fn compare(
    backends: &Backends,
    history: &History,
    effort: &Effort,
    connection: &mut PgConnection,
    shutdown: &CancellationToken,
) -> anyhow::Result<Report> {
    let (first, target) = (history.first_sequence(), history.log.last_sequence);
    let origin = if history.require_whole().is_ok() { Origin::Log } else { Origin::Journal };
    let mark = Mark { sequence: target, late: late_places::last(connection).await? };
    let (loaded, projection) = projection(backends, effort, origin, mark, shutdown).await?;
    let all = Selection::of_log(all_subjects(), Start::Sequence(1), target);
    let reader = history.read(&backends.connection, all).await?;
    // A restored event may have been archived when it stood in another log.
    let is_archived = |delivery: &Delivery| {
        delivery.sequence.0 <= history.archived_to() || delivery.is_restored()
    };
    index_log(connection, reader, target, is_archived, shutdown).await?;
    note("comparing with the journal");
    let journal = log_index::compare_with_journal(connection, first, target).await?;
    Ok(Report {
        sequence: target,
        first_sequence: first,
        archived_to: history.archived_to(),
        folded_from: origin,
        events: loaded.events,
        dead_letters: loaded.dead_letters,
        journal,
        projection,
    })
}

/// Folds a projection anew and compares the live one with it, at one moment.
async fn projection(
    backends: &Backends,
    effort: &Effort,
    origin: Origin,
    target: Mark,
    shutdown: &CancellationToken,
) -> anyhow::Result<(Loaded, Comparison)> {
    let options =
        Options { origin, expected: Default::default(), swap: false, effort: effort.clone() };
    let mut unrecorded = Rebuild::unrecorded(origin, target);
    let into = Schema::Scratch;
    let loaded = rebuild::load_into(backends, into, &options, &mut unrecorded, shutdown).await?;
    let caught_up = rebuild::catch_up(backends, into, target, shutdown).await?;
    Ok((loaded, caught_up.comparison))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operate::tests::assert_view;

    fn report(journal: JournalFindings, projection: Comparison) -> Report {
        Report {
            sequence: 31,
            first_sequence: 1,
            archived_to: 0,
            folded_from: Origin::Log,
            events: 31,
            dead_letters: 0,
            journal,
            projection,
        }
    }

    #[test]
    fn agreement_and_differences_are_told() {
        let equal = Comparison { live_rows: 10, built_rows: 10, ..Comparison::default() };
        assert_view("verify", &render(&report(JournalFindings::default(), equal)));
        let journal =
            JournalFindings { missing: vec![3, 4], different: vec![5], only_in_journal: vec![6] };
        let differs = Report {
            first_sequence: 2,
            archived_to: 20,
            folded_from: Origin::Journal,
            dead_letters: 1,
            ..report(journal, rebuild::tests::comparison())
        };
        assert_view("verify-differences", &render(&differs));
    }
}
