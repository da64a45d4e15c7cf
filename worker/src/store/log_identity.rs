//! Is the log the one that the journal was filled from, and whole? All SQL on
//! `mooring.log_identity`.
//!
//! A stream that was recreated, or restored from an older backup, gives the
//! sequences that the journal knows to other events. Going on would mix two
//! histories.

use domain::id::StreamSequence;
use eventlog::connect::Connection;
use eventlog::message::STREAM;
use eventlog::{read, status};
use jiff::Timestamp;
use sqlx::{PgConnection, PgPool};

use crate::store::convert::{from_sql, to_sql};
use crate::store::{database, journal};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OtherLog {
    #[error(
        "stream {STREAM} was recreated: it dates from {now}, the journal was filled from one of {known}"
    )]
    Recreated { known: Timestamp, now: Timestamp },
    #[error(
        "stream {STREAM} was truncated or restored from an older backup: it ends at sequence {log}, \
         the journal has events up to {journal}"
    )]
    Truncated { log: u64, journal: u64 },
    #[error(
        "stream {STREAM} was restored from an older backup and went on from there: at sequence \
         {sequence} it has another event than the journal"
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
    let known = known_or_recorded(&mut connection, created).await?;
    // Postgres has microseconds.
    if known.as_microsecond() != created.as_microsecond() {
        return Err(OtherLog::Recreated { known, now: created }.into());
    }
    let first = stream.first_sequence;
    let Some((StreamSequence(journal), message_id)) = last else {
        return Ok(Known { first, journal: 0 });
    };
    if stream.last_sequence < journal {
        return Err(OtherLog::Truncated { log: stream.last_sequence, journal }.into());
    }
    if journal < first {
        return Ok(Known { first, journal }); // trimmed
    }
    let in_log = read::message_id_at(log, journal).await?;
    if in_log.as_deref() != Some(message_id.as_str()) {
        return Err(OtherLog::Diverged { sequence: journal }.into());
    }
    Ok(Known { first, journal })
}

async fn known_or_recorded(
    connection: &mut PgConnection,
    created: Timestamp,
) -> Result<Timestamp, sqlx::Error> {
    sqlx::query!(
        "INSERT INTO mooring.log_identity (stream_created_at) VALUES ($1) ON CONFLICT DO NOTHING",
        to_sql(created),
    )
    .execute(&mut *connection)
    .await?;
    let known = sqlx::query_scalar!("SELECT stream_created_at FROM mooring.log_identity")
        .fetch_one(connection)
        .await?;
    Ok(from_sql(known))
}
