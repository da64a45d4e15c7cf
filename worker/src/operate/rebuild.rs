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
//! goes on where it was.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use domain::fold::Retention;
use eventlog::status;
use serde::Serialize;
use sqlx::{Connection as _, PgConnection};
use tokio_util::sync::CancellationToken;

mod load;
mod pace;
mod spill;

use crate::operate::backends::{Backends, Interrupted, floor, wait_for_workers};
use crate::operate::progress::note;
pub(crate) use crate::operate::rebuild::load::Loaded;
use crate::store::database;
use crate::store::fold_unit::FoldUnit;
use crate::store::installations::compare::{self, Scope};
use crate::store::late_places::{self, Mark};
use crate::store::log_identity;
use crate::store::rebuilds::{self, Rebuild};
use crate::store::schema::{self, Schema};

pub use crate::store::installations::compare::{Comparison, Difference};
pub use crate::store::rebuilds::Origin;

/// So few places are caught up with while the workers wait.
const FEW_PLACES: usize = 2_000;
const CATCH_UP_ROUNDS_MAX: usize = 50;

#[derive(Debug, Clone)]
pub struct RebuildOptions {
    pub origin: Origin,
    /// Ranges of the log that are read, and partitions that are folded, at a time.
    pub parallel: usize,
    /// Events a second, of reading and of folding.
    pub rate_max: Option<u64>,
    /// Columns that may differ, `added` and `removed` rows among them.
    pub expected: BTreeSet<String>,
    pub swap: bool,
    pub temp_dir: PathBuf,
}

/// What a rebuild did.
#[derive(Debug, Serialize)]
pub struct RebuildReport {
    pub origin: Origin,
    pub target_sequence: u64,
    pub resumed: bool,
    pub events: u64,
    /// Left out: they are dead letters, of which the projection knows nothing.
    pub dead_letters: u64,
    pub installations: u64,
    pub load_seconds: f64,
    pub events_per_second: u64,
    pub caught_up_places: usize,
    pub comparison: Comparison,
    pub swapped: bool,
    /// How long the workers waited for the swap.
    pub paused_ms: Option<u64>,
}

/// Builds, compares and, unless told otherwise, swaps.
pub async fn rebuild(
    backends: &Backends,
    options: &RebuildOptions,
    shutdown: &CancellationToken,
) -> anyhow::Result<RebuildReport> {
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
        let near = approach(backends, Schema::Next, caught_up.mark, shutdown).await?;
        places += near.places;
        comparison.add(near.comparison);
        let (id, expected) = (rebuild.id(), &options.expected);
        let swap = Swap { new: Schema::Next, id, mark: near.mark, expected };
        let swapped = swap.run(backends).await?;
        places += swapped.places;
        paused_ms =
            swapped.paused.map(|paused| u64::try_from(paused.as_millis()).unwrap_or(u64::MAX));
        comparison.add(swapped.comparison);
    }
    Ok(RebuildReport {
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

/// Takes the last swap back: the former projection is caught up with and
/// swapped in again.
pub async fn roll_back(backends: &Backends, shutdown: &CancellationToken) -> anyhow::Result<u64> {
    let mut alone = database::acquire(&backends.pool).await.context("connecting to Postgres")?;
    alone_or_bail(&mut alone).await?;
    let Some(last) = rebuilds::last_swap(&mut alone).await? else {
        bail!("no rebuild was swapped in, so there is nothing to go back to");
    };
    if !schema::exists(&mut alone, Schema::Previous).await? {
        bail!("schema {} is gone, so there is nothing to go back to", Schema::Previous);
    }
    let caught_up = catch_up(backends, Schema::Previous, last.former, shutdown).await?;
    let expected = &caught_up.comparison.all_columns();
    let near = approach(backends, Schema::Previous, caught_up.mark, shutdown).await?;
    let swap = Swap { new: Schema::Previous, id: Some(last.id), mark: near.mark, expected };
    let swapped = swap.run(backends).await?;
    let paused = swapped.paused.context("the former projection changed while it was compared")?;
    Ok(u64::try_from(paused.as_millis()).unwrap_or(u64::MAX))
}

/// Drops what an unfinished rebuild has built.
pub async fn abandon(backends: &Backends) -> anyhow::Result<bool> {
    let mut alone = database::acquire(&backends.pool).await.context("connecting to Postgres")?;
    alone_or_bail(&mut alone).await?;
    let mut transaction = alone.begin().await?;
    let was_there = rebuilds::abandon(&mut transaction).await?;
    schema::drop(&mut transaction, Schema::Next).await?;
    late_places::forget(&mut transaction).await?;
    transaction.commit().await?;
    Ok(was_there)
}

/// Two at a time would build the same schema. The lock ends with the connection.
pub(crate) async fn alone_or_bail(connection: &mut PgConnection) -> anyhow::Result<()> {
    if database::try_lock_rebuild(connection).await? {
        return Ok(());
    }
    bail!("another rebuild or verify is running on this database")
}

async fn begin(
    backends: &Backends,
    connection: &mut PgConnection,
    origin: Origin,
) -> anyhow::Result<(Rebuild, bool)> {
    if let Some(unfinished) = rebuilds::unfinished(connection).await? {
        if unfinished.origin != origin {
            bail!(
                "an unfinished rebuild from the {} is there: go on with `--from {}`, or drop it with `--abandon`",
                unfinished.origin,
                unfinished.origin
            );
        }
        note(&format!(
            "going on with the rebuild that was begun up to sequence {}",
            unfinished.target.sequence
        ));
        return Ok((unfinished, true));
    }
    let views = schema::dependent_views(connection).await?;
    if !views.is_empty() {
        bail!(
            "{} would go on to read the former projection after a swap: drop what is built on \
             projection.installations, and make it anew afterwards",
            views.join(", ")
        );
    }
    let log = status::log(&backends.connection).await?;
    if origin == Origin::Log && log.first_sequence > 1 {
        bail!(
            "the log begins at sequence {}: what was before is only in the journal; use `--from journal`",
            log.first_sequence
        );
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
    options: &RebuildOptions,
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
    options: &RebuildOptions,
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

pub(crate) struct CaughtUp {
    places: usize,
    /// Everything up to here is in the new projection.
    mark: Mark,
    pub(crate) comparison: Comparison,
}

/// Round by round until few places are left, then once more in one snapshot
/// with the comparison.
pub(crate) async fn catch_up(
    backends: &Backends,
    schema: Schema,
    mut mark: Mark,
    shutdown: &CancellationToken,
) -> anyhow::Result<CaughtUp> {
    let mut total = 0;
    let mut connection = database::acquire(&backends.pool).await?;
    for _ in 0..CATCH_UP_ROUNDS_MAX {
        let floor = floor(&backends.connection).await?;
        let mut transaction = connection.begin().await?;
        let round = Round::fold(&mut transaction, schema, mark, backends.retention).await?;
        transaction.commit().await?;
        total += round.units.len();
        mark = Mark { sequence: floor, late: round.late };
        if round.units.len() <= FEW_PLACES {
            break;
        }
        if shutdown.is_cancelled() {
            bail!(Interrupted);
        }
    }
    let floor = floor(&backends.connection).await?;
    let started = Instant::now();
    let mut transaction = connection.begin().await?;
    database::see_one_moment(&mut transaction).await?;
    let round = Round::fold(&mut transaction, schema, mark, backends.retention).await?;
    let comparison = compare::compare(&mut transaction, schema, Scope::All).await?;
    transaction.commit().await?;
    note(&format!("compared in {:.1} s", started.elapsed().as_secs_f64()));
    let mark = Mark { sequence: floor, late: round.late };
    Ok(CaughtUp { places: total + round.units.len(), mark, comparison })
}

/// The comparison of everything took its time: catches up again, and compares
/// what changed, until few places are left for the swap.
async fn approach(
    backends: &Backends,
    schema: Schema,
    mut mark: Mark,
    shutdown: &CancellationToken,
) -> anyhow::Result<CaughtUp> {
    let (mut places, mut comparison) = (0, Comparison::default());
    let mut connection = database::acquire(&backends.pool).await?;
    for _ in 0..CATCH_UP_ROUNDS_MAX {
        let floor = floor(&backends.connection).await?;
        let mut transaction = connection.begin().await?;
        database::see_one_moment(&mut transaction).await?;
        let round = Round::find(&mut transaction, mark).await?;
        if round.units.len() <= FEW_PLACES {
            break;
        }
        load::save_places(&mut transaction, schema, &round.units, backends.retention).await?;
        let scope = Scope::Places(&round.units);
        comparison.add(compare::compare(&mut transaction, schema, scope).await?);
        transaction.commit().await?;
        places += round.units.len();
        mark = Mark { sequence: floor, late: round.late };
        if shutdown.is_cancelled() {
            bail!(Interrupted);
        }
    }
    Ok(CaughtUp { places, mark, comparison })
}

/// The places that changed since some mark.
struct Round {
    units: Vec<FoldUnit>,
    /// With the late places up to this one.
    late: i64,
}

impl Round {
    async fn find(transaction: &mut PgConnection, mark: Mark) -> Result<Self, sqlx::Error> {
        let late = late_places::last(transaction).await?.max(mark.late);
        Ok(Self { units: late_places::changed_since(transaction, mark).await?, late })
    }

    /// Finds them and folds them from the journal.
    async fn fold(
        transaction: &mut PgConnection,
        schema: Schema,
        mark: Mark,
        retention: Retention,
    ) -> anyhow::Result<Self> {
        let round = Self::find(transaction, mark).await?;
        load::save_places(transaction, schema, &round.units, retention).await?;
        Ok(round)
    }
}

struct Swap<'a> {
    new: Schema,
    /// Of the record of the rebuild.
    id: Option<i64>,
    mark: Mark,
    expected: &'a BTreeSet<String>,
}

struct Swapped {
    places: usize,
    comparison: Comparison,
    /// `None` if there was a difference, so that nothing was swapped.
    paused: Option<Duration>,
}

impl Swap<'_> {
    async fn run(self, backends: &Backends) -> anyhow::Result<Swapped> {
        let mut connection = database::acquire(&backends.pool).await?;
        let mut transaction = connection.begin().await?;
        let locked = database::lock_out_workers(&mut transaction).await;
        locked.context("waiting for a moment in which no worker commits; try again")?;
        let paused = Instant::now();
        let round = Round::fold(&mut transaction, self.new, self.mark, backends.retention).await?;
        let scope = Scope::Places(&round.units);
        let comparison = compare::compare(&mut transaction, self.new, scope).await?;
        if comparison.unexpected(self.expected) > 0 {
            transaction.rollback().await?;
            return Ok(Swapped { places: 0, comparison, paused: None });
        }
        // What is live until now has every late place, too.
        let former = Mark { sequence: self.mark.sequence, late: round.late };
        rebuilds::mark_swapped(&mut transaction, self.id, former).await?;
        schema::swap(&mut transaction, self.new).await?;
        late_places::forget(&mut transaction).await?;
        transaction.commit().await?;
        let paused = Some(paused.elapsed());
        // Not under the lock: whoever reads it still would hold up the workers.
        schema::drop(&mut connection, Schema::Dropped).await?;
        Ok(Swapped { places: round.units.len(), comparison, paused })
    }
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
