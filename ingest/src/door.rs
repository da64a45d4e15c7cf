//! The open doors: where whoever comes may write. These are the install page, the
//! redirect of OAuth, and the callbacks of a source that is `unverified`.
//!
//! Each source takes so many events and bytes through them in an hour, counted in
//! the broker for all ingests together. And they close when the log is filled to
//! a share, so that a stranger never takes the room of a platform's callbacks.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use backon::{ConstantBuilder, Retryable as _};
use domain::id::SourceName;
use eventlog::connect::Connection;
use eventlog::contract::{Contract, Fill};
use eventlog::quota::{self, Used};
use service::clock;
use service::config::OpenSettings;
use tokio::sync::watch;

const HOUR_S: i64 = 3_600;
/// What an event takes beside what it was made of, which is sealed and in base64.
const EVENT_BYTES: u64 = 2 * 1_024;
/// The log is looked at every few seconds, and an operator is not faster.
const SHARE_RETRY_AFTER_S: u32 = 300;
const UNCOUNTED_RETRY_AFTER_S: u32 = 2;
const COUNT_AGAIN_AFTER: Duration = Duration::from_millis(250);
/// For users who wait; a platform has its ack budget.
pub(crate) const COUNT_BUDGET: Duration = Duration::from_secs(5);

/// Why nobody may write here now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Closed {
    /// The quota of this hour is used up.
    QuotaUsed { retry_after_s: u32 },
    /// The log is as full as whoever comes may fill it.
    ShareUsed,
    /// The broker does not count, so nobody knows.
    Uncounted,
}

impl Closed {
    /// For metrics, logs and the record of callbacks.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::QuotaUsed { .. } => "quota-exceeded",
            Self::ShareUsed => "log-share-used",
            Self::Uncounted => "quota-unknown",
        }
    }

    pub(crate) fn retry_after_s(self) -> u32 {
        match self {
            Self::QuotaUsed { retry_after_s } => retry_after_s,
            Self::ShareUsed => SHARE_RETRY_AFTER_S,
            Self::Uncounted => UNCOUNTED_RETRY_AFTER_S,
        }
    }
}

/// The quota of one source.
pub struct Quota {
    settings: OpenSettings,
    /// Until this second it is known to be used up, and the broker need not be asked.
    used_until: AtomicI64,
}

impl Quota {
    pub(crate) fn new(settings: OpenSettings) -> Self {
        Self { settings, used_until: AtomicI64::new(i64::MIN) }
    }

    /// Whether it is known to be used up.
    fn is_used(&self, now_s: i64) -> Option<Closed> {
        let left = self.used_until.load(Ordering::Relaxed).saturating_sub(now_s);
        let retry_after_s = u32::try_from(left).ok().filter(|left| *left > 0)?;
        Some(Closed::QuotaUsed { retry_after_s })
    }
}

/// The share of the log, and the broker that counts.
pub(crate) struct Doors {
    connection: Connection,
    contract: watch::Receiver<Contract>,
    percent_max: u64,
    written: Mutex<Written>,
}

/// What went through the doors of this process since the log was looked at.
#[derive(Default)]
struct Written {
    since: Option<Fill>,
    bytes: u64,
}

impl Doors {
    pub(crate) fn new(
        connection: Connection,
        contract: watch::Receiver<Contract>,
        percent_max: u64,
    ) -> Self {
        Self { connection, contract, percent_max, written: Mutex::default() }
    }

    /// Whether they are open, as far as that is known without asking.
    pub(crate) fn are_open(&self, quota: &Quota) -> Result<(), Closed> {
        if let Some(closed) = quota.is_used(clock::now().as_second()) {
            return Err(closed);
        }
        if self.has_room(0) { Ok(()) } else { Err(Closed::ShareUsed) }
    }

    /// Lets one event of so many bytes through. It counts even if it is not appended
    /// in the end.
    pub(crate) async fn enter(
        &self,
        source: &SourceName,
        quota: &Quota,
        bytes: usize,
        within: Duration,
    ) -> Result<(), Closed> {
        self.are_open(quota)?;
        let now_s = clock::now().as_second();
        let hour = now_s.div_euclid(HOUR_S);
        let used = self.count(source, hour, bytes, within).await?;
        let OpenSettings { events_per_hour, bytes_per_hour } = quota.settings;
        if used.events > events_per_hour || used.bytes > bytes_per_hour {
            let ends = hour.saturating_add(1).saturating_mul(HOUR_S);
            // The first to find out tells it.
            if quota.used_until.swap(ends, Ordering::Relaxed) != ends {
                let (source, events, bytes) = (source.as_str(), used.events, used.bytes);
                tracing::warn!(source, events, bytes, "the quota of this hour is used up");
            }
            let retry_after_s = u32::try_from(ends.saturating_sub(now_s)).unwrap_or(1).max(1);
            return Err(Closed::QuotaUsed { retry_after_s });
        }
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let sealed = bytes.saturating_add(bytes / 2).saturating_add(EVENT_BYTES);
        if self.has_room(sealed) { Ok(()) } else { Err(Closed::ShareUsed) }
    }

    /// Again and again, as an append is tried: what is counted twice is on the safe side.
    async fn count(
        &self,
        source: &SourceName,
        hour: i64,
        bytes: usize,
        within: Duration,
    ) -> Result<Used, Closed> {
        let add = || quota::add(&self.connection, source, hour, bytes);
        let again = ConstantBuilder::new().with_delay(COUNT_AGAIN_AFTER).without_max_times();
        let told = |error: &anyhow::Error, _| {
            let source = source.as_str();
            tracing::warn!(
                source,
                "what strangers write is not counted: {error:#} (has `worker migrate` made the stream, and may \
                 the NATS user publish to quotas.>?)"
            );
        };
        match tokio::time::timeout(within, add.retry(again).notify(told)).await {
            Ok(Ok(used)) => Ok(used),
            Ok(Err(_)) | Err(_) => {
                tracing::error!(source = source.as_str(), "nothing is taken from strangers");
                Err(Closed::Uncounted)
            }
        }
    }

    /// Takes the room, if it is there.
    fn has_room(&self, bytes: u64) -> bool {
        // Unknown or broken, the log takes nothing at all.
        let Some(fill) = self.contract.borrow().fill() else { return true };
        let Some(max) = fill.bytes_max else { return true };
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if written.since != Some(fill) {
            *written = Written { since: Some(fill), bytes: 0 };
        }
        let after = fill.bytes.saturating_add(written.bytes).saturating_add(bytes);
        let has_room = u128::from(after) * 100 < u128::from(max) * u128::from(self.percent_max);
        if has_room {
            written.bytes = written.bytes.saturating_add(bytes);
        }
        has_room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_that_is_used_up_says_when_to_come_again() {
        let quota = Quota::new(OpenSettings::default());
        assert_eq!(quota.is_used(7_000), None);
        quota.used_until.store(7_200, Ordering::Relaxed);
        assert_eq!(quota.is_used(7_000), Some(Closed::QuotaUsed { retry_after_s: 200 }));
        assert_eq!(quota.is_used(7_200), None);
    }
}
