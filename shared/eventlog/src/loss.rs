//! Has a stream lost what it acknowledged? A server whose disk was put back to an
//! older state goes on as if nothing had happened. If the disk holds the journal,
//! too, the two agree, and only who remembers can tell: each service does, while it
//! runs.

use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::connect::Connection;
use crate::status;
use crate::{keys, message};

const LOOK_EVERY: Duration = Duration::from_secs(10);
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(250);

/// How often the log or the data keys were found to have lost something, while this
/// process has been running.
pub type Losses = watch::Receiver<u64>;

/// Looks again and again, and as soon as a lost connection is back.
pub fn watch(connection: Connection, shutdown: CancellationToken) -> Losses {
    let (sender, receiver) = watch::channel(0);
    tokio::spawn(async move {
        tokio::select! {
            () = look_for_ever(&connection, &sender) => {}
            () = shutdown.cancelled() => {}
        }
    });
    receiver
}

async fn look_for_ever(connection: &Connection, losses: &watch::Sender<u64>) {
    let mut streams = [message::STREAM, keys::NEW_STREAM].map(|name| (name, None));
    loop {
        let mut wait = LOOK_EVERY;
        for (name, known) in &mut streams {
            // What is acknowledged while the server answers comes on top.
            let appended = if *name == message::STREAM { connection.appended_to().0 } else { 0 };
            let Ok(stream) = status::stream(connection, name).await else {
                wait = LOOK_AGAIN_AFTER;
                continue;
            };
            let now = Extent { created_at: stream.created_at, last: stream.last_sequence };
            let at_least = known.unwrap_or(now).at_least(appended);
            if at_least.was_lost(now) {
                tracing::error!(
                    stream = name,
                    ended_at = at_least.last,
                    ends_at = now.last,
                    "the stream has lost what it had acknowledged: see `worker restore`"
                );
                connection.forget_appended();
                losses.send_modify(|losses| *losses += 1);
            }
            *known = Some(now);
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = async { connection.lost().await; connection.connected().await } => {}
        }
    }
}

/// What is known of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Extent {
    created_at: Timestamp,
    last: u64,
}

impl Extent {
    fn at_least(self, appended: u64) -> Self {
        Self { last: self.last.max(appended), ..self }
    }

    fn was_lost(self, now: Self) -> bool {
        now.created_at != self.created_at || now.last < self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_ends_earlier_or_is_another_has_lost_something() {
        let (old, new) = (Timestamp::UNIX_EPOCH, Timestamp::MAX);
        let known = Extent { created_at: old, last: 7 };
        for (appended, now, was_lost) in [
            (0, Extent { created_at: old, last: 7 }, false),
            (0, Extent { created_at: old, last: 8 }, false),
            (0, Extent { created_at: old, last: 6 }, true),
            (9, Extent { created_at: old, last: 8 }, true),
            (9, Extent { created_at: old, last: 9 }, false),
            (0, Extent { created_at: new, last: 9 }, true),
        ] {
            assert_eq!(known.at_least(appended).was_lost(now), was_lost, "{appended} {now:?}");
        }
    }
}
