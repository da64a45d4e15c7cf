//! The events of a place by installation, in the order in which they count.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::installation::Recorded;
use crate::event::{Fact, Identity, Reinstall};
use crate::id::{InstallationId, StreamSequence};

/// What changes one installation.
pub(super) struct Changes<'a> {
    /// As its first event in the log says it, whether that one counts or not.
    pub(super) reinstall: Reinstall,
    pub(super) first: &'a Recorded,
    /// Those that count: in log order, or by time where a reinstall has the same id.
    pub(super) counting: Vec<&'a Recorded>,
    /// The last erasure.
    pub(super) erased: Option<&'a Recorded>,
}

/// The installation that an event changes. Notes are about events, and an
/// erasure about secrets.
pub(super) fn changed(recorded: &Recorded) -> Option<&Identity> {
    match &recorded.event.fact {
        Fact::Installed { identity, .. }
        | Fact::Updated { identity, .. }
        | Fact::Uninstalled { identity }
        | Fact::Authorized { identity, .. } => Some(identity),
        // History, not state.
        Fact::Unrecognized { .. } => None,
        Fact::AckMissed { .. } | Fact::AckDelivered { .. } | Fact::Erased { .. } => None,
    }
}

/// `distinct` is in log order, and `counting` a part of it.
pub(super) fn by_installation<'a>(
    distinct: &[&'a Recorded],
    counting: &[&'a Recorded],
) -> BTreeMap<&'a InstallationId, Changes<'a>> {
    let mut found: BTreeMap<&InstallationId, Changes<'_>> = BTreeMap::new();
    for &recorded in distinct {
        if let Some(identity) = changed(recorded) {
            found.entry(&identity.installation_id).or_insert(Changes {
                reinstall: identity.reinstall,
                first: recorded,
                counting: Vec::new(),
                erased: None,
            });
        }
    }
    for &recorded in counting {
        let Some(identity) = recorded.event.fact.identity() else { continue };
        let Some(changes) = found.get_mut(&identity.installation_id) else { continue };
        if matches!(recorded.event.fact, Fact::Erased { .. }) {
            changes.erased = Some(recorded);
        } else if changed(recorded).is_some() {
            changes.counting.push(recorded);
        }
    }
    for changes in found.values_mut() {
        let reinstall = changes.reinstall;
        changes.counting.sort_by_key(|recorded| order(reinstall, recorded));
    }
    found
}

/// When it happened, as far as is known.
pub(super) fn happened_at(recorded: &Recorded) -> Timestamp {
    recorded.event.occurred_at.unwrap_or(recorded.event.received_at)
}

fn order(reinstall: Reinstall, recorded: &Recorded) -> (Option<Timestamp>, StreamSequence) {
    let at = (reinstall == Reinstall::SameId).then(|| happened_at(recorded));
    (at, recorded.sequence)
}
