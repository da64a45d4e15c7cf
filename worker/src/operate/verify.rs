//! `worker verify`: are log, journal and projection of one mind? It repairs
//! nothing and leaves nothing behind.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use eventlog::message::all_subjects;
use eventlog::read::{Reader, Selection, Start};
use eventlog::status;
use serde::Serialize;
use sqlx::PgConnection;
use tokio_util::sync::CancellationToken;

use crate::operate::backends::{Backends, Interrupted, wait_for_workers};
use crate::operate::progress::{Progress, note};
use crate::operate::rebuild::{self, Loaded, RebuildOptions};
use crate::store::database;
use crate::store::installations::compare::Comparison;
use crate::store::late_places::{self, Mark};
use crate::store::log_identity;
use crate::store::log_index::{self, Entries};
use crate::store::rebuilds::{Origin, Rebuild};
use crate::store::schema::{self, Schema};

pub use crate::store::log_index::JournalFindings;

#[derive(Debug, Clone)]
pub struct VerifyOptions {
    pub parallel: usize,
    pub rate_max: Option<u64>,
    pub temp_dir: PathBuf,
}

#[derive(Debug, Serialize)]
pub struct VerifyReport {
    /// Up to here everything was compared.
    pub sequence: u64,
    /// Where the log begins. What is older is only in the journal.
    pub first_sequence: u64,
    /// What the projection was folded from anew.
    pub folded_from: Origin,
    pub events: u64,
    pub dead_letters: u64,
    pub journal: JournalFindings,
    pub projection: Comparison,
}

impl VerifyReport {
    pub fn is_sound(&self) -> bool {
        let JournalFindings { missing, different, only_in_journal } = &self.journal;
        let journal = missing.is_empty() && different.is_empty() && only_in_journal.is_empty();
        journal && self.projection.different == 0
    }
}

pub async fn verify(
    backends: &Backends,
    options: &VerifyOptions,
    shutdown: &CancellationToken,
) -> anyhow::Result<VerifyReport> {
    let mut alone = database::acquire(&backends.pool).await.context("connecting to Postgres")?;
    rebuild::alone_or_bail(&mut alone).await?;
    log_identity::check(&backends.connection, &backends.pool).await?;
    let state = status::log(&backends.connection).await?;
    let (first, target) = (state.first_sequence, state.last_sequence);

    wait_for_workers(backends, target, shutdown).await?;
    schema::drop(&mut alone, Schema::Scratch).await?;
    schema::create(&mut alone, Schema::Scratch).await?;
    let report = compare(backends, options, &mut alone, first, target, shutdown).await;
    // Whatever came of it.
    schema::drop(&mut alone, Schema::Scratch).await?;
    report
}

async fn compare(
    backends: &Backends,
    options: &VerifyOptions,
    connection: &mut PgConnection,
    first: u64,
    target: u64,
    shutdown: &CancellationToken,
) -> anyhow::Result<VerifyReport> {
    let origin = if first > 1 { Origin::Journal } else { Origin::Log };
    let mark = Mark { sequence: target, late: late_places::last(connection).await? };
    let (loaded, projection) = projection(backends, options, origin, mark, shutdown).await?;
    index_log(backends, connection, target, shutdown).await?;
    note("comparing with the journal");
    let journal = log_index::compare_with_journal(connection, first, target).await?;
    Ok(VerifyReport {
        sequence: target,
        first_sequence: first,
        folded_from: origin,
        events: loaded.events,
        dead_letters: loaded.dead_letters,
        journal,
        projection,
    })
}

/// Folds a projection anew and compares the live one with it, at one moment.
async fn projection(
    backends: &Backends,
    options: &VerifyOptions,
    origin: Origin,
    target: Mark,
    shutdown: &CancellationToken,
) -> anyhow::Result<(Loaded, Comparison)> {
    let VerifyOptions { parallel, rate_max, temp_dir } = options.clone();
    let expected = Default::default();
    let options = RebuildOptions { origin, parallel, rate_max, expected, swap: false, temp_dir };
    let mut unrecorded = Rebuild::unrecorded(origin, target);
    let into = Schema::Scratch;
    let loaded = rebuild::load_into(backends, into, &options, &mut unrecorded, shutdown).await?;
    let caught_up = rebuild::catch_up(backends, into, target, shutdown).await?;
    Ok((loaded, caught_up.comparison))
}

async fn index_log(
    backends: &Backends,
    connection: &mut PgConnection,
    target: u64,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    log_index::create(connection).await?;
    if target == 0 {
        return Ok(());
    }
    let mut progress = Progress::new("comparing events", target);
    let all = Selection::of_log(all_subjects(), Start::Sequence(1), target);
    let mut reader = Reader::open(&backends.connection, all).await?;
    let mut entries = Entries::default();
    while let Some(delivery) = reader.next().await? {
        entries.push(&delivery);
        if entries.is_full() {
            if shutdown.is_cancelled() {
                bail!(Interrupted);
            }
            progress.add(entries.save(connection).await?);
        }
    }
    progress.add(entries.save(connection).await?);
    progress.finish();
    Ok(())
}
