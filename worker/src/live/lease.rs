//! What one worker at a time does. It holds a lock of a session of its own; when that ends,
//! another worker takes over.

use std::time::Duration;

use sqlx::{Connection as _, PgConnection, PgPool};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::error_chain::chain;
use crate::store::database;

/// To see that the lock is still ours, or whether it is free.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Sooner than Postgres gives up a session that is cut off, and with it the lock.
const LOST_AFTER: Duration = Duration::from_secs(10);

/// What is done by one worker at a time.
pub(crate) trait Alone: Sync {
    /// The lock whose holder does it.
    const LOCK: i32;

    /// Does it until it is `over`.
    fn work(&self, over: CancellationToken) -> impl Future<Output = ()> + Send;

    /// Now and then, with the session that holds the lock: that shows that it lives.
    fn check(
        &self,
        session: &mut PgConnection,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
}

/// Works whenever it is this worker's turn, until `shutdown`.
pub(crate) async fn work_alone<T: Alone>(task: &T, pool: &PgPool, shutdown: &CancellationToken) {
    let mut waiting = None;
    while !shutdown.is_cancelled() {
        match timeout(LOST_AFTER, take(&mut waiting, pool, T::LOCK)).await {
            Ok(Ok(Some(mut session))) => {
                let over = shutdown.child_token();
                tokio::join!(task.work(over.clone()), hold(task, &mut session, &over));
                timeout(LOST_AFTER, session.close()).await.ok();
            }
            Ok(Ok(None)) => {}
            Ok(Err(error)) => {
                tracing::debug!(error = chain(&error), "whose turn it is is not known");
                waiting = None;
            }
            Err(_elapsed) => waiting = None,
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = shutdown.cancelled() => {}
        }
    }
}

/// The session that has the lock. `None` if another worker's has it: this one waits for its turn.
async fn take(
    waiting: &mut Option<PgConnection>,
    pool: &PgPool,
    lock: i32,
) -> Result<Option<PgConnection>, sqlx::Error> {
    let mut session = match waiting.take() {
        Some(session) => session,
        None => database::connect_alone(pool).await?,
    };
    if database::try_lock(&mut session, lock).await? {
        return Ok(Some(session));
    }
    *waiting = Some(session);
    Ok(None)
}

async fn hold(task: &impl Alone, session: &mut PgConnection, over: &CancellationToken) {
    while !over.is_cancelled() {
        let why = match timeout(LOST_AFTER, task.check(session)).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(chain(&error)),
            Err(_elapsed) => Some("Postgres does not answer".to_owned()),
        };
        if let Some(why) = why {
            tracing::warn!(why, "another worker may take over now");
            over.cancel();
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = over.cancelled() => {}
        }
    }
}
