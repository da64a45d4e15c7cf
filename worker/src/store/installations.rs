//! The projection: the state of every installation. All SQL on
//! `projection.installations`.

use std::collections::{BTreeMap, BTreeSet};

use domain::details::Details;
use domain::fold::{Installation, Status};
use domain::id::{InstallationId, MessageId, PlatformName, SourceName};
use domain::seal::Sealed;
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use sqlx::types::Json;
use time::OffsetDateTime;

use crate::store::convert::{from_sql, sequence_from_sql, sequence_to_sql, to_sql};
use crate::store::fold_unit::FoldUnit;

/// A folded installation and the source it belongs to.
pub(crate) struct Row {
    pub(crate) source: SourceName,
    pub(crate) platform: PlatformName,
    pub(crate) installation: Installation,
}

/// A row as its table has it.
pub(crate) struct Flat<'a> {
    pub(crate) source: &'a str,
    pub(crate) platform: &'a str,
    pub(crate) place: &'a str,
    pub(crate) installation_id: &'a str,
    pub(crate) app_id: &'a str,
    pub(crate) scope: &'a BTreeMap<String, String>,
    pub(crate) generation: i32,
    pub(crate) status: &'a str,
    pub(crate) granted_permissions: &'a [String],
    pub(crate) credential_prefix: Option<&'a str>,
    pub(crate) credential_sealed: Option<&'a str>,
    pub(crate) credential_event: Option<&'a str>,
    pub(crate) credential_field: Option<&'a str>,
    pub(crate) installed_at: Option<OffsetDateTime>,
    pub(crate) uninstalled_at: Option<OffsetDateTime>,
    pub(crate) superseded_by: Option<&'a str>,
    pub(crate) last_event_sequence: i64,
    pub(crate) last_event_type: &'a str,
    pub(crate) details: &'a Details,
    pub(crate) credential_expires_at: Option<OffsetDateTime>,
}

impl Row {
    pub(crate) fn flat(&self) -> Flat<'_> {
        let Self { source, platform, installation } = self;
        let identity = &installation.identity;
        let (uninstalled_at, superseded_by) = match &installation.status {
            Status::Pending | Status::Active | Status::Unconfirmed => (None, None),
            Status::Superseded { by } => (None, Some(by.as_str())),
            Status::Inactive { uninstalled_at } => (Some(to_sql(*uninstalled_at)), None),
        };
        let credential = installation.credential.as_ref();
        Flat {
            source: source.as_str(),
            platform: platform.as_str(),
            place: identity.place.as_str(),
            installation_id: identity.installation_id.as_str(),
            app_id: identity.app_id.as_str(),
            scope: &identity.scope,
            generation: i32::try_from(installation.generation).unwrap_or(i32::MAX),
            status: installation.status.name(),
            granted_permissions: &installation.granted_permissions,
            credential_prefix: installation.credential_prefix.as_deref(),
            credential_sealed: credential.map(|found| found.sealed.sealed.as_str()),
            credential_event: credential.map(|found| found.event.as_str()),
            credential_field: credential.map(|found| found.sealed.field.as_str()),
            installed_at: installation.installed_at.map(to_sql),
            uninstalled_at,
            superseded_by,
            last_event_sequence: sequence_to_sql(installation.last_event.sequence.0),
            last_event_type: installation.last_event.kind,
            details: &installation.details,
            credential_expires_at: installation.credential_expires_at.map(to_sql),
        }
    }
}

/// Saves what was folded, in the schema that comes first in the search path.
pub(crate) async fn save(
    connection: &mut PgConnection,
    mut rows: Vec<Row>,
) -> Result<(), sqlx::Error> {
    // Whoever becomes active comes last, or the index on active installations
    // would see two of them in one place for a moment.
    rows.sort_by_key(|row| row.installation.status == Status::Active);
    let columns = Columns::of(&rows)?;
    sqlx::query!(
        r#"
        INSERT INTO installations
            (source, platform, place, installation_id, app_id, scope, generation, status,
             granted_permissions, credential_prefix, credential_sealed, credential_event,
             credential_field, installed_at, uninstalled_at, superseded_by, last_event_sequence,
             last_event_type, details, credential_expires_at)
        SELECT source, platform, place, installation_id, app_id, scope, generation, status,
             ARRAY(SELECT jsonb_array_elements_text(granted_permissions)), credential_prefix,
             credential_sealed, credential_event, credential_field, installed_at, uninstalled_at,
             superseded_by, last_event_sequence, last_event_type, details, credential_expires_at
        FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::jsonb[],
                    $7::integer[], $8::text[], $9::jsonb[], $10::text[], $11::text[], $12::text[],
                    $13::text[], $14::timestamptz[], $15::timestamptz[], $16::text[], $17::bigint[],
                    $18::text[], $19::jsonb[], $20::timestamptz[])
            WITH ORDINALITY
            AS folded (source, platform, place, installation_id, app_id, scope, generation, status,
                       granted_permissions, credential_prefix, credential_sealed, credential_event,
                       credential_field, installed_at, uninstalled_at, superseded_by,
                       last_event_sequence, last_event_type, details, credential_expires_at,
                       position)
        ORDER BY position
        ON CONFLICT (source, place, installation_id) DO UPDATE
            SET platform = excluded.platform,
                app_id = excluded.app_id,
                scope = excluded.scope,
                generation = excluded.generation,
                status = excluded.status,
                granted_permissions = excluded.granted_permissions,
                credential_prefix = excluded.credential_prefix,
                credential_sealed = excluded.credential_sealed,
                credential_event = excluded.credential_event,
                credential_field = excluded.credential_field,
                installed_at = excluded.installed_at,
                uninstalled_at = excluded.uninstalled_at,
                superseded_by = excluded.superseded_by,
                last_event_sequence = excluded.last_event_sequence,
                last_event_type = excluded.last_event_type,
                details = excluded.details,
                credential_expires_at = excluded.credential_expires_at
        "#,
        &columns.sources as _,
        &columns.platforms as _,
        &columns.places as _,
        &columns.ids as _,
        &columns.apps as _,
        &columns.scopes,
        &columns.generations,
        &columns.statuses as _,
        &columns.permissions,
        &columns.prefixes as _,
        &columns.sealed as _,
        &columns.events as _,
        &columns.fields as _,
        &columns.installed as _,
        &columns.uninstalled as _,
        &columns.successors as _,
        &columns.last_sequences,
        &columns.last_types as _,
        &columns.details,
        &columns.expiries as _,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The rows, column by column, as `unnest` takes them.
#[derive(Default)]
struct Columns<'a> {
    sources: Vec<&'a str>,
    platforms: Vec<&'a str>,
    places: Vec<&'a str>,
    ids: Vec<&'a str>,
    apps: Vec<&'a str>,
    scopes: Vec<serde_json::Value>,
    generations: Vec<i32>,
    statuses: Vec<&'a str>,
    /// JSON, because Postgres has no array of arrays of different lengths.
    permissions: Vec<serde_json::Value>,
    prefixes: Vec<Option<&'a str>>,
    sealed: Vec<Option<&'a str>>,
    events: Vec<Option<&'a str>>,
    fields: Vec<Option<&'a str>>,
    installed: Vec<Option<OffsetDateTime>>,
    uninstalled: Vec<Option<OffsetDateTime>>,
    successors: Vec<Option<&'a str>>,
    last_sequences: Vec<i64>,
    last_types: Vec<&'a str>,
    details: Vec<serde_json::Value>,
    expiries: Vec<Option<OffsetDateTime>>,
}

impl<'a> Columns<'a> {
    fn of(rows: &'a [Row]) -> Result<Self, sqlx::Error> {
        let mut columns = Self::default();
        for row in rows {
            columns.push(row.flat()).map_err(|error| sqlx::Error::Encode(error.into()))?;
        }
        Ok(columns)
    }

    fn push(&mut self, row: Flat<'a>) -> Result<(), serde_json::Error> {
        self.sources.push(row.source);
        self.platforms.push(row.platform);
        self.places.push(row.place);
        self.ids.push(row.installation_id);
        self.apps.push(row.app_id);
        self.scopes.push(serde_json::to_value(row.scope)?);
        self.generations.push(row.generation);
        self.statuses.push(row.status);
        self.permissions.push(serde_json::to_value(row.granted_permissions)?);
        self.prefixes.push(row.credential_prefix);
        self.sealed.push(row.credential_sealed);
        self.events.push(row.credential_event);
        self.fields.push(row.credential_field);
        self.installed.push(row.installed_at);
        self.uninstalled.push(row.uninstalled_at);
        self.successors.push(row.superseded_by);
        self.last_sequences.push(row.last_event_sequence);
        self.last_types.push(row.last_event_type);
        self.details.push(serde_json::to_value(row.details)?);
        self.expiries.push(row.credential_expires_at);
        Ok(())
    }
}

/// One installation as it is read. It holds no sealed bytes.
#[derive(Debug, Serialize)]
pub struct InstallationView {
    pub source: String,
    pub installation_id: String,
    pub platform: String,
    pub app_id: String,
    pub place: String,
    pub scope: BTreeMap<String, String>,
    pub status: String,
    pub generation: i32,
    pub granted_permissions: Vec<String>,
    pub credential_prefix: Option<String>,
    pub has_credential: bool,
    /// When its access token ends, where it has one.
    pub credential_expires_at: Option<jiff::Timestamp>,
    pub installed_at: Option<jiff::Timestamp>,
    pub uninstalled_at: Option<jiff::Timestamp>,
    pub superseded_by: Option<String>,
    /// What the platform says of plan, trial, company and user, if anything.
    pub details: Details,
    pub last_event: LastEventView,
}

#[derive(Debug, Serialize)]
pub struct LastEventView {
    pub sequence: u64,
    pub r#type: String,
}

struct InstallationRow {
    source: String,
    installation_id: String,
    platform: String,
    app_id: String,
    place: String,
    scope: Json<BTreeMap<String, String>>,
    status: String,
    generation: i32,
    granted_permissions: Vec<String>,
    credential_prefix: Option<String>,
    has_credential: bool,
    credential_expires_at: Option<OffsetDateTime>,
    installed_at: Option<OffsetDateTime>,
    uninstalled_at: Option<OffsetDateTime>,
    superseded_by: Option<String>,
    details: Json<Details>,
    last_event_sequence: i64,
    last_event_type: String,
}

impl From<InstallationRow> for InstallationView {
    fn from(row: InstallationRow) -> Self {
        Self {
            source: row.source,
            installation_id: row.installation_id,
            platform: row.platform,
            app_id: row.app_id,
            place: row.place,
            scope: row.scope.0,
            status: row.status,
            generation: row.generation,
            granted_permissions: row.granted_permissions,
            credential_prefix: row.credential_prefix,
            has_credential: row.has_credential,
            credential_expires_at: row.credential_expires_at.map(from_sql),
            installed_at: row.installed_at.map(from_sql),
            uninstalled_at: row.uninstalled_at.map(from_sql),
            superseded_by: row.superseded_by,
            details: row.details.0,
            last_event: LastEventView {
                sequence: sequence_from_sql(row.last_event_sequence),
                r#type: row.last_event_type,
            },
        }
    }
}

/// The installations with this id: one for each source that knows it.
///
/// An uninstall that names another place than the install makes a row there;
/// it is shown only where nothing was ever installed under the id. Of several
/// places the one that was installed first is shown.
pub(crate) async fn by_id(
    connection: &mut PgConnection,
    source: Option<&str>,
    id: &InstallationId,
) -> Result<Vec<InstallationView>, sqlx::Error> {
    let rows = sqlx::query_as!(
        InstallationRow,
        r#"
        SELECT DISTINCT ON (source)
            source, installation_id, platform, app_id, place,
            scope AS "scope: Json<BTreeMap<String, String>>", status, generation,
            granted_permissions, credential_prefix,
            credential_sealed IS NOT NULL AS "has_credential!", credential_expires_at,
            installed_at, uninstalled_at, superseded_by, details AS "details: Json<Details>",
            last_event_sequence, last_event_type
        FROM projection.installations
        WHERE installation_id = $1 AND source = coalesce($2, source)
        ORDER BY source, installed_at NULLS LAST, last_event_sequence
        "#,
        id.as_str(),
        source,
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(InstallationView::from).collect())
}

/// Where a page ended; the next one starts after it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct PageEnd {
    pub(crate) source: String,
    pub(crate) place: String,
    pub(crate) installation_id: String,
}

/// One page, ordered by source, place and id.
pub(crate) async fn page(
    connection: &mut PgConnection,
    source: Option<&str>,
    status: Option<&str>,
    plan: Option<&str>,
    after: &PageEnd,
    limit: i64,
) -> Result<Vec<InstallationView>, sqlx::Error> {
    let rows = sqlx::query_as!(
        InstallationRow,
        r#"
        SELECT
            source, installation_id, platform, app_id, place,
            scope AS "scope: Json<BTreeMap<String, String>>", status, generation,
            granted_permissions, credential_prefix,
            credential_sealed IS NOT NULL AS "has_credential!", credential_expires_at,
            installed_at, uninstalled_at, superseded_by, details AS "details: Json<Details>",
            last_event_sequence, last_event_type
        FROM projection.installations
        WHERE source = coalesce($1, source) AND status = coalesce($2, status)
          AND ($3::text IS NULL OR details ->> 'plan_id' = $3)
          AND (source, place, installation_id) > ($4, $5, $6)
        ORDER BY source, place, installation_id
        LIMIT $7
        "#,
        source,
        status,
        plan,
        after.source,
        after.place,
        after.installation_id,
        limit,
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(InstallationView::from).collect())
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
    let sources: Vec<&str> = units.iter().map(|unit| unit.source.as_str()).collect();
    let places: Vec<&str> = units.iter().map(|unit| unit.place.as_str()).collect();
    let rows = sqlx::query_as!(
        Digest,
        r#"
        SELECT source, place, installation_id, hashtextextended(found::text, 0) AS "digest!"
        FROM projection.installations AS found
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
        WHERE credential_expires_at < now() AND status IN ('active', 'unconfirmed')
        GROUP BY source
        "#
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|row| (row.source, row.count)).collect())
}
