//! `worker replay`: reads the log again, to be looked at or to be applied.
//! Applying is what a worker does: what is in the journal already changes
//! nothing.

use std::io::{self, Write};

use anyhow::{Context as _, bail};
use domain::id::{InstallationId, SourceName};
use eventlog::delivery::Delivery;
use eventlog::message::{all_subjects, header_subject, subjects_of};
use eventlog::read::{self, Reader};
use eventlog::status;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;

use crate::live::commit::{self, Arrival, Committed};
use crate::operate::backends::{Backends, Interrupted};
use crate::operate::progress::Progress;
use crate::store::database;
use crate::store::dead_letters;
use crate::store::log_identity;

pub use eventlog::read::Start;

const BATCH_EVENTS: usize = 500;
/// Events read between two looks at Ctrl-C.
const REPORT_EVERY: u64 = 1_000;

/// Which events.
#[derive(Debug, Clone)]
pub struct Selection {
    pub start: Start,
    /// With this sequence; the end of the log without.
    pub end: Option<u64>,
    pub source: Option<SourceName>,
    pub installation: Option<InstallationId>,
    /// `installed`, `uninstalled`, …
    pub kind: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Apply {
    Commit,
    DryRun,
}

/// What was applied, or would be.
#[derive(Debug, Default, Serialize)]
pub struct ReplayReport {
    pub selected: u64,
    #[serde(flatten)]
    pub committed: Committed,
    /// Left out: `worker dead-letters redrive` is for them.
    pub dead_before: u64,
    /// Of a dry run: the installations that would change, each once a batch.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub would_change: Vec<String>,
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
    fn takes(&self, delivery: &Delivery) -> bool {
        let about = self.installation.as_ref().map(header_subject);
        about.is_none_or(|about| delivery.about() == Some(about.as_str()))
            && self.kind.as_deref().is_none_or(|wanted| delivery.kind() == Some(wanted))
    }
}

/// The selected messages of the log, in its order.
struct Replay<'a> {
    reader: Reader,
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
        let state = status::log(&backends.connection).await?;
        let end = selection.end.unwrap_or(state.last_sequence).min(state.last_sequence);
        let subjects = match &selection.source {
            Some(source) => subjects_of(source),
            None => all_subjects(),
        };
        let log = read::Selection::of_log(subjects, selection.start, end);
        let reader = Reader::open(&backends.connection, log).await?;
        let first = match selection.start {
            Start::Sequence(first) => first.max(state.first_sequence),
            Start::Time(_) | Start::LastOfEachSubject => state.first_sequence,
        };
        let total = (end + 1).saturating_sub(first);
        let progress = with_progress.then(|| Progress::new("replaying events", total));
        Ok(Self { reader, selection, shutdown, progress, read: 0 })
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
pub async fn print(
    backends: &Backends,
    selection: &Selection,
    mut output: impl Write,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let mut replay = Replay::open(backends, selection, shutdown, false).await?;
    while let Some(delivery) = replay.next().await? {
        match print_line(&mut output, &delivery) {
            // Whoever read it has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            written => written.context("writing to standard output")?,
        }
    }
    output.flush().or_else(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Ok(()),
        _ => Err(error),
    })?;
    Ok(())
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
pub async fn apply(
    backends: &Backends,
    selection: &Selection,
    how: Apply,
    shutdown: &CancellationToken,
) -> anyhow::Result<ReplayReport> {
    log_identity::check(&backends.connection, &backends.pool).await?;
    let mut connection =
        database::acquire(&backends.pool).await.context("connecting to Postgres")?;
    let dead = dead_letters::left_out(&mut connection).await?;
    drop(connection);
    let mut replay = Replay::open(backends, selection, shutdown, true).await?;
    let mut report = ReplayReport::default();
    let mut batch = Vec::with_capacity(BATCH_EVENTS);
    while let Some(delivery) = replay.next().await? {
        report.selected += 1;
        if dead.contains(&delivery.sequence.0) {
            report.dead_before += 1;
            continue;
        }
        batch.push(delivery);
        if batch.len() == BATCH_EVENTS {
            report.apply(backends, &batch, how).await?;
            batch.clear();
        }
    }
    report.apply(backends, &batch, how).await?;
    Ok(report)
}

impl ReplayReport {
    async fn apply(
        &mut self,
        backends: &Backends,
        batch: &[Delivery],
        how: Apply,
    ) -> anyhow::Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let Backends { pool, retention, .. } = backends;
        match how {
            Apply::Commit => {
                self.committed += commit::apply(pool, batch, *retention, Arrival::Late).await?
            }
            Apply::DryRun => {
                let preview = commit::preview(pool, batch, *retention).await?;
                self.committed += preview.committed;
                self.would_change.extend(preview.changed);
            }
        }
        Ok(())
    }
}
