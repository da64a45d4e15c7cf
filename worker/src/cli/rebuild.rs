//! `worker rebuild` and `worker verify`: arguments and answers.
#![expect(clippy::print_stdout, reason = "answers go to standard output")]

use std::path::PathBuf;

use anyhow::bail;
use clap::{Args, ValueEnum};
use tokio_util::sync::CancellationToken;
use worker::operate::backends::Backends;
use worker::operate::rebuild::{self, Comparison, Origin, RebuildOptions, RebuildReport};
use worker::operate::verify::{self, VerifyOptions, VerifyReport};

use super::{Differs, print_json};

#[derive(Args)]
pub(crate) struct Effort {
    /// Ranges of the log that are read, then partitions that are folded, at a time; not for the
    /// journal
    #[arg(long, default_value_t = 2, value_name = "N")]
    parallel: usize,
    /// Events of the log a second at the most, to leave more of the machine to live traffic
    #[arg(long, value_name = "EVENTS")]
    max_rate: Option<u64>,
    /// Where the log is sorted; it may take as much as the log's size there
    #[arg(long, default_value_os_t = std::env::temp_dir(), value_name = "DIR")]
    temp_dir: PathBuf,
}

#[derive(Args)]
#[command(after_long_help = "\
What it does:
  1. loads every event into the schema projection_next, while workers and readers go on
  2. catches up with what has come since
  3. compares it with the live projection, column by column
  4. swaps the schemas in one transaction: readers see the one or the other

Interrupt it with Ctrl-C and start it again: it goes on where it was. The former projection
stays as projection_previous, for --rollback, until the next swap.

A difference stops it before the swap (exit code 3), unless its columns are named with --expect;
`added` and `removed` stand for whole rows. It needs the rights of `worker migrate`.

Examples:
  worker rebuild                                    repair the projection from the log
  worker rebuild --no-swap                          only build and compare
  worker rebuild --expect details                   after a change to how details are read
  worker rebuild --from journal                     when the log was trimmed
  worker rebuild --rollback                         take the last swap back")]
pub(crate) struct RebuildArgs {
    /// What to read the events from
    #[arg(long, value_enum, default_value_t = From::Log)]
    from: From,
    /// A column that may differ from the live projection; may be given several times
    #[arg(long, value_name = "COLUMN")]
    expect: Vec<String>,
    /// Build and compare, and leave it at that; the next rebuild goes on from there
    #[arg(long)]
    no_swap: bool,
    /// Swap the former projection in again
    #[arg(long, conflicts_with_all = ["expect", "no_swap", "abandon"])]
    rollback: bool,
    /// Drop what an unfinished rebuild has built
    #[arg(long, conflicts_with_all = ["expect", "no_swap"])]
    abandon: bool,
    #[command(flatten)]
    effort: Effort,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum From {
    Log,
    Journal,
}

#[derive(Args)]
#[command(after_long_help = "\
Every event of the log is folded anew in a schema of its own, which is dropped at the end, and
compared with the live projection; each body in the log is compared with the journal. Workers and
readers go on. Exit code 0: all agree, 3: there is a difference, 1: it could not be found out, for
example because the stream was recreated or truncated. It needs the rights of `worker migrate`.")]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    effort: Effort,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) async fn rebuild(
    backends: &Backends,
    args: RebuildArgs,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    if args.abandon {
        let was_there = rebuild::abandon(backends).await?;
        println!("{}", if was_there { "abandoned" } else { "there was no unfinished rebuild" });
        return Ok(());
    }
    if args.rollback {
        let paused = rebuild::roll_back(backends, shutdown).await?;
        println!("the former projection is live again; the workers waited {paused} ms");
        return Ok(());
    }
    let options = RebuildOptions {
        origin: match args.from {
            From::Log => Origin::Log,
            From::Journal => Origin::Journal,
        },
        parallel: args.effort.parallel,
        rate_max: args.effort.max_rate,
        expected: args.expect.into_iter().collect(),
        swap: !args.no_swap,
        temp_dir: args.effort.temp_dir,
    };
    let report = rebuild::rebuild(backends, &options, shutdown).await?;
    if args.json {
        print_json(&report)?
    } else {
        print_rebuild(&report)
    }
    let unexpected = report.comparison.unexpected(&options.expected);
    if options.swap && !report.swapped {
        bail!(Differs(format!(
            "{unexpected} installations differ from the live projection in columns that were not \
             named with --expect; nothing was swapped"
        )));
    }
    Ok(())
}

fn print_rebuild(report: &RebuildReport) {
    let RebuildReport { origin, events, installations, load_seconds, .. } = report;
    if report.resumed && *events == 0 {
        println!("loaded before, up to sequence {}", report.target_sequence);
    } else {
        println!(
            "loaded {events} events from the {origin} in {load_seconds:.1} s, {} events/s",
            report.events_per_second
        );
    }
    if report.dead_letters > 0 {
        println!("left out {} dead letters: `worker dead-letters list`", report.dead_letters);
    }
    println!("caught up with {} places that changed meanwhile", report.caught_up_places);
    println!("{installations} installations");
    print_comparison(&report.comparison);
    match report.paused_ms {
        Some(paused) => println!("swapped in; the workers waited {paused} ms"),
        None => println!("not swapped in"),
    }
}

fn print_comparison(comparison: &Comparison) {
    if comparison.different == 0 {
        println!("equal to the live projection");
        return;
    }
    println!("{} installations differ from the live projection:", comparison.different);
    for (columns, count) in &comparison.by_columns {
        println!("  {count:>8} in {columns}");
    }
    for found in &comparison.differences {
        let columns = found.columns.join(", ");
        println!("  {} {} in {}: {columns}", found.source, found.installation_id, found.place);
    }
}

pub(crate) async fn verify(
    backends: &Backends,
    args: VerifyArgs,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let Effort { parallel, max_rate: rate_max, temp_dir } = args.effort;
    let report =
        verify::verify(backends, &VerifyOptions { parallel, rate_max, temp_dir }, shutdown).await?;
    if args.json {
        print_json(&report)?
    } else {
        print_verify(&report)
    }
    if !report.is_sound() {
        bail!(Differs("log, journal and projection do not agree".to_owned()));
    }
    Ok(())
}

fn print_verify(report: &VerifyReport) {
    println!(
        "compared {} events up to sequence {}, and {} installations",
        report.events, report.sequence, report.projection.live_rows
    );
    if report.first_sequence > 1 {
        println!(
            "the log begins at sequence {}: the projection was folded from the journal",
            report.first_sequence
        );
    }
    if report.dead_letters > 0 {
        println!("left out {} dead letters: `worker dead-letters list`", report.dead_letters);
    }
    let list = |what: &str, sequences: &[u64]| {
        if !sequences.is_empty() {
            let listed: Vec<String> = sequences.iter().map(ToString::to_string).collect();
            println!("{what}, at sequence {}", listed.join(", "));
        }
    };
    list("in the log, not in the journal", &report.journal.missing);
    list("in the journal, not in the log", &report.journal.only_in_journal);
    list("other in the journal than in the log", &report.journal.different);
    print_comparison(&report.projection);
}
