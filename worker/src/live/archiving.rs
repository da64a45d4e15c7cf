//! Running workers archive by themselves, one at a time.

use std::time::Duration;

use eventlog::archive::{Location, Storage};
use eventlog::connect::Connection;
use jiff::Timestamp;
use service::clock;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use crate::live::archive::{Archiver, Busy, Purpose, Report};
use crate::metrics::METRICS;
use crate::settings::ArchivePolicy;

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
        loop {
            match self.pass(&shutdown).await {
                Ok(report) => observe(&report),
                // Another worker does it.
                Err(error) if error.is::<Busy>() => tracing::debug!("another worker archives"),
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

    async fn pass(&self, shutdown: &CancellationToken) -> anyhow::Result<Report> {
        // Each time: what it is on may be mounted later.
        let storage = Storage::open(&self.location)?;
        let (connection, pool) = (self.connection.clone(), self.pool.clone());
        let archiver = Archiver { connection, pool, storage, policy: self.policy };
        archiver.run(Purpose::Routine, shutdown, |_| {}).await
    }
}

fn observe(report: &Report) {
    METRICS.archive_failing.record(0.0, &[]);
    METRICS.archive_sequence.record(float(report.archived_to), &[]);
    METRICS.archive_segments.record(float(report.segments_in_all), &[]);
    if let Some(age) = report.last_stored_at.map(age) {
        METRICS.archive_age.record(age, &[]);
    }
    METRICS.archive_events.add(report.segments.iter().map(|it| it.events).sum(), &[]);
    for segment in &report.segments {
        tracing::info!("archived {segment}");
    }
    if let Some(why) = &report.waits {
        tracing::info!(why, "the log is not trimmed yet");
    }
}

fn age(at: Timestamp) -> f64 {
    clock::now().duration_since(at).as_secs_f64().max(0.0)
}

#[expect(clippy::cast_precision_loss, reason = "metrics are floats")]
fn float(number: u64) -> f64 {
    number as f64
}
