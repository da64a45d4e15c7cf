//! Sessions of an app's portal. All SQL on `mooring.portal_sessions`.

use std::time::Duration;

use jiff::Timestamp;
use sqlx::postgres::types::PgInterval;
use sqlx::{FromRow, PgConnection};

use crate::store::convert::SqlTime;
use crate::store::installations::InstallationView;

/// For so long a session that has ended is told from one that never was.
const REMEMBERED_FOR: &str = "1 hour";
/// Deleted when one is added, so that they do not pile up.
const DELETED_AT_ONCE: i64 = 100;

/// A session as it is read.
#[derive(Debug, FromRow)]
pub(crate) struct PortalSession {
    pub(crate) source: String,
    pub(crate) app_id: String,
    pub(crate) place: String,
    pub(crate) installation_id: String,
    pub(crate) generation: i32,
    pub(crate) user_id: Option<String>,
    #[sqlx(try_from = "SqlTime")]
    pub(crate) expires_at: Option<Timestamp>,
    pub(crate) has_ended: bool,
}

/// Adds a session, and says when it ends.
pub(crate) async fn add(
    connection: &mut PgConnection,
    token_sha256: &[u8],
    installation: &InstallationView,
    user_id: Option<&str>,
    lifetime: Duration,
) -> Result<Option<Timestamp>, sqlx::Error> {
    let lifetime = PgInterval::try_from(lifetime).map_err(sqlx::Error::Encode)?;
    let ended = format!(
        "DELETE FROM mooring.portal_sessions
         WHERE token_sha256 IN (
             SELECT token_sha256 FROM mooring.portal_sessions
             WHERE expires_at < now() - interval '{REMEMBERED_FOR}'
             ORDER BY expires_at LIMIT {DELETED_AT_ONCE} FOR UPDATE SKIP LOCKED)"
    );
    sqlx::query(sqlx::AssertSqlSafe(ended)).execute(&mut *connection).await?;
    let ends: SqlTime = sqlx::query_scalar(
        "INSERT INTO mooring.portal_sessions
             (token_sha256, source, app_id, place, installation_id, generation, user_id, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, now() + $8)
         RETURNING expires_at",
    )
    .bind(token_sha256)
    .bind(&installation.source)
    .bind(&installation.app_id)
    .bind(&installation.place)
    .bind(&installation.installation_id)
    .bind(installation.generation)
    .bind(user_id)
    .bind(lifetime)
    .fetch_one(connection)
    .await?;
    Ok(ends.into())
}

pub(crate) async fn find(
    connection: &mut PgConnection,
    token_sha256: &[u8],
) -> Result<Option<PortalSession>, sqlx::Error> {
    sqlx::query_as(
        "SELECT source, app_id, place, installation_id, generation, user_id, expires_at,
                expires_at <= now() AS has_ended
         FROM mooring.portal_sessions
         WHERE token_sha256 = $1",
    )
    .bind(token_sha256)
    .fetch_optional(connection)
    .await
}
