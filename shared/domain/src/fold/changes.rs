//! The events of a place by installation, in the order in which they count.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::installation::Recorded;
use crate::event::{Fact, Identity, Reinstall, SealedCredential};
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
    /// The last uninstall in the log, whether it counts or not.
    pub(super) uninstalled: Option<&'a Recorded>,
}

impl<'a> Changes<'a> {
    /// Of those that count, the one that happened last.
    pub(super) fn last(&self, is_one: fn(&Fact<SealedCredential>) -> bool) -> Option<&'a Recorded> {
        let found = self.counting.iter().filter(|recorded| is_one(&recorded.event.fact));
        found.max_by_key(|recorded| in_time(recorded)).copied()
    }

    /// When it was suspended or resumed last. Where a reinstall has the same id, it begins
    /// anew with each install.
    pub(super) fn suspension(&self) -> Option<&'a Recorded> {
        let begins_anew = match self.reinstall {
            Reinstall::NewId => None,
            Reinstall::SameId => self.last(|fact| match fact {
                Fact::Installed { .. } | Fact::Uninstalled { .. } => true,
                Fact::Authorized { is_install, .. } => *is_install,
                _ => false,
            }),
        };
        let began = begins_anew.map(in_time);
        self.last(is_suspension).filter(|found| began < Some(in_time(found)))
    }

    /// When its permissions alone were changed last.
    pub(super) fn permissions(&self) -> Option<&'a Recorded> {
        self.last(|fact| matches!(fact, Fact::PermissionsChanged { .. }))
    }
}

pub(super) fn is_suspension(fact: &Fact<SealedCredential>) -> bool {
    matches!(fact, Fact::Suspended { .. } | Fact::Resumed { .. })
}

/// The installation that an event changes. Notes are about events, and an
/// erasure about secrets.
pub(super) fn changed(recorded: &Recorded) -> Option<&Identity> {
    match &recorded.event.fact {
        Fact::Installed { identity, .. }
        | Fact::Updated { identity, .. }
        | Fact::Uninstalled { identity }
        | Fact::Suspended { identity }
        | Fact::Resumed { identity }
        | Fact::PermissionsChanged { identity, .. }
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
            let changes = found.entry(&identity.installation_id).or_insert(Changes {
                reinstall: identity.reinstall,
                first: recorded,
                counting: Vec::new(),
                erased: None,
                uninstalled: None,
            });
            if matches!(recorded.event.fact, Fact::Uninstalled { .. }) {
                changes.uninstalled = Some(recorded);
            }
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

/// By when it happened. What is told of an id that is used once comes in any order, too.
pub(super) fn in_time(recorded: &Recorded) -> (Timestamp, StreamSequence) {
    (happened_at(recorded), recorded.sequence)
}

fn order(reinstall: Reinstall, recorded: &Recorded) -> (Option<Timestamp>, StreamSequence) {
    let at = (reinstall == Reinstall::SameId).then(|| happened_at(recorded));
    (at, recorded.sequence)
}
