//! A net below the consumer. What it has passed over, and nobody applied, is found
//! in the log and applied.
//!
//! Everything up to the consumer's ack floor was committed before it was acknowledged,
//! so each sequence up to there has a row: in the journal, or among the dead letters.
//! Postgres tells which have none, by its indexes alone. Only those are looked at in
//! the log. Mostly they are copies of an event that the journal has, or gone.

use std::time::Duration;

use domain::id::StreamSequence;
use eventlog::connect::Connection;
use eventlog::delivery::Delivery;
use eventlog::{read, status};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use crate::live::commit::{self, Arrival, Terms};
use crate::metrics::METRICS;
use crate::store::{database, gaps};

/// A replica that is asked must have what the leader had this long ago.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Sequences that are looked at together, and the pause after them.
const TOGETHER: u64 = 10_000;
const PAUSE: Duration = Duration::from_millis(100);

/// Looks after the consumer. Each worker does, from the beginning of the log on when it
/// starts, since nothing is remembered.
pub(crate) struct Net<'a> {
    pub(crate) connection: &'a Connection,
    pub(crate) pool: &'a PgPool,
    pub(crate) terms: &'a Terms,
}

impl Net<'_> {
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        METRICS.log_skipped.add(0, &[]);
        let mut looked_to = 0;
        let mut floor_before = 0;
        while !shutdown.is_cancelled() {
            let wait = match self.look(looked_to, floor_before).await {
                Ok(to) if to < floor_before => {
                    looked_to = to;
                    PAUSE
                }
                found => {
                    match found {
                        Ok(to) => looked_to = to,
                        // The consume loop tells why NATS or Postgres is away.
                        Err(error) => tracing::debug!("not looked for skipped events: {error:#}"),
                    }
                    let consumer = status::consumer(self.connection).await;
                    floor_before = consumer.map_or(floor_before, |it| it.acknowledged_up_to);
                    LOOK_EVERY
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = shutdown.cancelled() => {}
            }
        }
    }

    /// Looks at a few sequences after `from`, up to `floor`. Says how far it is.
    async fn look(&self, from: u64, floor: u64) -> anyhow::Result<u64> {
        let first = status::log(self.connection).await?.first_sequence;
        let from = from.max(first.saturating_sub(1));
        if from >= floor {
            return Ok(from);
        }
        let to = floor.min(from + TOGETHER);
        let mut connection = database::acquire(self.pool).await?;
        let gaps = gaps::without_row(&mut connection, from + 1, to).await?;
        drop(connection);
        for sequence in gaps {
            let found = read::message_at(self.connection, StreamSequence(sequence)).await?;
            if let Some(delivery) = found {
                self.apply_unless_known(delivery).await?;
            }
        }
        Ok(to)
    }

    async fn apply_unless_known(&self, delivery: Delivery) -> anyhow::Result<()> {
        let mut connection = database::acquire(self.pool).await?;
        let position = delivery.position();
        if gaps::has_event(&mut connection, delivery.message_id(), position).await? {
            return Ok(());
        }
        drop(connection);
        tracing::error!(
            sequence = delivery.sequence.0,
            "the consumer has passed over an event that nobody applied; it is applied now"
        );
        commit::apply(self.pool, &[delivery], self.terms, Arrival::Late).await?;
        METRICS.log_skipped.add(1, &[]);
        Ok(())
    }
}
