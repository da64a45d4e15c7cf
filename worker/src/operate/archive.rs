//! `worker archive`: old events go from the log into the archive, and what is there
//! is listed, verified and read.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use eventlog::archive::{Archive, LogIdentity, Storage};
use eventlog::status;

mod check;
mod list;
mod restore;

use crate::live::archive::{Archiver, Purpose, Report};
use crate::operate::backends;
use crate::operate::context::{self, Context};
use crate::operate::exit::{Differs, Interrupted};
use crate::operate::output::Format;
use crate::operate::progress::note;
use crate::settings::{ArchiveAccess, BackendSettings};
use crate::store::database;

/// Old events outside the log: archive them, list, verify and read them
#[derive(Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Archive everything that is due, and trim the log
    #[command(after_long_help = "\
Due is what is older than worker.archive.retention_days or, while the log is fuller than
log_full_percent, the oldest events. Nothing is due before the workers have applied it.

Each segment is stored, read back and compared with the journal. Only then its events leave the
log, and their payloads the journal. If it is interrupted, or fails, run it again: it finishes
what was left. Two at a time do no harm: the second one stops.

It needs a NATS user that may delete from the log: worker.archive.nats_user, or nats.user.

Examples:
  worker archive run --dry-run        what would it archive?
  worker archive run")]
    Run {
        /// Show what would be archived, and change nothing
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        format: Format,
    },
    /// List the segments of the log
    List {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        format: Format,
    },
    /// Read every segment back: hashes, chain, sequences, and the journal
    #[command(after_help = "\
Exit code 3: something is damaged, missing or not as the journal has it. Of a log that is not
the one of the journal (--log) only the archive itself is verified.")]
    Verify {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        format: Format,
    },
    /// Print archived events as JSON lines, or unpack their segments into a folder
    #[command(after_help = "\
Each line has everything that stood in the log: sequence, time, subject, headers and body.
Secrets stay sealed. It puts nothing back into the log.

Examples:
  worker archive restore --from 1000 --to 2000 | jq .body
  worker archive restore --into /var/tmp/events
  worker archive restore --log INSTALLATIONS-20261126T043334.123456 | wc -l")]
    Restore {
        #[command(flatten)]
        which: Which,
        /// The first sequence [default: the first that is archived]
        #[arg(long, value_name = "SEQUENCE")]
        from: Option<u64>,
        /// The last sequence [default: the last that is archived]
        #[arg(long, value_name = "SEQUENCE")]
        to: Option<u64>,
        /// Write a file for each segment into this folder, which exists
        #[arg(long, value_name = "DIR")]
        into: Option<PathBuf>,
    },
}

#[derive(Args)]
struct Which {
    /// Of which log, by its folder in the archive; `list` names them [default: the one that is
    /// there now]
    #[arg(long, value_name = "LOG")]
    log: Option<String>,
}

impl context::Command for Arguments {
    /// What is on its way is finished or taken back.
    const STOPS_WITHIN: Duration = Duration::from_secs(30);

    async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self.command {
            Command::Run { dry_run, format } => {
                let purpose = if dry_run { Purpose::DryRun } else { Purpose::Now };
                let report = run(context, purpose).await?;
                format.print(&report, |report| render(report, purpose))?;
                if report.interrupted {
                    bail!(Interrupted);
                }
                if let Some(why) = report.waits {
                    bail!(Differs(format!("the log is not trimmed yet: {why}; run it again")));
                }
                Ok(())
            }
            Command::List { which, format } => {
                let found = list::list(context, &which).await?;
                format.print(&found, list::render)
            }
            Command::Verify { which, format } => {
                let found = check::verify(context, &which).await?;
                format.print(&found, check::render)?;
                if !found.is_sound() {
                    bail!(Differs("the archive is not as it must be".to_owned()));
                }
                Ok(())
            }
            Command::Restore { which, from, to, into } => {
                let range = (from.unwrap_or(0), to.unwrap_or(u64::MAX));
                restore::restore(context, &which, range, into.as_deref()).await
            }
        }
    }
}

async fn run(context: &Context, purpose: Purpose) -> anyhow::Result<Report> {
    let BackendSettings { nats, postgres, archive, .. } = context.backend_settings()?;
    let ArchiveAccess { location, policy, nats: trimmer, .. } = configured(archive)?;
    let connection = backends::connect(&trimmer.unwrap_or(nats), "archive").await?;
    let (pool, storage) = (database::pool(&postgres), Storage::open(&location)?);
    let archiver = Archiver { connection, pool, storage, policy };
    archiver.run(purpose, &context.shutdown, |written| note(&written.to_string())).await
}

fn configured(archive: Option<ArchiveAccess>) -> anyhow::Result<ArchiveAccess> {
    archive.context("there is no archive: set worker.archive in the configuration")
}

/// The archive of the log that is meant, and whether it is the one of the journal.
async fn archive(context: &Context, which: &Which) -> anyhow::Result<(Archive, bool)> {
    let BackendSettings { nats, archive, .. } = context.backend_settings()?;
    let storage = Storage::open(&configured(archive)?.location)?;
    if let Some(folder) = &which.log {
        let log = LogIdentity::of_folder(folder);
        let log = log.with_context(|| format!("{folder} is not the folder of a log"))?;
        return Ok((Archive::new(storage, log), false));
    }
    let connection = backends::connect(&nats, "archive").await?;
    let log = LogIdentity::new(status::log(&connection).await?.created_at);
    Ok((Archive::new(storage, log), true))
}

fn render(report: &Report, purpose: Purpose) -> String {
    let Report {
        segments,
        finished_before,
        forgotten_renewals,
        archived_to,
        log_begins_at,
        waits,
        ..
    } = report;
    let events: u64 = segments.iter().map(|it| it.events).sum();
    let would = if purpose == Purpose::DryRun { "would be " } else { "" };
    let mut lines: Vec<String> = segments.iter().map(ToString::to_string).collect();
    if *finished_before > 0 {
        lines.push(format!("finished {finished_before} segments of before"));
    }
    if *forgotten_renewals > 0 {
        lines.push(format!("{forgotten_renewals} replaced tokens left the journal"));
    }
    let count = segments.len();
    lines.push(format!("{events} events {would}archived, in {count} segments"));
    lines.push(format!("archived up to sequence {archived_to}; the log begins at {log_begins_at}"));
    lines.extend(waits.as_ref().map(|why| format!("the log is not trimmed yet: {why}")));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live::archive::Written;
    use crate::operate::tests::assert_view;

    #[test]
    fn what_was_archived_and_what_would_be_is_told() {
        let written = |first_sequence, last_sequence| Written {
            first_sequence,
            last_sequence,
            events: last_sequence - first_sequence + 1,
            bytes: 20_000_000,
        };
        let mut report = Report {
            segments: vec![written(1, 40_000), written(40_001, 75_000)],
            archived_to: 75_000,
            log_begins_at: 75_001,
            ..Report::default()
        };
        assert_view("archive-run", &render(&report, Purpose::Now));
        (report.archived_to, report.log_begins_at) = (0, 1);
        assert_view("archive-run-dry-run", &render(&report, Purpose::DryRun));
        report.finished_before = 1;
        report.waits = Some("a command reads old events of the log".to_owned());
        assert_view("archive-run-waits", &render(&report, Purpose::Now));
    }
}
