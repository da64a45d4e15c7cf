//! The change feed. All SQL on `mooring.changes` and where it ends.

use std::time::Duration;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, FromRow, PgConnection};

use crate::store::convert::{SqlTime, sequence_from_sql, sequence_to_sql, to_sql};
use crate::store::installations::InstallationView;
use crate::store::reach::Reach;

/// Deleted in one transaction.
const PRUNED_AT_ONCE: i32 = 10_000;

/// Why an installation changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Cause {
    /// An event came.
    Event,
    /// An operator applied events of the log again, or a dead letter.
    Replay,
    /// A rebuilt projection was swapped in that differs.
    Rebuild,
}

impl Cause {
    fn name(self) -> &'static str {
        match self {
            Self::Event => "event",
            Self::Replay => "replay",
            Self::Rebuild => "rebuild",
        }
    }
}

/// A change to be recorded.
#[derive(Debug)]
pub(crate) struct NewChange {
    pub(crate) r#type: &'static str,
    pub(crate) occurred_at: Timestamp,
    /// The state that it led to.
    pub(crate) installation: InstallationView,
}

/// A change as it is read.
#[derive(Debug, Serialize, FromRow, JsonSchema)]
#[schemars(rename = "Change")]
pub(crate) struct ChangeView {
    /// Without holes, in the order of commit.
    #[sqlx(try_from = "i64")]
    pub(crate) position: u64,
    pub(crate) r#type: String,
    /// `event`, `replay` or `rebuild`.
    pub(crate) cause: String,
    pub(crate) source: String,
    pub(crate) app_id: String,
    pub(crate) installation_id: String,
    pub(crate) generation: i32,
    /// By the platform's clock, where it says.
    #[sqlx(try_from = "SqlTime")]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub(crate) occurred_at: Option<Timestamp>,
    #[sqlx(try_from = "SqlTime")]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub(crate) recorded_at: Option<Timestamp>,
    /// As the read API showed it then.
    #[schemars(with = "InstallationView")]
    pub(crate) installation: Json<serde_json::Value>,
}

/// From where to where there are changes.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub(crate) struct Ends {
    /// Which feed the positions are of.
    pub(crate) feed: String,
    #[sqlx(rename = "pruned_position", try_from = "i64")]
    pub(crate) pruned: u64,
    #[sqlx(rename = "last_position", try_from = "i64")]
    pub(crate) last: u64,
}

/// Records changes at the end of the feed. It must be the last thing that a transaction
/// does: every other one that changes something waits until this one is over.
pub(crate) async fn append(
    connection: &mut PgConnection,
    cause: Cause,
    changes: &[NewChange],
) -> Result<(), sqlx::Error> {
    if changes.is_empty() {
        return Ok(());
    }
    let of = |field: fn(&NewChange) -> &str| changes.iter().map(field).collect::<Vec<_>>();
    let occurred: Vec<_> = changes.iter().map(|it| to_sql(it.occurred_at)).collect();
    let generations: Vec<i32> = changes.iter().map(|it| it.installation.generation).collect();
    let states = changes.iter().map(|it| serde_json::to_string(&it.installation));
    let states: Vec<String> =
        states.collect::<Result<_, _>>().map_err(|error| sqlx::Error::Encode(error.into()))?;
    sqlx::query(
        "WITH ended AS (
             UPDATE mooring.changes_ends SET last_position = last_position + $9
             RETURNING last_position - $9 AS before)
         INSERT INTO mooring.changes
             (position, recorded_at, cause, type, occurred_at, source, app_id, place,
              installation_id, generation, installation)
         SELECT before + number, clock_timestamp(), $10, type, occurred_at,
                source, app_id, place, installation_id, generation, installation
         FROM ended, unnest($1::text[], $2::timestamptz[], $3::text[], $4::text[], $5::text[],
                            $6::text[], $7::integer[], $8::text[]::json[])
              WITH ORDINALITY AS changed (type, occurred_at, source, app_id, place,
                                          installation_id, generation, installation, number)",
    )
    .bind(of(|it| it.r#type))
    .bind(occurred)
    .bind(of(|it| &it.installation.source))
    .bind(of(|it| &it.installation.app_id))
    .bind(of(|it| &it.installation.place))
    .bind(of(|it| &it.installation.installation_id))
    .bind(generations)
    .bind(states)
    .bind(sequence_to_sql(changes.len() as u64))
    .bind(cause.name())
    .execute(connection)
    .await?;
    Ok(())
}

pub(crate) async fn ends(connection: &mut PgConnection) -> Result<Ends, sqlx::Error> {
    // Of this database and its timeline: one that was restored, or a standby that took over, may
    // lack changes that readers have seen, and gives their positions to others.
    let sql = "SELECT left(md5(feed || (SELECT system_identifier FROM pg_control_system())
                               || left(pg_walfile_name(pg_current_wal_lsn()), 8)), 12) AS feed,
                      pruned_position, last_position
               FROM mooring.changes_ends";
    sqlx::query_as(sql).fetch_one(connection).await
}

/// Which changes are asked for, beside what is reached.
#[derive(Debug, Default)]
pub(crate) struct ChangesOf<'a> {
    pub(crate) after: u64,
    /// Up to here they are looked at.
    pub(crate) to: u64,
    pub(crate) source: Option<&'a str>,
    pub(crate) types: Option<&'a [String]>,
    pub(crate) limit: i64,
}

/// Changes in their order.
pub(crate) async fn page(
    connection: &mut PgConnection,
    reach: &Reach,
    of: &ChangesOf<'_>,
) -> Result<Vec<ChangeView>, sqlx::Error> {
    let reach = reach.within(of.source);
    let sql = format!(
        "SELECT found.* FROM {} CROSS JOIN LATERAL (
             SELECT position, type, cause, source, app_id, installation_id, generation,
                    occurred_at, recorded_at, installation
             FROM mooring.changes
             WHERE position > $1 AND position <= $2 AND ($3::text[] IS NULL OR type = ANY ($3))
               AND {}
             ORDER BY position
             LIMIT $4) AS found
         ORDER BY position
         LIMIT $4",
        reach.parts(5),
        reach.is_of_part("app_id", 5)
    );
    sqlx::query_as(AssertSqlSafe(sql))
        .bind(sequence_to_sql(of.after))
        .bind(sequence_to_sql(of.to))
        .bind(of.types)
        .bind(of.limit)
        .bind(reach.sources())
        .bind(reach.app_ids())
        .fetch_all(connection)
        .await
}

/// The last position of what is reached.
pub(crate) async fn last_of(
    connection: &mut PgConnection,
    reach: &Reach,
) -> Result<Option<u64>, sqlx::Error> {
    let sql = format!(
        "SELECT max(found.position) FROM {} CROSS JOIN LATERAL (
             SELECT position FROM mooring.changes WHERE {}
             ORDER BY position DESC
             LIMIT 1) AS found",
        reach.parts(1),
        reach.is_of_part("app_id", 1)
    );
    let last: Option<i64> = sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(reach.sources())
        .bind(reach.app_ids())
        .fetch_one(connection)
        .await?;
    Ok(last.map(sequence_from_sql))
}

/// Deletes some that are older; says how many.
pub(crate) async fn prune(
    connection: &mut PgConnection,
    keep_for: Duration,
) -> Result<u64, sqlx::Error> {
    let sql = "SELECT mooring.prune_changes($1 * interval '1 second', $2)";
    let pruned: i64 = sqlx::query_scalar(sql)
        .bind(keep_for.as_secs_f64())
        .bind(PRUNED_AT_ONCE)
        .fetch_one(connection)
        .await?;
    Ok(sequence_from_sql(pruned))
}

/// From here on cursors that were given out before are refused.
pub(crate) async fn begin_another_feed(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let sql = "UPDATE mooring.changes_ends
               SET feed = left(replace(gen_random_uuid()::text, '-', ''), 12)";
    sqlx::query(sql).execute(connection).await?;
    Ok(())
}
