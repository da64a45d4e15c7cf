//! Brings a projection that was built up to what the journal has by now.

use std::time::Instant;

use anyhow::bail;
use domain::fold::Retention;
use sqlx::{Connection as _, PgConnection};
use tokio_util::sync::CancellationToken;

use crate::operate::backends::{Backends, floor};
use crate::operate::exit::Interrupted;
use crate::operate::progress::note;
use crate::operate::rebuild::load;
use crate::store::database;
use crate::store::fold_unit::FoldUnit;
use crate::store::installations::compare::{self, Comparison, Scope};
use crate::store::late_places::{self, Mark};
use crate::store::schema::Schema;

/// So few places are caught up with while the workers wait.
const FEW_PLACES: usize = 2_000;
const CATCH_UP_ROUNDS_MAX: usize = 50;

pub(crate) struct CaughtUp {
    pub(super) places: usize,
    /// Everything up to here is in the new projection.
    pub(super) mark: Mark,
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
pub(super) async fn approach(
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
pub(super) struct Round {
    pub(super) units: Vec<FoldUnit>,
    /// With the late places up to this one.
    pub(super) late: i64,
}

impl Round {
    async fn find(transaction: &mut PgConnection, mark: Mark) -> Result<Self, sqlx::Error> {
        let late = late_places::last(transaction).await?.max(mark.late);
        Ok(Self { units: late_places::changed_since(transaction, mark).await?, late })
    }

    /// Finds them and folds them from the journal.
    pub(super) async fn fold(
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
