//! `worker replay`: reads the log again, to be looked at or to be applied.
//! Applying is what a worker does: what is in the journal already changes
//! nothing.

use std::io::{self, BufWriter, Write};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use clap::builder::PossibleValuesParser;
use domain::event::KINDS;
use domain::id::{InstallationId, SourceName};
use eventlog::archive::HistoryReader;
use eventlog::delivery::Delivery;
use eventlog::message::{all_subjects, header_subject, subjects_of};
use eventlog::read::{self, Start};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use crate::live::commit::{self, Arrival, Committed, Terms};
use crate::operate::backends::{Backends, Untrimmed};
use crate::operate::context::{Command, Context};
use crate::operate::exit::Interrupted;
use crate::operate::output::{Format, unwritten};
use crate::operate::progress::Progress;
use crate::store::database;
use crate::store::dead_letters;
use crate::store::log_identity;

const BATCH_EVENTS: usize = 500;
/// Events read between two looks at Ctrl-C.
const REPORT_EVERY: u64 = 1_000;

/// Read archive and log again: print events, or apply them
#[derive(Args)]
#[command(after_long_help = "\
Without --apply each event is printed as a line of JSON. Sealed secrets stay sealed.
With --apply each event is appended to the journal as a worker would do it. An event that the
journal has already changes nothing, so this repairs a journal that lost events, and is safe to
repeat. If it is interrupted, what came before is applied. It needs the rights of `worker migrate`.

Examples:
  worker replay --installation instapp_1
  worker replay --since 2026-11-01T00:00:00Z --type uninstalled --source blnk | jq .event
  worker replay --from 1000 --to 2000 --apply --dry-run     what would it change?
  worker replay --apply                                     after Postgres was restored or lost")]
pub(crate) struct Arguments {
    #[command(flatten)]
    selection: Selection,
    /// Apply the events to journal and projection
    #[arg(long)]
    apply: bool,
    /// With --apply: only say what would change
    #[arg(long, requires = "apply")]
    dry_run: bool,
    // With --apply: without it every line is JSON.
    #[command(flatten)]
    format: Format,
}

/// Which events.
#[derive(Args)]
struct Selection {
    /// The first sequence [default: the start of archive and log]
    #[arg(long, value_name = "SEQUENCE", conflicts_with = "since")]
    from: Option<u64>,
    /// The first time of publishing, such as 2026-11-01T00:00:00Z
    #[arg(long, value_name = "TIME")]
    since: Option<Timestamp>,
    /// The last sequence [default: the end of the log]
    #[arg(long, value_name = "SEQUENCE")]
    to: Option<u64>,
    /// Only events of this source
    #[arg(long, value_parser = |text: &str| SourceName::parse(text))]
    source: Option<SourceName>,
    /// Only events about this installation, by the platform's id
    #[arg(long, value_name = "ID", value_parser = |text: &str| InstallationId::parse(text))]
    installation: Option<InstallationId>,
    /// Only events of this type
    #[arg(long = "type", value_name = "TYPE", value_parser = PossibleValuesParser::new(KINDS))]
    kind: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Apply {
    Commit,
    DryRun,
}

/// What was applied, or would be.
#[derive(Debug, Default, Serialize)]
struct Report {
    selected: u64,
    #[serde(flatten)]
    committed: Committed,
    /// Left out: `worker dead-letters redrive` is for them.
    dead_before: u64,
    /// Of a dry run: the installations that would change, each once a batch.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    would_change: Vec<String>,
}

impl Command for Arguments {
    const STOPS_WITHIN: Duration = Duration::from_secs(5);

    async fn run(self, context: &Context) -> anyhow::Result<()> {
        let Self { selection, apply, dry_run, format } = self;
        let backends = context.backends().await?;
        if !apply {
            return print(&backends, &selection, &context.shutdown).await;
        }
        let how = if dry_run { Apply::DryRun } else { Apply::Commit };
        let terms = Terms { retention: backends.retention, event_keys: context.event_keys()? };
        let report = self::apply(&backends, &terms, &selection, how, &context.shutdown).await?;
        format.print(&report, |report| render(report, how))
    }
}

fn render(report: &Report, how: Apply) -> String {
    let Report { selected, committed, dead_before, would_change } = report;
    let Committed { appended, duplicates, conflicts, dead_letters, .. } = committed;
    let would = if how == Apply::DryRun { "would be " } else { "" };
    let mut lines = vec![
        format!("{selected} events selected"),
        format!("{appended} {would}appended to the journal, {duplicates} are there already"),
    ];
    if *conflicts > 0 {
        lines.push(format!("{conflicts} conflict with another event, which wins"));
    }
    if *dead_letters > 0 {
        let became = if how == Apply::DryRun { "would become" } else { "became" };
        lines.push(format!("{dead_letters} {became} dead letters"));
    }
    if *dead_before > 0 {
        lines.push(format!("left out {dead_before} dead letters: `worker dead-letters redrive`"));
    }
    lines.extend(would_change.iter().map(|installation| format!("would change: {installation}")));
    lines.join("\n")
}

/// A line of the output.
#[derive(Serialize)]
struct Line<'a> {
    sequence: u64,
    published_at: Timestamp,
    message_id: Option<&'a str>,
    subject: &'a str,
    /// As in the log; null where it is no JSON.
    event: Option<&'a RawValue>,
}

impl Selection {
    fn start(&self) -> Start {
        self.since.map_or(Start::Sequence(self.from.unwrap_or(1)), Start::Time)
    }

    fn takes(&self, delivery: &Delivery) -> bool {
        let about = self.installation.as_ref().map(header_subject);
        about.is_none_or(|about| delivery.about() == Some(about.as_str()))
            && self.kind.as_deref().is_none_or(|wanted| delivery.kind() == Some(wanted))
    }
}

/// The selected messages of the log, in its order.
struct Replay<'a> {
    reader: HistoryReader,
    _untrimmed: Untrimmed,
    selection: &'a Selection,
    shutdown: &'a CancellationToken,
    progress: Option<Progress>,
    read: u64,
}

impl<'a> Replay<'a> {
    async fn open(
        backends: &Backends,
        selection: &'a Selection,
        shutdown: &'a CancellationToken,
        with_progress: bool,
    ) -> anyhow::Result<Self> {
        let untrimmed = backends.history().await?;
        let history = &untrimmed.history;
        let (start, end) = (selection.start(), selection.to);
        if start == Start::Sequence(1) {
            let whole = history.require_whole();
            whole.context("to read what is there, say where to begin: `--from` or `--since`")?;
        }
        let last = history.log.last_sequence;
        let end = end.unwrap_or(last).min(last);
        let subjects = match &selection.source {
            Some(source) => subjects_of(source),
            None => all_subjects(),
        };
        let log = read::Selection::of_log(subjects, start, end);
        let reader = history.read(&backends.connection, log).await?;
        let first = match start {
            Start::Sequence(first) => first.max(history.first_sequence()),
            Start::Time(_) | Start::LastOfEachSubject => history.first_sequence(),
        };
        let total = (end + 1).saturating_sub(first);
        let progress = with_progress.then(|| Progress::new("replaying events", total));
        Ok(Self { reader, _untrimmed: untrimmed, selection, shutdown, progress, read: 0 })
    }

    async fn next(&mut self) -> anyhow::Result<Option<Delivery>> {
        while let Some(delivery) = self.reader.next().await? {
            self.read += 1;
            if self.read.is_multiple_of(REPORT_EVERY) {
                if let Some(progress) = &mut self.progress {
                    progress.add(REPORT_EVERY);
                }
                if self.shutdown.is_cancelled() {
                    bail!(Interrupted);
                }
            }
            if self.selection.takes(&delivery) {
                return Ok(Some(delivery));
            }
        }
        if let Some(mut progress) = self.progress.take() {
            progress.add(self.read % REPORT_EVERY);
            progress.finish();
        }
        Ok(None)
    }
}

/// Writes each event as a line of JSON. Secrets stay sealed.
async fn print(
    backends: &Backends,
    selection: &Selection,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let mut output = BufWriter::new(io::stdout());
    let mut replay = Replay::open(backends, selection, shutdown, false).await?;
    while let Some(delivery) = replay.next().await? {
        print_line(&mut output, &delivery).or_else(unwritten)?;
    }
    output.flush().or_else(unwritten)
}

fn print_line(mut output: impl Write, delivery: &Delivery) -> io::Result<()> {
    let line = Line {
        sequence: delivery.sequence.0,
        published_at: delivery.published_at,
        message_id: delivery.message_id(),
        subject: &delivery.subject,
        event: serde_json::from_slice(&delivery.body).ok(),
    };
    serde_json::to_writer(&mut output, &line)?;
    output.write_all(b"\n")
}

/// Applies each event as a worker does, or says what that would do.
async fn apply(
    backends: &Backends,
    terms: &Terms,
    selection: &Selection,
    how: Apply,
    shutdown: &CancellationToken,
) -> anyhow::Result<Report> {
    log_identity::check_same(&backends.connection, &backends.pool).await?;
    let mut connection =
        database::acquire(&backends.pool).await.context("connecting to Postgres")?;
    let dead = dead_letters::left_out(&mut connection).await?;
    drop(connection);
    let mut replay = Replay::open(backends, selection, shutdown, true).await?;
    let mut report = Report::default();
    let mut batch = Vec::with_capacity(BATCH_EVENTS);
    while let Some(delivery) = replay.next().await? {
        report.selected += 1;
        if dead.contains(&delivery.position().0) {
            report.dead_before += 1;
            continue;
        }
        batch.push(delivery);
        if batch.len() == BATCH_EVENTS {
            report.apply(&backends.pool, terms, &batch, how).await?;
            batch.clear();
        }
    }
    report.apply(&backends.pool, terms, &batch, how).await?;
    Ok(report)
}

impl Report {
    async fn apply(
        &mut self,
        pool: &PgPool,
        terms: &Terms,
        batch: &[Delivery],
        how: Apply,
    ) -> anyhow::Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        match how {
            Apply::Commit => {
                self.committed += commit::apply(pool, batch, terms, Arrival::Late).await?
            }
            Apply::DryRun => {
                let preview = commit::preview(pool, batch, terms).await?;
                self.committed += preview.committed;
                self.would_change.extend(preview.changed);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operate::tests::assert_view;

    #[test]
    fn what_was_applied_and_what_would_be_is_told() {
        let committed = Committed {
            appended: 3,
            duplicates: 40,
            dead_letters: 1,
            conflicts: 2,
            ..Committed::default()
        };
        let mut report = Report { selected: 45, committed, dead_before: 1, would_change: vec![] };
        assert_view("replay-apply", &render(&report, Apply::Commit));
        report.would_change = vec!["instapp_1".to_owned(), "instapp_2".to_owned()];
        assert_view("replay-dry-run", &render(&report, Apply::DryRun));
    }
}
