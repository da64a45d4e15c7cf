//! The stored pages of data keys: read one, rewrite one, go through all.

use anyhow::{Context as _, bail};
use async_nats::header::{NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_EXPECTED_STREAM};
use async_nats::jetstream;
use async_nats::jetstream::consumer::pull::{Ordered, OrderedConfig};
use async_nats::jetstream::consumer::{Consumer, DeliverPolicy};
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::stream::Stream;
use async_nats::{Client, HeaderMap};
use futures_util::stream::StreamExt as _;
use shared::data_key::{DataKey, DataKeyId, Page};
use shared::id::PageId;
use shared::seal::{KeyRing, OpenError, Sealed, SealingNonce};
use shared::stream::{KEYS_STREAM, KEYS_SUBJECT_ROOT, keys_subject};
use tokio::time::timeout;

use crate::log_reader::SILENCE_MAX;

/// A page as it is stored, and where.
pub(crate) struct StoredPage {
    pub(crate) id: PageId,
    pub(crate) sequence: u64,
    pub(crate) sealed: Sealed,
}

impl StoredPage {
    pub(crate) fn open(&self, ring: &KeyRing) -> Result<Page, OpenError> {
        Page::open(ring, self.id.clone(), &self.sealed)
    }
}

pub(crate) async fn stream(client: &Client) -> anyhow::Result<Stream> {
    let stream = jetstream::new(client.clone()).get_stream(KEYS_STREAM).await;
    stream.with_context(|| format!("asking for stream {KEYS_STREAM}: was `worker migrate` run?"))
}

/// The last version of a page, as the stream's leader has it: whoever rewrites
/// a page must not start from what a follower has not heard yet.
pub(crate) async fn page(stream: &Stream, id: &PageId) -> anyhow::Result<StoredPage> {
    let found = stream.get_last_raw_message_by_subject(&keys_subject(id)).await;
    let message = found.with_context(|| missing(id))?;
    Ok(stored(id, message.sequence, &message.payload))
}

fn missing(id: &PageId) -> String {
    format!("reading page {id} in stream {KEYS_STREAM}: was it restored from an older backup?")
}

fn stored(id: &PageId, sequence: u64, payload: &[u8]) -> StoredPage {
    let sealed = Sealed::from_stored(String::from_utf8_lossy(payload).into_owned());
    StoredPage { id: id.clone(), sequence, sealed }
}

/// `None` if it was destroyed.
pub(crate) async fn key(
    client: &Client,
    ring: &KeyRing,
    id: &DataKeyId,
) -> anyhow::Result<Option<DataKey>> {
    // Of any replica, which the worker may ask.
    let found = stream(client).await?.direct_get_last_for_subject(keys_subject(&id.page)).await;
    let message = found.with_context(|| missing(&id.page))?;
    Ok(stored(&id.page, message.sequence, &message.payload).open(ring)?.key(id.slot))
}

/// Stores a page anew, and destroys what was stored of it before. Nothing
/// happens, and the answer is false, if someone else has changed it meanwhile.
pub(crate) async fn replace(
    client: &Client,
    ring: &KeyRing,
    page: &Page,
    read_at: u64,
) -> anyhow::Result<bool> {
    let sealed = page.seal(ring, &SealingNonce::random())?;
    let mut headers = HeaderMap::new();
    headers.insert(NATS_EXPECTED_STREAM, KEYS_STREAM);
    headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, read_at.to_string());
    let jetstream = jetstream::new(client.clone());
    let (subject, body) = (keys_subject(page.id()), sealed.as_str().to_owned().into());
    let sent = jetstream.publish_with_headers(subject, headers, body).await?.await;
    let last = match sent {
        Ok(ack) => ack.sequence,
        Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => return Ok(false),
        Err(error) => return Err(error).context("storing a page of data keys"),
    };
    destroy_former(client, page.id(), last).await?;
    Ok(true)
}

/// Every version before `last`, overwritten on disk.
pub(crate) async fn destroy_former(client: &Client, id: &PageId, last: u64) -> anyhow::Result<()> {
    let stream = stream(client).await?;
    let first = async || -> anyhow::Result<u64> {
        let found = stream.get_first_raw_message_by_subject(keys_subject(id), 1).await;
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
pub(crate) async fn former_versions(client: &Client) -> anyhow::Result<u64> {
    let state = stream(client).await?.cached_info().state.clone();
    Ok(state.messages.saturating_sub(state.subjects_count))
}

/// The last version of every page, one after the other.
pub(crate) struct Pages {
    messages: Option<Ordered>,
    pub(crate) count: u64,
}

impl Pages {
    pub(crate) async fn open(client: &Client) -> anyhow::Result<Self> {
        let config = OrderedConfig {
            description: Some("reads the data keys once".to_owned()),
            deliver_policy: DeliverPolicy::LastPerSubject,
            filter_subject: format!("{KEYS_SUBJECT_ROOT}.*"),
            ..OrderedConfig::default()
        };
        let consumer: Consumer<OrderedConfig> = stream(client)
            .await?
            .create_consumer(config)
            .await
            .context("reading the data keys needs a NATS user that may create consumers")?;
        let count = consumer.cached_info().num_pending;
        let messages = if count == 0 { None } else { Some(consumer.messages().await?) };
        Ok(Self { messages, count })
    }

    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<StoredPage>> {
        let Some(messages) = &mut self.messages else { return Ok(None) };
        let message =
            timeout(SILENCE_MAX, messages.next()).await.context("waiting for data keys")?;
        let message = message.context("the data keys ended too early")??;
        let (sequence, pending) = match message.info() {
            Ok(info) => (info.stream_sequence, info.pending),
            Err(error) => bail!("a message without a sequence: {error}"),
        };
        if pending == 0 {
            self.messages = None;
        }
        let id = message.subject.rsplit('.').next().unwrap_or_default();
        let id = PageId::parse(id).with_context(|| format!("the subject {}", message.subject))?;
        Ok(Some(stored(&id, sequence, &message.payload)))
    }
}
