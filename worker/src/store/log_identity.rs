//! Is the log the one that the journal was filled from, and whole? All SQL on
//! `mooring.log_identity`.
//!
//! A stream that was recreated, or restored from an older backup, gives the
//! sequences that the journal knows to other events. Going on would mix two
//! histories.

use std::ops::RangeInclusive;

use domain::id::StreamSequence;
use eventlog::connect::Connection;
use eventlog::delivery::Delivery;
use eventlog::message::STREAM;
use eventlog::{read, status};
use jiff::Timestamp;
use sqlx::{PgConnection, PgPool};

use crate::store::convert::{from_sql, sequence_from_sql, sequence_to_sql, to_sql};
use crate::store::{database, journal};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OtherLog {
    #[error(
        "stream {STREAM} was recreated: it dates from {now}, the journal was filled from one of {known} (`worker restore`)"
    )]
    Recreated { known: Timestamp, now: Timestamp },
    #[error(
        "stream {STREAM} was truncated or restored from an older backup: it ends at sequence {log}, \
         the journal has events up to {journal} (`worker restore`)"
    )]
    Truncated { log: u64, journal: u64 },
    #[error(
        "stream {STREAM} was restored from an older backup and went on from there: at sequence \
         {sequence} it has another event than the journal (`worker restore`)"
    )]
    Diverged { sequence: u64 },
    #[error(
        "stream {STREAM} begins at sequence {first}, and the journal ends at {journal}: what is between \
         them is in the archive, or was lost. `worker replay --apply` brings it back before a \
         worker starts; with `--from {first}` it begins with what the log has"
    )]
    Behind { first: u64, journal: u64 },
}

/// An error of the kind [`OtherLog`] if it is another log, or one that was trimmed of
/// what the journal does not have; records it if none is known yet.
pub(crate) async fn check(log: &Connection, pool: &PgPool) -> anyhow::Result<()> {
    let Known { first, journal } = check_same(log, pool).await?;
    // What is trimmed was in the journal, and of that the last event is never trimmed. So an
    // empty journal beside a trimmed log, or one of last month, lacks something.
    if first > 1 && journal < first {
        return Err(OtherLog::Behind { first, journal }.into());
    }
    Ok(())
}

/// Where the log begins, and the journal ends.
pub(crate) struct Known {
    first: u64,
    journal: u64,
}

/// An error of the kind [`OtherLog`] if it is another log. One that was trimmed of what
/// the journal does not have is the same, for whoever brings that back.
pub(crate) async fn check_same(log: &Connection, pool: &PgPool) -> anyhow::Result<Known> {
    let mut connection = database::acquire(pool).await?;
    // First, or the log could end before what is appended meanwhile.
    let last = journal::last(&mut connection).await?;
    let stream = status::log(log).await?;
    let created = stream.created_at;
    let filled = filled_or_recorded(&mut connection, created).await?;
    // Postgres has microseconds.
    if filled.created_at.as_microsecond() != created.as_microsecond() {
        return Err(OtherLog::Recreated { known: filled.created_at, now: created }.into());
    }
    let first = stream.first_sequence;
    let Some((StreamSequence(journal), message_id)) = last else {
        return Ok(Known { first, journal: 0 });
    };
    let least = journal.max(filled.restored_to.0);
    if stream.last_sequence < least {
        return Err(OtherLog::Truncated { log: stream.last_sequence, journal: least }.into());
    }
    if journal <= filled.restored_to.0 {
        return Ok(Known { first: 1, journal }); // it may stand elsewhere than at first
    }
    if journal < first {
        return Ok(Known { first, journal }); // trimmed
    }
    let in_log = read::message_at(log, StreamSequence(journal)).await?;
    if in_log.as_ref().and_then(Delivery::message_id) != Some(message_id.as_str()) {
        return Err(OtherLog::Diverged { sequence: journal }.into());
    }
    Ok(Known { first, journal })
}

/// The log that the journal was filled from.
struct Filled {
    created_at: Timestamp,
    /// Up to here an event may stand in the stream elsewhere than at its position.
    restored_to: StreamSequence,
}

/// From here on this is the log: everything that was lost is in it again. It has the
/// positions `restored`, and further ones from now on.
pub(crate) async fn accept(
    connection: &mut PgConnection,
    created: Timestamp,
    restored: RangeInclusive<u64>,
) -> Result<(), sqlx::Error> {
    // What was archived of another log was put back into this one.
    sqlx::query!(
        "DELETE FROM mooring.archived_segments
         WHERE (SELECT stream_created_at FROM mooring.log_identity) IS DISTINCT FROM $1",
        to_sql(created),
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        "INSERT INTO mooring.log_identity (stream_created_at, restored_from, restored_to)
         VALUES ($1, $2, $3)
         ON CONFLICT (singleton) DO UPDATE
             SET stream_created_at = excluded.stream_created_at,
                 restored_from = excluded.restored_from, restored_to = excluded.restored_to",
        to_sql(created),
        sequence_to_sql(*restored.start()),
        sequence_to_sql(*restored.end()),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The positions that the log had when it was restored; `None` if it never was.
pub(crate) async fn restored(
    connection: &mut PgConnection,
) -> Result<Option<RangeInclusive<u64>>, sqlx::Error> {
    let log = sqlx::query!("SELECT restored_from, restored_to FROM mooring.log_identity")
        .fetch_optional(connection)
        .await?;
    let log = log.filter(|log| log.restored_to > 0);
    Ok(log.map(|log| sequence_from_sql(log.restored_from)..=sequence_from_sql(log.restored_to)))
}

async fn filled_or_recorded(
    connection: &mut PgConnection,
    created: Timestamp,
) -> Result<Filled, sqlx::Error> {
    sqlx::query!(
        "INSERT INTO mooring.log_identity (stream_created_at) VALUES ($1) ON CONFLICT DO NOTHING",
        to_sql(created),
    )
    .execute(&mut *connection)
    .await?;
    let known = sqlx::query!("SELECT stream_created_at, restored_to FROM mooring.log_identity")
        .fetch_one(connection)
        .await?;
    Ok(Filled {
        created_at: from_sql(known.stream_created_at),
        restored_to: StreamSequence(sequence_from_sql(known.restored_to)),
    })
}
