//! Every 2xx is looked for where it should be stored.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use async_nats::jetstream::{self, stream::Stream};
use eventlog::message::STREAM;
use futures_util::StreamExt as _;
use sqlx::Connection as _;
use tokio::time::timeout;

use crate::stack::{Stack, Subject};

const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Fails if one of the acknowledged callbacks is not stored.
pub(crate) async fn all_stored(stack: &Stack, acknowledged: &[u64]) -> Result<()> {
    let stored = match stack.kind {
        Subject::Nothing | Subject::Log => return Ok(()),
        Subject::PostgresInsert | Subject::Express { .. } => in_table(stack).await?,
        Subject::Mooring
        | Subject::MooringOnDisk
        | Subject::MooringTelling { .. }
        | Subject::PlainPublish
        | Subject::NonDurablePublish => in_log(stack).await?,
    };
    let missing = acknowledged.iter().filter(|number| !stored.contains(number)).count();
    if missing > 0 {
        bail!(
            "{}: {missing} of {} acknowledged callbacks are not stored",
            stack.kind.name(),
            acknowledged.len()
        );
    }
    Ok(())
}

async fn in_table(stack: &Stack) -> Result<HashSet<u64>> {
    let mut database = stack.database().await?;
    let keys: Vec<String> =
        sqlx::query_scalar("SELECT idempotency_key FROM installs").fetch_all(&mut database).await?;
    database.close().await?;
    Ok(keys.iter().filter_map(|key| number(key)).collect())
}

pub(crate) async fn stream(stack: &Stack) -> Result<Stream> {
    let options = async_nats::ConnectOptions::new()
        .user_and_password("admin".to_owned(), stack.nats.credentials().admin.clone())
        .custom_inbox_prefix("_INBOX_admin");
    let jetstream = jetstream::new(options.connect(stack.nats_url()).await?);
    jetstream.get_stream(STREAM).await.context("looking at the log")
}

async fn in_log(stack: &Stack) -> Result<HashSet<u64>> {
    let stream = stream(stack).await?;
    let mut left = stream.cached_info().state.messages;
    let config = pull::OrderedConfig {
        deliver_policy: DeliverPolicy::All,
        headers_only: true,
        ..pull::OrderedConfig::default()
    };
    let mut messages = stream.create_consumer(config).await?.messages().await?;
    let mut stored = HashSet::new();
    while left > 0 {
        let message = timeout(READ_TIMEOUT, messages.next()).await.context("reading the log")?;
        let message = message.context("the log ended early")??;
        let id = message.headers.as_ref().and_then(|headers| headers.get("Nats-Msg-Id"));
        stored.extend(id.and_then(|id| number(id.as_str())));
        left -= 1;
    }
    Ok(stored)
}

/// The number of a callback in its key or message ID.
fn number(text: &str) -> Option<u64> {
    let digits = text.split("instapp_").nth(1)?;
    let end = digits.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(digits.len());
    digits.get(..end)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_found_in_keys_and_message_ids() {
        assert_eq!(number("install:instapp_000000042"), Some(42));
        assert_eq!(number("blnk:install:instapp_000000042#00ff!ack_missed"), Some(42));
        assert_eq!(number("install:other"), None);
    }
}
