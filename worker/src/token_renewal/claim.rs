//! Which tokens are due, and who renews them. All SQL on
//! `mooring.token_renewals`.

use std::time::Duration;

use sqlx::PgConnection;
use sqlx::postgres::types::PgInterval;
use time::OffsetDateTime;

use super::{CLAIMED_FOR, wait_after};

/// So many in one round.
const ROUND_MAX: i64 = 200;

/// An installation that needs new tokens.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) source: String,
    pub(super) place: String,
    pub(super) installation_id: String,
    /// By the platform's clock.
    pub(super) installed_at: Option<OffsetDateTime>,
    /// The event that brought the tokens to renew it from, and for a location
    /// without tokens its generation.
    renewed_from: String,
}

/// Nobody else works on it for a while.
pub(super) struct Claim {
    pub(super) candidate: Candidate,
    attempts: i32,
}

/// Tokens that end soon: within `before`, or half of the time that they last.
pub(super) async fn expiring(
    connection: &mut PgConnection,
    sources: &[&str],
    before: Duration,
) -> Result<Vec<Candidate>, sqlx::Error> {
    sqlx::query_as!(
        Candidate,
        r#"
        SELECT held.source, held.place, held.installation_id, installed_at,
               credential_event AS "renewed_from!"
        FROM projection.installations AS held
        JOIN mooring.journal AS brought ON brought.message_id = held.credential_event
        LEFT JOIN mooring.token_renewals AS renewal
            ON (renewal.source, renewal.place, renewal.installation_id)
             = (held.source, held.place, held.installation_id)
        WHERE held.source = ANY($1)
          AND status IN ('pending', 'active', 'unconfirmed')
          AND credential_expires_at - now()
              < least($2, (credential_expires_at - brought.received_at) / 2)
          AND (renewed_from IS DISTINCT FROM credential_event
               OR (renewed_at IS NULL AND not_before <= now()))
        ORDER BY credential_expires_at
        LIMIT $3
        "#,
        sources as _,
        interval(before),
        ROUND_MAX,
    )
    .fetch_all(connection)
    .await
}

/// Locations that were installed with their company, which holds the tokens.
pub(super) async fn locations_without_tokens(
    connection: &mut PgConnection,
    sources: &[&str],
) -> Result<Vec<Candidate>, sqlx::Error> {
    sqlx::query_as!(
        Candidate,
        r#"
        SELECT place.source, place.place, place.installation_id, place.installed_at,
               company.credential_event || ' @' || place.generation AS "renewed_from!"
        FROM projection.installations AS place
        JOIN projection.installations AS company
            ON company.source = place.source AND company.app_id = place.app_id
           AND company.scope ->> 'company_id' = place.scope ->> 'company_id'
           AND NOT company.scope ? 'location_id'
           AND company.credential_event IS NOT NULL
        LEFT JOIN mooring.token_renewals AS renewal
            ON (renewal.source, renewal.place, renewal.installation_id)
             = (place.source, place.place, place.installation_id)
        WHERE place.source = ANY($1)
          AND place.status IN ('active', 'unconfirmed') AND place.credential_event IS NULL
          AND place.scope ? 'location_id'
          AND (renewed_from IS DISTINCT FROM company.credential_event || ' @' || place.generation
               OR (renewed_at IS NULL AND not_before <= now()))
        ORDER BY place.last_event_sequence
        LIMIT $2
        "#,
        sources as _,
        ROUND_MAX,
    )
    .fetch_all(connection)
    .await
}

/// `None` if someone else was faster.
pub(super) async fn take(
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

impl Claim {
    pub(super) async fn done(self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let Candidate { source, place, installation_id, renewed_from, .. } = self.candidate;
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

    pub(super) async fn failed(
        self,
        connection: &mut PgConnection,
        is_refused: bool,
        problem: &str,
    ) -> Result<(), sqlx::Error> {
        let Candidate { source, place, installation_id, renewed_from, .. } = self.candidate;
        sqlx::query!(
            r#"
            UPDATE mooring.token_renewals SET not_before = now() + $5, problem = $6
            WHERE source = $1 AND place = $2 AND installation_id = $3 AND renewed_from = $4
            "#,
            source,
            place,
            installation_id,
            renewed_from,
            interval(wait_after(self.attempts, is_refused)),
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
