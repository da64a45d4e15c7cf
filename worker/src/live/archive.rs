//! Old events go from the log into the archive.
//!
//! 1. What is due is read from the log and stored as a segment.
//! 2. The segment is read back, unpacked and compared with the journal: each event in
//!    it must be known there, or be a dead letter, and none may be missing.
//! 3. Its manifest is stored, which makes it count, and Postgres records that.
//! 4. Only then the log is trimmed up to it, and payloads leave the journal.
//!
//! Each step can be the last one before a crash. The next pass begins by finishing what
//! counts: a segment that Postgres does not know is compared again before anything goes.

mod pass;
mod proof;

use std::fmt;

use anyhow::{Context as _, bail};
use domain::id::StreamSequence;
use eventlog::archive::{Archive, LogIdentity, Manifest, Storage};
use eventlog::connect::Connection;
use eventlog::status::{self, StreamStatus};
use eventlog::trim::{Place, Places};
use jiff::SignedDuration;
use serde::Serialize;
use service::clock;
use sqlx::{PgConnection, PgPool};
use tokio_util::sync::CancellationToken;

use self::pass::Pass;
pub(crate) use self::proof::{Renewals, Unproven, is_renewal, prove, require_known};
use crate::settings::ArchivePolicy;
use crate::store::archived::{self, Archived};
use crate::store::{database, journal, log_identity};

/// A running worker lets what is due gather so long, or segments would be tiny.
const GATHER: SignedDuration = SignedDuration::from_hours(24);
/// Of the limit at which a full log is archived: so far it is emptied then.
const EMPTIED_TO_PERCENT: u64 = 75;

/// Archives, with a connection that may delete from the log.
pub(crate) struct Archiver {
    pub(crate) connection: Connection,
    pub(crate) pool: PgPool,
    pub(crate) storage: Storage,
    pub(crate) policy: ArchivePolicy,
}

/// What a pass is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Everything that is due, at an operator's word.
    Now,
    /// What is due for a while, or must make room. While nothing is, the archive is not asked.
    Routine,
    /// The same, but the archive is asked in any case: whether it is there, and as it was.
    Thorough,
    /// Only to tell what would be archived.
    DryRun,
}

impl Purpose {
    fn may_wait(self) -> bool {
        match self {
            Self::Routine | Self::Thorough => true,
            Self::Now | Self::DryRun => false,
        }
    }
}

/// What a pass did, or would do.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    pub(crate) segments: Vec<Written>,
    /// Segments of before on which something was left to do.
    pub(crate) finished_before: u64,
    /// Renewed tokens that were replaced, and have left the journal.
    pub(crate) forgotten_renewals: u64,
    /// Up to here everything is archived.
    pub(crate) archived_to: u64,
    /// Where the log begins now.
    pub(crate) log_begins_at: u64,
    /// Why the log is not trimmed yet.
    pub(crate) waits: Option<String>,
    pub(crate) segments_in_all: u64,
    #[serde(skip)]
    pub(crate) interrupted: bool,
}

/// A segment that was written, or would be.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Written {
    pub(crate) first_sequence: u64,
    pub(crate) last_sequence: u64,
    pub(crate) events: u64,
    /// Compressed.
    pub(crate) bytes: u64,
}

impl Written {
    fn of(manifest: &Manifest) -> Self {
        let Manifest { first_sequence, last_sequence, events, bytes, .. } = *manifest;
        Self { first_sequence, last_sequence, events, bytes }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("another archiver is at work")]
pub(crate) struct Busy;

impl Archiver {
    pub(crate) async fn run(
        &self,
        purpose: Purpose,
        shutdown: &CancellationToken,
        tell: impl FnMut(&Written),
    ) -> anyhow::Result<Report> {
        let alone = database::connect_alone(&self.pool).await;
        let mut postgres = alone.context("connecting to Postgres")?;
        if !database::try_lock_archive(&mut postgres).await? {
            bail!(Busy);
        }
        log_identity::check(&self.connection, &self.pool).await?;
        let log = status::log(&self.connection).await?;
        let known = archived::all(&mut postgres).await?;
        if purpose == Purpose::Routine && self.is_idle(&log, &known, &mut postgres).await? {
            return Ok(idle(&log, &known));
        }
        let archive = Archive::new(self.storage.clone(), LogIdentity::new(log.created_at));
        let chain = archive.chain().await?;
        require_known(&known, &chain)?;
        let report = Report::default();
        let mut pass =
            Pass { archiver: self, archive, chain, postgres, shutdown, report, freed: 0 };
        pass.run(purpose, &known, tell).await?;
        let Pass { mut report, chain, .. } = pass;
        report.archived_to = chain.last_sequence();
        report.segments_in_all = chain.segments().len() as u64;
        report.log_begins_at = status::log(&self.connection).await?.first_sequence;
        report.interrupted = shutdown.is_cancelled();
        Ok(report)
    }
}

impl Archiver {
    /// Whether nothing is left to do, as far as log and Postgres tell.
    async fn is_idle(
        &self,
        log: &StreamStatus,
        known: &[Archived],
        postgres: &mut PgConnection,
    ) -> anyhow::Result<bool> {
        let is_finished = |it: &Archived| it.trimmed && it.journal_relieved;
        if !known.iter().all(is_finished) || excess(log, &self.policy, 0).is_some() {
            return Ok(false);
        }
        let next = known.last().map_or(log.first_sequence.max(1), |last| last.last_sequence + 1);
        if next > releasable(&self.connection, postgres).await? {
            return Ok(true);
        }
        let mut places = Places::open(&self.connection, next, next).await?;
        let due = clock::now() - self.policy.retention - GATHER;
        Ok(match places.next().await? {
            Some(Place::Message(oldest)) => oldest.published_at > due,
            Some(Place::Absent(_)) | None => false,
        })
    }
}

fn idle(log: &StreamStatus, known: &[Archived]) -> Report {
    Report {
        archived_to: known.last().map_or(0, |last| last.last_sequence),
        log_begins_at: log.first_sequence,
        segments_in_all: known.len() as u64,
        ..Report::default()
    }
}

/// Up to here the log can be let go of: what is committed and acknowledged. The last
/// event of the journal stays in the log, which tells this log from another.
async fn releasable(connection: &Connection, postgres: &mut PgConnection) -> anyhow::Result<u64> {
    let floor = status::consumer(connection).await?.acknowledged_up_to;
    let last = journal::last(postgres).await?.map_or(0, |(StreamSequence(last), _)| last);
    Ok(floor.min(last.saturating_sub(1)))
}

/// How much must go if the log is too full.
fn excess(log: &StreamStatus, policy: &ArchivePolicy, freed: u64) -> Option<u64> {
    let max = log.bytes_max?;
    let bytes = log.bytes.saturating_sub(freed);
    let percent_of = |whole: u64, percent: u64| whole / 100 * percent;
    let limit = percent_of(max, policy.log_full_percent);
    (bytes >= limit).then(|| bytes.saturating_sub(percent_of(limit, EMPTIED_TO_PERCENT)).max(1))
}

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first_sequence, last_sequence, events, bytes } = self;
        let kib = bytes.div_ceil(1 << 10);
        write!(f, "{first_sequence:>10} to {last_sequence:>10}  {events:>8} events  {kib:>8} KiB")
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    fn log(bytes: u64, bytes_max: Option<u64>) -> StreamStatus {
        StreamStatus {
            created_at: Timestamp::UNIX_EPOCH,
            messages: 1,
            bytes,
            bytes_max,
            first_sequence: 1,
            last_sequence: 1,
            breaches: Vec::new(),
            replicas: 1,
            replicas_behind: Vec::new(),
        }
    }

    #[test]
    fn a_log_that_is_too_full_is_emptied_to_three_quarters_of_the_limit() {
        let policy = ArchivePolicy {
            retention: SignedDuration::from_hours(1),
            log_full_percent: 60,
            segment_bytes: 1,
        };
        let of = |bytes, max| excess(&log(bytes, max), &policy, 0);
        assert_eq!(of(599_999, Some(1_000_000)), None);
        assert_eq!(of(600_000, Some(1_000_000)), Some(150_000));
        assert_eq!(of(900_000, Some(1_000_000)), Some(450_000));
        assert_eq!(of(900_000, None), None, "without a limit it is never full");
        assert_eq!(excess(&log(900_000, Some(1_000_000)), &policy, 400_000), None);
    }
}
