//! Dead letters: events that cannot be applied, kept whole with their reason.
//! All SQL on `mooring.dead_letters`.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::PgConnection;
use sqlx::types::Json;

use crate::commit::Delivery;
use crate::timestamp::{sequence_from_sql, sequence_to_sql, to_sql};

/// Why an event cannot be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The body is no event that this version can read.
    Undecodable,
    /// Postgres refuses the event or what is folded from it.
    Unappliable,
}

impl Reason {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Undecodable => "undecodable",
            Self::Unappliable => "unappliable",
        }
    }
}

pub(crate) struct DeadLetter<'a> {
    pub(crate) delivery: &'a Delivery,
    pub(crate) reason: Reason,
    /// The error with its causes. Bodies hold only sealed secrets, and the
    /// causes hold no bodies.
    pub(crate) detail: String,
}

/// Keeps a dead letter. One that is there already stays as it is.
pub(crate) async fn keep(
    connection: &mut PgConnection,
    letter: &DeadLetter<'_>,
) -> Result<(), sqlx::Error> {
    let Delivery { sequence, subject, headers, body, published_at } = letter.delivery;
    let headers: BTreeMap<&str, &str> =
        headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    sqlx::query!(
        r#"
        INSERT INTO mooring.dead_letters
            (stream_sequence, subject, headers, body, reason, detail, published_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7)
        ON CONFLICT (stream_sequence) DO NOTHING
        "#,
        sequence_to_sql(sequence.0),
        subject,
        Json(headers) as _,
        body.as_slice(),
        letter.reason.name(),
        letter.detail,
        to_sql(*published_at),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The sequences of those that nothing came of.
pub(crate) async fn unresolved(
    connection: &mut PgConnection,
) -> Result<BTreeSet<u64>, sqlx::Error> {
    let sequences = sqlx::query_scalar!("SELECT stream_sequence FROM mooring.dead_letters")
        .fetch_all(connection)
        .await?;
    Ok(sequences.into_iter().map(sequence_from_sql).collect())
}
