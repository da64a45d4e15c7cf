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

use std::fmt;

use anyhow::{Context as _, bail};
use domain::event::without_payload;
use domain::id::StreamSequence;
use eventlog::archive::{
    Archive, Chain, Draft, LogIdentity, Manifest, Segment, SegmentWriter, Storage,
};
use eventlog::connect::Connection;
use eventlog::status::{self, StreamStatus};
use eventlog::trim::{self, Place, Places, Trimmed};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use service::clock;
use sqlx::{PgConnection, PgPool};
use tokio_util::sync::CancellationToken;

use crate::settings::ArchivePolicy;
use crate::store::archived::{self, Archived, Disagreement};
use crate::store::{database, journal, log_identity};

/// Rows of the journal that are written together.
const RELIEVED_TOGETHER: i64 = 500;
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
    /// What is due for a while, or must make room.
    Routine,
    /// Only to tell what would be archived.
    DryRun,
}

/// What a pass did, or would do.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    pub(crate) segments: Vec<Written>,
    /// Segments of before on which something was left to do.
    pub(crate) finished_before: u64,
    /// Up to here everything is archived.
    pub(crate) archived_to: u64,
    /// Where the log begins now.
    pub(crate) log_begins_at: u64,
    /// Why the log is not trimmed yet.
    pub(crate) waits: Option<String>,
    pub(crate) segments_in_all: u64,
    /// When the last archived event was stored in the log.
    pub(crate) last_stored_at: Option<Timestamp>,
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

/// Archive and Postgres are not of one mind. Nothing was let go of.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unproven {
    #[error(
        "the archive lacks what was proven to be in it: the segment from sequence {first_sequence} \
         on is gone or was changed; restore it from a copy"
    )]
    Lost { first_sequence: u64 },
    #[error(
        "at sequence {sequence} {what}; nothing of the segment from sequence {first_sequence} on \
         was let go of"
    )]
    Disagrees { first_sequence: u64, sequence: u64, what: &'static str },
}

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
        let archive = Archive::new(self.storage.clone(), LogIdentity::new(log.created_at));
        let chain = archive.chain().await?;
        let known = archived::all(&mut postgres).await?;
        require_known(&known, &chain)?;
        let report = Report::default();
        let mut pass =
            Pass { archiver: self, archive, chain, postgres, shutdown, report, freed: 0 };
        pass.run(purpose, &known, tell).await?;
        let Pass { mut report, chain, .. } = pass;
        report.archived_to = chain.last_sequence();
        report.segments_in_all = chain.segments().len() as u64;
        report.last_stored_at = chain.last().map(|last| last.manifest.last_stored_at);
        report.log_begins_at = status::log(&self.connection).await?.first_sequence;
        report.interrupted = shutdown.is_cancelled();
        Ok(report)
    }
}

/// What Postgres knows must be there as it was: whatever the log and the journal let
/// go of depends on it.
pub(crate) fn require_known(known: &[Archived], chain: &Chain) -> Result<(), Unproven> {
    for segment in known {
        let first_sequence = segment.first_sequence;
        let found = chain.segment_of(first_sequence);
        if found.is_none_or(|found| found.manifest_sha256 != segment.manifest_sha256) {
            return Err(Unproven::Lost { first_sequence });
        }
    }
    Ok(())
}

/// Reads a segment back from the archive and compares it with the journal.
pub(crate) async fn prove(
    archive: &Archive,
    manifest: &Manifest,
    postgres: &mut PgConnection,
) -> anyhow::Result<()> {
    let first_sequence = manifest.first_sequence;
    let mut from = first_sequence;
    let mut segment = archive.open(manifest).await?;
    while let Some(events) = segment.next()? {
        let Some(last) = events.last().map(|last| last.sequence.0) else { continue };
        let found = archived::compare(&mut *postgres, from, last, &events).await?;
        agree(first_sequence, &found)?;
        from = last + 1;
    }
    Ok(())
}

fn agree(first_sequence: u64, found: &Disagreement) -> Result<(), Unproven> {
    let Disagreement { unknown, different, only_in_journal } = *found;
    let findings = [
        (different, "the archive has another event than the journal: see `worker verify`"),
        (only_in_journal, "the journal has an event that the archive lacks: see `worker verify`"),
        (
            unknown,
            "the archive has an event that neither the journal nor a dead letter has: \
             `worker replay --apply` appends it",
        ),
    ];
    for (sequence, what) in findings {
        if let Some(sequence) = sequence {
            return Err(Unproven::Disagrees { first_sequence, sequence, what });
        }
    }
    Ok(())
}

/// One pass, under the lock of archivers.
struct Pass<'a> {
    archiver: &'a Archiver,
    archive: Archive,
    chain: Chain,
    /// With it ends the lock.
    postgres: PgConnection,
    shutdown: &'a CancellationToken,
    report: Report,
    /// Of the log, by what was not trimmed really.
    freed: u64,
}

/// What goes into the next segment.
struct Due {
    first: u64,
    last: u64,
    older_than: Option<Timestamp>,
    raw_bytes: u64,
}

impl Pass<'_> {
    async fn run(
        &mut self,
        purpose: Purpose,
        known: &[Archived],
        mut tell: impl FnMut(&Written),
    ) -> anyhow::Result<()> {
        if purpose != Purpose::DryRun {
            for segment in self.chain.segments().to_vec() {
                let first = segment.manifest.first_sequence;
                let state = known.iter().find(|known| known.first_sequence == first);
                if state.is_some_and(|state| state.trimmed && state.journal_relieved) {
                    continue;
                }
                if state.is_none() {
                    prove(&self.archive, &segment.manifest, &mut self.postgres).await?;
                }
                self.report.finished_before += 1;
                if !self.let_go(&segment, state).await? {
                    return Ok(());
                }
            }
        }
        let mut after = self.chain.last_sequence();
        while let Some(draft) = self.draft(purpose, after).await? {
            let manifest = draft.manifest();
            after = manifest.last_sequence;
            let written = Written::of(manifest);
            tell(&written);
            self.report.segments.push(written);
            if purpose == Purpose::DryRun {
                self.freed += manifest.raw_bytes;
                continue;
            }
            self.archive.require_exclusive().await?;
            self.archive.store(&draft).await?;
            prove(&self.archive, draft.manifest(), &mut self.postgres).await?;
            self.archive.seal(draft, &mut self.chain, clock::now()).await?;
            let segment = self.chain.last().cloned().context("a segment was sealed")?;
            if !self.let_go(&segment, None).await? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Reads the next segment from the log; `None` if nothing more is due.
    async fn draft(&self, purpose: Purpose, after: u64) -> anyhow::Result<Option<Draft>> {
        let Some(due) = self.due(after).await? else { return Ok(None) };
        let mut places = Places::open(&self.archiver.connection, due.first, due.last).await?;
        let mut writer = SegmentWriter::new(due.first);
        while let Some(place) = places.next().await? {
            if self.shutdown.is_cancelled() {
                return Ok(None);
            }
            let Place::Message(delivery) = place else { continue };
            if let Some(older_than) = due.older_than {
                // A day later it is worth a segment.
                let gathers = purpose == Purpose::Routine && writer.events() == 0;
                let by = if gathers { older_than - GATHER } else { older_than };
                if delivery.published_at > by {
                    break;
                }
            }
            writer.push(&delivery)?;
            if writer.raw_bytes() >= due.raw_bytes {
                break;
            }
        }
        Ok(writer.finish(self.archive.log())?)
    }

    async fn due(&self, after: u64) -> anyhow::Result<Option<Due>> {
        let Archiver { connection, pool, policy, .. } = self.archiver;
        let log = status::log(connection).await?;
        // A log that never had an event begins at 0.
        let first = if after == 0 { log.first_sequence.max(1) } else { after + 1 };
        let last = releasable(connection, &mut *database::acquire(pool).await?).await?;
        if first > last || self.shutdown.is_cancelled() {
            return Ok(None);
        }
        let segment_bytes = policy.segment_bytes;
        let (older_than, raw_bytes) = match excess(&log, policy, self.freed) {
            Some(excess) => (None, segment_bytes.min(excess)),
            None => (Some(clock::now() - policy.retention), segment_bytes),
        };
        Ok(Some(Due { first, last, older_than, raw_bytes }))
    }

    /// Trims the log and relieves the journal, as far as that is not done. False if the
    /// log cannot be trimmed now.
    async fn let_go(
        &mut self,
        segment: &Segment,
        state: Option<&Archived>,
    ) -> anyhow::Result<bool> {
        let Manifest { first_sequence, last_sequence, .. } = segment.manifest;
        let sha256 = &segment.manifest_sha256;
        archived::record_proven(&mut self.postgres, first_sequence, last_sequence, sha256).await?;
        if !state.is_some_and(|state| state.trimmed) {
            if let Some(why) = self.trim(segment).await? {
                self.report.waits = Some(why);
                return Ok(false);
            }
            archived::record_trimmed(&mut self.postgres, first_sequence).await?;
        }
        if self.relieve(first_sequence, last_sequence).await? {
            archived::record_relieved(&mut self.postgres, first_sequence).await?;
            return Ok(true);
        }
        Ok(false)
    }

    /// Why it must wait, if it must.
    async fn trim(&mut self, segment: &Segment) -> anyhow::Result<Option<String>> {
        let connection = &self.archiver.connection;
        let last = segment.manifest.last_sequence;
        let releasable = releasable(connection, &mut self.postgres).await?;
        if last > releasable {
            let why = format!("the workers have applied the log up to {releasable} only");
            return Ok(Some(why));
        }
        self.require_same(last).await?;
        if !database::try_lock_trim(&mut self.postgres).await? {
            return Ok(Some("a command reads old events of the log".to_owned()));
        }
        let trimmed = trim::up_to(connection, StreamSequence(last), self.shutdown).await;
        database::unlock_trim(&mut self.postgres).await?;
        match trimmed? {
            Trimmed::Done => Ok(None),
            Trimmed::Interrupted => Ok(Some("it was interrupted".to_owned())),
        }
    }

    /// The last of what is to go is what the archive has.
    async fn require_same(&self, sequence: u64) -> anyhow::Result<()> {
        let mut place = Places::open(&self.archiver.connection, sequence, sequence).await?;
        let Some(Place::Message(in_log)) = place.next().await? else { return Ok(()) };
        let archived = self.archive.event(&self.chain, sequence).await?;
        if archived.as_ref() != Some(&*in_log) {
            bail!("the log and the archive have different events at sequence {sequence}");
        }
        Ok(())
    }

    /// False if it was interrupted.
    async fn relieve(&mut self, first: u64, last: u64) -> anyhow::Result<bool> {
        let mut after = first.saturating_sub(1);
        loop {
            let postgres = &mut self.postgres;
            let events = journal::whole(postgres, after, last, RELIEVED_TOGETHER).await?;
            let Some(end) = events.last().map(|event| event.sequence) else { return Ok(true) };
            let relieved = events.into_iter().filter_map(|whole| {
                let left = without_payload(&whole.event)?;
                Some((whole, left))
            });
            journal::relieve(postgres, &relieved.collect::<Vec<_>>()).await?;
            after = end;
            if self.shutdown.is_cancelled() {
                return Ok(false);
            }
        }
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
