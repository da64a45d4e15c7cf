//! The fold: from the events of one place to the installations in it.
//!
//! The result depends on the set of distinct events alone. Order of arrival,
//! duplicates and the number of workers change nothing, because the fold sorts
//! by what the events themselves say and never patches a former result. It has
//! no clock, no I/O, and cannot fail.
//!
//! The rules, for the installations of one place:
//! 1. An installation that was ever uninstalled is inactive. An install that
//!    comes late or again does not revive it. One that brings a secret which none
//!    had before the uninstall leaves it unverified: the secret is kept until an
//!    uninstall that is logged later, or a later installation, decides.
//! 2. Of the others the one that was installed last is active; it supersedes
//!    those before it. If not every install says when it happened, the one counts
//!    as last whose first install came last in the log. An installation that was
//!    uninstalled later still superseded them while it lived, so they do not come
//!    back; one that was over before another began superseded nothing.
//! 3. Of several installs of one installation the last one counts: same
//!    idempotency key, new secret means a replaced credential.
//! 4. Events of the same kind, installation, idempotency key and secret with
//!    other content contradict one another: one of them counts, and the others
//!    are history. It is the first that we acknowledged in time, because the
//!    platform holds to that one. If the answers to all of them were missed, it is
//!    the first in the log.
//! 5. An installation is unconfirmed if the platform may have missed our answer
//!    to its last change, because the platform may have cancelled that change. It
//!    is settled by a retry that was answered in time, by a later install that
//!    was, and by what a user granted since. A later installation settles it as
//!    well. An uninstall that was acknowledged in time settles every other one,
//!    before it or after it. An update and a renewed token settle nothing:
//!    platforms go on sending them for what is gone.
//! 6. An erasure removes the credentials that came before it in the log, and
//!    those that are later renewed from them.
//!
//! 7. A credential that arrives separately from its install, as tokens of OAuth
//!    do, may arrive first: the installation is pending until its install arrives.
//!    A later credential replaces it, and a new install without an uninstall before
//!    it keeps it.
//!
//! Rules 1 and 3 are for platforms that give each generation an id of its own.
//! Where a reinstall has the same id, the events of the id are told apart by
//! when they happened:
//! 8. An install begins a generation. One that does not say when it happened
//!    might be a repetition: it begins one only if none is active.
//! 9. An uninstall ends the generation before it, and no later one.
//! 10. An update changes the generation before it, ended or not. It does not show
//!     that something is installed. Neither does a renewed token. An install says
//!     all that is known of its generation until an update comes.
//! 11. What a user authorizes after an uninstall belongs to the next generation.
//!     Until its install comes, what was said last is still known of it.
//!
//! Beside its generations, an installation is what was said of it last:
//! 12. It is suspended if it is active and the last of what suspended and resumed
//!     it, by time, suspended it. Where a reinstall has the same id, each install
//!     and uninstall ends a suspension before it.
//! 13. Its permissions are those of the last change of them alone, unless what
//!     installed or authorized it happened later.
//! 14. Where the platform tells of no install, a user's grant is one. If an install comes
//!     all the same, it is of the generation that the grant has begun.
//!
//! An update is taken by a generation that has ended, and so is a renewed token,
//! for the sake of [`kept`]: otherwise an uninstall that comes late could bring
//! back what each of them replaced, and none could ever be forgotten.

mod answers;
mod changes;
mod history;
mod installation;
mod kept;

use std::collections::BTreeSet;

use self::answers::{Answers, counting, in_log_order};
use self::history::{History, histories};
pub use self::installation::{Credential, Installation, LastEvent, Recorded, Retention, Status};
pub use self::kept::kept;
use crate::id::MessageId;

/// Folds all events of one place into its installations, oldest generation
/// first.
pub fn fold<'a>(
    events: impl IntoIterator<Item = &'a Recorded>,
    retention: Retention,
) -> Vec<Installation> {
    let mut histories = histories(events);
    let are_dated = histories.iter().all(History::is_dated);
    histories.sort_by_key(|history| history.order(are_dated));
    let mut installations = Vec::with_capacity(histories.len());
    for (index, history) in histories.iter().enumerate() {
        let later = histories.iter().skip(index + 1);
        let superseded_by = later.clone().find(|other| other.superseded(history));
        installations.push(history.installation(index, superseded_by, retention));
    }
    installations
}

/// The events that do not count, because another one with the same key and
/// secret does.
pub fn conflicts<'a>(events: impl IntoIterator<Item = &'a Recorded>) -> BTreeSet<&'a MessageId> {
    let distinct = in_log_order(events);
    let (_, conflicts) = counting(&distinct, &Answers::of(&distinct));
    conflicts.into_iter().map(|recorded| &recorded.event.message_id).collect()
}

#[cfg(test)]
mod tests;
