//! No faster than asked for, so that live traffic keeps its share of the machine.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Shared by the tasks of one phase.
pub(crate) struct Pace {
    per_second: Option<u64>,
    started: Instant,
    done: AtomicU64,
}

impl Pace {
    pub(crate) fn new(per_second: Option<u64>) -> Self {
        Self { per_second, started: Instant::now(), done: AtomicU64::new(0) }
    }

    /// Waits until so many more are due.
    pub(crate) async fn keep(&self, events: u64) {
        let done = self.done.fetch_add(events, Ordering::Relaxed) + events;
        let Some(per_second) = self.per_second.filter(|rate| *rate > 0) else { return };
        let due = Duration::from_millis(done.saturating_mul(1_000) / per_second);
        tokio::time::sleep_until(self.started + due).await;
    }
}
