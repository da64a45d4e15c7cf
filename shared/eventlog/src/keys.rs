//! The stored pages of data keys: find one, store one, change one, go through
//! all.
//!
//! A page is one message in one of two streams. Ingest and the renewer store new
//! pages in [`NEW_STREAM`], where the server takes one message for each page and
//! refuses a second one. What becomes of a page later, sealed again or without
//! a key that was destroyed, is stored in [`STREAM`], where only operators may
//! publish, and counts before what stands in the other. So whoever has the
//! password of a service can add pages, which no secret is sealed under, and
//! change none.

use anyhow::Context as _;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{DirectGetErrorKind, Info, LastRawMessageErrorKind, Stream};
use domain::data_key::{DataKey, Page};
use domain::id::{DataKeyId, PageId};
use domain::key_ring::KeyRing;
use domain::seal::{OpenError, Sealed};
use jiff::Timestamp;

use crate::connect::Connection;
use crate::delivery::Delivery;
use crate::read::{Reader, Selection, Start};

mod change;
mod current;
mod pool;
pub mod report;

pub use change::{Replaced, destroy_former, remove, replace, versions};
pub use current::Current;
pub use pool::{DataKeyPool, PoolSettings, add_page};

/// The stream of changed pages, and of all pages from before there were two.
pub const STREAM: &str = "DATA_KEYS";
/// The stream of pages as they were made.
pub const NEW_STREAM: &str = "NEW_DATA_KEYS";
/// First tokens of their subjects; the second is the id of a page.
const CHANGED: &str = "data_keys";
const NEW: &str = "new_data_keys";

/// The subjects of every changed page.
pub(crate) fn changed_subjects() -> String {
    format!("{CHANGED}.*")
}

/// The subjects of every new page.
pub(crate) fn new_subjects() -> String {
    format!("{NEW}.*")
}

fn changed_subject(page: &PageId) -> String {
    format!("{CHANGED}.{page}")
}

fn new_subject(page: &PageId) -> String {
    format!("{NEW}.{page}")
}

/// Where a version of a page stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// As it was made, in [`NEW_STREAM`].
    New { sequence: u64 },
    /// As an operator stored it, in [`STREAM`].
    Changed { sequence: u64 },
}

/// A page as it is stored, and where.
pub struct StoredPage {
    pub id: PageId,
    pub version: Version,
    pub stored_at: Timestamp,
    pub sealed: Sealed,
}

impl StoredPage {
    pub fn open(&self, ring: &KeyRing) -> Result<Page, OpenError> {
        Page::open(ring, self.id.clone(), &self.sealed)
    }

    fn of(id: &PageId, message: &StreamMessage, version: Version) -> anyhow::Result<Self> {
        Ok(Self {
            id: id.clone(),
            version,
            stored_at: Timestamp::from_nanosecond(message.time.unix_timestamp_nanos())?,
            sealed: sealed(&message.payload),
        })
    }

    fn changed(id: &PageId, message: &StreamMessage) -> anyhow::Result<Self> {
        Self::of(id, message, Version::Changed { sequence: message.sequence })
    }

    fn new(id: &PageId, message: &StreamMessage) -> anyhow::Result<Self> {
        Self::of(id, message, Version::New { sequence: message.sequence })
    }
}

fn sealed(payload: &[u8]) -> Sealed {
    Sealed::from_stored(String::from_utf8_lossy(payload).into_owned())
}

/// There is no page of this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "there is no page {0} in the streams {STREAM} and {NEW_STREAM}: were they restored from an older backup?"
)]
pub struct NoSuchPage(pub PageId);

async fn stream(connection: &Connection, name: &str) -> anyhow::Result<Stream<Info>> {
    Ok(connection.stream(name).await?)
}

/// What counts of a page, as the streams' leaders have it: whoever changes a
/// page must not start from what a follower has not heard yet.
pub async fn page(connection: &Connection, id: &PageId) -> anyhow::Result<StoredPage> {
    let changed = stream(connection, STREAM).await?;
    if let Some(found) = last(&changed, &changed_subject(id)).await? {
        return StoredPage::changed(id, &found);
    }
    let made = stream(connection, NEW_STREAM).await?;
    if let Some(found) = last(&made, &new_subject(id)).await? {
        return StoredPage::new(id, &found);
    }
    // Somebody changed it while we looked.
    let found = last(&changed, &changed_subject(id)).await?;
    StoredPage::changed(id, &found.ok_or_else(|| NoSuchPage(id.clone()))?)
}

async fn last(stream: &Stream<Info>, subject: &str) -> anyhow::Result<Option<StreamMessage>> {
    match stream.get_last_raw_message_by_subject(subject).await {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(error).context("reading a page of data keys"),
    }
}

/// `None` if it was destroyed.
pub async fn key(
    connection: &Connection,
    ring: &KeyRing,
    id: &DataKeyId,
) -> anyhow::Result<Option<DataKey>> {
    let page = &id.page;
    let changed = || any_replica(connection, STREAM, changed_subject(page));
    // Both at once: most pages are never changed.
    let (first, made) =
        tokio::join!(changed(), any_replica(connection, NEW_STREAM, new_subject(page)));
    let found = match (first?, made?) {
        (Some(changed), _) => Some(StoredPage::changed(page, &changed)?),
        (None, Some(made)) => Some(StoredPage::new(page, &made)?),
        // Somebody changed it while we looked.
        (None, None) => match changed().await? {
            Some(changed) => Some(StoredPage::changed(page, &changed)?),
            None => None,
        },
    };
    let found = found.ok_or_else(|| NoSuchPage(PageId::clone(page)))?;
    Ok(found.open(ring)?.key(id.slot))
}

/// Of any replica, which the worker may ask.
async fn any_replica(
    connection: &Connection,
    stream: &str,
    subject: String,
) -> anyhow::Result<Option<StreamMessage>> {
    let stream = connection.jetstream.get_stream_no_info(stream).await?;
    match stream.direct_get_last_for_subject(subject).await {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context("reading a page of data keys"),
    }
}

/// Versions that are stored beside the last one of their page in [`STREAM`]:
/// someone was interrupted before they were destroyed.
pub async fn former_versions(connection: &Connection) -> anyhow::Result<u64> {
    let state = stream(connection, STREAM).await?.cached_info().state.clone();
    Ok(state.messages.saturating_sub(state.subjects_count))
}

/// The last version of every page in each stream, new pages first: so a page
/// that is changed meanwhile may come twice, and is never left out.
pub struct Pages {
    made: Reader,
    changed: Reader,
}

impl Pages {
    pub async fn open(connection: &Connection) -> anyhow::Result<Self> {
        let of = |stream, subjects| {
            let all = Selection::of_all(stream, subjects, Start::LastOfEachSubject);
            Reader::open(connection, all)
        };
        let made = of(NEW_STREAM, new_subjects()).await?;
        Ok(Self { made, changed: of(STREAM, changed_subjects()).await? })
    }

    pub fn count(&self) -> u64 {
        self.made.count + self.changed.count
    }

    pub async fn next(&mut self) -> anyhow::Result<Option<StoredPage>> {
        if let Some(message) = self.made.next().await? {
            let version = Version::New { sequence: message.sequence.0 };
            return stored(&message, version).map(Some);
        }
        let Some(message) = self.changed.next().await? else { return Ok(None) };
        let version = Version::Changed { sequence: message.sequence.0 };
        stored(&message, version).map(Some)
    }
}

fn stored(message: &Delivery, version: Version) -> anyhow::Result<StoredPage> {
    let id = message.subject.rsplit('.').next().unwrap_or_default();
    let id = PageId::parse(id).with_context(|| format!("the subject {}", message.subject))?;
    let stored_at = message.published_at;
    Ok(StoredPage { id, version, stored_at, sealed: sealed(&message.body) })
}
