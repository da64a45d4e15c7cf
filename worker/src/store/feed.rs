//! Reading the change feed, for the read API and the command line.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::Serialize;
use sqlx::{Connection as _, PgConnection, PgPool};

use crate::store::changes::{self, ChangeView, ChangesOf, Ends};
use crate::store::database;
use crate::store::reach::Reach;

pub(crate) const PAGE_DEFAULT: u16 = 100;
pub(crate) const PAGE_MAX: u16 = 1_000;

/// What a reader has seen: everything up to this position of this feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cursor {
    feed: String,
    pub(crate) position: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is not a cursor that was given out")]
pub(crate) struct NoCursor;

impl Cursor {
    pub(crate) fn of(feed: String, position: u64) -> Self {
        Self { feed, position }
    }

    /// Another position of the same feed.
    pub(crate) fn at(&self, position: u64) -> Self {
        Self { position, ..self.clone() }
    }
}

impl FromStr for Cursor {
    type Err = NoCursor;

    fn from_str(text: &str) -> Result<Self, NoCursor> {
        let (feed, position) = text.split_once('-').ok_or(NoCursor)?;
        let is_name = !feed.is_empty() && feed.bytes().all(|it| it.is_ascii_alphanumeric());
        // Postgres takes no larger one, and we gave none out.
        let position = position.parse().ok().filter(|it| i64::try_from(*it).is_ok());
        match (is_name, position) {
            (true, Some(position)) => Ok(Self { feed: feed.to_owned(), position }),
            _ => Err(NoCursor),
        }
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.feed, self.position)
    }
}

/// What is asked for.
#[derive(Debug, Default, Clone)]
pub(crate) struct Query {
    /// Without it from the oldest that is kept.
    pub(crate) after: Option<Cursor>,
    pub(crate) source: Option<String>,
    pub(crate) types: Option<Vec<String>>,
    pub(crate) limit: u16,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ChangesPage")]
pub(crate) struct FeedPage {
    pub(crate) changes: Vec<ChangeView>,
    /// Give it as `after` for what comes next.
    pub(crate) cursor: String,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum FeedError {
    /// A reader that goes on would pass over something.
    #[error(
        "the changes after this cursor are no longer there: list the installations, and go on from \
         its changes_cursor"
    )]
    Expired,
    #[error("reading from Postgres")]
    Postgres(#[from] sqlx::Error),
}

/// Where the feed ends now, for a reader that begins. A reader that does not reach everything is
/// not told how far others are.
pub(crate) async fn end(
    connection: &mut PgConnection,
    reach: &Reach,
) -> Result<Cursor, sqlx::Error> {
    let Ends { feed, pruned, last } = changes::ends(connection).await?;
    let position = match reach {
        Reach::Everything => last,
        Reach::Sources(_) | Reach::Apps { .. } => {
            changes::last_of(connection, reach).await?.unwrap_or_default().max(pruned)
        }
    };
    Ok(Cursor { feed, position })
}

/// What was found, and how far it was looked for.
pub(crate) struct Found {
    pub(crate) changes: Vec<ChangeView>,
    /// What a reader is given: it tells no more than its own changes do, unless it reaches all.
    pub(crate) cursor: Cursor,
    /// Nothing up to here is to be looked at again.
    pub(crate) looked_to: Cursor,
}

/// The changes after a cursor.
pub(crate) async fn read(pool: &PgPool, reach: &Reach, query: &Query) -> Result<Found, FeedError> {
    let mut connection = database::acquire(pool).await?;
    // Of one moment, or something could be pruned between the look at the ends and the read.
    let mut transaction = connection.begin().await?;
    database::see_one_moment(&mut transaction).await?;
    let Ends { feed, pruned, last } = changes::ends(&mut transaction).await?;
    let after = match &query.after {
        None => pruned,
        Some(cursor) if cursor.feed == feed && (pruned..=last).contains(&cursor.position) => {
            cursor.position
        }
        Some(_) => return Err(FeedError::Expired),
    };
    let of = ChangesOf {
        after,
        to: last,
        source: query.source.as_deref(),
        types: query.types.as_deref(),
        limit: i64::from(query.limit),
    };
    let changes = changes::page(&mut transaction, reach, &of).await?;
    transaction.commit().await?;
    let is_full = changes.len() >= usize::from(query.limit);
    let seen = changes.last().map_or(after, |change| change.position);
    let looked_to = Cursor { feed, position: if is_full { seen } else { last } };
    let cursor = match reach {
        Reach::Everything => looked_to.clone(),
        Reach::Sources(_) | Reach::Apps { .. } => looked_to.at(seen),
    };
    Ok(Found { changes, cursor, looked_to })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_as_it_is_written_and_no_other_text_is_one() {
        let cursor: Cursor = "1a2b3c4d5e6f-42".parse().unwrap();
        assert_eq!((cursor.position, cursor.to_string()), (42, "1a2b3c4d5e6f-42".to_owned()));
        for other in ["", "42", "-42", "a-", "a-b", "a--1", "a b-1", "a-9223372036854775808"] {
            assert_eq!(other.parse::<Cursor>(), Err(NoCursor), "{other}");
        }
    }
}
