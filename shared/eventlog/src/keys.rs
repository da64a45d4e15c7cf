//! The stored pages of data keys: store one, read one, rewrite one, go through
//! all. A page is one message; to destroy a key is to store its page without it
//! and to overwrite what was stored before.

use anyhow::{Context as _, bail};
use async_nats::HeaderMap;
use async_nats::header::{NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_EXPECTED_STREAM};
use async_nats::jetstream::Context;
use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::stream::{Info, Stream};
use domain::data_key::{DataKey, Page};
use domain::id::{DataKeyId, PageId};
use domain::seal::{KeyRing, OpenError, Sealed, SealingNonce};

use crate::connect::Connection;
use crate::read::{Reader, Selection, Start};

mod pool;
mod ring;

pub use pool::DataKeyPool;
pub use ring::CurrentRing;

/// The stream that keeps the pages.
pub const STREAM: &str = "DATA_KEYS";
/// First token of its subjects; the second is the id of a page.
const SUBJECT_ROOT: &str = "data_keys";
/// The first version of a page has none before it.
const NONE_BEFORE: u64 = 0;

/// The subjects of every page.
pub(crate) fn all_subjects() -> String {
    format!("{SUBJECT_ROOT}.*")
}

fn subject(page: &PageId) -> String {
    format!("{SUBJECT_ROOT}.{page}")
}

/// A page as it is stored, and where.
pub struct StoredPage {
    pub id: PageId,
    pub sequence: u64,
    pub sealed: Sealed,
}

impl StoredPage {
    pub fn open(&self, ring: &KeyRing) -> Result<Page, OpenError> {
        Page::open(ring, self.id.clone(), &self.sealed)
    }
}

async fn stream(connection: &Connection) -> anyhow::Result<Stream<Info>> {
    Ok(connection.stream(STREAM).await?)
}

/// Stores the next version of a page, provided that `before` is the sequence of
/// the last one.
async fn store(
    jetstream: &Context,
    ring: &KeyRing,
    page: &Page,
    before: u64,
) -> anyhow::Result<Result<u64, PublishError>> {
    let sealed = page.seal(ring, &SealingNonce::random())?;
    let mut headers = HeaderMap::new();
    headers.insert(NATS_EXPECTED_STREAM, STREAM);
    headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, before.to_string());
    let body = sealed.as_str().to_owned().into();
    let sent = match jetstream.publish_with_headers(subject(page.id()), headers, body).await {
        Ok(sent) => sent.await,
        Err(error) => Err(error),
    };
    Ok(sent.map(|ack| ack.sequence))
}

/// Makes a page and stores it. Its keys may be used once this returns.
pub async fn add_page(connection: &Connection, ring: &KeyRing) -> anyhow::Result<Page> {
    store_new(&connection.jetstream, ring).await
}

async fn store_new(jetstream: &Context, ring: &KeyRing) -> anyhow::Result<Page> {
    let page = Page::generate()?;
    // Another page of this name must not be replaced.
    store(jetstream, ring, &page, NONE_BEFORE).await??;
    Ok(page)
}

/// The last version of a page, as the stream's leader has it: whoever rewrites
/// a page must not start from what a follower has not heard yet.
pub async fn page(connection: &Connection, id: &PageId) -> anyhow::Result<StoredPage> {
    let found = stream(connection).await?.get_last_raw_message_by_subject(&subject(id)).await;
    let message = found.with_context(|| missing(id))?;
    Ok(stored(id, message.sequence, &message.payload))
}

fn missing(id: &PageId) -> String {
    format!("reading page {id} in stream {STREAM}: was it restored from an older backup?")
}

fn stored(id: &PageId, sequence: u64, payload: &[u8]) -> StoredPage {
    let sealed = Sealed::from_stored(String::from_utf8_lossy(payload).into_owned());
    StoredPage { id: id.clone(), sequence, sealed }
}

/// `None` if it was destroyed.
pub async fn key(
    connection: &Connection,
    ring: &KeyRing,
    id: &DataKeyId,
) -> anyhow::Result<Option<DataKey>> {
    // Of any replica, which the worker may ask.
    let found = stream(connection).await?.direct_get_last_for_subject(subject(&id.page)).await;
    let message = found.with_context(|| missing(&id.page))?;
    Ok(stored(&id.page, message.sequence, &message.payload).open(ring)?.key(id.slot))
}

/// Stores a page anew, and destroys what was stored of it before. Nothing
/// happens, and the answer is false, if someone else has changed it meanwhile.
pub async fn replace(
    connection: &Connection,
    ring: &KeyRing,
    page: &Page,
    read_at: u64,
) -> anyhow::Result<bool> {
    let last = match store(&connection.jetstream, ring, page, read_at).await? {
        Ok(sequence) => sequence,
        Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => return Ok(false),
        Err(error) => return Err(error).context("storing a page of data keys"),
    };
    destroy_former(connection, page.id(), last).await?;
    Ok(true)
}

/// Every version before `last`, overwritten on disk.
pub async fn destroy_former(connection: &Connection, id: &PageId, last: u64) -> anyhow::Result<()> {
    let stream = stream(connection).await?;
    let first = async || -> anyhow::Result<u64> {
        let found = stream.get_first_raw_message_by_subject(subject(id), 1).await;
        Ok(found.context("looking for former versions of a page")?.sequence)
    };
    let mut found = first().await?;
    while found < last {
        // It overwrites what the file holds. Someone else may have been faster.
        let deleted = stream.delete_message(found).await;
        let next = first().await?;
        if next == found {
            deleted.context("destroying a former version of a page")?;
            bail!("page {id} at sequence {found} was deleted and is there still");
        }
        found = next;
    }
    Ok(())
}

/// Versions that are stored beside the last one of their page: someone was
/// interrupted before they were destroyed.
pub async fn former_versions(connection: &Connection) -> anyhow::Result<u64> {
    let state = stream(connection).await?.cached_info().state.clone();
    Ok(state.messages.saturating_sub(state.subjects_count))
}

/// The last version of every page, one after the other.
pub struct Pages(Reader);

impl Pages {
    pub async fn open(connection: &Connection) -> anyhow::Result<Self> {
        let all = Selection::of_all(STREAM, all_subjects(), Start::LastOfEachSubject);
        Ok(Self(Reader::open(connection, all).await?))
    }

    pub fn count(&self) -> u64 {
        self.0.count
    }

    pub async fn next(&mut self) -> anyhow::Result<Option<StoredPage>> {
        let Some(message) = self.0.next().await? else { return Ok(None) };
        let id = message.subject.rsplit('.').next().unwrap_or_default();
        let id = PageId::parse(id).with_context(|| format!("the subject {}", message.subject))?;
        Ok(Some(stored(&id, message.sequence.0, &message.body)))
    }
}
