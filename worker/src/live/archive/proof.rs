//! Whether a segment may be let go of: it is read back from the archive, and compared
//! with the journal.

use domain::event::Event;
use eventlog::archive::{Archive, Chain, Manifest};
use eventlog::delivery::Delivery;
use sqlx::PgConnection;

use crate::store::archived::{self, Archived, Disagreement};

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

/// Which renewed tokens of a segment the journal must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Renewals {
    /// Nothing was let go of yet.
    All,
    /// Those that were replaced may have left it.
    Some,
}

/// Reads a segment back from the archive and compares it with the journal.
pub(crate) async fn prove(
    archive: &Archive,
    manifest: &Manifest,
    postgres: &mut PgConnection,
    renewals: Renewals,
) -> anyhow::Result<()> {
    let first_sequence = manifest.first_sequence;
    let mut from = first_sequence;
    let mut segment = archive.open(manifest).await?;
    while let Some(events) = segment.next_frame()? {
        let Some(last) = events.last().map(|last| last.sequence.0) else { continue };
        let is_required = |event: &Delivery| renewals == Renewals::All || !is_renewal(event);
        let found = archived::compare(&mut *postgres, from, last, &events, is_required).await?;
        agree(first_sequence, &found)?;
        from = last + 1;
    }
    Ok(())
}

pub(crate) fn is_renewal(event: &Delivery) -> bool {
    Event::decode_without_payload(&event.body).is_ok_and(|event| event.fact.is_renewal())
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
