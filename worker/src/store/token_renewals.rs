//! Which tokens are due, and who renews them. All SQL on
//! `mooring.token_renewals`; which tokens are due is asked of the projection, the
//! journal and the erasures, too.

use std::collections::BTreeMap;
use std::time::Duration;

use sqlx::postgres::types::PgInterval;
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection};
use time::OffsetDateTime;

/// One installation is worked on for less than this.
pub(crate) const CLAIMED_FOR: Duration = Duration::from_secs(180);
/// So many in one round.
pub(crate) const ROUND_MAX: i64 = 200;

/// A part that does not say of which parent it is may be one of these, the last of them first.
const PARENTS_MAX: i64 = 25;

/// An installation that needs new tokens.
#[derive(Debug, FromRow)]
pub(crate) struct Candidate {
    pub(crate) source: String,
    pub(crate) place: String,
    pub(crate) installation_id: String,
    /// By the platform's clock.
    pub(crate) installed_at: Option<OffsetDateTime>,
    pub(crate) scope: Json<BTreeMap<String, String>>,
    pub(crate) has_tokens: bool,
    /// Of a part without tokens: as their scopes name them. Several if it does not say which.
    pub(crate) parents: Vec<String>,
    /// The event that brought the tokens to renew it from, and for a part without
    /// tokens its generation.
    renewed_from: String,
}

/// Nobody else works on it for a while.
pub(crate) struct Claim {
    pub(crate) candidate: Candidate,
    attempts: i32,
}

/// Tokens that end soon: within `before`, or half of the time that they last.
pub(crate) async fn expiring(
    connection: &mut PgConnection,
    sources: &[&str],
    before: Duration,
) -> Result<Vec<Candidate>, sqlx::Error> {
    sqlx::query_as(
        "
        SELECT held.source, held.place, held.installation_id, installed_at, scope,
               true AS has_tokens, '{}'::text[] AS parents, credential_event AS renewed_from
        FROM projection.installations AS held
        JOIN mooring.journal AS brought ON brought.message_id = held.credential_event
        LEFT JOIN mooring.token_renewals AS renewal
            ON (renewal.source, renewal.place, renewal.installation_id)
             = (held.source, held.place, held.installation_id)
        WHERE held.source = ANY($1)
          AND status IN ('pending', 'active', 'suspended', 'unconfirmed')
          AND credential_expires_at < now() + $2 -- for the index
          AND credential_expires_at - now()
              < least($2, (credential_expires_at - brought.received_at) / 2)
          AND (renewed_from IS DISTINCT FROM credential_event
               OR (renewed_at IS NULL AND not_before <= now())
               OR renewed_at < now() - interval '1 hour')
        ORDER BY coalesce(attempts, 0), credential_expires_at
        LIMIT $3
        ",
    )
    .bind(sources)
    .bind(interval(before))
    .bind(ROUND_MAX)
    .fetch_all(connection)
    .await
}

/// Parts that were installed with their parent, which holds the tokens. The
/// scope of both says under `parent_key` which parent it is, and only that of a
/// part has a `part_key`. That of a part may not name its parent.
pub(crate) async fn parts_without_tokens(
    connection: &mut PgConnection,
    source: &str,
    parent_key: &str,
    part_key: &str,
) -> Result<Vec<Candidate>, sqlx::Error> {
    sqlx::query_as(
        "
        SELECT part.source, part.place, part.installation_id, part.installed_at, part.scope,
               false AS has_tokens, parents, held.renewed_from
        FROM projection.installations AS part
        CROSS JOIN LATERAL (
            SELECT array_agg(parent ORDER BY last DESC) AS parents,
                   CASE count(*) WHEN 1 THEN min(credential_event)
                        ELSE md5(string_agg(parent, ' ' ORDER BY parent)) END
                   || ' @' || part.generation AS renewed_from
            FROM (
                SELECT parent.scope ->> $2 AS parent, parent.credential_event,
                       parent.last_event_sequence AS last
                FROM projection.installations AS parent
                WHERE parent.source = part.source AND parent.app_id = part.app_id
                  AND (parent.scope ->> $2) = coalesce(part.scope ->> $2, parent.scope ->> $2)
                  AND NOT parent.scope ? $3
                  AND parent.credential_event IS NOT NULL
                  AND parent.status IN ('pending', 'active', 'suspended', 'unconfirmed')
                ORDER BY last DESC
                LIMIT $5) AS possible) AS held
        LEFT JOIN mooring.token_renewals AS renewal
            ON (renewal.source, renewal.place, renewal.installation_id)
             = (part.source, part.place, part.installation_id)
        WHERE part.source = $1
          AND part.status IN ('active', 'suspended', 'unconfirmed') AND part.credential_event IS NULL
          AND part.scope ? $3
          AND parents IS NOT NULL
          AND (renewal.renewed_from IS DISTINCT FROM held.renewed_from
               OR (renewed_at IS NULL AND not_before <= now())
               OR renewed_at < now() - interval '1 hour')
          AND NOT EXISTS (
              SELECT FROM mooring.erasures AS erased
              WHERE erased.source = part.source
                AND erased.installation_id = part.installation_id
                AND (erased.places IS NULL OR part.place = ANY (erased.places))
                AND erased.started_at > part.installed_at)
        ORDER BY coalesce(attempts, 0), part.last_event_sequence
        LIMIT $4
        ",
    )
    .bind(source)
    .bind(parent_key)
    .bind(part_key)
    .bind(ROUND_MAX)
    .bind(PARENTS_MAX)
    .fetch_all(connection)
    .await
}

/// `None` if someone else was faster.
pub(crate) async fn take(
    connection: &mut PgConnection,
    candidate: Candidate,
) -> Result<Option<Claim>, sqlx::Error> {
    let attempts = sqlx::query_scalar!(
        r#"
        INSERT INTO mooring.token_renewals AS renewal
            (source, place, installation_id, renewed_from, attempts, not_before)
        VALUES ($1, $2, $3, $4, 1, now() + $5)
        ON CONFLICT (source, place, installation_id) DO UPDATE
            SET attempts = CASE WHEN renewal.renewed_from = excluded.renewed_from
                                THEN renewal.attempts + 1 ELSE 1 END,
                renewed_from = excluded.renewed_from,
                not_before = excluded.not_before,
                renewed_at = NULL
            WHERE renewal.renewed_from <> excluded.renewed_from
               OR (renewal.renewed_at IS NULL AND renewal.not_before <= now())
               OR renewal.renewed_at < now() - interval '1 hour'
        RETURNING attempts
        "#,
        candidate.source,
        candidate.place,
        candidate.installation_id,
        candidate.renewed_from,
        interval(CLAIMED_FOR),
    )
    .fetch_optional(connection)
    .await?;
    Ok(attempts.map(|attempts| Claim { candidate, attempts }))
}

/// Whether the tokens that were due are still those that the installation holds.
pub(crate) async fn is_current(
    connection: &mut PgConnection,
    candidate: &Candidate,
) -> Result<bool, sqlx::Error> {
    if !candidate.has_tokens {
        return Ok(true);
    }
    let current = sqlx::query_scalar!(
        r#"
        SELECT credential_event = $4 AS "is_current!"
        FROM projection.installations
        WHERE source = $1 AND place = $2 AND installation_id = $3
          AND credential_event IS NOT NULL
        "#,
        candidate.source,
        candidate.place,
        candidate.installation_id,
        candidate.renewed_from,
    )
    .fetch_optional(connection)
    .await?;
    Ok(current.unwrap_or(false))
}

impl Claim {
    pub(crate) async fn done(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let Candidate { source, place, installation_id, renewed_from, .. } = &self.candidate;
        sqlx::query!(
            r#"
            UPDATE mooring.token_renewals SET renewed_at = now(), problem = NULL
            WHERE source = $1 AND place = $2 AND installation_id = $3 AND renewed_from = $4
            "#,
            source,
            place,
            installation_id,
            renewed_from,
        )
        .execute(connection)
        .await?;
        Ok(())
    }

    pub(crate) async fn failed(
        &self,
        connection: &mut PgConnection,
        again: Again,
        problem: &str,
    ) -> Result<(), sqlx::Error> {
        let Candidate { source, place, installation_id, renewed_from, .. } = &self.candidate;
        sqlx::query!(
            r#"
            UPDATE mooring.token_renewals
            SET not_before = coalesce(now() + $5, 'infinity'), problem = $6
            WHERE source = $1 AND place = $2 AND installation_id = $3 AND renewed_from = $4
            "#,
            source,
            place,
            installation_id,
            renewed_from,
            again.after(self.attempts).map(interval) as _,
            problem,
        )
        .execute(connection)
        .await?;
        Ok(())
    }
}

fn interval(duration: Duration) -> PgInterval {
    let microseconds = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
    PgInterval { months: 0, days: 0, microseconds }
}

/// When to try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Again {
    Soon,
    /// What was refused is hardly accepted a minute later.
    Late,
    Never,
}

impl Again {
    /// After the n-th failure.
    fn after(self, attempts: i32) -> Option<Duration> {
        let first = match self {
            Self::Soon => 30,
            Self::Late => 3_600,
            Self::Never => return None,
        };
        let doublings = u32::try_from(attempts.saturating_sub(1)).unwrap_or(0).min(5);
        Some(Duration::from_secs(first << doublings).min(Duration::from_secs(24 * 3_600)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_wait_longer_each_time_but_no_longer_than_a_day() {
        let seconds = |again: Again, attempts| again.after(attempts).map(|wait| wait.as_secs());
        assert_eq!(seconds(Again::Soon, 1), Some(30));
        assert_eq!(seconds(Again::Soon, 3), Some(120));
        assert_eq!(seconds(Again::Late, 1), Some(3_600));
        assert_eq!(seconds(Again::Late, i32::MAX), Some(24 * 3_600));
        assert_eq!(seconds(Again::Never, 1), None);
    }
}
