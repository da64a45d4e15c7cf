//! Reads rows, for the read API, operators' commands and metrics.

use std::collections::{BTreeMap, BTreeSet};

use domain::details::Details;
use domain::fold::Status;
use domain::id::{InstallationId, MessageId};
use domain::seal::Sealed;
use futures_util::TryStreamExt as _;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, FromRow, PgConnection};

use super::{Row, SEALED, names};
use crate::store::convert::{SqlTime, integer_to_sql};
use crate::store::fold_unit::{FoldUnit, arrays};
use crate::store::reach::Reach;
use crate::store::schema::Schema;

/// One installation as it is read. It holds no sealed bytes. Each field is the
/// column of its name.
#[derive(Debug, Clone, PartialEq, Serialize, FromRow, JsonSchema)]
#[schemars(rename = "Installation")]
pub(crate) struct InstallationView {
    /// The configured source.
    pub(crate) source: String,
    /// The platform's id.
    pub(crate) installation_id: String,
    pub(crate) platform: String,
    /// The platform's id of the app.
    pub(crate) app_id: String,
    /// Where at most one installation of the app is active.
    pub(crate) place: String,
    /// The platform's names for that place.
    #[sqlx(json)]
    pub(crate) scope: BTreeMap<String, String>,
    #[schemars(extend("enum" = Status::NAMES))]
    pub(crate) status: String,
    /// Counts the installations in this place; the first is 1.
    pub(crate) generation: i32,
    /// As granted last.
    pub(crate) granted_permissions: Vec<String>,
    /// The start of the secret, if the platform publishes one.
    pub(crate) credential_prefix: Option<String>,
    /// Whether a sealed secret is stored.
    pub(crate) has_credential: bool,
    /// When its access token ends, where it has one.
    #[sqlx(try_from = "SqlTime")]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub(crate) credential_expires_at: Option<jiff::Timestamp>,
    /// By the platform's clock, or when the callback was received if it names no time.
    #[sqlx(try_from = "SqlTime")]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub(crate) installed_at: Option<jiff::Timestamp>,
    /// Set only when it is inactive.
    #[sqlx(try_from = "SqlTime")]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub(crate) uninstalled_at: Option<jiff::Timestamp>,
    /// Set only when it is superseded: the id of the newer installation.
    pub(crate) superseded_by: Option<String>,
    /// What the platform says of plan, trial, company and user, if anything.
    #[sqlx(json)]
    pub(crate) details: Details,
    #[sqlx(flatten)]
    pub(crate) last_event: LastEventView,
}

/// The last event that changed it.
#[derive(Debug, Clone, PartialEq, Serialize, FromRow, JsonSchema)]
#[schemars(rename = "LastEvent")]
pub(crate) struct LastEventView {
    /// In the log.
    #[sqlx(rename = "last_event_sequence", try_from = "i64")]
    pub(crate) sequence: u64,
    #[sqlx(rename = "last_event_type")]
    pub(crate) r#type: String,
}

/// A folded row as it will be read, when Postgres has it.
impl From<&Row> for InstallationView {
    fn from(Row { source, platform, installation: of }: &Row) -> Self {
        // Postgres keeps microseconds.
        let read = |time: Option<jiff::Timestamp>| {
            time.and_then(|time| jiff::Timestamp::from_microsecond(time.as_microsecond()).ok())
        };
        let (uninstalled_at, superseded_by) = match &of.status {
            Status::Inactive { uninstalled_at } => (Some(*uninstalled_at), None),
            Status::Superseded { by } => (None, Some(by.to_string())),
            _ => (None, None),
        };
        Self {
            source: source.to_string(),
            installation_id: of.identity.installation_id.to_string(),
            platform: platform.to_string(),
            app_id: of.identity.app_id.to_string(),
            place: of.identity.place.as_str().to_owned(),
            scope: of.identity.scope.clone(),
            status: of.status.name().to_owned(),
            generation: integer_to_sql(of.generation),
            granted_permissions: of.granted_permissions.clone(),
            credential_prefix: of.credential_prefix.clone(),
            has_credential: of.credential.is_some(),
            credential_expires_at: read(of.credential_expires_at),
            installed_at: read(of.installed_at),
            uninstalled_at: read(uninstalled_at),
            superseded_by,
            details: of.details.clone(),
            last_event: LastEventView {
                sequence: of.last_event.sequence.0,
                r#type: of.last_event.kind.to_owned(),
            },
        }
    }
}

/// An installation as a reader sees it, and what tells one credential from another.
#[derive(Debug, Clone, PartialEq, FromRow)]
pub(crate) struct State {
    #[sqlx(flatten)]
    pub(crate) view: InstallationView,
    /// Which event brought its credential.
    pub(crate) credential_event: Option<String>,
}

impl From<&Row> for State {
    fn from(row: &Row) -> Self {
        let credential = row.installation.credential.as_ref();
        let credential_event = credential.map(|it| it.event.as_str().to_owned());
        Self { view: InstallationView::from(row), credential_event }
    }
}

/// Every installation in these places: of the live projection, or of one beside it.
pub(crate) async fn states(
    connection: &mut PgConnection,
    schema: Option<Schema>,
    units: &[FoldUnit],
) -> Result<Vec<State>, sqlx::Error> {
    if units.is_empty() {
        return Ok(Vec::new());
    }
    let (sources, places) = arrays(units);
    let columns = names(|name| !SEALED.contains(&name));
    let sql = format!(
        "SELECT {columns}, credential_sealed IS NOT NULL AS has_credential, credential_event
         FROM {}.installations
         WHERE (source, place) IN (SELECT * FROM unnest($1::text[], $2::text[]))",
        schema.map_or("projection".to_owned(), |schema| schema.to_string())
    );
    sqlx::query_as(AssertSqlSafe(sql)).bind(sources).bind(places).fetch_all(connection).await
}

/// An installation as tests know it.
#[cfg(test)]
pub(crate) fn example(id: &str, status: &str) -> InstallationView {
    InstallationView {
        source: "blnk".into(),
        installation_id: id.into(),
        platform: "blnk".into(),
        app_id: "app_1".into(),
        place: "app_1:inst_1".into(),
        scope: BTreeMap::from([("instance_id".into(), "inst_1".into())]),
        status: status.into(),
        generation: 2,
        granted_permissions: vec!["read".into()],
        credential_prefix: Some("blnk_a1".into()),
        has_credential: true,
        credential_expires_at: None,
        installed_at: Some(jiff::Timestamp::UNIX_EPOCH),
        uninstalled_at: None,
        superseded_by: None,
        details: Default::default(),
        last_event: LastEventView { sequence: 7, r#type: "installed".into() },
    }
}

/// The envelope of every credential.
pub(crate) async fn envelopes(
    connection: &mut PgConnection,
    mut each: impl FnMut(&str),
) -> Result<(), sqlx::Error> {
    let sql = "SELECT credential_sealed FROM projection.installations \
               WHERE credential_sealed IS NOT NULL";
    let mut found = sqlx::query_scalar::<_, String>(sql).fetch(connection);
    while let Some(envelope) = found.try_next().await? {
        each(&envelope);
    }
    Ok(())
}

/// What [`InstallationView`] is read from, up to the condition.
fn select() -> String {
    let columns = names(|name| !SEALED.contains(&name));
    format!(
        "SELECT {columns}, credential_sealed IS NOT NULL AS has_credential
         FROM projection.installations AS installation"
    )
}

/// Which of the installations with one id. None of its parts holds NUL.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Selection<'a> {
    pub(crate) source: Option<&'a str>,
    pub(crate) app_id: Option<&'a str>,
    pub(crate) place: Option<&'a str>,
}

/// The installations with this id that are reached, one for each place of each
/// source.
///
/// An uninstall that names another place than the install makes a row there; it is
/// shown only where the source has nothing else under the id.
pub(crate) async fn by_id(
    connection: &mut PgConnection,
    reach: &Reach,
    id: &InstallationId,
    selection: Selection<'_>,
) -> Result<Vec<InstallationView>, sqlx::Error> {
    let only_uninstalled =
        |row| format!("({row}.installed_at IS NULL AND {row}.last_event_type = 'uninstalled')");
    let sql = format!(
        "SELECT found.*
         FROM {parts}
         CROSS JOIN LATERAL (
             {select}
             WHERE installation_id = $1 AND {is_of_part}
               AND source = coalesce($2, source) AND app_id = coalesce($3, app_id)
               AND place = coalesce($4, place)
               AND (NOT {this} OR NOT EXISTS (
                    SELECT FROM projection.installations AS other
                    WHERE other.installation_id = $1 AND other.source = installation.source
                      AND {other_reached} AND NOT {other}))
             OFFSET 0) AS found
         ORDER BY found.source, found.place",
        parts = reach.parts(5),
        select = select(),
        is_of_part = reach.is_of_part("app_id", 5),
        this = only_uninstalled("installation"),
        other = only_uninstalled("other"),
        other_reached = reach.condition("other", "other.app_id", 5),
    );
    sqlx::query_as(AssertSqlSafe(sql))
        .bind(id.as_str())
        .bind(selection.source)
        .bind(selection.app_id)
        .bind(selection.place)
        .bind(reach.sources())
        .bind(reach.app_ids())
        .fetch_all(connection)
        .await
}

/// Where a page ended; the next one starts after it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct PageEnd {
    pub(crate) source: String,
    pub(crate) place: String,
    pub(crate) installation_id: String,
}

/// What a page is chosen by, besides what is reached.
#[derive(Debug, Default)]
pub(crate) struct PageOf<'a> {
    pub(crate) status: Option<&'a str>,
    pub(crate) plan: Option<&'a str>,
    pub(crate) after: PageEnd,
    pub(crate) limit: i64,
}

/// One page of what is reached, ordered by source, place and id.
pub(crate) async fn page(
    connection: &mut PgConnection,
    reach: &Reach,
    of: &PageOf<'_>,
) -> Result<Vec<InstallationView>, sqlx::Error> {
    // A part is read from its own stretch of an index, so that the rest costs nothing.
    let begins = match reach {
        Reach::Everything => "(source, place, installation_id) > ($3, $4, $5)",
        Reach::Sources(_) | Reach::Apps { .. } => {
            "part_source >= $3 AND (place, installation_id)
                 > (CASE WHEN part_source = $3 THEN $4 ELSE '' END,
                    CASE WHEN part_source = $3 THEN $5 ELSE '' END)"
        }
    };
    let sql = format!(
        "SELECT page.*
         FROM {parts}
         CROSS JOIN LATERAL (
             {select}
             WHERE {is_of_part} AND {begins}
               AND status = coalesce($1, status) AND ($2::text IS NULL OR details ->> 'plan_id' = $2)
             ORDER BY source, place, installation_id
             LIMIT $8) AS page
         ORDER BY page.source, page.place, page.installation_id
         LIMIT $8",
        parts = reach.parts(6),
        select = select(),
        is_of_part = reach.is_of_part("app_id", 6),
    );
    sqlx::query_as(AssertSqlSafe(sql))
        .bind(of.status)
        .bind(of.plan)
        .bind(&of.after.source)
        .bind(&of.after.place)
        .bind(&of.after.installation_id)
        .bind(reach.sources())
        .bind(reach.app_ids())
        .bind(of.limit)
        .fetch_all(connection)
        .await
}

/// An error if the projection cannot be read.
pub(crate) async fn can_be_read(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query_scalar!("SELECT count(*) FROM projection.installations WHERE false")
        .fetch_one(connection)
        .await?;
    Ok(())
}

/// One state of one installation.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Digest {
    source: String,
    place: String,
    pub(crate) installation_id: String,
    digest: i64,
}

/// To see what changes in these places.
pub(crate) async fn digests(
    connection: &mut PgConnection,
    units: &[FoldUnit],
) -> Result<BTreeSet<Digest>, sqlx::Error> {
    let (sources, places) = arrays(units);
    let rows = sqlx::query_as!(
        Digest,
        r#"
        SELECT source, place, installation_id, hashtextextended(installation::text, 0) AS "digest!"
        FROM projection.installations AS installation
        WHERE (source, place) IN (SELECT * FROM unnest($1::text[], $2::text[]))
        "#,
        &sources as _,
        &places as _,
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().collect())
}

/// A sealed credential with what it is bound to.
pub(crate) struct StoredCredential {
    pub(crate) sealed: Sealed,
    pub(crate) event: MessageId,
    pub(crate) field: String,
}

pub(crate) async fn credential(
    connection: &mut PgConnection,
    of: &InstallationView,
) -> Result<Option<StoredCredential>, sqlx::Error> {
    let row = sqlx::query!(
        r#"
        SELECT credential_sealed AS "sealed!", credential_event AS "event!",
               credential_field AS "field!"
        FROM projection.installations
        WHERE source = $1 AND place = $2 AND installation_id = $3
          AND credential_sealed IS NOT NULL
        "#,
        of.source,
        of.place,
        of.installation_id,
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|row| StoredCredential {
        sealed: Sealed::from_stored(row.sealed),
        event: MessageId::from_stored(row.event),
        field: row.field,
    }))
}

/// How many installations there are, by source and status.
pub(crate) async fn counts(
    connection: &mut PgConnection,
) -> Result<Vec<(String, String, i64)>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"
        SELECT source, status, count(*) AS "count!"
        FROM projection.installations
        GROUP BY source, status
        "#
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|row| (row.source, row.status, row.count)).collect())
}

/// How many installations live with a token that has ended, by source.
pub(crate) async fn expired_tokens(
    connection: &mut PgConnection,
) -> Result<Vec<(String, i64)>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"
        SELECT source, count(*) AS "count!"
        FROM projection.installations
        WHERE credential_expires_at < now() AND status IN ('active', 'suspended', 'unconfirmed')
        GROUP BY source
        "#
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|row| (row.source, row.count)).collect())
}
