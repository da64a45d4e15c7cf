//! What all commands of operators work with.

use std::time::{Duration, Instant};

use anyhow::bail;
use domain::fold::Retention;
use eventlog::connect::{Connection, Endpoint};
use eventlog::status;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use crate::operate::progress::note;

const WORKERS_POLL: Duration = Duration::from_millis(200);
const WORKERS_NOTE_EVERY: Duration = Duration::from_secs(5);

/// What a command that works on log and projection needs.
pub struct Backends {
    /// For further connections, which read the log in parallel.
    pub endpoint: Endpoint,
    pub connection: Connection,
    pub pool: PgPool,
    pub retention: Retention,
}

/// Ctrl-C. Whatever it was can be run again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("interrupted; run it again")]
pub struct Interrupted;

/// Up to where every event is committed.
pub(crate) async fn floor(connection: &Connection) -> anyhow::Result<u64> {
    Ok(status::consumer(connection).await?.applied_up_to())
}

/// Who reads the projection must not miss what is in the log already.
pub(crate) async fn wait_for_workers(
    backends: &Backends,
    target: u64,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let mut last_note: Option<Instant> = None;
    loop {
        let floor = floor(&backends.connection).await?;
        if floor >= target {
            return Ok(());
        }
        if last_note.is_none_or(|at| at.elapsed() >= WORKERS_NOTE_EVERY) {
            last_note = Some(Instant::now());
            note(&format!(
                "waiting for the workers: they have applied the log up to {floor}, {target} is needed (is one running?)"
            ));
        }
        tokio::select! {
            () = tokio::time::sleep(WORKERS_POLL) => {}
            () = shutdown.cancelled() => bail!(Interrupted),
        }
    }
}
