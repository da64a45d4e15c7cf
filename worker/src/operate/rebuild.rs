//! `worker rebuild`: a new projection beside the live one, proven, then swapped in.
//!
//! 1. Load: every event up to a target sequence is read from the log (or from
//!    the journal), folded and saved in a schema of its own.
//! 2. Catch up: places that changed since are folded from the journal, as a
//!    worker does, until few are left.
//! 3. Compare with the live projection, in one snapshot.
//! 4. Swap: the workers wait while the last places are caught up with and
//!    compared, and the schemas change names, all in one transaction.
//!
//! Readers see the one or the other. Nothing but the new schema and the record
//! in `mooring.rebuilds` is written before the swap, and an interrupted rebuild
//! continues where it was.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use clap::{Args, ValueEnum};
use eventlog::status;
use sqlx::{Connection as _, PgConnection};
use tokio_util::sync::CancellationToken;

mod catch_up;
mod load;
mod pace;
mod report;
mod spill;
mod swap;

pub(crate) use catch_up::catch_up;
pub(crate) use load::Loaded;
pub(crate) use report::{left_out, render_comparison};

use crate::operate::backends::{Backends, wait_for_workers};
use crate::operate::context::{Command, Context};
use crate::operate::exit::Differs;
use crate::operate::output::Format;
use crate::operate::progress::note;
use crate::operate::rebuild::report::{Abandoned, Report, RolledBack};
use crate::store::database;
use crate::store::late_places::{self, Mark};
use crate::store::log_identity;
use crate::store::rebuilds::{self, Origin, Rebuild};
use crate::store::schema::{self, Schema};

/// Build a new projection beside the live one, compare the two, and swap it in
#[derive(Args)]
#[command(after_long_help = "\
What it does:
  1. loads every event of archive and log into the schema projection_next, while workers and
     readers continue
  2. catches up with what has arrived since
  3. compares the result with the live projection, column by column
  4. swaps the schemas in one transaction: readers see the one or the other

If it is interrupted, start it again: it continues where it was. The former projection stays as
projection_previous, for --rollback, until the next swap.

A difference stops it before the swap (exit code 3), unless its columns are named with --expect;
`added` and `removed` stand for whole rows. It needs the rights of `worker migrate`.

Examples:
  worker rebuild                                    repair the projection from the log
  worker rebuild --no-swap                          only build and compare
  worker rebuild --expect details                   after a change to how details are read
  worker rebuild --from journal                     when log and archive do not have everything
  worker rebuild --rollback                         take the last swap back")]
pub(crate) struct Arguments {
    /// What to read the events from
    #[arg(long, value_enum, default_value_t = ReadFrom::Log)]
    from: ReadFrom,
    /// A column that may differ from the live projection; may be given several times
    #[arg(long, value_name = "COLUMN")]
    expect: Vec<String>,
    /// Stop after the comparison; the next rebuild continues from there
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
    #[command(flatten)]
    format: Format,
}

/// How much of the machine it may take.
#[derive(Debug, Clone, Args)]
pub(crate) struct Effort {
    /// How many ranges of the log to read, then partitions to fold, at a time; not for the journal
    #[arg(long, default_value_t = 2, value_name = "N")]
    parallel: usize,
    /// At most so many events of the log per second, to leave more of the machine to live traffic
    #[arg(long, value_name = "EVENTS")]
    max_rate: Option<u64>,
    /// Where the log is sorted; it may take as much space there as the log
    #[arg(
        long,
        default_value_os_t = std::env::temp_dir(),
        hide_default_value = true,
        value_name = "DIR"
    )]
    temp_dir: PathBuf,
}

/// An [`Origin`], as it is said on the command line.
#[derive(Clone, Copy, ValueEnum)]
enum ReadFrom {
    Log,
    Journal,
}

impl From<ReadFrom> for Origin {
    fn from(said: ReadFrom) -> Self {
        match said {
            ReadFrom::Log => Self::Log,
            ReadFrom::Journal => Self::Journal,
        }
    }
}

/// What is wanted of a rebuild.
pub(crate) struct Options {
    pub(crate) origin: Origin,
    /// Columns that may differ, `added` and `removed` rows among them.
    pub(crate) expected: BTreeSet<String>,
    pub(crate) swap: bool,
    pub(crate) effort: Effort,
}

impl Command for Arguments {
    const STOPS_WITHIN: Duration = Duration::from_secs(5);

    fn service(&self) -> &'static str {
        "mooring-rebuild"
    }

    async fn run(self, context: &Context) -> anyhow::Result<()> {
        let Self { from, expect, no_swap, rollback, abandon, effort, format } = self;
        let backends = context.backends().await?;
        if abandon {
            let abandoned = self::abandon(&backends).await?;
            return format.print(&Abandoned { abandoned }, report::render_abandoned);
        }
        if rollback {
            let paused_ms = swap::roll_back(&backends, &context.shutdown).await?;
            return format.print(&RolledBack { paused_ms }, report::render_rolled_back);
        }
        let expected = expect.into_iter().collect();
        let options = Options { origin: from.into(), expected, swap: !no_swap, effort };
        let report = rebuild(&backends, &options, &context.shutdown).await?;
        format.print(&report, report::render)?;
        if options.swap && !report.swapped {
            let unexpected = report.comparison.unexpected(&options.expected);
            bail!(Differs(format!(
                "{unexpected} installations differ from the live projection in columns that were \
                 not named with --expect; nothing was swapped"
            )));
        }
        Ok(())
    }
}

/// Builds, compares and, unless told otherwise, swaps.
async fn rebuild(
    backends: &Backends,
    options: &Options,
    shutdown: &CancellationToken,
) -> anyhow::Result<Report> {
    let mut alone = database::acquire(&backends.pool).await.context("connecting to Postgres")?;
    alone_or_bail(&mut alone).await?;
    log_identity::check(&backends.connection, &backends.pool).await?;

    let (mut rebuild, resumed) = begin(backends, &mut alone, options.origin).await?;
    // Only then the journal holds all of it, dead letters included.
    wait_for_workers(backends, rebuild.target.sequence, shutdown).await?;
    let started = Instant::now();
    let loaded = load(backends, options, &mut rebuild, shutdown).await?;
    let load_seconds = started.elapsed().as_secs_f64();
    let caught_up = catch_up(backends, Schema::Next, rebuild.target, shutdown).await?;
    let mut places = caught_up.places;
    let mut comparison = caught_up.comparison;
    let unexpected = comparison.unexpected(&options.expected);
    let mut paused_ms = None;
    if options.swap && unexpected == 0 {
        let near = catch_up::approach(backends, Schema::Next, caught_up.mark, shutdown).await?;
        places += near.places;
        comparison.add(near.comparison);
        let (id, expected) = (rebuild.id(), &options.expected);
        let swap = swap::Swap { new: Schema::Next, id, mark: near.mark, expected };
        let swapped = swap.run(backends).await?;
        places += swapped.places;
        paused_ms =
            swapped.paused.map(|paused| u64::try_from(paused.as_millis()).unwrap_or(u64::MAX));
        comparison.add(swapped.comparison);
    }
    Ok(Report {
        origin: rebuild.origin,
        target_sequence: rebuild.target.sequence,
        resumed,
        events: loaded.events,
        dead_letters: loaded.dead_letters,
        installations: comparison.built_rows,
        load_seconds,
        events_per_second: per_second(loaded.events, load_seconds),
        caught_up_places: places,
        comparison,
        swapped: paused_ms.is_some(),
        paused_ms,
    })
}

/// Drops what an unfinished rebuild has built.
async fn abandon(backends: &Backends) -> anyhow::Result<bool> {
    let mut alone = database::acquire(&backends.pool).await.context("connecting to Postgres")?;
    alone_or_bail(&mut alone).await?;
    let mut transaction = alone.begin().await?;
    let was_there = rebuilds::abandon(&mut transaction).await?;
    schema::drop(&mut transaction, Schema::Next).await?;
    late_places::forget(&mut transaction).await?;
    transaction.commit().await?;
    Ok(was_there)
}

/// How long a lock may outlive the command that held it.
const LOCKED_FOR: Duration = Duration::from_secs(3);
const LOCKED_POLL: Duration = Duration::from_millis(100);

/// Two at a time would build the same schema. The lock ends with the connection.
pub(crate) async fn alone_or_bail(connection: &mut PgConnection) -> anyhow::Result<()> {
    let asked = Instant::now();
    while !database::try_lock_rebuild(connection).await? {
        // Postgres may not have noticed yet that the command before this one has ended.
        ensure!(
            asked.elapsed() < LOCKED_FOR,
            "another rebuild, verify or restore is running on this database"
        );
        tokio::time::sleep(LOCKED_POLL).await;
    }
    Ok(())
}

async fn begin(
    backends: &Backends,
    connection: &mut PgConnection,
    origin: Origin,
) -> anyhow::Result<(Rebuild, bool)> {
    if let Some(unfinished) = rebuilds::unfinished(connection).await? {
        if unfinished.origin != origin {
            bail!(
                "an unfinished rebuild from the {} is there: continue with `--from {}`, or drop it with `--abandon`",
                unfinished.origin,
                unfinished.origin
            );
        }
        note(&format!(
            "continuing the unfinished rebuild up to sequence {}",
            unfinished.target.sequence
        ));
        return Ok((unfinished, true));
    }
    let views = schema::dependent_views(connection).await?;
    if !views.is_empty() {
        bail!(
            "{} would keep reading the old projection after a swap: drop it now and create it \
             again afterwards",
            views.join(", ")
        );
    }
    let log = status::log(&backends.connection).await?;
    if origin == Origin::Log {
        let whole = backends.history().await?.history.require_whole();
        whole.context("the journal may have what is missing: `--from journal`")?;
    }
    let mut transaction = connection.begin().await?;
    schema::drop(&mut transaction, Schema::Dropped).await?;
    schema::drop(&mut transaction, Schema::Next).await?;
    schema::create(&mut transaction, Schema::Next).await?;
    let late = late_places::last(&mut transaction).await?;
    let target = Mark { sequence: log.last_sequence, late };
    let rebuild = rebuilds::begin(&mut transaction, origin, target).await?;
    late_places::forget(&mut transaction).await?;
    transaction.commit().await?;
    Ok((rebuild, false))
}

async fn load(
    backends: &Backends,
    options: &Options,
    rebuild: &mut Rebuild,
    shutdown: &CancellationToken,
) -> anyhow::Result<Loaded> {
    if rebuild.is_loaded {
        return Ok(Loaded::default());
    }
    let loaded = load_into(backends, Schema::Next, options, rebuild, shutdown).await?;
    let mut connection = database::acquire(&backends.pool).await?;
    rebuild.mark_loaded(&mut connection).await?;
    Ok(loaded)
}

pub(crate) async fn load_into(
    backends: &Backends,
    schema: Schema,
    options: &Options,
    rebuild: &mut Rebuild,
    shutdown: &CancellationToken,
) -> anyhow::Result<Loaded> {
    let loaded = match options.origin {
        Origin::Log => load::from_log(backends, schema, options, rebuild, shutdown).await?,
        Origin::Journal => load::from_journal(backends, schema, rebuild, shutdown).await?,
    };
    let mut connection = database::acquire(&backends.pool).await?;
    let started = Instant::now();
    schema::add_indexes(&mut connection, schema).await?;
    schema::analyze(&mut connection, schema).await?;
    note(&format!("indexed in {:.1} s", started.elapsed().as_secs_f64()));
    Ok(loaded)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a rate for people"
)]
pub(crate) fn per_second(count: u64, seconds: f64) -> u64 {
    if seconds > 0.0 { (count as f64 / seconds) as u64 } else { 0 }
}

#[cfg(test)]
pub(crate) mod tests {
    pub(crate) use super::report::tests::comparison;
}
