//! Changing a page: with an operator's rights only, and nothing is destroyed
//! before what stands in its place was read back and opened.

use anyhow::{Context as _, bail, ensure};
use async_nats::HeaderMap;
use async_nats::header::{NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_EXPECTED_STREAM};
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{Info, RawMessageErrorKind, Stream};
use domain::data_key::Page;
use domain::id::PageId;
use domain::key_ring::KeyRing;

use super::{
    NEW_STREAM, STREAM, StoredPage, Version, changed_subject, last, new_subject, page, stream,
};
use crate::connect::Connection;

/// The first changed version of a page has none before it.
const NONE_BEFORE: u64 = 0;

/// What came of storing a page anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replaced {
    Yes,
    /// Somebody has changed it since it was read, and nothing happened.
    ChangedMeanwhile,
}

/// Stores a page anew, if it still is as it was when it was read, and destroys
/// what was stored of it before.
pub async fn replace(
    connection: &Connection,
    ring: &KeyRing,
    new: &Page,
    read_at: Version,
) -> anyhow::Result<Replaced> {
    let before = match read_at {
        Version::New { .. } => NONE_BEFORE,
        Version::Changed { sequence } => sequence,
    };
    let sealed = new.seal(ring.sealing_key())?;
    let mut headers = HeaderMap::new();
    headers.insert(NATS_EXPECTED_STREAM, STREAM);
    headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, before.to_string());
    let (subject, body) = (changed_subject(new.id()), sealed.as_str().to_owned().into());
    let sent = match connection.jetstream.publish_with_headers(subject, headers, body).await {
        Ok(sent) => sent.await,
        Err(error) => Err(error),
    };
    let sequence = match sent {
        Ok(ack) => ack.sequence,
        Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => {
            return Ok(Replaced::ChangedMeanwhile);
        }
        Err(error) => return Err(error).context("storing a page of data keys"),
    };
    let stored = page(connection, new.id()).await?;
    if stored.version == (Version::Changed { sequence }) {
        let opened =
            stored.open(ring).with_context(|| format!("page {}, stored anew", new.id()))?;
        ensure!(opened.has_keys_of(new), "page {} was stored, and holds other keys", new.id());
        destroy_former(connection, &stored, &opened).await?;
    }
    // Whoever has changed it again has begun with ours, and destroys what came before.
    Ok(Replaced::Yes)
}

/// Destroys every version of a page but this one, which was opened: they are
/// overwritten on disk.
pub async fn destroy_former(
    connection: &Connection,
    kept: &StoredPage,
    opened: &Page,
) -> anyhow::Result<()> {
    let (id, Version::Changed { sequence }) = (&kept.id, kept.version) else { return Ok(()) };
    ensure!(opened.id() == id, "page {id} is kept, and {} was opened", opened.id());
    delete_up_to(connection, id, sequence - 1).await?;
    delete_new(connection, id).await
}

/// Destroys every version of a page.
pub async fn remove(connection: &Connection, id: &PageId) -> anyhow::Result<()> {
    delete_new(connection, id).await?;
    delete_up_to(connection, id, u64::MAX).await
}

/// Every version of a page that is stored, the newest first.
pub async fn versions(connection: &Connection, id: &PageId) -> anyhow::Result<Vec<StoredPage>> {
    let changed = stream(connection, STREAM).await?;
    let mut found = Vec::new();
    let mut from = 1;
    while let Some(message) = first(&changed, id, from).await? {
        from = message.sequence + 1;
        found.push(StoredPage::changed(id, &message)?);
    }
    found.reverse();
    let made = stream(connection, NEW_STREAM).await?;
    if let Some(message) = last(&made, &new_subject(id)).await? {
        found.push(StoredPage::new(id, &message)?);
    }
    Ok(found)
}

async fn first(
    stream: &Stream<Info>,
    id: &PageId,
    from: u64,
) -> anyhow::Result<Option<StreamMessage>> {
    match stream.get_first_raw_message_by_subject(changed_subject(id), from).await {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(error).context("looking for former versions of a page"),
    }
}

async fn delete_up_to(connection: &Connection, id: &PageId, end: u64) -> anyhow::Result<()> {
    let stream = stream(connection, STREAM).await?;
    let mut found = first(&stream, id, 1).await?.map(|message| message.sequence);
    while let Some(sequence) = found.filter(|sequence| *sequence <= end) {
        // Someone else may have been faster.
        let deleted = stream.delete_message(sequence).await;
        let next = first(&stream, id, 1).await?.map(|message| message.sequence);
        if next == Some(sequence) {
            deleted.context("destroying a former version of a page")?;
            bail!("page {id} at sequence {sequence} was deleted and is there still");
        }
        found = next;
    }
    Ok(())
}

/// Once: whoever may store new pages may store another one of this name, which
/// counts less than the changed one.
async fn delete_new(connection: &Connection, id: &PageId) -> anyhow::Result<()> {
    let (stream, subject) = (stream(connection, NEW_STREAM).await?, new_subject(id));
    let Some(message) = last(&stream, &subject).await? else { return Ok(()) };
    let deleted = stream.delete_message(message.sequence).await;
    let next = last(&stream, &subject).await?;
    if next.is_some_and(|next| next.sequence == message.sequence) {
        deleted.context("destroying a page as it was made")?;
        bail!("page {id} was deleted from {NEW_STREAM} and is there still");
    }
    Ok(())
}
