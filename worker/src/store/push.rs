//! What is pushed where. All SQL on `mooring.push_endpoints` and
//! `mooring.push_waiting`.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use sqlx::postgres::types::PgInterval;
use sqlx::{FromRow, PgConnection};

use crate::settings::PushEndpoint as Endpoint;
use crate::store::changes::{self, ChangeView};
use crate::store::convert::{SqlTime, sequence_from_sql, sequence_to_sql};

/// Taken over from the feed at once.
const TAKEN_AT_ONCE: i64 = 1_000;
/// Of one endpoint. What does not fit waits in the feed.
const WAITING_MAX: i64 = 10_000;

/// A change that waits to be delivered.
#[derive(Debug, FromRow)]
pub(crate) struct Waiting {
    pub(crate) attempts: i32,
    #[sqlx(flatten)]
    pub(crate) change: ChangeView,
}

/// How an endpoint is doing.
#[derive(Debug, Clone, Serialize, FromRow)]
pub(crate) struct EndpointView {
    pub(crate) name: String,
    /// Up to here the feed was taken over.
    #[sqlx(try_from = "i64")]
    pub(crate) taken_position: u64,
    /// Not delivered yet, of the feed and of what was taken over.
    pub(crate) undelivered: i64,
    /// When the oldest of them was recorded.
    #[sqlx(try_from = "SqlTime")]
    pub(crate) oldest_at: Option<Timestamp>,
    #[sqlx(try_from = "SqlTime")]
    pub(crate) last_delivered_at: Option<Timestamp>,
    #[sqlx(try_from = "SqlTime")]
    pub(crate) paused_at: Option<Timestamp>,
    pub(crate) paused_why: Option<String>,
    /// What the last attempt of one that waits came to.
    pub(crate) problem: Option<String>,
}

/// An endpoint that is new begins at the end of the feed.
pub(crate) async fn enrol(connection: &mut PgConnection, name: &str) -> Result<(), sqlx::Error> {
    let sql = "INSERT INTO mooring.push_endpoints (name, taken_position)
               SELECT $1, last_position FROM mooring.changes_ends
               ON CONFLICT DO NOTHING";
    sqlx::query(sql).bind(name).execute(connection).await?;
    Ok(())
}

/// Takes over what has come to the feed, and says how much of the feed it has looked at.
pub(crate) async fn take_over(
    connection: &mut PgConnection,
    endpoint: &Endpoint,
) -> Result<u64, sqlx::Error> {
    let sql = "
        WITH place_left AS (
                 SELECT least($4, $5 - count(*)) AS most FROM mooring.push_waiting WHERE endpoint = $1),
             next AS (
                 SELECT position, source, installation_id, place, type
                 FROM mooring.changes
                 WHERE position > (SELECT taken_position FROM mooring.push_endpoints WHERE name = $1)
                 ORDER BY position
                 LIMIT (SELECT greatest(most, 0) FROM place_left)),
             taken AS (
                 UPDATE mooring.push_endpoints
                 SET taken_position = greatest(taken_position, (SELECT max(position) FROM next))
                 WHERE name = $1 AND EXISTS (SELECT FROM next)),
             kept AS (
                 INSERT INTO mooring.push_waiting (endpoint, position, source, installation_id, place)
                 SELECT $1, position, source, installation_id, place FROM next
                 WHERE (cardinality($2::text[]) = 0 OR source = ANY ($2))
                   AND (cardinality($3::text[]) = 0 OR type = ANY ($3))
                 ON CONFLICT DO NOTHING)
        SELECT count(*) FROM next";
    let taken: i64 = sqlx::query_scalar(sql)
        .bind(&endpoint.name)
        .bind(&endpoint.sources)
        .bind(&endpoint.types)
        .bind(TAKEN_AT_ONCE)
        .bind(WAITING_MAX)
        .fetch_one(connection)
        .await?;
    Ok(sequence_from_sql(taken))
}

/// Forgets what has left the feed, and says up to where something has.
pub(crate) async fn expire(
    connection: &mut PgConnection,
    endpoint: &str,
) -> Result<Option<u64>, sqlx::Error> {
    let sql = "
        WITH pruned AS (SELECT pruned_position AS position FROM mooring.changes_ends),
             gone AS (
                 DELETE FROM mooring.push_waiting
                 WHERE endpoint = $1 AND position <= (SELECT position FROM pruned)
                 RETURNING 1),
             moved AS (
                 UPDATE mooring.push_endpoints SET taken_position = (SELECT position FROM pruned)
                 WHERE name = $1 AND taken_position < (SELECT position FROM pruned)
                 RETURNING 1)
        SELECT position FROM pruned
        WHERE EXISTS (SELECT FROM gone) OR EXISTS (SELECT FROM moved)";
    let position: Option<i64> =
        sqlx::query_scalar(sql).bind(endpoint).fetch_optional(connection).await?;
    Ok(position.map(sequence_from_sql))
}

/// The first that waits of each installation, if its time has come.
pub(crate) async fn due(
    connection: &mut PgConnection,
    endpoint: &str,
    limit: i64,
) -> Result<Vec<Waiting>, sqlx::Error> {
    let sql = "
        SELECT first.attempts, change.position, type, cause, change.source, app_id,
               change.installation_id, generation, occurred_at, recorded_at, installation
        FROM (SELECT DISTINCT ON (source, place, installation_id) position, attempts, not_before
              FROM mooring.push_waiting
              WHERE endpoint = $1
              ORDER BY source, place, installation_id, position) AS first
             JOIN mooring.changes AS change ON change.position = first.position
        WHERE not_before <= now()
          AND EXISTS (SELECT FROM mooring.push_endpoints WHERE name = $1 AND paused_at IS NULL)
        ORDER BY change.position
        LIMIT $2";
    sqlx::query_as(sql).bind(endpoint).bind(limit).fetch_all(connection).await
}

pub(crate) async fn delivered(
    connection: &mut PgConnection,
    endpoint: &str,
    positions: &[u64],
) -> Result<(), sqlx::Error> {
    if positions.is_empty() {
        return Ok(());
    }
    let positions: Vec<i64> = positions.iter().map(|position| sequence_to_sql(*position)).collect();
    let sql = "
        WITH gone AS (
            DELETE FROM mooring.push_waiting WHERE endpoint = $1 AND position = ANY ($2))
        UPDATE mooring.push_endpoints SET last_delivered_at = now() WHERE name = $1";
    sqlx::query(sql).bind(endpoint).bind(positions).execute(connection).await?;
    Ok(())
}

pub(crate) async fn failed(
    connection: &mut PgConnection,
    endpoint: &str,
    position: u64,
    again_in: Duration,
    problem: &str,
) -> Result<(), sqlx::Error> {
    let microseconds = i64::try_from(again_in.as_micros()).unwrap_or(i64::MAX);
    let again_in = PgInterval { months: 0, days: 0, microseconds };
    let sql = "UPDATE mooring.push_waiting
               SET attempts = attempts + 1, not_before = now() + $3, problem = $4
               WHERE endpoint = $1 AND position = $2";
    sqlx::query(sql)
        .bind(endpoint)
        .bind(sequence_to_sql(position))
        .bind(again_in)
        .bind(problem)
        .execute(connection)
        .await?;
    Ok(())
}

/// False if there is no such endpoint.
pub(crate) async fn pause(
    connection: &mut PgConnection,
    endpoint: &str,
    why: &str,
) -> Result<bool, sqlx::Error> {
    let sql = "UPDATE mooring.push_endpoints
               SET paused_at = coalesce(paused_at, now()), paused_why = coalesce(paused_why, $2)
               WHERE name = $1";
    let paused = sqlx::query(sql).bind(endpoint).bind(why).execute(connection).await?;
    Ok(paused.rows_affected() > 0)
}

/// What waits is tried at once, and has its attempts again. False if there is no such endpoint.
pub(crate) async fn resume(
    connection: &mut PgConnection,
    endpoint: &str,
) -> Result<bool, sqlx::Error> {
    let sql = "
        WITH again AS (
            UPDATE mooring.push_waiting SET attempts = 0, not_before = '-infinity'
            WHERE endpoint = $1)
        UPDATE mooring.push_endpoints SET paused_at = NULL, paused_why = NULL WHERE name = $1";
    let resumed = sqlx::query(sql).bind(endpoint).execute(connection).await?;
    Ok(resumed.rows_affected() > 0)
}

/// One that is not to be delivered. False if it does not wait.
pub(crate) async fn skip(
    connection: &mut PgConnection,
    endpoint: &str,
    position: u64,
) -> Result<bool, sqlx::Error> {
    let sql = "DELETE FROM mooring.push_waiting WHERE endpoint = $1 AND position = $2";
    let position = sequence_to_sql(position);
    let skipped = sqlx::query(sql).bind(endpoint).bind(position).execute(connection).await?;
    Ok(skipped.rows_affected() > 0)
}

/// What comes after `position` is delivered again. False if there is no such endpoint.
pub(crate) async fn redeliver(
    connection: &mut PgConnection,
    endpoint: &str,
    position: u64,
) -> Result<bool, sqlx::Error> {
    let sql = "UPDATE mooring.push_endpoints SET taken_position = least(taken_position, $2)
               WHERE name = $1";
    let position = sequence_to_sql(position);
    let moved = sqlx::query(sql).bind(endpoint).bind(position).execute(connection).await?;
    Ok(moved.rows_affected() > 0)
}

/// How every endpoint is doing that was ever configured.
pub(crate) async fn all(connection: &mut PgConnection) -> Result<Vec<EndpointView>, sqlx::Error> {
    let sql = "
        SELECT name, taken_position, last_delivered_at, paused_at, paused_why, problem,
               coalesce(waiting.number, 0) + last_position - taken_position AS undelivered,
               (SELECT recorded_at FROM mooring.changes
                WHERE position >= coalesce(waiting.first, taken_position + 1)
                ORDER BY position LIMIT 1) AS oldest_at
        FROM mooring.push_endpoints CROSS JOIN mooring.changes_ends
             LEFT JOIN LATERAL (
                 SELECT count(*) AS number, min(position) AS first,
                        (array_agg(problem ORDER BY position) FILTER (WHERE problem IS NOT NULL))[1]
                            AS problem
                 FROM mooring.push_waiting WHERE endpoint = name) AS waiting ON true
        ORDER BY name";
    sqlx::query_as(sql).fetch_all(connection).await
}

/// Which feed the positions are of.
pub(crate) async fn feed(connection: &mut PgConnection) -> Result<String, sqlx::Error> {
    Ok(changes::ends(connection).await?.feed)
}
