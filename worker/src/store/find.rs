//! Finding installations, for the read API and the command line.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use domain::fold::Status;
use domain::id::InstallationId;
use serde::Serialize;
use sqlx::PgPool;

use crate::store::database;
use crate::store::installations::{self, InstallationView, PageEnd};
use crate::store::journal::{self, HistoryEntry};

pub const PAGE_DEFAULT: u16 = 50;
pub const PAGE_MAX: u16 = 200;

/// Which installations to list.
#[derive(Debug, Default, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    pub source: Option<String>,
    pub status: Option<String>,
    /// The platform's id of a plan.
    pub plan: Option<String>,
    pub cursor: Option<String>,
    pub limit: Option<u16>,
}

#[derive(Debug, Serialize)]
pub struct Page {
    pub installations: Vec<InstallationView>,
    /// Give it as `cursor` for the next page; null at the end.
    pub next_cursor: Option<String>,
}

#[derive(Debug, Serialize)]
pub struct HistoryPage {
    pub events: Vec<HistoryEntry>,
    /// Give it as `after` for the next page; null at the end.
    pub next_after: Option<u64>,
}

#[derive(Debug, thiserror::Error)]
pub enum FindError {
    #[error("there is no installation with this id")]
    NotFound,
    #[error("the id is known to several sources ({}): add ?source=", sources.join(", "))]
    Ambiguous { sources: Vec<String> },
    #[error("the status must be one of {}", Status::NAMES.join(", "))]
    UnknownStatus,
    #[error("a filter must not contain NUL")]
    BadFilter,
    #[error("the cursor is not one that was given out")]
    BadCursor,
    #[error("the limit must be 1 to {PAGE_MAX}")]
    BadLimit,
    #[error("reading from Postgres")]
    Postgres(#[from] sqlx::Error),
}

pub async fn list(pool: &PgPool, filter: &Filter) -> Result<Page, FindError> {
    if let Some(status) = &filter.status
        && !Status::NAMES.contains(&status.as_str())
    {
        return Err(FindError::UnknownStatus);
    }
    let filters = [&filter.source, &filter.plan];
    if filters.into_iter().flatten().any(|text| text.contains('\0')) {
        return Err(FindError::BadFilter);
    }
    let limit = checked_limit(filter.limit)?;
    let after = match &filter.cursor {
        None => PageEnd::default(),
        Some(cursor) => decode_cursor(cursor).ok_or(FindError::BadCursor)?,
    };
    let (source, status) = (filter.source.as_deref(), filter.status.as_deref());
    let plan = filter.plan.as_deref();
    // One more than asked for tells whether there is another page.
    let mut connection = database::acquire(pool).await?;
    let mut found =
        installations::page(&mut connection, source, status, plan, &after, i64::from(limit) + 1)
            .await?;
    let more = found.len() > usize::from(limit);
    found.truncate(usize::from(limit));
    let next_cursor = found.last().filter(|_| more).map(encode_cursor);
    Ok(Page { installations: found, next_cursor })
}

pub async fn show(
    pool: &PgPool,
    source: Option<&str>,
    id: &InstallationId,
) -> Result<InstallationView, FindError> {
    let mut connection = database::acquire(pool).await?;
    let mut found = installations::by_id(&mut connection, source, id).await?;
    if found.len() > 1 {
        let sources = found.into_iter().map(|installation| installation.source).collect();
        return Err(FindError::Ambiguous { sources });
    }
    found.pop().ok_or(FindError::NotFound)
}

/// The events of one installation. One that only has events of unknown kinds
/// has a history and no state.
pub async fn history(
    pool: &PgPool,
    source: Option<&str>,
    id: &InstallationId,
    after: u64,
    limit: Option<u16>,
) -> Result<HistoryPage, FindError> {
    let limit = checked_limit(limit)?;
    let mut connection = database::acquire(pool).await?;
    let mut events =
        journal::history(&mut connection, source, id, after, i64::from(limit) + 1).await?;
    let more = events.len() > usize::from(limit);
    events.truncate(usize::from(limit));
    if events.is_empty() && after == 0 {
        return Err(FindError::NotFound);
    }
    let next_after = events.last().filter(|_| more).map(|last| last.sequence.0);
    Ok(HistoryPage { events, next_after })
}

fn checked_limit(limit: Option<u16>) -> Result<u16, FindError> {
    let limit = limit.unwrap_or(PAGE_DEFAULT);
    if (1..=PAGE_MAX).contains(&limit) { Ok(limit) } else { Err(FindError::BadLimit) }
}

fn encode_cursor(last: &InstallationView) -> String {
    let end = PageEnd {
        source: last.source.clone(),
        place: last.place.clone(),
        installation_id: last.installation_id.clone(),
    };
    BASE64_URL_SAFE_NO_PAD.encode(serde_json::to_vec(&end).unwrap_or_default())
}

fn decode_cursor(cursor: &str) -> Option<PageEnd> {
    let end: PageEnd = serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(cursor).ok()?).ok()?;
    // Postgres takes no NUL, and we gave none out.
    let clean = |text: &str| !text.contains('\0');
    let is_clean = clean(&end.source) && clean(&end.place) && clean(&end.installation_id);
    is_clean.then_some(end)
}
