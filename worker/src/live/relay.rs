//! Copies the change feed into the stream `INSTALLATION_CHANGES`, each change once and in the
//! order of its position.

use std::time::Duration;

use eventlog::changes::{self as stream, Change};
use eventlog::connect::Connection;
use sqlx::{PgConnection, PgPool};
use tokio_util::sync::CancellationToken;

use crate::live::lease::{self, Alone};
use crate::store::changes::{self, ChangeView, ChangesOf, Ends};
use crate::store::database::{self, RELAY_LOCK};
use crate::store::reach::Reach;

const LOOK_EVERY: Duration = Duration::from_millis(200);
const AFTER_ERROR: Duration = Duration::from_secs(2);
/// Published at once.
const AT_ONCE: i64 = 256;

/// Copies the feed.
pub(crate) struct Relay {
    pub(crate) pool: PgPool,
    pub(crate) connection: Connection,
}

impl Alone for Relay {
    const LOCK: i32 = RELAY_LOCK;

    async fn check(&self, session: &mut PgConnection) -> Result<(), sqlx::Error> {
        database::is_alive(session).await
    }

    async fn work(&self, over: CancellationToken) {
        tracing::info!("changes are copied to {} by this worker", stream::STREAM);
        // Known while this worker alone adds to it.
        let mut last: Option<Option<String>> = None;
        while !over.is_cancelled() {
            let wait = match self.copy_next(last.take()).await {
                Ok((now, count)) => {
                    last = Some(now);
                    if count > 0 { Duration::ZERO } else { LOOK_EVERY }
                }
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "changes are not copied to NATS");
                    AFTER_ERROR
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = over.cancelled() => {}
            }
        }
    }
}

impl Relay {
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        lease::work_alone(&self, &self.pool, &shutdown).await;
    }

    /// Says what the last one is then, and how many were copied.
    async fn copy_next(
        &self,
        last: Option<Option<String>>,
    ) -> anyhow::Result<(Option<String>, usize)> {
        let last = match last {
            Some(known) => known,
            None => stream::last(&self.connection).await?,
        };
        let mut connection = database::acquire(&self.pool).await?;
        let Ends { feed, pruned, last: end } = changes::ends(&mut connection).await?;
        // Of another feed nothing is known: all that is kept comes again, under other ids.
        let position = last.as_deref().and_then(|id| position(id, &feed)).unwrap_or(pruned);
        let of = ChangesOf {
            after: position.max(pruned),
            to: end,
            limit: AT_ONCE,
            ..ChangesOf::default()
        };
        let found = changes::page(&mut connection, &Reach::Everything, &of).await?;
        drop(connection);
        let count = found.len();
        let changes = found.into_iter().map(|change| published(change, &feed));
        let changes = changes.collect::<Result<_, _>>()?;
        let last = stream::publish(&self.connection, last, changes).await?;
        Ok((last, count))
    }
}

fn published(change: ChangeView, feed: &str) -> Result<Change, serde_json::Error> {
    Ok(Change {
        id: id(feed, change.position),
        body: serde_json::to_vec(&change)?.into(),
        source: change.source,
        app_id: change.app_id,
        r#type: change.r#type,
        installation_id: change.installation_id,
        time: change.recorded_at.map(|at| at.to_string()),
    })
}

/// Of a change, wherever it is told.
pub(crate) fn id(feed: &str, position: u64) -> String {
    format!("chg_{feed}_{position}")
}

/// `None` if it is of another feed.
fn position(id: &str, feed: &str) -> Option<u64> {
    id.strip_prefix("chg_")?.strip_prefix(feed)?.strip_prefix('_')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_id_tells_where_to_go_on() {
        assert_eq!(position(&id("1a2b", 42), "1a2b"), Some(42));
        assert_eq!(position(&id("1a2b", 42), "3c4d"), None);
        assert_eq!(position("something else", "1a2b"), None);
    }
}
