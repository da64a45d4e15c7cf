//! Running workers archive by themselves, one at a time.

use std::time::{Duration, Instant};

use eventlog::archive::{Location, Storage};
use eventlog::connect::Connection;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use crate::live::archive::{Archiver, Busy, Purpose, Report};
use crate::metrics::METRICS;
use crate::settings::ArchivePolicy;

/// The archive itself, while nothing is due: every manifest is read then.
const ASK_EVERY: Duration = Duration::from_secs(3_600);

/// What archives beside the other work of a worker.
pub(crate) struct Archiving {
    /// As a user that may delete from the log.
    pub(crate) connection: Connection,
    pub(crate) pool: PgPool,
    pub(crate) location: Location,
    pub(crate) policy: ArchivePolicy,
    pub(crate) every: Duration,
}

impl Archiving {
    /// Archives what is due until `shutdown`. A pass ends soon after that; killed in the
    /// middle, the next one finishes what it left.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let mut asked: Option<Instant> = None;
        loop {
            let is_time = asked.is_none_or(|at| at.elapsed() >= ASK_EVERY);
            let purpose = if is_time { Purpose::Thorough } else { Purpose::Routine };
            match self.pass(purpose, &shutdown).await {
                Ok(report) => {
                    observe(&report);
                    asked = if is_time { Some(Instant::now()) } else { asked };
                }
                // Another worker does it, and says what comes of it.
                Err(error) if error.is::<Busy>() => METRICS.archive_failing.record(0.0, &[]),
                Err(error) => {
                    METRICS.archive_failing.record(1.0, &[]);
                    tracing::error!(
                        error = format!("{error:#}"),
                        "archiving failed; nothing is lost"
                    );
                }
            }
            tokio::select! {
                () = tokio::time::sleep(self.every) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    async fn pass(&self, purpose: Purpose, shutdown: &CancellationToken) -> anyhow::Result<Report> {
        // Each time: what it is on may be mounted later.
        let storage = Storage::open(&self.location)?;
        let (connection, pool) = (self.connection.clone(), self.pool.clone());
        let archiver = Archiver { connection, pool, storage, policy: self.policy };
        archiver.run(purpose, shutdown, |_| {}).await
    }
}

fn observe(report: &Report) {
    METRICS.archive_failing.record(0.0, &[]);
    METRICS.archive_sequence.record(float(report.archived_to), &[]);
    METRICS.archive_segments.record(float(report.segments_in_all), &[]);
    METRICS.archive_events.add(report.segments.iter().map(|it| it.events).sum(), &[]);
    for segment in &report.segments {
        tracing::info!("archived {segment}");
    }
    if let Some(why) = &report.waits {
        tracing::info!(why, "the log is not trimmed yet");
    }
}

#[expect(clippy::cast_precision_loss, reason = "metrics are floats")]
fn float(number: u64) -> f64 {
    number as f64
}
