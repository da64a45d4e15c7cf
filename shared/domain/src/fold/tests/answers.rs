//! What a missed answer does to an installation, and what settles it.

use super::*;

/// A note, at position `n`, on the answer to an attempt at an event.
pub(super) fn note(n: u64, about: &Recorded, delivered: bool) -> Recorded {
    let received_at = at(i64::try_from(n).unwrap());
    let event = Event { received_at, ..about.event.clone() };
    let event = if delivered { event.ack_delivered(at(0)) } else { event.ack_missed(at(0)) };
    Recorded { sequence: StreamSequence(n), event: event.unwrap() }
}

fn missed(n: u64, about: &Recorded) -> Recorded {
    note(n, about, false)
}

fn delivered(n: u64, about: &Recorded) -> Recorded {
    note(n, about, true)
}

/// The event with the key of `other`, so that the two contradict each other.
fn under_the_key_of(other: &Recorded, mut event: Recorded) -> Recorded {
    event.event.idempotency_key = other.event.idempotency_key.clone();
    event.event.message_id = MessageId::from_stored(format!("content-{}", event.sequence));
    event
}

/// Another uninstall with the key of the one that `uninstall` makes.
fn uninstall_again(n: u64, id: &str, occurred: i64) -> Recorded {
    under_the_key_of(&uninstall(n, id, occurred), uninstall(n, id, occurred))
}

/// The same key and secret, and other permissions.
fn install_again(n: u64, id: &str, secret: &str) -> Recorded {
    let mut again = under_the_key_of(&install(n, id, secret), install(n, id, secret));
    if let Fact::Installed { granted_permissions, .. } = &mut again.event.fact {
        *granted_permissions = vec![format!("other permission, at {n}")];
    }
    again
}

/// Status and permissions of the last generation.
fn last_state(events: &[Recorded]) -> (&'static str, Vec<String>) {
    let last = fold(events, Retention::Remove).pop().unwrap();
    (last.status.name(), last.granted_permissions)
}

fn uninstalled_at(events: &[Recorded]) -> Option<Timestamp> {
    match fold(events, Retention::Remove)[0].status {
        Status::Inactive { uninstalled_at } => Some(uninstalled_at),
        _ => None,
    }
}

#[test]
fn an_install_whose_ack_was_missed_is_unconfirmed_and_keeps_its_credential() {
    let installed = install(1, "a", "s1");
    let events = [installed.clone(), missed(2, &installed)];
    assert_eq!(state(&events), [row("a", 1, "unconfirmed", Some("s1"))]);
    let last = fold(&events, Retention::Remove)[0].last_event.sequence;
    assert_eq!(last, StreamSequence(1), "a note changes nothing by itself");
}

#[test]
fn what_is_unconfirmed_is_settled_by_what_comes_after() {
    let installed = install(1, "a", "s1");
    let note = missed(2, &installed);
    let after = |next: Recorded| state(&[installed.clone(), note.clone(), next]);
    assert_eq!(after(delivered(3, &installed)), [row("a", 1, "active", Some("s1"))]);
    assert_eq!(after(install(3, "a", "s2")), [row("a", 1, "active", Some("s2"))]);
    assert_eq!(after(uninstall(3, "a", 3)), [row("a", 1, "inactive", None)]);
    let superseded = [row("a", 1, "superseded", None), row("b", 2, "active", Some("s2"))];
    assert_eq!(after(install(3, "b", "s2")), superseded);
}

#[test]
fn what_was_missed_itself_settles_nothing() {
    let (first, second) = (install(1, "a", "s1"), install(3, "a", "s2"));
    let events = [first.clone(), missed(2, &first), second.clone(), missed(4, &second)];
    assert_eq!(state(&events), [row("a", 1, "unconfirmed", Some("s2"))]);
}

#[test]
fn an_uninstall_whose_ack_was_missed_leaves_the_installation_unconfirmed() {
    let (installed, ended) = (install(1, "a", "s1"), uninstall(2, "a", 2));
    let events = [installed, ended.clone(), missed(3, &ended)];
    assert_eq!(state(&events), [row("a", 1, "unconfirmed", Some("s1"))]);
}

#[test]
fn a_note_about_an_attempt_before_the_one_that_was_stored_changes_nothing() {
    let installed = install(2, "a", "s1");
    let events = [missed(1, &installed), installed];
    assert_eq!(state(&events), [row("a", 1, "active", Some("s1"))]);
    assert_eq!(state(&events[..1]), [], "and makes no installation");
}

#[test]
fn a_note_about_the_attempt_that_was_stored_counts_after_one_about_another() {
    let installed = install(2, "a", "s1");
    let events = [missed(1, &installed), installed.clone(), missed(3, &installed)];
    assert_eq!(state(&events), [row("a", 1, "unconfirmed", Some("s1"))]);
    let settled = [&events[..], &[delivered(4, &installed)]].concat();
    assert_eq!(state(&settled), [row("a", 1, "active", Some("s1"))]);
}

#[test]
fn any_uninstall_that_was_acknowledged_settles_one_that_was_missed() {
    let (installed, ended) = (install(1, "a", "s1"), uninstall(2, "a", 2));
    let unsettled = [installed, ended.clone(), missed(3, &ended)];
    let with = |more: &[Recorded]| [&unsettled[..], more].concat();

    let same_key = uninstall_again(4, "a", 9);
    let settled = with(std::slice::from_ref(&same_key));
    assert_eq!(state(&settled), [row("a", 1, "inactive", None)]);
    assert_eq!(uninstalled_at(&settled), Some(at(9)), "what was acknowledged counts");
    let found: Vec<&MessageId> = conflicts(&settled).into_iter().collect();
    assert_eq!(found, [&ended.event.message_id]);

    let repeated = with(&[same_key.clone(), uninstall_again(5, "a", 10)]);
    assert_eq!(uninstalled_at(&repeated), Some(at(9)), "the first that was acknowledged");
    let missed_again = with(&[same_key.clone(), missed(5, &same_key)]);
    assert_eq!(state(&missed_again), [row("a", 1, "unconfirmed", Some("s1"))]);
    let then_delivered = with(&[same_key.clone(), missed(5, &same_key), delivered(6, &same_key)]);
    assert_eq!(uninstalled_at(&then_delivered), Some(at(9)));

    let mut other_key = uninstall_again(4, "a", 9);
    other_key.event.idempotency_key = IdempotencyKey::parse("another").unwrap();
    assert_eq!(state(&with(&[other_key])), [row("a", 1, "inactive", None)]);
}

#[test]
fn an_uninstall_that_was_acknowledged_is_not_undone_by_a_later_one_that_was_missed() {
    let (installed, ended) = (install(1, "a", "s1"), uninstall(2, "a", 2));
    let mut later = uninstall_again(3, "a", 9);
    later.event.idempotency_key = IdempotencyKey::parse("another").unwrap();
    let events = [installed, ended, later.clone(), missed(4, &later)];
    assert_eq!(state(&events), [row("a", 1, "inactive", None)]);
    let late_install = install(5, "a", "s2");
    let note = missed(6, &late_install);
    let events = [&events[..], &[late_install, note]].concat();
    assert_eq!(state(&events), [row("a", 1, "inactive", None)]);
}

#[test]
fn where_a_reinstall_keeps_the_id_the_second_uninstall_settles_the_first() {
    let ended = uninstalled(2, Some(20));
    let unsettled = [installed(1, Some(10), "p"), ended.clone(), missed(3, &ended)];
    assert_eq!(last_state(&unsettled).0, "unconfirmed");
    let settled = [&unsettled[..], &[uninstalled(4, Some(30))]].concat();
    assert_eq!(uninstalled_at(&settled), Some(at(20)));
    // One of the generation before says nothing of this one.
    let late = [&unsettled[..], &[uninstalled(4, Some(5))]].concat();
    assert_eq!(last_state(&late).0, "unconfirmed");
}

#[test]
fn of_contradicting_installs_the_first_that_was_acknowledged_counts() {
    let first = install(1, "a", "s1");
    let again = install_again(3, "a", "s1");
    let note = missed(2, &first);
    let permission = |text: &str| vec![text.to_owned()];
    let both = [first.clone(), note.clone(), again.clone()];
    assert_eq!(last_state(&both), ("active", permission("other permission, at 3")));
    assert_eq!(conflicts(&both), BTreeSet::from([&first.event.message_id]));
    let credential = fold(&both, Retention::Remove).remove(0).credential.unwrap();
    assert_eq!(credential.event, again.event.message_id);

    // A retry of the first comes too late to change that.
    let retried = [&both[..], &[delivered(4, &first)]].concat();
    assert_eq!(last_state(&retried), ("active", permission("other permission, at 3")));
    let before = [&both[..2], &[delivered(3, &first), install_again(4, "a", "s1")]].concat();
    assert_eq!(last_state(&before), ("active", permission("permission of s1")));

    let none = [&both[..], &[missed(4, &again)]].concat();
    assert_eq!(last_state(&none), ("unconfirmed", permission("permission of s1")));
}

#[test]
fn a_grant_settles_a_missed_ack_and_a_renewal_does_not() {
    let installed = install(1, "a", "s1");
    let grant = |n, grant| same_id(n, None, authorization(identity("a"), "tokens", grant));
    let note = |n| missed(n, &installed);
    let status = |events: &[Recorded]| state(events)[0].2;
    assert_eq!(status(&[installed.clone(), grant(2, CODE), note(3)]), "unconfirmed");
    assert_eq!(status(&[installed.clone(), note(2), grant(3, CODE)]), "active");
    let renewed = [installed.clone(), note(2), grant(3, Grant::RefreshToken)];
    assert_eq!(status(&renewed), "unconfirmed");
}

#[test]
fn an_update_settles_nothing_and_waits_for_its_install() {
    let update = |n: u64, plan_id: &str| {
        let fact = Fact::Updated { identity: identity("a"), details: plan(plan_id) };
        same_id(n, None, fact)
    };
    let installed = install(2, "a", "s1");
    let events = [update(1, "p"), installed.clone(), missed(3, &installed), update(4, "q")];
    assert_eq!(state(&events), [row("a", 1, "unconfirmed", Some("s1"))]);
    let plan_of = |events: &[Recorded]| fold(events, Retention::Remove)[0].details.plan_id.clone();
    assert_eq!(plan_of(&events).as_deref(), Some("q"));
    assert_eq!(plan_of(&events[..2]).as_deref(), Some("p"));
}

/// Installs and uninstalls of one installation that often contradict each
/// other, and notes about their answers.
fn any_answered_history() -> impl Strategy<Value = Vec<Recorded>> {
    let step = (0_u8..8, any::<Index>(), 0_i64..14);
    prop::collection::vec(step, 1..12).prop_map(|steps| {
        let mut history: Vec<Recorded> = Vec::new();
        for (n, (kind, about, occurred)) in (1..).zip(steps) {
            let changes: Vec<Recorded> = history.iter().filter(is_change).cloned().collect();
            let next = match kind {
                0 => install(n, "a", "s1"),
                1 => install_again(n, "a", "s1"),
                2 => install(n, "a", "s2"),
                3 => uninstall_again(n, "a", occurred),
                _ if changes.is_empty() => continue,
                4 | 5 => missed(n, about.get(&changes)),
                6 => delivered(n, about.get(&changes)),
                _ => about.get(&changes).clone(), // it came again
            };
            history.push(next);
        }
        history
    })
}

pub(super) fn is_change(recorded: &&Recorded) -> bool {
    matches!(recorded.event.fact, Fact::Installed { .. } | Fact::Uninstalled { .. })
}

/// Whether we know that the platform has got our answer, by the notes alone.
fn is_acknowledged(history: &[Recorded], change: &Recorded) -> bool {
    let id = &change.event.message_id;
    let copies = history.iter().filter(|it| it.event.message_id == *id);
    let first = copies.map(|it| it.sequence).min().unwrap();
    let is_delivered = history.iter().any(
        |it| matches!(&it.event.fact, Fact::AckDelivered { answer_to, .. } if answer_to == id),
    );
    let notes = history.iter().filter(
        |it| matches!(&it.event.fact, Fact::AckMissed { answer_to, .. } if answer_to == id),
    );
    is_delivered || notes.map(|it| it.sequence).max().is_none_or(|note| note < first)
}

proptest! {
    #![proptest_config(Config::with_cases(2000))]

    #[test]
    fn every_order_of_a_history_with_missed_answers_folds_to_one_state(
        history in any_answered_history(),
        order in any::<u64>(),
    ) {
        let expected = (fold(&history, Retention::Remove), conflicts(&history));
        let mut delivered = history.clone();
        shuffle(&mut delivered, order);
        prop_assert_eq!((fold(&delivered, Retention::Remove), conflicts(&delivered)), expected);
    }

    #[test]
    fn an_installation_is_inactive_once_any_uninstall_of_it_was_acknowledged(
        history in any_answered_history(),
    ) {
        let ends = |it: &&Recorded| matches!(it.event.fact, Fact::Uninstalled { .. });
        let is_settled = history.iter().filter(ends).any(|it| is_acknowledged(&history, it));
        for installation in fold(&history, Retention::Remove) {
            let inactive = matches!(installation.status, Status::Inactive { .. });
            prop_assert!(inactive || !is_settled);
        }
    }

    #[test]
    fn nothing_is_unconfirmed_unless_an_answer_was_missed(history in any_answered_history()) {
        let all = history.iter().filter(is_change).all(|it| is_acknowledged(&history, it));
        for installation in fold(&history, Retention::Remove) {
            prop_assert!(!all || installation.status != Status::Unconfirmed);
        }
    }

    #[test]
    fn whatever_is_tried_again_and_acknowledged_is_settled(
        history in any_answered_history(),
        again in 0_u8..3,
    ) {
        let tried = match again {
            0 => install_again(99, "a", "s1"),
            1 => uninstall_again(99, "a", 99),
            _ => install(99, "a", "s3"),
        };
        // An install with the key and secret of one that was acknowledged is no news.
        let news = !matches!(again, 0) || {
            let installs = |it: &&Recorded| matches!(it.event.fact, Fact::Installed { .. });
            history.iter().filter(installs).all(|it| !is_acknowledged(&history, it))
        };
        let events = [&history[..], &[tried]].concat();
        let folded = fold(&events, Retention::Remove);
        prop_assert!(!news || folded[0].status != Status::Unconfirmed, "{:?}", folded);
    }
}
