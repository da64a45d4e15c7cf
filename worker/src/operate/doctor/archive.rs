//! Is the archive there, and as Postgres knows it?

use eventlog::archive::{Archive, LogIdentity, Storage};
use eventlog::connect::Connection;
use eventlog::status;
use sqlx::PgConnection;

use super::{Finding, in_time};
use crate::live::archive::require_known;
use crate::settings::ArchiveAccess;
use crate::store::archived;

/// `None` if there is none, and nothing needs one.
pub(super) async fn check(
    nats: &Connection,
    access: Option<&ArchiveAccess>,
    connection: &mut PgConnection,
) -> Option<Finding> {
    const CHECK: &str = "archive";
    let known = match archived::all(connection).await {
        Ok(known) => known,
        Err(error) => return Some(Finding::error(CHECK, &error.into())),
    };
    let Some(access) = access else {
        let last = known.last()?.last_sequence;
        let found =
            format!("events up to sequence {last} are in an archive that is not configured");
        return Some(Finding::failed(CHECK, found, "set worker.archive as it was"));
    };
    let asked = in_time(async {
        let log = LogIdentity::new(status::log(nats).await?.created_at);
        let chain = Archive::new(Storage::open(&access.location)?, log).chain().await?;
        require_known(&known, &chain)?;
        anyhow::Ok(chain)
    });
    Some(match asked.await {
        Err(error) => Finding::error(CHECK, &error),
        Ok(chain) => {
            let (segments, last) = (chain.segments().len(), chain.last_sequence());
            let unfinished = known.iter().any(|it| !it.trimmed || !it.journal_relieved);
            let found = format!("{segments} segments up to sequence {last}");
            if unfinished || known.len() < segments {
                let found = format!("{found}, of which some are not finished");
                Finding::warning(
                    CHECK,
                    found,
                    "`worker archive run` finishes them, or says why not",
                )
            } else {
                Finding::ok(CHECK, found)
            }
        }
    })
}
