use std::collections::BTreeMap;

use jiff::Timestamp;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::Config;

use super::*;
use crate::details::Details;
use crate::event::{Event, Fact, Grant, Identity, Payload, Reinstall, SealedCredential};
use crate::id::{
    AppId, IdempotencyKey, InstallationId, Place, PlatformName, SourceName, StreamSequence,
};
use crate::seal::Sealed;

mod answers;
mod kept;
mod suspended;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn event(key: &str, received: i64, occurred: Option<i64>, fact: Fact<SealedCredential>) -> Event {
    let source = SourceName::parse("blnk").unwrap();
    let idempotency_key = IdempotencyKey::parse(key).unwrap();
    Event {
        message_id: MessageId::from_stored(format!("{source}:{key}")),
        source,
        platform: PlatformName::parse("blnk").unwrap(),
        idempotency_key,
        received_at: at(received),
        occurred_at: occurred.map(at),
        occurred_at_claimed: None,
        secret_fingerprint: None,
        fact,
        payload: Payload::Clear(serde_json::Value::Null),
    }
}

fn identity(id: &str) -> Identity {
    Identity {
        installation_id: InstallationId::parse(id).unwrap(),
        place: Place::of(&["app", "inst"]),
        app_id: AppId::parse("app").unwrap(),
        scope: BTreeMap::new(),
        reinstall: Reinstall::NewId,
    }
}

/// An install of `id` with the credential `secret`, at position and second `n`.
fn install(n: u64, id: &str, secret: &str) -> Recorded {
    let sealed = Sealed::from_stored(format!("v1.k1.{secret}"));
    let fact = Fact::Installed {
        identity: identity(id),
        granted_permissions: vec![format!("permission of {secret}")],
        credential: Some(SealedCredential { field: "api_key".into(), prefix: None, sealed }),
        details: Details::default(),
    };
    let second = i64::try_from(n).unwrap();
    let event = event(&format!("install:{id}:{secret}"), second, None, fact);
    Recorded { sequence: StreamSequence(n), event }
}

/// An uninstall of `id` that happened at second `occurred`.
fn uninstall(n: u64, id: &str, occurred: i64) -> Recorded {
    let fact = Fact::Uninstalled { identity: identity(id) };
    let second = i64::try_from(n).unwrap();
    let event = event(&format!("uninstall:{id}"), second, Some(occurred), fact);
    Recorded { sequence: StreamSequence(n), event }
}

fn state(events: &[Recorded]) -> Vec<(String, u32, &'static str, Option<String>)> {
    let row = |installation: Installation| {
        let secret = installation.credential.map(|credential| {
            credential.sealed.sealed.as_str().trim_start_matches("v1.k1.").to_owned()
        });
        let id = installation.identity.installation_id.to_string();
        (id, installation.generation, installation.status.name(), secret)
    };
    fold(events, Retention::Remove).into_iter().map(row).collect()
}

fn row(
    id: &str,
    generation: u32,
    status: &'static str,
    secret: Option<&str>,
) -> (String, u32, &'static str, Option<String>) {
    (id.to_owned(), generation, status, secret.map(str::to_owned))
}

#[test]
fn an_install_makes_an_active_installation_with_its_credential() {
    let folded = fold(&[install(1, "a", "s1")], Retention::Remove);
    assert_eq!(state(&[install(1, "a", "s1")]), [row("a", 1, "active", Some("s1"))]);
    assert_eq!(folded[0].installed_at, Some(at(1)));
    assert_eq!(folded[0].granted_permissions, ["permission of s1"]);
    assert_eq!(folded[0].last_event, LastEvent { sequence: StreamSequence(1), kind: "installed" });
}

#[test]
fn an_uninstall_makes_it_inactive_and_removes_the_credential() {
    let events = [install(1, "a", "s1"), uninstall(2, "a", 2)];
    assert_eq!(state(&events), [row("a", 1, "inactive", None)]);
    let kept = fold(&events, Retention::Keep);
    assert!(kept[0].credential.is_some());
    assert_eq!(kept[0].status, Status::Inactive { uninstalled_at: at(2) });
}

#[test]
fn an_uninstall_that_comes_before_its_install_is_not_forgotten() {
    assert_eq!(state(&[uninstall(1, "a", 1)]), [row("a", 1, "inactive", None)]);
    let events = [uninstall(1, "a", 1), install(2, "a", "s1")];
    assert_eq!(state(&events), [row("a", 1, "inactive", None)]);
}

#[test]
fn a_repeated_install_never_revives_what_was_uninstalled() {
    let events = [install(1, "a", "s1"), uninstall(2, "a", 2), install(3, "a", "s2")];
    assert_eq!(state(&events), [row("a", 1, "inactive", None)]);
}

#[test]
fn a_new_secret_under_the_same_key_replaces_the_credential() {
    let events = [install(1, "a", "s1"), install(2, "a", "s2")];
    assert_eq!(state(&events), [row("a", 1, "active", Some("s2"))]);
    assert_eq!(fold(&events, Retention::Remove)[0].installed_at, Some(at(1)));
}

#[test]
fn a_late_copy_of_the_first_credential_does_not_undo_the_replacement() {
    let mut late_copy = install(1, "a", "s1");
    late_copy.sequence = StreamSequence(9);
    let events = [install(1, "a", "s1"), install(2, "a", "s2"), late_copy];
    assert_eq!(state(&events), [row("a", 1, "active", Some("s2"))]);
}

#[test]
fn a_new_installation_in_the_same_place_supersedes_the_older() {
    let events = [install(1, "a", "s1"), install(2, "b", "s2")];
    let expected = [row("a", 1, "superseded", None), row("b", 2, "active", Some("s2"))];
    assert_eq!(state(&events), expected);
}

#[test]
fn a_late_uninstall_leaves_the_newer_generation_active() {
    let events = [install(1, "a", "s1"), install(2, "b", "s2"), uninstall(3, "a", 1)];
    let expected = [row("a", 1, "inactive", None), row("b", 2, "active", Some("s2"))];
    assert_eq!(state(&events), expected);
}

#[test]
fn what_was_superseded_does_not_come_back_when_its_successor_is_uninstalled() {
    let events = [install(1, "a", "s1"), install(2, "b", "s2"), uninstall(3, "b", 3)];
    let expected = [row("a", 1, "superseded", None), row("b", 2, "inactive", None)];
    assert_eq!(state(&events), expected);
}

#[test]
fn a_late_install_of_what_was_already_over_does_not_supersede_the_fresh_one() {
    // b lived and ended at second 1, before a was installed; its install comes late.
    let events = [uninstall(1, "b", 1), install(2, "a", "s1"), install(3, "b", "s2")];
    let expected = [row("a", 1, "active", Some("s1")), row("b", 2, "inactive", None)];
    assert_eq!(state(&events), expected);
}

#[test]
fn an_unrecognized_event_is_history_and_not_state() {
    let fact = Fact::Unrecognized { kind: "paused".into(), identity: Some(identity("a")) };
    let unknown = Recorded { sequence: StreamSequence(2), event: event("paused:a", 2, None, fact) };
    assert_eq!(state(std::slice::from_ref(&unknown)), []);
    let events = [install(1, "a", "s1"), unknown];
    assert_eq!(state(&events), [row("a", 1, "active", Some("s1"))]);
    assert_eq!(fold(&events, Retention::Remove)[0].last_event.sequence, StreamSequence(1));
}

#[test]
fn of_one_key_with_other_content_the_first_counts() {
    let first = install(1, "a", "s1");
    let mut second = install(2, "a", "s2");
    second.event.idempotency_key = first.event.idempotency_key.clone();
    let events = [second.clone(), first];
    assert_eq!(state(&events), [row("a", 1, "active", Some("s1"))]);
    let found: Vec<&MessageId> = conflicts(&events).into_iter().collect();
    assert_eq!(found, [&second.event.message_id]);
    // With another secret it is not a conflict but a replacement.
    let mut replaced = events;
    replaced[0].event.secret_fingerprint = Some(serde_json::from_str("\"00\"").unwrap());
    assert_eq!(state(&replaced), [row("a", 1, "active", Some("s2"))]);
    assert!(conflicts(&replaced).is_empty());
}

#[test]
fn an_install_that_comes_late_and_says_when_it_was_does_not_supersede_the_newer() {
    let dated = |n: u64, id: &str, at: i64| {
        let mut install = install(n, id, id);
        install.event.occurred_at = Some(self::at(at));
        install
    };
    let newer_first = [dated(1, "b", 20), dated(2, "a", 10)];
    let superseded = row("a", 1, "superseded", None);
    assert_eq!(state(&newer_first), [superseded, row("b", 2, "active", Some("b"))]);
    // Nothing says when it was uninstalled.
    let ended = [&newer_first[..], &[uninstall(3, "a", 30)]].concat();
    assert_eq!(state(&ended), [row("a", 1, "inactive", None), row("b", 2, "active", Some("b"))]);
    // The log decides where one does not say.
    let mixed = [dated(1, "b", 20), install(2, "a", "a")];
    assert_eq!(state(&mixed)[1], row("a", 2, "active", Some("a")));
}

/// Events of an installation whose id a reinstall keeps. `at` is when it
/// happened, if the event says so.
fn same_id(n: u64, at: Option<i64>, fact: Fact<SealedCredential>) -> Recorded {
    let received = i64::try_from(n).unwrap();
    let key = format!("{}:{n}", fact.kind());
    Recorded { sequence: StreamSequence(n), event: event(&key, received, at, fact) }
}

fn lasting() -> Identity {
    Identity { reinstall: Reinstall::SameId, ..identity("a") }
}

fn plan(id: &str) -> Details {
    Details { plan_id: Some(id.to_owned()), ..Details::default() }
}

fn installed(n: u64, at: Option<i64>, plan_id: &str) -> Recorded {
    let fact = Fact::Installed {
        identity: lasting(),
        granted_permissions: vec![],
        credential: None,
        details: plan(plan_id),
    };
    same_id(n, at, fact)
}

fn uninstalled(n: u64, at: Option<i64>) -> Recorded {
    same_id(n, at, Fact::Uninstalled { identity: lasting() })
}

fn updated(n: u64, at: Option<i64>, plan_id: &str) -> Recorded {
    same_id(n, at, Fact::Updated { identity: lasting(), details: plan(plan_id) })
}

/// Tokens named after their position, for an id that reinstalls keep.
fn authorized(n: u64, at: Option<i64>, grant: Grant) -> Recorded {
    same_id(n, at, authorization(lasting(), &format!("tokens-{n}"), grant))
}

fn authorization(identity: Identity, tokens: &str, grant: Grant) -> Fact<SealedCredential> {
    let sealed = Sealed::from_stored(format!("v1.k1.{tokens}"));
    Fact::Authorized {
        is_install: false,
        identity,
        grant,
        granted_permissions: vec![format!("scope of {tokens}")],
        expires_at: Some(at(100)),
        credential: SealedCredential { field: "tokens".into(), prefix: None, sealed },
    }
}

type AuthorizedState = (u32, &'static str, Option<String>);

#[test]
fn an_authorization_and_its_install_come_to_the_same_in_both_orders() {
    for (what, events, expected) in authorized_cases().into_iter().chain(renewed_cases()) {
        let (_, generation, status, tokens) = state(&events).pop().unwrap();
        assert_eq!((generation, status, tokens), expected, "{what}");
    }
    let renewal_alone = [authorized(1, Some(10), Grant::RefreshToken)];
    assert!(fold(&renewal_alone, Retention::Remove).is_empty());
}

const CODE: Grant = Grant::AuthorizationCode;

fn tokens(n: u64) -> Option<String> {
    Some(format!("tokens-{n}"))
}

fn authorized_cases() -> Vec<(&'static str, Vec<Recorded>, AuthorizedState)> {
    vec![
        ("alone", vec![authorized(1, Some(10), CODE)], (1, "pending", tokens(1))),
        (
            "before its install",
            vec![authorized(1, Some(10), CODE), installed(2, Some(11), "p")],
            (1, "active", tokens(1)),
        ),
        (
            "after its install",
            vec![authorized(1, Some(12), CODE), installed(2, Some(11), "p")],
            (1, "active", tokens(1)),
        ),
        (
            "before an install without a time",
            vec![authorized(1, None, CODE), installed(2, None, "p")],
            (1, "active", tokens(1)),
        ),
        (
            "of what was uninstalled",
            vec![
                installed(1, Some(10), "p"),
                authorized(2, Some(11), CODE),
                uninstalled(3, Some(20)),
            ],
            (1, "inactive", None),
        ),
        (
            "of a reinstall, before its install",
            vec![
                installed(1, Some(10), "p"),
                authorized(2, Some(11), CODE),
                uninstalled(3, Some(20)),
                authorized(4, Some(29), CODE),
            ],
            (2, "pending", tokens(4)),
        ),
        (
            "of a reinstall, with a late uninstall of the one before",
            vec![
                installed(1, Some(10), "p"),
                authorized(2, Some(29), CODE),
                installed(3, Some(30), "p"),
                uninstalled(4, Some(20)),
            ],
            (2, "active", tokens(2)),
        ),
    ]
}

fn renewed_cases() -> Vec<(&'static str, Vec<Recorded>, AuthorizedState)> {
    vec![
        (
            "installed again without an uninstall",
            vec![
                installed(1, Some(10), "p"),
                authorized(2, Some(11), CODE),
                installed(3, Some(30), "p"),
            ],
            (2, "active", tokens(2)),
        ),
        (
            "renewed",
            vec![
                installed(1, Some(10), "p"),
                authorized(2, Some(11), CODE),
                authorized(3, Some(12), Grant::RefreshToken),
            ],
            (1, "active", tokens(3)),
        ),
        (
            "renewed while it was uninstalled",
            vec![
                installed(1, Some(10), "p"),
                authorized(2, Some(11), CODE),
                uninstalled(3, Some(20)),
                authorized(4, Some(21), Grant::RefreshToken),
            ],
            (1, "inactive", None),
        ),
    ]
}

#[test]
fn an_authorization_says_what_is_granted_and_until_when() {
    let events = [authorized(1, Some(10), Grant::AuthorizationCode), installed(2, Some(11), "p")];
    let folded = fold(&events, Retention::Remove).remove(0);
    assert_eq!(folded.granted_permissions, ["scope of tokens-1"]);
    assert_eq!(folded.credential_expires_at, Some(at(100)));
    assert_eq!(folded.installed_at, Some(at(11)));
    let ended = [&events[..], &[uninstalled(3, Some(20))]].concat();
    assert_eq!(fold(&ended, Retention::Remove)[0].credential_expires_at, None);
}

#[test]
fn what_is_renewed_after_an_erasure_is_erased_until_a_user_comes() {
    let erased = |n| same_id(n, Some(20), Fact::Erased { identity: lasting() });
    let mut events = vec![
        installed(1, Some(10), "p"),
        authorized(2, Some(11), CODE),
        erased(3),
        authorized(4, Some(21), Grant::RefreshToken),
        authorized(5, Some(22), Grant::Location),
    ];
    let held = |events: &[Recorded]| state(events).pop().unwrap().3;
    assert_eq!(held(&events[..2]), tokens(2));
    assert_eq!(held(&events), None);
    events.push(authorized(6, Some(23), CODE));
    assert_eq!(held(&events), tokens(6));
    events.push(authorized(7, Some(24), Grant::RefreshToken));
    assert_eq!(held(&events), tokens(7));
}

#[test]
fn an_id_that_is_used_once_is_not_revived_by_an_authorization() {
    let fact = authorization(identity("a"), "tokens", Grant::AuthorizationCode);
    let authorized = |n| same_id(n, None, fact.clone());
    assert_eq!(state(&[authorized(1)]), [row("a", 1, "pending", Some("tokens"))]);
    let events = [authorized(1), install(2, "a", "s1"), uninstall(3, "a", 3), authorized(4)];
    assert_eq!(state(&events[..2]), [row("a", 1, "active", Some("s1"))]);
    assert_eq!(state(&events), [row("a", 1, "inactive", None)]);
}

/// Generation, status and plan.
fn lasting_state(events: &[Recorded]) -> LastingState {
    let mut folded = fold(events, Retention::Remove);
    assert!(folded.len() <= 1);
    let found = folded.pop()?;
    Some((found.generation, found.status.name(), found.details.plan_id))
}

type LastingState = Option<(u32, &'static str, Option<String>)>;
type LastingCase = (&'static str, Vec<Recorded>, LastingState);

#[test]
fn where_a_reinstall_keeps_the_id_time_tells_the_generations() {
    for (what, events, expected) in dated_cases().into_iter().chain(other_cases()) {
        assert_eq!(lasting_state(&events), expected, "{what}");
    }
}

fn some(generation: u32, status: &'static str, plan: &str) -> LastingState {
    Some((generation, status, Some(plan.to_owned())))
}

fn dated_cases() -> Vec<LastingCase> {
    vec![
        ("installed", vec![installed(1, Some(10), "p")], some(1, "active", "p")),
        (
            "reinstalled",
            vec![
                installed(1, Some(10), "p"),
                uninstalled(2, Some(20)),
                installed(3, Some(30), "q"),
            ],
            some(2, "active", "q"),
        ),
        (
            // Its retry came after the reinstall; it says when it happened.
            "a late uninstall after a reinstall",
            vec![
                installed(1, Some(10), "p"),
                installed(2, Some(30), "q"),
                uninstalled(3, Some(20)),
            ],
            some(2, "active", "q"),
        ),
        (
            "an uninstall before its install",
            vec![uninstalled(1, Some(20)), installed(2, Some(10), "p")],
            some(1, "inactive", "p"),
        ),
        ("an uninstall alone", vec![uninstalled(1, Some(20))], Some((1, "inactive", None))),
        (
            "an uninstall, and an install after it",
            vec![uninstalled(1, Some(20)), installed(2, Some(30), "p")],
            some(1, "active", "p"),
        ),
        (
            // The uninstall between them was lost or will come.
            "installed twice",
            vec![installed(1, Some(10), "p"), installed(2, Some(30), "q")],
            some(2, "active", "q"),
        ),
        (
            "a late install of the first generation",
            vec![
                installed(1, Some(30), "q"),
                installed(2, Some(10), "p"),
                uninstalled(3, Some(20)),
            ],
            some(2, "active", "q"),
        ),
    ]
}

fn other_cases() -> Vec<LastingCase> {
    vec![
        (
            "without times a repeated install is a retry",
            vec![installed(1, None, "p"), installed(2, None, "p")],
            some(1, "active", "p"),
        ),
        (
            "without times an install after an uninstall is a reinstall",
            vec![installed(1, None, "p"), uninstalled(2, None), installed(3, None, "p")],
            some(2, "active", "p"),
        ),
        (
            "without times a repeated uninstall is a retry",
            vec![installed(1, None, "p"), uninstalled(2, None), uninstalled(3, None)],
            some(1, "inactive", "p"),
        ),
        (
            "an update changes the plan",
            vec![installed(1, Some(10), "p"), updated(2, Some(20), "q")],
            some(1, "active", "q"),
        ),
        (
            "an update that came before its install",
            vec![updated(1, Some(20), "q"), installed(2, Some(10), "p")],
            some(1, "active", "q"),
        ),
        (
            "an update of the generation before",
            vec![
                installed(1, Some(30), "q"),
                updated(2, Some(20), "p"),
                installed(3, Some(10), "p"),
            ],
            some(2, "active", "q"),
        ),
        (
            "an update does not revive",
            vec![installed(1, Some(10), "p"), uninstalled(2, Some(20)), updated(3, Some(30), "q")],
            some(1, "inactive", "q"),
        ),
        ("an update alone is history", vec![updated(1, Some(10), "p")], None),
    ]
}

/// Up to 12 events of an id that reinstalls keep, some without their time.
fn any_lasting_history() -> impl Strategy<Value = Vec<Recorded>> {
    let step = (0_u8..5, prop::option::of(0_i64..14), prop::sample::select(vec!["p", "q"]));
    prop::collection::vec(step, 1..12).prop_map(|steps| {
        let numbered = (1..).zip(steps);
        numbered
            .map(|(n, (kind, at, plan))| match kind {
                0 => installed(n, at, plan),
                1 => uninstalled(n, at),
                2 => authorized(n, at, Grant::AuthorizationCode),
                3 => authorized(n, at, Grant::RefreshToken),
                _ => updated(n, at, plan),
            })
            .collect()
    })
}

#[test]
fn an_uninstall_with_the_key_of_its_install_is_no_conflict() {
    let installed = install(1, "a", "s1");
    let mut ended = uninstall(2, "a", 2);
    ended.event.idempotency_key = installed.event.idempotency_key.clone();
    let events = [installed, ended];
    assert!(conflicts(&events).is_empty());
    assert_eq!(state(&events), [row("a", 1, "inactive", None)]);
}

/// A history of up to 12 events over three installations of one place; some
/// with several secrets, some uninstalled, at any times, in any log order.
fn any_history() -> impl Strategy<Value = Vec<Recorded>> {
    let installation = prop::sample::select(vec!["a", "b", "c"]);
    let secret = prop::sample::select(vec!["s1", "s2"]);
    let step = (any::<bool>(), installation, secret, 0_i64..14);
    prop::collection::vec(step, 1..12).prop_map(|steps| {
        let numbered = (1..).zip(steps);
        numbered
            .map(|(n, (installs, id, secret, occurred))| {
                if installs {
                    install(n, id, &format!("{id}-{secret}"))
                } else {
                    uninstall(n, id, occurred)
                }
            })
            .collect()
    })
}

proptest! {
    #![proptest_config(Config::with_cases(2000))]

    #[test]
    fn every_order_and_duplication_of_a_history_folds_to_one_state(
        history in any_history(),
        copies in prop::collection::vec(any::<Index>(), 0..12),
        order in any::<u64>(),
    ) {
        let expected = fold(&history, Retention::Remove);
        let mut delivered = history.clone();
        delivered.extend(copies.iter().map(|copy| copy.get(&history).clone()));
        shuffle(&mut delivered, order);
        prop_assert_eq!(fold(&delivered, Retention::Remove), expected);
    }

    #[test]
    fn every_order_of_a_history_with_reinstalls_folds_to_one_state(
        history in any_lasting_history(),
        copies in prop::collection::vec(any::<Index>(), 0..12),
        order in any::<u64>(),
    ) {
        let expected = fold(&history, Retention::Remove);
        let mut delivered = history.clone();
        delivered.extend(copies.iter().map(|copy| copy.get(&history).clone()));
        shuffle(&mut delivered, order);
        prop_assert_eq!(fold(&delivered, Retention::Remove), expected);
    }

    #[test]
    fn an_uninstall_never_touches_a_generation_that_began_after_it(
        history in any_lasting_history(),
        occurred in 0_i64..14,
    ) {
        let before = fold(&history, Retention::Remove);
        let mut with_uninstall = history;
        with_uninstall.push(uninstalled(99, Some(occurred)));
        let after = fold(&with_uninstall, Retention::Remove);
        for (before, after) in before.iter().zip(&after) {
            if before.installed_at.is_some_and(|began| began > at(occurred)) {
                prop_assert_eq!(&before.status, &after.status);
                prop_assert_eq!(&before.details, &after.details);
            }
        }
    }

    #[test]
    fn at_most_one_installation_of_a_place_is_active(history in any_history()) {
        let active = |installation: &&Installation| installation.status == Status::Active;
        let folded = fold(&history, Retention::Remove);
        prop_assert!(folded.iter().filter(active).count() <= 1);
    }

    #[test]
    fn an_uninstall_never_touches_another_generation(
        history in any_history(),
        occurred in 0_i64..14,
    ) {
        // Whatever an uninstall of "a" does, what is not "a" can only lose a
        // successor, never become inactive or lose its secret by it.
        let mut with_uninstall = history.clone();
        with_uninstall.push(uninstall(99, "a", occurred));
        let others = |events: &[Recorded]| -> BTreeMap<String, Installation> {
            let folded = fold(events, Retention::Keep).into_iter();
            folded
                .map(|installation| (installation.identity.installation_id.to_string(), installation))
                .filter(|(id, _)| id != "a")
                .collect()
        };
        let (before, after) = (others(&history), others(&with_uninstall));
        prop_assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
        for (id, before) in &before {
            let after = &after[id];
            prop_assert_eq!(&before.credential, &after.credential);
            if before.status == Status::Active {
                prop_assert_eq!(&after.status, &Status::Active);
            }
        }
    }

    #[test]
    fn what_was_uninstalled_is_inactive_whatever_else_happens(history in any_history()) {
        let uninstalled = |id: &InstallationId| history.iter().any(|recorded| {
            matches!(&recorded.event.fact, Fact::Uninstalled { identity } if identity.installation_id == *id)
        });
        for installation in fold(&history, Retention::Remove) {
            let inactive = matches!(installation.status, Status::Inactive { .. });
            prop_assert_eq!(inactive, uninstalled(&installation.identity.installation_id));
        }
    }

    #[test]
    fn only_what_is_active_holds_a_credential(history in any_history()) {
        for installation in fold(&history, Retention::Remove) {
            let active = installation.status == Status::Active;
            prop_assert_eq!(installation.credential.is_some(), active);
        }
    }
}

#[test]
fn every_status_has_its_name_in_the_list() {
    let all = [
        Status::Pending,
        Status::Active,
        Status::Suspended,
        Status::Superseded { by: InstallationId::parse("b").unwrap() },
        Status::Inactive { uninstalled_at: Timestamp::UNIX_EPOCH },
        Status::Unconfirmed,
        Status::Unverified,
    ];
    assert_eq!(all.map(|status| status.name()), Status::NAMES);
}

/// Fisher-Yates with a fixed generator, so that a failure can be repeated.
fn shuffle<T>(events: &mut [T], mut seed: u64) {
    for last in (1..events.len()).rev() {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let range = u64::try_from(last).unwrap() + 1;
        events.swap(last, usize::try_from((seed >> 33) % range).unwrap());
    }
}
