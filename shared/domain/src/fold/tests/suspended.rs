//! What stops an installation for a while, what changes its permissions, what counts as an
//! install where the platform tells of none, and a secret for what had ended.

use super::*;

fn stopped(n: u64, at: Option<i64>, identity: Identity) -> Recorded {
    same_id(n, at, Fact::Suspended { identity })
}

fn resumed(n: u64, at: Option<i64>, identity: Identity) -> Recorded {
    same_id(n, at, Fact::Resumed { identity })
}

fn permitted(n: u64, at: Option<i64>, identity: Identity) -> Recorded {
    let granted_permissions = vec![format!("changed {n}")];
    same_id(n, at, Fact::PermissionsChanged { identity, granted_permissions })
}

/// Generation, status and permissions of the only installation.
fn only(events: &[Recorded]) -> (u32, &'static str, String) {
    let [found] = &fold(events, Retention::Remove)[..] else { panic!("not one") };
    (found.generation, found.status.name(), found.granted_permissions.join(","))
}

#[test]
fn what_is_suspended_keeps_its_credential_and_is_active_again_when_it_is_resumed() {
    let a = || identity("a");
    let events = [install(1, "a", "s"), stopped(2, None, a()), resumed(3, None, a())];
    assert_eq!(state(&events[..2]), [row("a", 1, "suspended", Some("s"))]);
    assert_eq!(state(&events), [row("a", 1, "active", Some("s"))]);
}

#[test]
fn of_suspended_and_resumed_the_one_that_happened_last_counts_in_any_order() {
    let a = || identity("a");
    let late = [install(1, "a", "s"), resumed(2, Some(20), a()), stopped(3, Some(10), a())];
    assert_eq!(state(&late), [row("a", 1, "active", Some("s"))]);
    let before_its_install = [stopped(1, Some(10), a()), install(2, "a", "s")];
    assert_eq!(state(&before_its_install), [row("a", 1, "suspended", Some("s"))]);
    assert_eq!(state(&before_its_install[..1]), []);
}

#[test]
fn what_ended_or_was_replaced_is_not_suspended() {
    let events = [install(1, "a", "s"), stopped(2, None, identity("a")), uninstall(3, "a", 3)];
    assert_eq!(state(&events), [row("a", 1, "inactive", None)]);
    let events = [install(1, "a", "s"), stopped(2, None, identity("a")), install(3, "b", "t")];
    assert_eq!(state(&events)[0], row("a", 1, "superseded", None));
}

#[test]
fn where_a_reinstall_keeps_the_id_it_begins_as_active() {
    let events = [
        installed(1, Some(10), "p"),
        stopped(2, Some(20), lasting()),
        uninstalled(3, Some(30)),
        installed(4, Some(40), "p"),
    ];
    assert_eq!(only(&events[..2]).1, "suspended");
    assert_eq!(only(&events[..3]).1, "inactive");
    assert_eq!(only(&events), (2, "active", String::new()));
    // One that comes late is of the generation before.
    let late = [installed(1, Some(40), "p"), stopped(2, Some(20), lasting())];
    assert_eq!(only(&late).1, "active");
}

#[test]
fn the_last_change_of_permissions_counts_until_a_later_install() {
    let a = || identity("a");
    let first = install(1, "a", "s");
    let events = [first, permitted(2, Some(20), a()), permitted(3, Some(10), a())];
    assert_eq!(only(&events[..1]).2, "permission of s");
    assert_eq!(only(&events).2, "changed 2");
    let events = [installed(1, Some(10), "p"), permitted(2, Some(20), lasting())];
    assert_eq!(only(&events).2, "changed 2");
    let later = installed(3, Some(30), "p");
    assert_eq!(only(&[&events[..], &[later]].concat()).2, "");
}

fn granted(n: u64) -> Recorded {
    let mut recorded = authorized(n, None, Grant::AuthorizationCode);
    let Fact::Authorized { is_install, .. } = &mut recorded.event.fact else { panic!() };
    *is_install = true;
    recorded
}

#[test]
fn where_the_platform_tells_of_no_install_a_users_grant_is_one() {
    let events = [granted(1), granted(2), uninstalled(3, Some(3)), granted(4)];
    assert_eq!(state(&events[..1]), [row("a", 1, "active", Some("tokens-1"))]);
    let found = &fold(&events[..1], Retention::Remove)[0];
    assert_eq!(found.credential_expires_at, Some(at(100)));
    assert_eq!(found.granted_permissions, ["scope of tokens-1"]);
    // A user who grants again has not installed it twice.
    assert_eq!(state(&events[..2]), [row("a", 1, "active", Some("tokens-2"))]);
    assert_eq!(state(&events[..3]), [row("a", 1, "inactive", None)]);
    assert_eq!(state(&events), [row("a", 2, "active", Some("tokens-4"))]);
}

/// An install whose secret is told from others by its fingerprint.
fn with_secret(n: u64, id: &str, secret: &str) -> Recorded {
    let mut recorded = install(n, id, secret);
    recorded.event.secret_fingerprint =
        Some(serde_json::from_str(&format!("\"{secret}\"")).unwrap());
    recorded
}

#[test]
fn another_secret_for_what_had_ended_is_kept_until_something_decides() {
    let ended = [with_secret(1, "a", "s1"), uninstall(2, "a", 2)];
    let and = |more: &[Recorded]| [&ended[..], more].concat();
    let renewed = with_secret(3, "a", "s2");
    let unverified = and(std::slice::from_ref(&renewed));
    assert_eq!(state(&unverified), [row("a", 1, "unverified", Some("s2"))]);
    // The same key of the event, and another time: it does not count, and yet it ends it.
    let mut again = uninstall(4, "a", 9);
    again.event.message_id = MessageId::from_stored("blnk:uninstall:a:again".to_owned());
    assert_eq!(state(&and(&[renewed.clone(), again])), [row("a", 1, "inactive", None)]);
    let newer = with_secret(4, "b", "s3");
    assert_eq!(
        state(&and(&[renewed, newer])),
        [row("a", 1, "inactive", None), row("b", 2, "active", Some("s3"))]
    );
}

#[test]
fn a_late_copy_of_the_secret_that_it_had_revives_nothing() {
    let mut copy = with_secret(3, "a", "s1");
    copy.event.message_id = MessageId::from_stored("blnk:install:a:copy".to_owned());
    let events = [with_secret(1, "a", "s1"), uninstall(2, "a", 2), copy];
    assert_eq!(state(&events), [row("a", 1, "inactive", None)]);
    // The uninstall overtook the only install.
    let events = [uninstall(1, "a", 2), with_secret(2, "a", "s1")];
    assert_eq!(state(&events), [row("a", 1, "inactive", None)]);
}
