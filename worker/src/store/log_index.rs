//! The log as a table, for `worker verify` to compare with the journal and for
//! `worker restore` to find what it lacks. All SQL on `projection_verify.log` and
//! `projection_verify.events`.

use domain::event::{Event, without_payload};
use eventlog::delivery::Delivery;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use sqlx::{AssertSqlSafe, PgConnection};

use crate::store::convert::{sequence_from_sql, sequence_to_sql};
use crate::store::schema::Schema;

const SCRATCH: Schema = Schema::Scratch;
/// Entries of one statement.
const ENTRIES_MAX: usize = 5_000;
const LISTED_MAX: i64 = 100;

/// Sequences at which log and journal disagree, at the most a hundred of each.
#[derive(Debug, Default, Serialize)]
pub(crate) struct JournalFindings {
    /// In the log, neither in the journal nor a dead letter.
    pub(crate) missing: Vec<u64>,
    /// The bodies differ.
    pub(crate) different: Vec<u64>,
    /// In the journal, not in the log.
    pub(crate) only_in_journal: Vec<u64>,
}

/// Whose tokens a worker has renewed with this event.
fn renewed(delivery: &Delivery) -> Option<String> {
    let event = Event::decode_without_payload(&delivery.body).ok()?;
    let identity = event.fact.identity().filter(|_| event.fact.is_renewal())?;
    Some(identity.installation_id.to_string())
}

pub(crate) async fn create(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let sql = format!(
        "CREATE UNLOGGED TABLE {SCRATCH}.log
             (sequence bigint, position bigint, message_id text, digest bytea,
              relieved_digest bytea, renews text)"
    );
    sqlx::query(AssertSqlSafe(sql)).execute(connection).await?;
    Ok(())
}

/// Entries on their way to the table: of each delivery its place in the stream and
/// its position, its message ID, the digest of its body, of what the journal has
/// once it is relieved, and the installation of archived tokens that may have been replaced.
#[derive(Default)]
pub(crate) struct Entries {
    sequences: Vec<i64>,
    positions: Vec<i64>,
    message_ids: Vec<String>,
    digests: Vec<Vec<u8>>,
    relieved_digests: Vec<Option<Vec<u8>>>,
    renews: Vec<Option<String>>,
}

impl Entries {
    pub(crate) fn push(&mut self, delivery: &Delivery, is_archived: bool) {
        let relieved = std::str::from_utf8(&delivery.body).ok().filter(|_| is_archived);
        let relieved = relieved.and_then(without_payload);
        self.relieved_digests.push(relieved.map(|left| Sha256::digest(left).to_vec()));
        self.renews.push(if is_archived { renewed(delivery) } else { None });
        self.sequences.push(sequence_to_sql(delivery.sequence.0));
        self.positions.push(sequence_to_sql(delivery.position().0));
        self.message_ids.push(delivery.message_id().unwrap_or_default().to_owned());
        self.digests.push(Sha256::digest(&delivery.body).to_vec());
    }

    pub(crate) fn is_full(&self) -> bool {
        self.sequences.len() == ENTRIES_MAX
    }

    /// Says how many there were.
    pub(crate) async fn save(&mut self, connection: &mut PgConnection) -> Result<u64, sqlx::Error> {
        let Self { sequences, positions, message_ids, digests, relieved_digests, renews } =
            std::mem::take(self);
        let count = sequences.len() as u64;
        let sql = format!(
            "INSERT INTO {SCRATCH}.log
             SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::bytea[], $5::bytea[],
                                  $6::text[])"
        );
        let insert = sqlx::query(AssertSqlSafe(sql)).bind(sequences).bind(positions);
        let insert = insert.bind(message_ids).bind(digests).bind(relieved_digests).bind(renews);
        insert.execute(connection).await?;
        Ok(count)
    }
}

/// Where the log and the journal disagree. The log begins at `first` and was
/// indexed up to `target`.
pub(crate) async fn compare_with_journal(
    connection: &mut PgConnection,
    first: u64,
    target: u64,
) -> Result<JournalFindings, sqlx::Error> {
    first_copies(connection).await?;
    let log = format!("{SCRATCH}.events AS log");
    let missing = format!(
        "SELECT sequence FROM {log} LEFT JOIN mooring.journal USING (message_id)
         WHERE journal.message_id IS NULL AND NOT EXISTS (
             SELECT FROM mooring.dead_letters WHERE stream_sequence = position)
           -- Replaced tokens leave the journal when they are archived.
           AND NOT EXISTS (SELECT FROM mooring.journal AS newer
                           WHERE newer.installation_id = renews AND newer.event_type = 'authorized'
                             AND newer.stream_sequence > position)
           AND $1 <= $2
         ORDER BY 1 LIMIT {LISTED_MAX}"
    );
    let different = format!(
        "SELECT sequence FROM {log} JOIN mooring.journal USING (message_id)
         WHERE (stream_sequence <> position
                OR coalesce(event_sha256, sha256(convert_to(event::text, 'UTF8'))) <> digest
                OR event_sha256 IS NOT NULL
                   AND sha256(convert_to(event::text, 'UTF8')) IS DISTINCT FROM relieved_digest)
           AND $1 <= $2
         ORDER BY 1 LIMIT {LISTED_MAX}"
    );
    let only_in_journal = format!(
        "SELECT stream_sequence FROM mooring.journal LEFT JOIN {log} ON position = stream_sequence
         WHERE stream_sequence BETWEEN $1 AND $2 AND position IS NULL
         ORDER BY 1 LIMIT {LISTED_MAX}"
    );
    let mut sequences = async |sql: String| -> Result<Vec<u64>, sqlx::Error> {
        let sequences: Vec<i64> = sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(sequence_to_sql(first))
            .bind(sequence_to_sql(target))
            .fetch_all(&mut *connection)
            .await?;
        Ok(sequences.into_iter().map(sequence_from_sql).collect())
    };
    Ok(JournalFindings {
        missing: sequences(missing).await?,
        different: sequences(different).await?,
        only_in_journal: sequences(only_in_journal).await?,
    })
}

/// Of copies of one event the first counts. Without statistics
/// Postgres would compare each with each.
async fn first_copies(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let sql = format!(
        "SET work_mem TO '256MB';
         CREATE UNLOGGED TABLE {SCRATCH}.events AS
             SELECT DISTINCT ON (message_id) * FROM {SCRATCH}.log ORDER BY message_id, position;
         ANALYZE {SCRATCH}.events"
    );
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await?;
    Ok(())
}
