//! `worker restore`: makes a log whole again that lost events, because its stream
//! was deleted or restored from an older copy.
//!
//! 1. What journal or archive know and the log lacks is appended, with the position that it
//!    had. The order of events is that of their positions, so it stays as it was.
//! 2. What ingest appended meanwhile may stand at sequences that belong to what was
//!    lost. It is younger, so it is appended once more, behind everything, and then
//!    deleted where it stood.
//! 3. From then on this stream is the log of the journal, and the workers go on.
//!
//! Interrupted, it is run again: what is in the log already is not appended twice.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use domain::event::Event;
use domain::event_key::EventKeys;
use domain::id::StreamSequence;
use eventlog::append::Writer;
use eventlog::archive::{Archive, History, HistoryReader, LogIdentity, Storage};
use eventlog::delivery::Delivery;
use eventlog::message::{LogMessage, Restored, all_subjects};
use eventlog::read::{self, Selection, Start};
use eventlog::status;
use serde::Serialize;
use sqlx::PgConnection;
use tokio_util::sync::CancellationToken;

use crate::live::admission::require_proof;
use crate::operate::backends::Backends;
use crate::operate::consent::{self, Consent};
use crate::operate::context::{Command, Context};
use crate::operate::exit::Interrupted;
use crate::operate::indexing::index_log;
use crate::operate::output::Format;
use crate::operate::progress::{Progress, note};
use crate::operate::rebuild;
use crate::store::lost_events::{self, ArchiveOf, Comparison};
use crate::store::schema::{self, Schema};
use crate::store::{database, dead_letters, log_identity};

/// Appended together.
const TOGETHER: usize = 100;
const APPEND_WITHIN: Duration = Duration::from_secs(60);

/// Make a log whole again that lost events: its stream was deleted, or restored from an older copy
#[derive(Args)]
#[command(after_long_help = "\
It compares the stream INSTALLATIONS with the journal and the archive, and appends what the stream
lacks. Message IDs and the order of events stay; sequences in the stream change. What ingest appended
meanwhile is kept: it stands behind what was lost. Secrets stay sealed; no key is needed.

Run `worker migrate` first if the stream does not exist. Ingest may go on; workers refuse this log
until it is whole, and must be started again then. If it is interrupted, run it again. It asks before
it changes the log. Without a terminal it needs --yes. It needs the rights of `worker migrate`.

What none of them has is told, and cannot be restored.

Examples:
  worker restore --dry-run       what was lost, and what would be appended?
  worker restore
  worker verify                  afterwards, with a worker running")]
pub(crate) struct Arguments {
    #[command(flatten)]
    consent: Consent,
    #[command(flatten)]
    format: Format,
}

#[derive(Debug, Serialize)]
struct Report {
    /// How many events the stream had.
    in_log: u64,
    /// Its first and last sequence.
    first_sequence: u64,
    last_sequence: u64,
    #[serde(flatten)]
    found: Comparison,
    /// Where the log is whole now; null if nothing was done.
    restored_to: Option<u64>,
}

impl Command for Arguments {
    const STOPS_WITHIN: Duration = Duration::from_secs(5);

    async fn run(self, context: &Context) -> anyhow::Result<()> {
        let Self { consent, format } = self;
        consent.can_be_given()?;
        let backends = context.backends().await?;
        let mut alone =
            database::acquire(&backends.pool).await.context("connecting to Postgres")?;
        rebuild::alone_or_bail(&mut alone).await?;
        schema::drop(&mut alone, Schema::Scratch).await?;
        schema::create(&mut alone, Schema::Scratch).await?;
        let keys = context.event_keys()?;
        let report = restore(&backends, &mut alone, &keys, &consent, &context.shutdown).await;
        // Whatever came of it.
        schema::drop(&mut alone, Schema::Scratch).await?;
        format.print(&report?, render)
    }
}

fn render(report: &Report) -> String {
    let Report { in_log, first_sequence, last_sequence, found, restored_to } = report;
    let Comparison { in_journal, in_archive, known_from, known_to, lost, misplaced, unknown } =
        found;
    let mut lines = vec![
        format!("the log has {in_log} events, at sequences {first_sequence} to {last_sequence}"),
        format!("the journal has {in_journal} events, the archive {in_archive}"),
        format!("known are positions {known_from} to {known_to}"),
    ];
    let (append, moved, done) = match restored_to {
        Some(_) => ("appended", "moved behind them", "the log is whole"),
        None => ("to be appended", "to be moved behind them", "nothing was changed"),
    };
    lines.push(format!("{lost} events that the log lacks: {append}"));
    lines.push(format!("{misplaced} events that came meanwhile: {moved}"));
    if *unknown > 0 {
        lines.push(format!(
            "{unknown} positions of which nothing is known: events that all have lost, or copies of others"
        ));
    }
    lines.push(done.to_owned());
    lines.join("\n")
}

async fn restore(
    backends: &Backends,
    connection: &mut PgConnection,
    keys: &EventKeys,
    consent: &Consent,
    shutdown: &CancellationToken,
) -> anyhow::Result<Report> {
    let archives = archives(backends).await?;
    let mut report = compare(backends, connection, &archives, shutdown).await?;
    let is_whole = report.found.lost == 0 && report.found.misplaced == 0;
    if consent.dry_run {
        return Ok(report);
    }
    if !consent.yes {
        note(&render(&report));
        let question = if is_whole { "take it for the log of the journal?" } else { "restore it?" };
        ensure!(consent::ask(question, shutdown).await?, "nothing was changed");
    }
    append_lost(backends, connection, &archives, keys, shutdown).await?;
    move_misplaced(backends, connection, keys, shutdown).await?;
    let log = status::log(&backends.connection).await?;
    let restored = report.found.known_from..=log.last_sequence;
    log_identity::accept(connection, log.created_at, restored).await?;
    report.restored_to = Some(log.last_sequence);
    Ok(report)
}

async fn compare(
    backends: &Backends,
    connection: &mut PgConnection,
    archives: &[(ArchiveOf, History)],
    shutdown: &CancellationToken,
) -> anyhow::Result<Report> {
    let history = History::find(&backends.connection, None).await?;
    let log = &history.log;
    let all = Selection::of_log(all_subjects(), Start::Sequence(1), log.last_sequence);
    let reader = history.read(&backends.connection, all).await?;
    let in_log = index_log(connection, reader, log.last_sequence, |_| false, shutdown).await?;
    lost_events::create(connection).await?;
    for archive in archives {
        index_archive(backends, connection, archive, shutdown).await?;
    }
    note("comparing with the journal");
    lost_events::index(connection).await?;
    let found = lost_events::compare(connection).await?;
    Ok(Report {
        in_log,
        first_sequence: log.first_sequence,
        last_sequence: log.last_sequence,
        found,
        restored_to: None,
    })
}

/// What was archived of this log, and of those before it.
async fn archives(backends: &Backends) -> anyhow::Result<Vec<(ArchiveOf, History)>> {
    let Some(location) = &backends.archive else { return Ok(Vec::new()) };
    let this = LogIdentity::new(status::log(&backends.connection).await?.created_at);
    let mut archives = Vec::new();
    for log in Archive::logs(&Storage::open(location)?).await? {
        let is_this = log.folder() == this.folder();
        let of = if is_this { ArchiveOf::ThisLog } else { ArchiveOf::Former };
        let archive = History::of_archive(&backends.connection, location, log).await?;
        archives.push((of, archive));
    }
    Ok(archives)
}

async fn index_archive(
    backends: &Backends,
    connection: &mut PgConnection,
    (of, archive): &(ArchiveOf, History),
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let mut reader = read_archive(backends, archive).await?;
    let mut progress = Progress::new("reading the archive", reader.archived_count);
    while let Some(some) = next(&mut reader, shutdown).await? {
        lost_events::add_archived(connection, &some, *of).await?;
        progress.add(some.len() as u64);
    }
    progress.finish();
    Ok(())
}

async fn read_archive(backends: &Backends, archive: &History) -> anyhow::Result<HistoryReader> {
    let all = Selection::of_log(all_subjects(), Start::Sequence(1), archive.archived_to());
    archive.read(&backends.connection, all).await
}

/// The next few events; `None` at the end.
async fn next(
    reader: &mut HistoryReader,
    shutdown: &CancellationToken,
) -> anyhow::Result<Option<Vec<Delivery>>> {
    if shutdown.is_cancelled() {
        bail!(Interrupted);
    }
    let mut some = Vec::with_capacity(TOGETHER);
    while some.len() < TOGETHER
        && let Some(delivery) = reader.next().await?
    {
        some.push(delivery);
    }
    Ok((!some.is_empty()).then_some(some))
}

/// In the order in which they stood.
async fn append_lost(
    backends: &Backends,
    connection: &mut PgConnection,
    archives: &[(ArchiveOf, History)],
    keys: &EventKeys,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let lost = lost_events::lost_events(connection).await?;
    let mut lost: BTreeMap<StreamSequence, Restored> =
        lost.into_iter().map(|lost| (lost.position, lost.restored())).collect();
    let writer = Writer::new(backends.connection.clone());
    let mut progress = Progress::new("appending events", lost.len() as u64);
    for (_, archive) in archives {
        let mut reader = read_archive(backends, archive).await?;
        while !lost.is_empty()
            && let Some(some) = next(&mut reader, shutdown).await?
        {
            let again = |event: &Delivery| {
                let restored = lost.remove(&event.position())?;
                Some(put_back(event, restored, keys))
            };
            let messages: Vec<LogMessage> = some.iter().filter_map(again).collect();
            let count = messages.len() as u64;
            append(&writer, messages).await?;
            lost_events::give_back(connection, &some).await?;
            progress.add(count);
        }
    }
    while !lost.is_empty() {
        if shutdown.is_cancelled() {
            bail!(Interrupted);
        }
        let rest = lost.keys().nth(TOGETHER).copied();
        let rest = rest.map_or_else(BTreeMap::new, |from| lost.split_off(&from));
        let some = std::mem::replace(&mut lost, rest);
        let mut messages = lost_events::from_journal(connection, &some).await?;
        if messages.len() < some.len() {
            messages.extend(from_dead_letters(connection, &some, keys).await?);
        }
        ensure!(
            messages.len() == some.len(),
            "some events have left the journal for an archive that is not there (worker.archive)"
        );
        append(&writer, messages).await?;
        progress.add(some.len() as u64);
    }
    progress.finish();
    Ok(())
}

async fn from_dead_letters(
    connection: &mut PgConnection,
    lost: &BTreeMap<StreamSequence, Restored>,
    keys: &EventKeys,
) -> anyhow::Result<Vec<LogMessage>> {
    let in_journal = lost_events::in_journal(connection, lost).await?;
    let others = lost.keys().filter(|position| !in_journal.contains(position));
    let selection = dead_letters::Selection {
        sequences: others.map(|position| position.0).collect(),
        resolved: true,
        ..Default::default()
    };
    let letters = dead_letters::deliveries(connection, &selection).await?;
    let again = |letter: &Delivery| {
        lost.get(&letter.position()).map(|restored| put_back(letter, *restored, keys))
    };
    Ok(letters.iter().filter_map(again).collect())
}

/// All of them, or an error. One by one where the server refuses them together.
async fn append(writer: &Writer, messages: Vec<LogMessage>) -> anyhow::Result<()> {
    for (message, written) in writer.write(messages).await {
        if written.is_err() {
            let again = writer.append(&message, APPEND_WITHIN).await;
            again.with_context(|| format!("appending {}; run it again", message.id))?;
        }
    }
    Ok(())
}

/// An operator's subject vouches for an event. What was not proven before is not now.
fn put_back(event: &Delivery, restored: Restored, keys: &EventKeys) -> LogMessage {
    let decoded = Event::decode_without_payload(&event.body);
    let is_proven = decoded.is_ok_and(|it| require_proof(event, &it.fact, keys).is_ok());
    event.again(restored, is_proven)
}

/// First appended behind everything, then deleted where they stood. What had been
/// lost and came again is in the log as it was at first by now.
async fn move_misplaced(
    backends: &Backends,
    connection: &mut PgConnection,
    keys: &EventKeys,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let misplaced = lost_events::sequences_of_misplaced(connection).await?;
    let writer = Writer::new(backends.connection.clone());
    let mut progress = Progress::new("moving events", misplaced.len() as u64);
    for sequences in misplaced.chunks(TOGETHER) {
        if shutdown.is_cancelled() {
            bail!(Interrupted);
        }
        let mut copies = Vec::with_capacity(sequences.len());
        for sequence in sequences {
            let found = read::message_at(&backends.connection, *sequence).await?;
            let found = found.with_context(|| format!("sequence {sequence} is gone"))?;
            let id = found.message_id().unwrap_or_default();
            if !lost_events::is_known(connection, id).await? {
                let moved = Restored { position: None, copy_of: Some(*sequence) };
                copies.push(put_back(&found, moved, keys));
            }
        }
        append(&writer, copies).await?;
        for sequence in sequences {
            read::delete_copy(&backends.connection, *sequence).await?;
        }
        progress.add(sequences.len() as u64);
    }
    progress.finish();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operate::tests::assert_view;

    #[test]
    fn what_was_lost_and_what_was_done_is_told() {
        let found = Comparison {
            in_journal: 1500,
            in_archive: 700,
            known_from: 1,
            known_to: 1502,
            lost: 500,
            misplaced: 100,
            unknown: 2,
        };
        let mut report = Report {
            in_log: 1100,
            first_sequence: 1,
            last_sequence: 1100,
            found,
            restored_to: None,
        };
        assert_view("restore-dry-run", &render(&report));
        report.restored_to = Some(1700);
        assert_view("restore", &render(&report));
    }
}
