//! `worker replay`: arguments and answers.
#![expect(clippy::print_stdout, reason = "answers go to standard output")]

use std::io::{self, BufWriter};

use clap::Args;
use domain::id::{InstallationId, SourceName};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use worker::operate::backends::Backends;
use worker::operate::replay::{self, Apply, ReplayReport, Selection, Start};

use super::print_json;

#[derive(Args)]
#[command(after_long_help = "\
Without --apply each event is printed as a line of JSON; sealed secrets stay sealed.
With --apply each event goes to the journal as a worker would put it there: what the journal has
already changes nothing, so it mends a journal that lost events and is safe to repeat. Interrupted,
it has applied what came before. It needs the rights of `worker migrate`.

Examples:
  worker replay --installation instapp_1
  worker replay --since 2026-11-01T00:00:00Z --type uninstalled --source blnk | jq .event
  worker replay --from 1000 --to 2000 --apply --dry-run     what would it change?
  worker replay --apply                                     after Postgres was restored")]
pub(crate) struct ReplayArgs {
    /// The first sequence [default: the start of the log]
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
    #[arg(long, value_name = "TYPE", value_parser = [
        "installed", "updated", "uninstalled", "ack_missed", "ack_delivered", "erased", "unrecognized",
    ])]
    r#type: Option<String>,
    /// Apply the events to journal and projection
    #[arg(long)]
    apply: bool,
    /// With --apply: only say what would change
    #[arg(long, requires = "apply")]
    dry_run: bool,
    /// With --apply: print the report as JSON
    #[arg(long, requires = "apply")]
    json: bool,
}

pub(crate) async fn replay(
    backends: &Backends,
    args: ReplayArgs,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let selection = Selection {
        start: args.since.map_or(Start::Sequence(args.from.unwrap_or(1)), Start::Time),
        end: args.to,
        source: args.source,
        installation: args.installation,
        kind: args.r#type,
    };
    if !args.apply {
        let output = BufWriter::new(io::stdout());
        replay::print(backends, &selection, output, shutdown).await?;
        return Ok(());
    }
    let how = if args.dry_run { Apply::DryRun } else { Apply::Commit };
    let report = replay::apply(backends, &selection, how, shutdown).await?;
    if args.json {
        return print_json(&report);
    }
    print_report(&report, how);
    Ok(())
}

fn print_report(report: &ReplayReport, how: Apply) {
    let ReplayReport { selected, committed, dead_before, would_change } = report;
    let appended = committed.appended;
    let would = if how == Apply::DryRun { "would be " } else { "" };
    println!("{selected} events selected");
    println!(
        "{appended} {would}appended to the journal, {} are there already",
        committed.duplicates
    );
    if committed.conflicts > 0 {
        println!("{} contradict an earlier event, which counts", committed.conflicts);
    }
    if committed.dead_letters > 0 {
        println!("{} {would}new dead letters", committed.dead_letters);
    }
    if *dead_before > 0 {
        println!("{dead_before} left out, which are dead letters: `worker dead-letters redrive`");
    }
    for installation in would_change {
        println!("would change: {installation}");
    }
}
