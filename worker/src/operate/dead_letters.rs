//! `worker dead-letters`: applying them again, and giving them up.

use anyhow::ensure;
use serde::Serialize;
use sqlx::PgPool;

use crate::live::commit::{self, Arrival};
use crate::operate::backends::Backends;
use crate::store::database;
use crate::store::dead_letters::{self, DeadLetterView, Selection};

/// What came of applying dead letters again.
#[derive(Debug, Default, Serialize)]
pub struct Redriven {
    pub applied: Vec<u64>,
    /// They are dead letters still; `detail` says why.
    pub failed: Vec<DeadLetterView>,
}

/// Applies them again, each by itself.
pub async fn redrive(
    backends: &Backends,
    selection: &Selection,
    by: &str,
) -> anyhow::Result<Redriven> {
    let Backends { pool, retention, .. } = backends;
    let mut connection = database::acquire(pool).await?;
    let mut redriven = Redriven::default();
    let found = dead_letters::deliveries(&mut connection, selection).await?;
    ensure!(
        !found.is_empty() || selection.sequences.is_empty(),
        "none of these is an open dead letter"
    );
    for delivery in found {
        let sequence = delivery.sequence.0;
        let only = std::slice::from_ref(&delivery);
        let committed = commit::apply(pool, only, *retention, Arrival::Late).await?;
        if committed.dead_letters > 0 {
            redriven.failed.push(dead_letters::show(pool, sequence).await?);
            continue;
        }
        dead_letters::resolve(&mut connection, &[sequence], "redriven", by, None).await?;
        redriven.applied.push(sequence);
    }
    Ok(redriven)
}

/// Gives them up, and keeps who did it and why. Says how many there were.
pub async fn discard(pool: &PgPool, sequences: &[u64], by: &str, why: &str) -> anyhow::Result<u64> {
    let mut connection = database::acquire(pool).await?;
    let resolved =
        dead_letters::resolve(&mut connection, sequences, "discarded", by, Some(why)).await?;
    ensure!(resolved > 0, "none of these is an open dead letter");
    Ok(resolved)
}
