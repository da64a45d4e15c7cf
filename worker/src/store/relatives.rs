//! What an installation is a part of, and what is a part of it.

use domain::event::{Identity, Reinstall};
use domain::id::{AppId, InstallationId, Place};
use domain::platform::{Parent, Parentage, Platform};
use schemars::JsonSchema;
use serde::Serialize;
use sqlx::{FromRow, PgConnection};

use crate::store::installations::InstallationView;

/// So many children are named.
const CHILDREN_MAX: usize = 200;

/// An installation as it is shown by itself.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "RelatedInstallation")]
pub(crate) struct Related {
    #[serde(flatten)]
    pub(crate) installation: InstallationView,
    /// Only of a part.
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<Relative>,
    /// Only of what may have parts.
    #[serde(skip_serializing_if = "Option::is_none", flatten)]
    children: Option<Children>,
}

#[derive(Debug, Serialize, FromRow, JsonSchema)]
struct Relative {
    installation_id: String,
    /// Null if nothing is known of it but its id.
    status: Option<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Children {
    /// At most 200.
    children: Vec<Relative>,
    /// How many there are.
    children_count: i64,
}

/// Both are of the same app of the same source: whoever reaches one reaches the other.
pub(crate) async fn of(
    connection: &mut PgConnection,
    installation: InstallationView,
) -> Result<Related, sqlx::Error> {
    let Some(parentage) = Platform::parentage(&installation.platform) else {
        return Ok(Related { installation, parent: None, children: None });
    };
    let parent = match (parentage.parent_of)(&identity(&installation)?) {
        Some(parent) => Some(relative(connection, &installation, parent).await?),
        None => None,
    };
    let children = children(connection, &installation, &parentage).await?;
    Ok(Related { installation, parent, children })
}

fn identity(of: &InstallationView) -> Result<Identity, sqlx::Error> {
    let invalid = |error: domain::id::InvalidId| sqlx::Error::Decode(error.into());
    Ok(Identity {
        installation_id: InstallationId::parse(of.installation_id.as_str()).map_err(invalid)?,
        place: Place::from_stored(of.place.clone()),
        app_id: AppId::parse(of.app_id.as_str()).map_err(invalid)?,
        scope: of.scope.clone(),
        reinstall: Reinstall::SameId,
    })
}

async fn relative(
    connection: &mut PgConnection,
    part: &InstallationView,
    Parent { installation_id, .. }: Parent,
) -> Result<Relative, sqlx::Error> {
    let sql = "SELECT installation_id, status FROM projection.installations
               WHERE source = $1 AND app_id = $2 AND installation_id = $3";
    let found = sqlx::query_as(sql)
        .bind(&part.source)
        .bind(&part.app_id)
        .bind(installation_id.as_str())
        .fetch_optional(connection)
        .await?;
    let unknown = || Relative { installation_id: installation_id.to_string(), status: None };
    Ok(found.unwrap_or_else(unknown))
}

async fn children(
    connection: &mut PgConnection,
    parent: &InstallationView,
    Parentage { parent_key, part_key, .. }: &Parentage,
) -> Result<Option<Children>, sqlx::Error> {
    let Some(name) = parent.scope.get(*parent_key) else { return Ok(None) };
    if parent.scope.contains_key(*part_key) {
        return Ok(None);
    }
    let sql = "SELECT installation_id, status, count(*) OVER () AS all
               FROM projection.installations
               WHERE source = $1 AND app_id = $2 AND scope ->> $3 = $4 AND scope ? $5
               ORDER BY installation_id
               LIMIT $6";
    let found: Vec<(String, Option<String>, i64)> = sqlx::query_as(sql)
        .bind(&parent.source)
        .bind(&parent.app_id)
        .bind(parent_key)
        .bind(name)
        .bind(part_key)
        .bind(i64::try_from(CHILDREN_MAX).unwrap_or(i64::MAX))
        .fetch_all(connection)
        .await?;
    let children_count = found.first().map_or(0, |(_, _, all)| *all);
    let children = found.into_iter();
    let children =
        children.map(|(installation_id, status, _)| Relative { installation_id, status });
    Ok(Some(Children { children: children.collect(), children_count }))
}
