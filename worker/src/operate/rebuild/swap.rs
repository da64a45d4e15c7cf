//! The swap: the projection that was built becomes the live one, and back.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use service::clock;
use sqlx::{Connection as _, PgConnection};
use tokio_util::sync::CancellationToken;

use crate::live::changes::of_rebuild;
use crate::operate::backends::Backends;
use crate::operate::rebuild::alone_or_bail;
use crate::operate::rebuild::catch_up::{Round, approach, catch_up};
use crate::store::changes::{self, Cause, NewChange};
use crate::store::database;
use crate::store::installations;
use crate::store::installations::compare::{self, Comparison, Scope};
use crate::store::late_places::{self, Mark};
use crate::store::rebuilds;
use crate::store::schema::{self, Schema};

/// Whose states are compared together.
const PLACES_AT_ONCE: usize = 1_000;

pub(super) struct Swap<'a> {
    pub(super) new: Schema,
    /// Of the record of the rebuild.
    pub(super) id: Option<i64>,
    pub(super) mark: Mark,
    pub(super) expected: &'a BTreeSet<String>,
}

pub(super) struct Swapped {
    pub(super) places: usize,
    pub(super) comparison: Comparison,
    /// `None` if there was a difference, so that nothing was swapped.
    pub(super) paused: Option<Duration>,
}

impl Swap<'_> {
    pub(super) async fn run(self, backends: &Backends) -> anyhow::Result<Swapped> {
        let mut connection = database::acquire(&backends.pool).await?;
        let mut transaction = connection.begin().await?;
        let locked = database::lock_out_workers(&mut transaction).await;
        locked.context("could not lock out the workers within 5 s; try again")?;
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
        let changes = self.changes(&mut transaction).await?;
        schema::swap(&mut transaction, self.new).await?;
        late_places::forget(&mut transaction).await?;
        changes::append(&mut transaction, Cause::Rebuild, &changes).await?;
        transaction.commit().await?;
        let paused = Some(paused.elapsed());
        // Not under the lock: whoever reads it still would hold up the workers.
        schema::drop(&mut connection, Schema::Dropped).await?;
        Ok(Swapped { places: round.units.len(), comparison, paused })
    }
}

impl Swap<'_> {
    /// What readers of the change feed are told. Mostly there is nothing to tell, and nothing is
    /// looked at: a difference that nobody expects is never swapped in.
    async fn changes(&self, transaction: &mut PgConnection) -> anyhow::Result<Vec<NewChange>> {
        if self.expected.is_empty() {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        for units in compare::different_places(transaction, self.new).await?.chunks(PLACES_AT_ONCE)
        {
            let live = installations::states(transaction, None, units).await?;
            let built = installations::states(transaction, Some(self.new), units).await?;
            found.extend(of_rebuild(live, built, clock::now()));
        }
        Ok(found)
    }
}

/// Takes the last swap back: the former projection is caught up with and
/// swapped in again.
pub(super) async fn roll_back(
    backends: &Backends,
    shutdown: &CancellationToken,
) -> anyhow::Result<u64> {
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
