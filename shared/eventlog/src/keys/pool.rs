//! Data keys that are ready: stored, and used by no event yet.
//!
//! A key is used soon after it was made, or never. Who seals takes one and waits for nothing. Where none is left, because the
//! log is away or slower than the callbacks, it waits within its budget.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::header::NATS_EXPECTED_STREAM;
use async_nats::jetstream::Context;
use domain::data_key::{DataKey, Page};
use domain::id::KEYS_IN_PAGE;
use domain::key_ring::SealingKey;
use jiff::Timestamp;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

use super::{Current, NEW_STREAM, new_subject};
use crate::connect::Connection;

/// Pages that are stored at a time.
const PAGES_AT_ONCE: usize = 8;
const STORE_TIMEOUT: Duration = Duration::from_secs(2);
const AGAIN_AFTER: Duration = Duration::from_millis(250);

/// How many keys are kept ready, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct PoolSettings {
    /// At least two pages.
    pub ready_max: usize,
    /// A key that nobody took for so long is never used: `worker keys collect`
    /// relies on it.
    pub unused_max: Duration,
    /// The wall clock: a machine that slept must not use what was collected meanwhile.
    pub now: fn() -> Timestamp,
}

/// A key, and when it was made.
struct Ready {
    key: DataKey,
    made_at: Timestamp,
}

pub struct DataKeyPool {
    settings: PoolSettings,
    ready: Mutex<VecDeque<Ready>>,
    /// One permit for each key that is ready.
    permits: Semaphore,
    taken: Notify,
}

impl DataKeyPool {
    /// Starts the task that keeps keys ready; it
    /// ends at `shutdown`, when those that are ready have to do.
    pub fn start(
        connection: &Connection,
        key: Current<SealingKey>,
        settings: PoolSettings,
        shutdown: CancellationToken,
    ) -> Arc<Self> {
        let ready_max = settings.ready_max.max(2 * usize::from(KEYS_IN_PAGE));
        let keys = Arc::new(Self {
            settings: PoolSettings { ready_max, ..settings },
            ready: Mutex::default(),
            permits: Semaphore::new(0),
            taken: Notify::new(),
        });
        let maker = Maker {
            jetstream: connection.with_timeout(STORE_TIMEOUT),
            key,
            keys: Arc::clone(&keys),
        };
        tokio::spawn(async move {
            tokio::select! {
                () = maker.run() => {}
                () = shutdown.cancelled() => {}
            }
        });
        keys
    }

    pub fn are_ready(&self) -> bool {
        self.ready() > 0
    }

    pub fn ready(&self) -> usize {
        self.permits.available_permits()
    }

    /// `None` if none was ready in time.
    pub async fn take(&self, within: Duration) -> Option<DataKey> {
        tokio::time::timeout(within, self.next()).await.ok()?
    }

    async fn next(&self) -> Option<DataKey> {
        loop {
            self.permits.acquire().await.ok()?.forget();
            let found = self.ready.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            self.taken.notify_one();
            // None if they were discarded meanwhile.
            if let Some(ready) = found.filter(|ready| !self.is_stale(ready)) {
                return Some(ready.key);
            }
        }
    }

    /// The stream may have lost the pages of those that are ready: what is sealed under
    /// such a key never opens.
    pub fn discard(&self) {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        self.permits.forget_permits(ready.len());
        ready.clear();
        drop(ready);
        self.taken.notify_one();
    }

    fn is_stale(&self, ready: &Ready) -> bool {
        let age = (self.settings.now)().duration_since(ready.made_at);
        // A clock that was set back says nothing about the age.
        age.is_negative() || age.unsigned_abs() > self.settings.unused_max
    }

    fn drop_stale(&self) {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        while ready.front().is_some_and(|oldest| self.is_stale(oldest)) {
            // Whoever has the last permit takes the key, and sees for itself.
            let Ok(permit) = self.permits.try_acquire() else { return };
            permit.forget();
            ready.pop_front();
        }
    }

    fn add(&self, page: &Page, made_at: Timestamp) {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        let before = ready.len();
        ready.extend(page.keys().map(|key| Ready { key, made_at }));
        let added = ready.len() - before;
        drop(ready);
        self.permits.add_permits(added);
    }

    /// Half of them are spent in a burst before storing pages competes with it.
    fn are_few(&self) -> bool {
        self.permits.available_permits() < self.settings.ready_max / 2
    }

    fn missing_pages(&self) -> usize {
        let missing = self.settings.ready_max.saturating_sub(self.permits.available_permits());
        missing / usize::from(KEYS_IN_PAGE)
    }
}

/// Makes a page and stores it. Its keys may be used once this returns.
pub async fn add_page(connection: &Connection, key: &SealingKey) -> anyhow::Result<Page> {
    store_new(&connection.jetstream, key).await
}

async fn store_new(jetstream: &Context, key: &SealingKey) -> anyhow::Result<Page> {
    let page = Page::generate()?;
    let sealed = page.seal(key)?;
    let mut headers = HeaderMap::new();
    headers.insert(NATS_EXPECTED_STREAM, NEW_STREAM);
    let (subject, body) = (new_subject(page.id()), sealed.as_str().to_owned().into());
    jetstream.publish_with_headers(subject, headers, body).await?.await?;
    Ok(page)
}

struct Maker {
    jetstream: Context,
    key: Current<SealingKey>,
    keys: Arc<DataKeyPool>,
}

impl Maker {
    async fn run(&self) {
        let mut last_problem = String::new();
        loop {
            while self.keys.missing_pages() > 0 {
                let count = self.keys.missing_pages().min(PAGES_AT_ONCE);
                let (key, made_at) = (self.key.get(), (self.keys.settings.now)());
                let stored = (0..count).map(|_| store_new(&self.jetstream, &key));
                for stored in futures_util::future::join_all(stored).await {
                    match stored {
                        Ok(page) => self.keys.add(&page, made_at),
                        Err(error) => {
                            let why = format!("{error:#}");
                            if why != last_problem {
                                tracing::warn!(why, "no data keys could be stored in {NEW_STREAM}");
                                last_problem = why;
                            }
                            tokio::time::sleep(AGAIN_AFTER).await;
                        }
                    }
                }
            }
            while !self.keys.are_few() {
                tokio::select! {
                    () = self.keys.taken.notified() => {}
                    () = tokio::time::sleep(self.keys.settings.unused_max / 2) => {
                        self.keys.drop_stale();
                    }
                }
            }
        }
    }
}
