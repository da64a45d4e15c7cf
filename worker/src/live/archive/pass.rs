//! One pass of an archiver: segment by segment, stored, proven, sealed, let go of.

use anyhow::{Context as _, bail};
use domain::event::without_payload;
use domain::id::StreamSequence;
use eventlog::archive::{Archive, Chain, Draft, Manifest, Segment, SegmentWriter};
use eventlog::delivery::Delivery;
use eventlog::status;
use eventlog::trim::{self, Place, Places, Trimmed};
use jiff::Timestamp;
use service::clock;
use sha2::{Digest as _, Sha256};
use sqlx::PgConnection;
use tokio_util::sync::CancellationToken;

use super::proof::{Renewals, prove};
use super::{Archiver, GATHER, Purpose, Report, Written, excess, releasable};
use crate::store::archived::{self, Archived};
use crate::store::database;
use crate::store::journal::{self, Relieved};

/// Events that are deleted from the log under one lock: about a second.
const TRIMMED_TOGETHER: u64 = 1_000;

/// One pass, under the lock of archivers.
pub(super) struct Pass<'a> {
    pub(super) archiver: &'a Archiver,
    pub(super) archive: Archive,
    pub(super) chain: Chain,
    /// With it ends the lock.
    pub(super) postgres: PgConnection,
    pub(super) shutdown: &'a CancellationToken,
    pub(super) report: Report,
    /// Of the log, by what was not trimmed really.
    pub(super) freed: u64,
}

/// What goes into the next segment.
struct Due {
    first: u64,
    last: u64,
    older_than: Option<Timestamp>,
    raw_bytes: u64,
}

impl Pass<'_> {
    pub(super) async fn run(
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
                    prove(&self.archive, &segment.manifest, &mut self.postgres, Renewals::All)
                        .await?;
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
            prove(&self.archive, draft.manifest(), &mut self.postgres, Renewals::All).await?;
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
                let gathers = purpose.may_wait() && writer.events() == 0;
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
        if self.relieve(&segment.manifest).await? {
            let forgotten =
                journal::forget_renewals(&mut self.postgres, first_sequence, last_sequence);
            self.report.forgotten_renewals += forgotten.await?;
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
        let mut first = status::log(connection).await?.first_sequence.max(1);
        // Part by part, so that whoever wants to read does not wait for all of it.
        while first <= last {
            if !database::try_lock_trim(&mut self.postgres).await? {
                return Ok(Some("a command reads old events of the log".to_owned()));
            }
            let end = last.min(first + TRIMMED_TOGETHER - 1);
            let trimmed = trim::up_to(connection, StreamSequence(end), self.shutdown).await;
            database::unlock_trim(&mut self.postgres).await?;
            if trimmed? == Trimmed::Interrupted {
                return Ok(Some("it was interrupted".to_owned()));
            }
            first = end + 1;
        }
        Ok(None)
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

    /// Of the events that are in the segment, each found by its ID: what else stands at these
    /// sequences in the journal is not proven. False if it was interrupted.
    async fn relieve(&mut self, manifest: &Manifest) -> anyhow::Result<bool> {
        let mut segment = self.archive.open(manifest).await?;
        while let Some(events) = segment.next_frame()? {
            let relieved: Vec<Relieved> = events.iter().filter_map(relieved).collect();
            journal::relieve(&mut self.postgres, &relieved).await?;
            if self.shutdown.is_cancelled() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// `None` if the event has no payload that could be left out.
fn relieved(archived: &Delivery) -> Option<Relieved> {
    let event = without_payload(std::str::from_utf8(&archived.body).ok()?)?;
    Some(Relieved {
        message_id: archived.message_id()?.to_owned(),
        position: archived.position(),
        sha256: Sha256::digest(&archived.body).to_vec(),
        event,
    })
}
