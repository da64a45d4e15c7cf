//! The change feed as it is followed: readers that wait for what comes next, and what is old
//! enough to go.

use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream::{self, Stream};
use sqlx::PgPool;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::error_chain::chain;
use crate::store::changes::{self, ChangeView};
use crate::store::database;
use crate::store::feed::{self, Cursor, FeedError, Found, Query};
use crate::store::reach::Reach;

/// How soon a reader that waits hears of a change.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const PRUNE_EVERY: Duration = Duration::from_secs(600);
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(15);
/// A reader comes again after it, so that a token that ended or was deleted reads no more.
const STREAM_MAX: Duration = Duration::from_secs(300);
const RECONNECT_AFTER: Duration = Duration::from_millis(500);

/// The feed, for those who follow it.
#[derive(Clone)]
pub(crate) struct Feed {
    pool: PgPool,
    /// Its last position.
    end: watch::Receiver<u64>,
    shutdown: CancellationToken,
}

/// What looks for new changes, on behalf of all who wait, and prunes.
struct Watcher {
    pool: PgPool,
    end: watch::Sender<u64>,
    keep_for: Duration,
}

pub(crate) fn start(pool: PgPool, keep_for: Duration, shutdown: CancellationToken) -> Feed {
    let (end, watched) = watch::channel(0);
    let watcher = Watcher { pool: pool.clone(), end, keep_for };
    tokio::spawn(watcher.run(shutdown.clone()));
    Feed { pool, end: watched, shutdown }
}

impl Watcher {
    async fn run(self, shutdown: CancellationToken) {
        let mut prune_at = Instant::now();
        while !shutdown.is_cancelled() {
            if let Err(error) = self.look().await {
                tracing::debug!(error = chain(&error), "the end of the change feed is not known");
            }
            if Instant::now() >= prune_at {
                match self.prune().await {
                    // There may be more.
                    Ok(pruned) if pruned > 0 => {
                        tracing::info!(pruned, "old changes were deleted from the feed");
                    }
                    Ok(_) => prune_at = Instant::now() + PRUNE_EVERY,
                    Err(error) => {
                        tracing::warn!(error = chain(&error), "old changes are not deleted");
                        prune_at = Instant::now() + PRUNE_EVERY;
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = shutdown.cancelled() => {}
            }
        }
    }

    async fn look(&self) -> Result<(), sqlx::Error> {
        // Nobody waits, but for the feed itself.
        if self.end.receiver_count() <= 1 {
            return Ok(());
        }
        let mut connection = database::acquire(&self.pool).await?;
        let last = changes::ends(&mut connection).await?.last;
        self.end.send_if_modified(|end| std::mem::replace(end, last) != last);
        Ok(())
    }

    async fn prune(&self) -> Result<u64, sqlx::Error> {
        let mut connection = database::acquire(&self.pool).await?;
        changes::prune(&mut connection, self.keep_for).await
    }
}

impl Feed {
    /// Nobody waits any longer when the worker ends.
    pub(crate) async fn ends(&self) {
        self.shutdown.cancelled().await;
    }

    /// What comes after the cursor. If that is nothing, the first that comes within `wait`.
    pub(crate) async fn next(
        &self,
        reach: &Reach,
        mut query: Query,
        wait: Duration,
    ) -> Result<(Vec<ChangeView>, Cursor), FeedError> {
        let until = Instant::now() + wait;
        let mut end = (!wait.is_zero()).then(|| self.end.clone());
        let mut began = None;
        loop {
            if let Some(end) = &mut end {
                end.mark_unchanged();
            }
            let Found { changes, cursor, looked_to } =
                feed::read(&self.pool, reach, &query).await?;
            let is_over = Instant::now() >= until || self.shutdown.is_cancelled();
            let Some(end) = end.as_mut().filter(|_| changes.is_empty() && !is_over) else {
                // How far it was looked is not told to who does not reach everything.
                let hides = changes.is_empty() && *reach != Reach::Everything;
                return Ok((changes, began.filter(|_| hides).unwrap_or(cursor)));
            };
            began.get_or_insert(cursor);
            query.after = Some(looked_to);
            tokio::select! {
                // An error means that the watcher has ended.
                _ = end.changed() => {}
                () = tokio::time::sleep_until(until) => {}
                () = self.shutdown.cancelled() => {}
            }
        }
    }

    /// Server-sent events, each with the cursor after it as its ID
    /// (<https://html.spec.whatwg.org/multipage/server-sent-events.html>).
    pub(crate) fn stream(
        self,
        reach: Reach,
        query: Query,
    ) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
        let ends_at = Instant::now() + STREAM_MAX;
        let began = stream::once(async { Ok(Event::default().retry(RECONNECT_AFTER)) });
        let state = (self, reach, query, Vec::new().into_iter());
        let events = stream::unfold(state, move |(feed, reach, mut query, mut ready)| async move {
            loop {
                if let Some(event) = ready.next() {
                    return Some((Ok(event), (feed, reach, query, ready)));
                }
                let left = ends_at.saturating_duration_since(Instant::now());
                if left.is_zero() || feed.shutdown.is_cancelled() {
                    return None;
                }
                match feed.next(&reach, query.clone(), left.min(KEEP_ALIVE_EVERY)).await {
                    Ok((found, cursor)) => {
                        ready = events(&found, &cursor).into_iter();
                        query.after = Some(cursor);
                    }
                    // The reader comes again and is told why.
                    Err(_) => return None,
                }
            }
        });
        let events = futures_util::StreamExt::chain(began, events);
        Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE_EVERY))
    }
}

fn events(found: &[ChangeView], cursor: &Cursor) -> Vec<Event> {
    let event = |change: &ChangeView| {
        let at = cursor.at(change.position);
        let data = serde_json::to_string(change).unwrap_or_default();
        Event::default().id(at.to_string()).event(change.r#type.clone()).data(data)
    };
    found.iter().map(event).collect()
}
