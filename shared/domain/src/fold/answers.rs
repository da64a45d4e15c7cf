//! Which events count: each once, and of those that contradict one another the
//! first that the platform knows we have.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::installation::Recorded;
use crate::event::{Event, Fact};
use crate::id::{
    Fingerprint, IdempotencyKey, InstallationId, MessageId, SourceName, StreamSequence,
};

/// The events, distinct and in log order.
pub(super) fn in_log_order<'a>(
    events: impl IntoIterator<Item = &'a Recorded>,
) -> Vec<&'a Recorded> {
    // Of copies of one event the first in the log counts.
    let mut distinct: BTreeMap<&MessageId, &Recorded> = BTreeMap::new();
    for recorded in events {
        let first = distinct.entry(&recorded.event.message_id).or_insert(recorded);
        if recorded.sequence < first.sequence {
            *first = recorded;
        }
    }
    let mut in_log_order: Vec<&Recorded> = distinct.into_values().collect();
    in_log_order.sort_by_key(|recorded| recorded.sequence);
    in_log_order
}

/// What the notes in the log say of our answers.
pub(super) struct Answers<'a> {
    /// By the last attempt that was missed.
    missed: BTreeMap<&'a MessageId, StreamSequence>,
    delivered: BTreeMap<&'a MessageId, StreamSequence>,
}

impl<'a> Answers<'a> {
    pub(super) fn of(distinct: &[&'a Recorded]) -> Self {
        let mut answers = Self { missed: BTreeMap::new(), delivered: BTreeMap::new() };
        for recorded in distinct {
            match &recorded.event.fact {
                Fact::AckMissed { answer_to, .. } => {
                    answers.missed.insert(answer_to, recorded.sequence);
                }
                Fact::AckDelivered { answer_to, .. } => {
                    answers.delivered.insert(answer_to, recorded.sequence);
                }
                Fact::Installed { .. }
                | Fact::Updated { .. }
                | Fact::Uninstalled { .. }
                | Fact::Suspended { .. }
                | Fact::Resumed { .. }
                | Fact::PermissionsChanged { .. }
                | Fact::Authorized { .. }
                | Fact::Erased { .. }
                | Fact::Unrecognized { .. } => {}
            }
        }
        answers
    }

    /// Since when it is unknown whether the platform got our answer. A note from
    /// before the event is about an earlier attempt to append it.
    pub(super) fn in_doubt_since(&self, recorded: &Recorded) -> Option<StreamSequence> {
        let id = &recorded.event.message_id;
        let noted = self.missed.get(id).copied().filter(|noted| *noted > recorded.sequence)?;
        (!self.delivered.contains_key(id)).then_some(noted)
    }

    /// Where in the log it is clear that we answered it in time.
    fn acknowledged(&self, recorded: &Recorded) -> Option<StreamSequence> {
        let id = &recorded.event.message_id;
        match self.missed.get(id) {
            Some(noted) if *noted > recorded.sequence => self.delivered.get(id).copied(),
            Some(_) | None => Some(recorded.sequence),
        }
    }
}

/// Events with the same contradict one another: each is an attempt at the same.
type Attempt<'a> = (
    &'a SourceName,
    &'a IdempotencyKey,
    Option<&'a Fingerprint>,
    &'static str,
    Option<&'a InstallationId>,
);

/// `None` for what cannot contradict anything.
fn attempt(event: &Event) -> Option<Attempt<'_>> {
    let kind = event.fact.kind();
    match &event.fact {
        Fact::Installed { .. }
        | Fact::Updated { .. }
        | Fact::Uninstalled { .. }
        | Fact::Suspended { .. }
        | Fact::Resumed { .. }
        | Fact::PermissionsChanged { .. }
        | Fact::Authorized { .. }
        | Fact::Unrecognized { .. } => {
            let installation = event.fact.identity().map(|found| &found.installation_id);
            let secret = event.secret_fingerprint.as_ref();
            Some((&event.source, &event.idempotency_key, secret, kind, installation))
        }
        // They have the key of the event that they are about.
        Fact::AckMissed { .. } | Fact::AckDelivered { .. } => None,
        Fact::Erased { .. } => None,
    }
}

/// What counts, and what is in conflict with it.
pub(super) fn counting<'a>(
    in_log_order: &[&'a Recorded],
    answers: &Answers<'a>,
) -> (Vec<&'a Recorded>, Vec<&'a Recorded>) {
    let rank = |recorded: &Recorded| match answers.acknowledged(recorded) {
        Some(acknowledged) => (false, acknowledged),
        None => (true, recorded.sequence),
    };
    let mut counts: BTreeMap<Attempt<'a>, &'a Recorded> = BTreeMap::new();
    for &recorded in in_log_order {
        let Some(attempt) = attempt(&recorded.event) else { continue };
        match counts.entry(attempt) {
            Entry::Vacant(entry) => {
                entry.insert(recorded);
            }
            Entry::Occupied(mut entry) if rank(recorded) < rank(entry.get()) => {
                entry.insert(recorded);
            }
            Entry::Occupied(_) => {}
        }
    }
    in_log_order.iter().partition(|recorded| {
        attempt(&recorded.event)
            .and_then(|attempt| counts.get(&attempt))
            .is_none_or(|first| first.sequence == recorded.sequence)
    })
}
