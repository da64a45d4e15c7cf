//! Reads the log into the table of `store::log_index`, for the commands that compare
//! the log with something else.

use anyhow::bail;
use eventlog::archive::HistoryReader;
use eventlog::delivery::Delivery;
use sqlx::PgConnection;
use tokio_util::sync::CancellationToken;

use crate::operate::exit::Interrupted;
use crate::operate::progress::Progress;
use crate::store::log_index::{self, Entries};

/// Makes the table, and fills it with what `reader` has up to the sequence `target`.
/// Says how many events there were.
pub(super) async fn index_log(
    connection: &mut PgConnection,
    mut reader: HistoryReader,
    target: u64,
    is_archived: impl Fn(&Delivery) -> bool,
    shutdown: &CancellationToken,
) -> anyhow::Result<u64> {
    log_index::create(connection).await?;
    let mut progress = Progress::new("comparing events", target);
    let (mut entries, mut count) = (Entries::default(), 0);
    while let Some(delivery) = reader.next().await? {
        count += 1;
        entries.push(&delivery, is_archived(&delivery));
        if entries.is_full() {
            if shutdown.is_cancelled() {
                bail!(Interrupted);
            }
            progress.add(entries.save(connection).await?);
        }
    }
    progress.add(entries.save(connection).await?);
    progress.finish();
    Ok(count)
}
