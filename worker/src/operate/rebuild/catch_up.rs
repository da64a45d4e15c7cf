//! Brings a projection that was built up to what the journal has by now.

use std::time::Instant;

use anyhow::bail;
use domain::fold::Retention;
use sqlx::{Connection as _, PgConnection};
use tokio_util::sync::CancellationToken;

use crate::operate::backends::{Backends, floor};
use crate::operate::exit::Interrupted;
use crate::operate::progress::note;
use crate::operate::rebuild::compare::{self, Comparison, Scope};
use crate::operate::rebuild::load;
use crate::operate::rebuild::schema::Schema;
use crate::store::database;
use crate::store::journal;

/// So few places are caught up with while the workers wait.
const FEW_PLACES: usize = 2_000;
const CATCH_UP_ROUNDS_MAX: usize = 50;

pub(crate) struct CaughtUp {
    pub(super) places: usize,
    /// Everything up to here is in the new projection.
    pub(super) floor: u64,
    pub(crate) comparison: Comparison,
}

/// Round by round until few places are left, then once more in one snapshot
/// with the comparison.
pub(crate) async fn catch_up(
    backends: &Backends,
    schema: Schema,
    mut after: u64,
    shutdown: &CancellationToken,
) -> anyhow::Result<CaughtUp> {
    let mut total = 0;
    let mut connection = database::acquire(&backends.pool).await?;
    for _ in 0..CATCH_UP_ROUNDS_MAX {
        let floor = floor(&backends.connection).await?;
        let mut transaction = connection.begin().await?;
        let places = refold(&mut transaction, schema, after, backends.retention).await?;
        transaction.commit().await?;
        total += places;
        after = floor;
        if places <= FEW_PLACES {
            break;
        }
        if shutdown.is_cancelled() {
            bail!(Interrupted);
        }
    }
    let floor = floor(&backends.connection).await?;
    let started = Instant::now();
    let mut transaction = connection.begin().await?;
    sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        .execute(&mut *transaction)
        .await?;
    total += refold(&mut transaction, schema, after, backends.retention).await?;
    let comparison = compare::compare(&mut transaction, schema, Scope::All).await?;
    transaction.commit().await?;
    note(&format!("compared in {:.1} s", started.elapsed().as_secs_f64()));
    Ok(CaughtUp { places: total, floor, comparison })
}

/// The comparison of everything took its time: catches up again, and compares
/// what changed, until few places are left for the swap.
pub(super) async fn approach(
    backends: &Backends,
    schema: Schema,
    mut after: u64,
    shutdown: &CancellationToken,
) -> anyhow::Result<CaughtUp> {
    let (mut places, mut comparison) = (0, Comparison::default());
    let mut connection = database::acquire(&backends.pool).await?;
    for _ in 0..CATCH_UP_ROUNDS_MAX {
        let floor = floor(&backends.connection).await?;
        let mut transaction = connection.begin().await?;
        sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            .execute(&mut *transaction)
            .await?;
        let units = journal::changed_places(&mut transaction, after).await?;
        if units.len() <= FEW_PLACES {
            break;
        }
        load::save_places(&mut transaction, schema, &units, backends.retention).await?;
        let found = compare::compare(&mut transaction, schema, Scope::Places(&units)).await?;
        transaction.commit().await?;
        places += units.len();
        comparison.add(found);
        after = floor;
        if shutdown.is_cancelled() {
            bail!(Interrupted);
        }
    }
    Ok(CaughtUp { places, floor: after, comparison })
}

/// Folds the places that have events after `after` from the journal.
async fn refold(
    transaction: &mut PgConnection,
    schema: Schema,
    after: u64,
    retention: Retention,
) -> anyhow::Result<usize> {
    let units = journal::changed_places(transaction, after).await?;
    load::save_places(transaction, schema, &units, retention).await?;
    Ok(units.len())
}
