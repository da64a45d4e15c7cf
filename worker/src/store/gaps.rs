//! Which sequences of the log have no row of their own: in the journal or among the
//! dead letters.

use domain::id::StreamSequence;
use sqlx::PgConnection;

use crate::store::convert::{sequence_from_sql, sequence_to_sql};

/// Of the sequences from `first` to `last`, those at which neither has anything.
pub(crate) async fn without_row(
    connection: &mut PgConnection,
    first: u64,
    last: u64,
) -> Result<Vec<u64>, sqlx::Error> {
    let sequences: Vec<i64> = sqlx::query_scalar(
        "SELECT generate_series($1::bigint, $2::bigint)
         EXCEPT SELECT stream_sequence FROM mooring.journal WHERE stream_sequence BETWEEN $1 AND $2
         EXCEPT SELECT stream_sequence FROM mooring.dead_letters
                WHERE stream_sequence BETWEEN $1 AND $2
         ORDER BY 1",
    )
    .bind(sequence_to_sql(first))
    .bind(sequence_to_sql(last))
    .fetch_all(connection)
    .await?;
    Ok(sequences.into_iter().map(sequence_from_sql).collect())
}

/// Whether the journal has the event of this ID, wherever, or a dead letter is of this
/// position.
pub(crate) async fn has_event(
    connection: &mut PgConnection,
    message_id: Option<&str>,
    position: StreamSequence,
) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM mooring.journal WHERE message_id = $1)
             OR EXISTS (SELECT FROM mooring.dead_letters WHERE stream_sequence = $2)",
    )
    .bind(message_id)
    .bind(sequence_to_sql(position.0))
    .fetch_one(connection)
    .await
}
