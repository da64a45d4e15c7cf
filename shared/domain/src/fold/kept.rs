//! Which events of a place still matter, whatever comes later.

use std::collections::{BTreeMap, BTreeSet};

use super::answers::{Answers, counting, in_log_order};
use super::changes::{Changes, by_installation, is_suspension};
use super::installation::Recorded;
use crate::details::Details;
use crate::event::Fact;
use crate::id::{MessageId, StreamSequence};

/// The events that the fold still needs. The others are superseded: whatever
/// comes later, the state is the same without them.
///
/// Let `E` be the events of a place, `F` those that come later, and `K` what is
/// kept of `E`. Then `fold(E ∪ F) = fold(K ∪ C ∪ F)`, where `C` are the events in
/// `E` with an idempotency key that an event in `F` has, too. They are needed to
/// tell a contradiction, and an index finds them.
///
/// What must be true of `F`: no sequence in it is at most `complete_to`, because
/// up to there everything is in `E`. This is the consumer's ack floor. Times do not
/// matter: an event in `F` may say that it happened before all others.
///
/// Kept is everything that counts above `complete_to`; and of the rest
/// - each install and uninstall that counts, with the notes about it;
/// - of updates the last that names a field, so at most one a field;
/// - the last credential that arrived separately, the last grant of a user,
///   and the last erasure;
/// - the last time it was suspended or resumed, and the last change of its permissions;
/// - the last uninstall in the log, whether it counts or not;
/// - the first event of each installation, which says what a reinstall does
///   to the id.
///
/// So tokens that are renewed, updates that are repeated and forms that are sent
/// again cost nothing in the long run. What an installation keeps grows with
/// how often it was installed and uninstalled, and with nothing else.
pub fn kept<'a>(
    events: impl IntoIterator<Item = &'a Recorded>,
    complete_to: StreamSequence,
) -> BTreeSet<&'a MessageId> {
    let distinct = in_log_order(events);
    let (counting, _) = counting(&distinct, &Answers::of(&distinct));
    let is_complete = |recorded: &&Recorded| recorded.sequence <= complete_to;
    let changes = counting.into_iter().filter(|recorded| answer_to(recorded).is_none());
    let (complete, later): (Vec<&Recorded>, Vec<&Recorded>) = changes.partition(is_complete);
    let changes = by_installation(&distinct, &complete);
    let needed = changes.values().flat_map(needed);
    let kept = needed.chain(last_erasures(&complete)).chain(later);
    let mut kept: BTreeSet<&MessageId> = kept.map(|recorded| &recorded.event.message_id).collect();

    // A note is needed as long as its event is, which may come after it.
    let known: BTreeSet<&MessageId> = distinct.iter().map(|it| &it.event.message_id).collect();
    let is_needed = |about: &MessageId| kept.contains(about) || !known.contains(about);
    let notes = last_notes(&distinct).into_iter().filter(|(about, _)| is_needed(about));
    let notes: Vec<&MessageId> = notes.map(|(_, note)| &note.event.message_id).collect();
    kept.extend(notes);
    kept
}

/// Of each kind about each event, with the event.
fn last_notes<'a>(in_log_order: &[&'a Recorded]) -> Vec<(&'a MessageId, &'a Recorded)> {
    let of = |recorded: &&'a Recorded| {
        Some(((answer_to(recorded)?, recorded.event.fact.kind()), *recorded))
    };
    let last: BTreeMap<_, _> = in_log_order.iter().filter_map(of).collect();
    last.into_iter().map(|((about, _), note)| (about, note)).collect()
}

/// Which event a note is about.
fn answer_to(recorded: &Recorded) -> Option<&MessageId> {
    match &recorded.event.fact {
        Fact::AckMissed { answer_to, .. } | Fact::AckDelivered { answer_to, .. } => Some(answer_to),
        Fact::Installed { .. }
        | Fact::Updated { .. }
        | Fact::Uninstalled { .. }
        | Fact::Suspended { .. }
        | Fact::Resumed { .. }
        | Fact::PermissionsChanged { .. }
        | Fact::Authorized { .. }
        | Fact::Erased { .. }
        | Fact::Unrecognized { .. } => None,
    }
}

/// Of each installation, of which nothing else may be known yet.
fn last_erasures<'a>(in_log_order: &[&'a Recorded]) -> Vec<&'a Recorded> {
    let erasures = in_log_order.iter().filter_map(|&recorded| match &recorded.event.fact {
        Fact::Erased { identity } => Some((&identity.installation_id, recorded)),
        _ => None,
    });
    erasures.collect::<BTreeMap<_, _>>().into_values().collect()
}

/// What is needed of the changes of one installation.
fn needed<'a>(changes: &Changes<'a>) -> Vec<&'a Recorded> {
    let mut needed = vec![changes.first];
    needed.extend(changes.uninstalled);
    needed.extend(changes.last(is_suspension));
    needed.extend(changes.permissions());
    // What is found after the one that is looked at.
    let mut named = Details::default();
    let (mut has_credential, mut has_grant) = (false, false);
    for &recorded in changes.counting.iter().rev() {
        match &recorded.event.fact {
            Fact::Installed { .. } | Fact::Uninstalled { .. } => needed.push(recorded),
            Fact::Authorized { is_install: true, grant, .. } => {
                needed.push(recorded);
                (has_credential, has_grant) = (true, has_grant || grant.is_by_user());
            }
            Fact::Updated { details, .. } => {
                let with_this = details.clone().merged(&named);
                if with_this != named {
                    named = with_this;
                    needed.push(recorded);
                }
            }
            Fact::Authorized { grant, .. } if grant.is_by_user() => {
                if !has_grant {
                    needed.push(recorded);
                }
                (has_credential, has_grant) = (true, true);
            }
            Fact::Authorized { .. } => {
                if !has_credential {
                    needed.push(recorded);
                }
                has_credential = true;
            }
            Fact::Suspended { .. }
            | Fact::Resumed { .. }
            | Fact::PermissionsChanged { .. }
            | Fact::AckMissed { .. }
            | Fact::AckDelivered { .. }
            | Fact::Erased { .. }
            | Fact::Unrecognized { .. } => {}
        }
    }
    needed
}
