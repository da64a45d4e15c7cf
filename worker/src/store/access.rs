//! Who opened which credential, and who was refused what: a chain of records. All SQL
//! on `mooring.access_log` and its ends; only `mooring.record_access` writes them.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use sqlx::PgConnection;
use sqlx::types::Json;

use crate::store::convert::from_sql;

pub(crate) const DIGEST_BYTES: usize = 32;

/// What came of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    Opened,
    Refused,
    /// Requests that were refused, too, and have no record of their own.
    OthersRefused,
}

/// What is recorded. Number, time, role and digest come from Postgres.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Entry {
    pub(crate) outcome: Outcome,
    pub(crate) reason: &'static str,
    pub(crate) status: Option<u16>,
    pub(crate) requests: u64,
    pub(crate) caller: Option<String>,
    pub(crate) subject: Option<String>,
    pub(crate) client_address: Option<String>,
    pub(crate) trace_id: Option<String>,
    pub(crate) route: Option<String>,
    #[serde(flatten)]
    pub(crate) opened: Option<Opened>,
}

/// Which credential.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Opened {
    pub(crate) source: String,
    pub(crate) place: String,
    pub(crate) installation_id: String,
    pub(crate) generation: i32,
    pub(crate) key_id: String,
}

pub(crate) async fn record(
    connection: &mut PgConnection,
    entries: &[Entry],
) -> Result<(), sqlx::Error> {
    sqlx::query!("SELECT mooring.record_access($1)", Json(entries) as _)
        .execute(connection)
        .await?;
    Ok(())
}

/// A record as it stands in the chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) number: i64,
    pub(crate) recorded_at: jiff::Timestamp,
    pub(crate) recorded_by: String,
    pub(crate) outcome: String,
    pub(crate) reason: String,
    pub(crate) status: Option<i32>,
    pub(crate) requests: i64,
    pub(crate) caller: Option<String>,
    pub(crate) subject: Option<String>,
    pub(crate) client_address: Option<String>,
    pub(crate) trace_id: Option<String>,
    pub(crate) route: Option<String>,
    pub(crate) source: Option<String>,
    pub(crate) place: Option<String>,
    pub(crate) installation_id: Option<String>,
    pub(crate) generation: Option<i32>,
    pub(crate) key_id: Option<String>,
    /// In hex, as the digest of the one before.
    pub(crate) digest: String,
}

impl Record {
    /// As `mooring.access_digest` computes it.
    pub(crate) fn digest_after(&self, previous: &[u8]) -> [u8; DIGEST_BYTES] {
        let number = |number: Option<i64>| number.map(|number| number.to_string());
        let text = |text: &Option<String>| text.clone();
        let fields = [
            number(Some(self.number)),
            number(Some(self.recorded_at.as_microsecond())),
            Some(self.recorded_by.clone()),
            Some(self.outcome.clone()),
            Some(self.reason.clone()),
            number(self.status.map(i64::from)),
            number(Some(self.requests)),
            text(&self.caller),
            text(&self.subject),
            text(&self.client_address),
            text(&self.trace_id),
            text(&self.route),
            text(&self.source),
            text(&self.place),
            text(&self.installation_id),
            number(self.generation.map(i64::from)),
            text(&self.key_id),
        ];
        let field = |field: Option<String>| match field {
            Some(field) => format!("{}:{field}", field.len()),
            None => "-".to_owned(),
        };
        let fields: Vec<String> = fields.into_iter().map(field).collect();
        Sha256::new().chain_update(previous).chain_update(fields.join(",")).finalize().into()
    }
}

/// The records after `number`, in their order.
pub(crate) async fn page(
    connection: &mut PgConnection,
    after: i64,
    limit: i64,
) -> Result<Vec<Record>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"
        SELECT number, recorded_at, recorded_by, outcome, reason, status, requests, caller, subject,
               client_address, trace_id, route, source, place, installation_id, generation, key_id,
               encode(digest, 'hex') AS "digest!"
        FROM mooring.access_log
        WHERE number > $1
        ORDER BY number
        LIMIT $2
        "#,
        after,
        limit,
    )
    .fetch_all(connection)
    .await?;
    let record = rows.into_iter().map(|row| Record {
        number: row.number,
        recorded_at: from_sql(row.recorded_at),
        recorded_by: row.recorded_by,
        outcome: row.outcome,
        reason: row.reason,
        status: row.status,
        requests: row.requests,
        caller: row.caller,
        subject: row.subject,
        client_address: row.client_address,
        trace_id: row.trace_id,
        route: row.route,
        source: row.source,
        place: row.place,
        installation_id: row.installation_id,
        generation: row.generation,
        key_id: row.key_id,
        digest: row.digest,
    });
    Ok(record.collect())
}

/// Where the chain begins and ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ends {
    /// The last that was exported and pruned, and its digest in hex.
    pub(crate) pruned: (i64, String),
    pub(crate) last: (i64, String),
}

/// In a transaction, nobody records meanwhile.
pub(crate) async fn lock_ends(transaction: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query!("SELECT FROM mooring.access_log_ends FOR UPDATE").execute(transaction).await?;
    Ok(())
}

pub(crate) async fn ends(connection: &mut PgConnection) -> Result<Ends, sqlx::Error> {
    let ends = sqlx::query!(
        r#"
        SELECT pruned_number, encode(pruned_digest, 'hex') AS "pruned_digest!",
               last_number, encode(last_digest, 'hex') AS "last_digest!"
        FROM mooring.access_log_ends
        "#
    )
    .fetch_one(connection)
    .await?;
    let pruned = (ends.pruned_number, ends.pruned_digest);
    Ok(Ends { pruned, last: (ends.last_number, ends.last_digest) })
}

/// Deletes the records up to `number`, whose digest begins the chain from now on.
pub(crate) async fn prune(
    transaction: &mut PgConnection,
    number: i64,
    by: &str,
) -> Result<u64, sqlx::Error> {
    sqlx::query!(
        r#"
        UPDATE mooring.access_log_ends
        SET pruned_number = number, pruned_digest = digest, pruned_at = now(), pruned_by = $2
        FROM mooring.access_log WHERE number = $1
        "#,
        number,
        by,
    )
    .execute(&mut *transaction)
    .await?;
    let deleted = sqlx::query!("DELETE FROM mooring.access_log WHERE number <= $1", number)
        .execute(transaction)
        .await?;
    Ok(deleted.rows_affected())
}
