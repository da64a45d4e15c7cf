//! `worker replay`: reads the log again, to be looked at or to be applied.
//! Applying is what a worker does: what is in the journal already changes
//! nothing.

use std::io::{self, Write};

use anyhow::{Context as _, bail};
use async_nats::header::NATS_MESSAGE_ID;
use async_nats::jetstream::Message;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;
use shared::id::{InstallationId, SourceName};
use shared::log::{SUBJECT_ROOT, header_subject};
use tokio_util::sync::CancellationToken;

use crate::commit::{self, Arrival, Committed, Delivery};
use crate::log_reader::{self, LogReader};
use crate::operator::{Backends, Interrupted};
use crate::progress::Progress;
use crate::{database, dead_letter, log_identity};

pub use crate::log_reader::Start;

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
    published_at: Option<Timestamp>,
    message_id: Option<&'a str>,
    subject: &'a str,
    /// As in the log; null where it is no JSON.
    event: Option<&'a RawValue>,
}

impl Selection {
    fn takes(&self, message: &Message) -> bool {
        let header = |name: &str| {
            let headers = message.headers.as_ref()?;
            headers.get(name).map(async_nats::HeaderValue::as_str)
        };
        let subject = self.installation.as_ref().map(header_subject);
        let kind = header("ce-type").and_then(|kind| kind.rsplit('.').next());
        subject.is_none_or(|subject| header("ce-subject") == Some(&subject))
            && self.kind.as_deref().is_none_or(|wanted| kind == Some(wanted))
    }
}

/// The selected messages of the log, in its order.
struct Replay<'a> {
    reader: LogReader,
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
        let state = log_reader::info(&backends.client).await?.state;
        let end = selection.end.unwrap_or(state.last_sequence).min(state.last_sequence);
        let subjects = match &selection.source {
            Some(source) => format!("{SUBJECT_ROOT}.{source}.>"),
            None => log_reader::all_subjects(),
        };
        let reader = LogReader::open(&backends.client, selection.start, end, subjects).await?;
        let first = match selection.start {
            Start::Sequence(first) => first.max(state.first_sequence),
            Start::Time(_) => state.first_sequence,
        };
        let total = (end + 1).saturating_sub(first);
        let progress = with_progress.then(|| Progress::new("replaying events", total));
        Ok(Self { reader, selection, shutdown, progress, read: 0 })
    }

    async fn next(&mut self) -> anyhow::Result<Option<(u64, Message)>> {
        while let Some((sequence, message)) = self.reader.next().await? {
            self.read += 1;
            if self.read.is_multiple_of(REPORT_EVERY) {
                if let Some(progress) = &mut self.progress {
                    progress.add(REPORT_EVERY);
                }
                if self.shutdown.is_cancelled() {
                    bail!(Interrupted);
                }
            }
            if self.selection.takes(&message) {
                return Ok(Some((sequence, message)));
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
    while let Some((sequence, message)) = replay.next().await? {
        match print_line(&mut output, sequence, &message) {
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

fn print_line(mut output: impl Write, sequence: u64, message: &Message) -> io::Result<()> {
    let headers = message.headers.as_ref();
    let published = message.info().ok().map(|info| info.published.unix_timestamp_nanos());
    let line = Line {
        sequence,
        published_at: published.and_then(|at| Timestamp::from_nanosecond(at).ok()),
        message_id: headers.and_then(|it| it.get(NATS_MESSAGE_ID)).map(|id| id.as_str()),
        subject: &message.subject,
        event: serde_json::from_slice(&message.payload).ok(),
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
    log_identity::check(&backends.client, &backends.pool).await?;
    let mut connection =
        database::acquire(&backends.pool).await.context("connecting to Postgres")?;
    let dead = dead_letter::left_out(&mut connection).await?;
    drop(connection);
    let mut replay = Replay::open(backends, selection, shutdown, true).await?;
    let mut report = ReplayReport::default();
    let mut batch = Vec::with_capacity(BATCH_EVENTS);
    while let Some((sequence, message)) = replay.next().await? {
        report.selected += 1;
        if dead.contains(&sequence) {
            report.dead_before += 1;
            continue;
        }
        batch.extend(Delivery::of(&message));
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
