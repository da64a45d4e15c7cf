//! Finding installations, for the read API and the command line.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use domain::fold::Status;
use domain::id::{InstallationId, SourceName};
use schemars::JsonSchema;
use serde::Serialize;
use sqlx::{PgConnection, PgPool};

use crate::store::database;
use crate::store::feed;
use crate::store::installations::{self, InstallationView, PageEnd, PageOf, Selection};
use crate::store::journal::{self, EventsOf, HistoryEntry, Known};
use crate::store::reach::Reach;
use crate::store::relatives::{self, Related};

pub(crate) const PAGE_DEFAULT: u16 = 50;
pub(crate) const PAGE_MAX: u16 = 200;
/// So many are named where an id is ambiguous.
const CANDIDATES_MAX: usize = 100;

/// Which installations to list.
#[derive(Debug, Default, Clone, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Filter {
    /// Only this source.
    pub(crate) source: Option<String>,
    /// Only this status.
    #[schemars(extend("enum" = Status::NAMES))]
    pub(crate) status: Option<String>,
    /// The platform's id of a plan.
    pub(crate) plan: Option<String>,
    /// `next_cursor` of the page before.
    pub(crate) cursor: Option<String>,
    /// How many on a page; 50 if it is not given.
    #[schemars(range(min = 1, max = PAGE_MAX))]
    pub(crate) limit: Option<u16>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "InstallationsPage")]
pub(crate) struct Page {
    pub(crate) installations: Vec<InstallationView>,
    /// Give it as `cursor` for the next page; null at the end.
    pub(crate) next_cursor: Option<String>,
    /// Give it as `after` to the change feed, for what comes after this list.
    pub(crate) changes_cursor: String,
}

/// Which of the installations that have the same id. Several sources may know an
/// id, and one source may have it in several places, such as one for each app.
#[derive(Debug, Default, Clone, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Which {
    /// The one of this source.
    pub(crate) source: Option<String>,
    /// The one of this app.
    pub(crate) app_id: Option<String>,
    /// The one in this place.
    pub(crate) place: Option<String>,
}

/// One of several installations with the same id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub(crate) struct Candidate {
    pub(crate) source: String,
    pub(crate) app_id: String,
    pub(crate) place: String,
    /// Null if only events of unknown types are known.
    pub(crate) status: Option<String>,
}

/// The one that is meant.
pub(crate) struct Chosen {
    pub(crate) source: SourceName,
    installation: InstallationId,
    place: String,
    /// Where the others of its source are that have its id.
    other_places: Vec<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "EventsPage")]
pub(crate) struct HistoryPage {
    pub(crate) events: Vec<HistoryEntry>,
    /// Give it as `after` for the next page; null at the end.
    pub(crate) next_after: Option<u64>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum FindError {
    #[error("there is no installation with this id")]
    NotFound,
    #[error(
        "several installations have this id: say which by its source, app or place{}",
        listed(candidates)
    )]
    Ambiguous { candidates: Vec<Candidate> },
    #[error("the status must be one of {}", Status::NAMES.join(", "))]
    UnknownStatus,
    #[error("a parameter must not contain NUL")]
    ContainsNul,
    #[error("the cursor is not one that was given out")]
    BadCursor,
    #[error("the limit must be 1 to {PAGE_MAX}")]
    BadLimit,
    #[error("reading from Postgres")]
    Postgres(#[from] sqlx::Error),
}

pub(crate) async fn list(pool: &PgPool, reach: &Reach, filter: &Filter) -> Result<Page, FindError> {
    if let Some(status) = &filter.status
        && !Status::NAMES.contains(&status.as_str())
    {
        return Err(FindError::UnknownStatus);
    }
    without_nul([&filter.source, &filter.plan])?;
    let limit = checked_limit(filter.limit)?;
    let after = match &filter.cursor {
        None => PageEnd::default(),
        Some(cursor) => decode_cursor(cursor).ok_or(FindError::BadCursor)?,
    };
    let (status, plan) = (filter.status.as_deref(), filter.plan.as_deref());
    // One more than asked for tells whether there is another page.
    let of = PageOf { status, plan, after, limit: i64::from(limit) + 1 };
    let mut connection = database::acquire(pool).await?;
    // First, so that no change falls between it and the list.
    let changes_cursor = feed::end(&mut connection, reach).await?.to_string();
    let reach = reach.within(filter.source.as_deref());
    let mut installations = installations::page(&mut connection, &reach, &of).await?;
    let more = installations.len() > usize::from(limit);
    installations.truncate(usize::from(limit));
    let next_cursor = installations.last().filter(|_| more).map(encode_cursor);
    Ok(Page { installations, next_cursor, changes_cursor })
}

/// With what it is a part of, and what is a part of it.
pub(crate) async fn related(pool: &PgPool, found: InstallationView) -> Result<Related, FindError> {
    let mut connection = database::acquire(pool).await?;
    Ok(relatives::of(&mut connection, found).await?)
}

pub(crate) async fn show(
    pool: &PgPool,
    reach: &Reach,
    which: &Which,
    id: &InstallationId,
) -> Result<InstallationView, FindError> {
    let mut connection = database::acquire(pool).await?;
    let mut matching = installations::by_id(&mut connection, reach, id, which.selection()?).await?;
    if matching.len() > 1 {
        let candidates = matching.into_iter().map(Candidate::from);
        return Err(FindError::Ambiguous { candidates: candidates.take(CANDIDATES_MAX).collect() });
    }
    matching.pop().ok_or(FindError::NotFound)
}

/// The events of one installation. One that only has events of unknown kinds
/// has a history and no state.
pub(crate) async fn history(
    pool: &PgPool,
    reach: &Reach,
    which: &Which,
    id: &InstallationId,
    after: u64,
    limit: Option<u16>,
) -> Result<HistoryPage, FindError> {
    let limit = checked_limit(limit)?;
    let mut connection = database::acquire(pool).await?;
    let chosen = choose(&mut connection, reach, which, id).await?;
    let of = chosen.events();
    let mut events =
        journal::history(&mut connection, reach, &of, after, i64::from(limit) + 1).await?;
    let more = events.len() > usize::from(limit);
    events.truncate(usize::from(limit));
    let next_after = events.last().filter(|_| more).map(|last| last.sequence.0);
    Ok(HistoryPage { events, next_after })
}

/// The one that is meant, be it that only the journal knows it.
pub(crate) async fn choose(
    connection: &mut PgConnection,
    reach: &Reach,
    which: &Which,
    id: &InstallationId,
) -> Result<Chosen, FindError> {
    let Selection { source, .. } = which.selection()?;
    let of_source = Selection { source, ..Selection::default() };
    let known = installations::by_id(connection, reach, id, of_source).await?;
    let mut known: Vec<Candidate> = known.into_iter().map(Candidate::from).collect();
    if known.is_empty() {
        let in_journal = journal::known(connection, &reach.within(source), id).await?;
        known = in_journal.into_iter().map(Candidate::from).collect();
    }
    let (mut matching, others): (Vec<_>, Vec<_>) =
        known.into_iter().partition(|candidate| which.selects(candidate));
    if matching.len() > 1 {
        matching.truncate(CANDIDATES_MAX);
        return Err(FindError::Ambiguous { candidates: matching });
    }
    let Candidate { source, place, .. } = matching.pop().ok_or(FindError::NotFound)?;
    let others = others.into_iter().filter(|other| other.source == source);
    Ok(Chosen {
        other_places: others.map(|other| other.place).collect(),
        source: SourceName::parse(source).map_err(|error| sqlx::Error::Decode(error.into()))?,
        installation: id.clone(),
        place,
    })
}

impl Which {
    fn selection(&self) -> Result<Selection<'_>, FindError> {
        let Self { source, app_id, place } = self;
        without_nul([source, app_id, place])?;
        let (source, app_id) = (source.as_deref(), app_id.as_deref());
        Ok(Selection { source, app_id, place: place.as_deref() })
    }

    fn selects(&self, candidate: &Candidate) -> bool {
        let is = |wanted: &Option<String>, text| wanted.as_ref().is_none_or(|it| it == text);
        is(&self.source, &candidate.source)
            && is(&self.app_id, &candidate.app_id)
            && is(&self.place, &candidate.place)
    }
}

impl Chosen {
    /// This one and no other.
    pub(crate) fn which(&self) -> Which {
        let (source, place) = (self.source.to_string(), self.place.clone());
        Which { source: Some(source), app_id: None, place: Some(place) }
    }

    pub(crate) fn events(&self) -> EventsOf<'_> {
        let Self { source, installation, other_places, .. } = self;
        EventsOf { source, installation, other_places }
    }
}

impl From<InstallationView> for Candidate {
    fn from(view: InstallationView) -> Self {
        let InstallationView { source, app_id, place, status, .. } = view;
        Self { source, app_id, place, status: Some(status) }
    }
}

impl From<Known> for Candidate {
    fn from(Known { source, identity, .. }: Known) -> Self {
        Self {
            source: source.into(),
            app_id: identity.app_id.into(),
            place: identity.place.as_str().to_owned(),
            status: None,
        }
    }
}

/// A line for each.
fn listed(candidates: &[Candidate]) -> String {
    let line = |candidate: &Candidate| {
        let Candidate { source, app_id, place, status } = candidate;
        let status = status.as_deref().unwrap_or("without a state");
        format!("\n  source {source}, app {app_id}, place {place}: {status}")
    };
    candidates.iter().map(line).collect()
}

/// Postgres takes no NUL in a text.
fn without_nul<'a>(texts: impl IntoIterator<Item = &'a Option<String>>) -> Result<(), FindError> {
    let has_nul = texts.into_iter().flatten().any(|text| text.contains('\0'));
    if has_nul { Err(FindError::ContainsNul) } else { Ok(()) }
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
