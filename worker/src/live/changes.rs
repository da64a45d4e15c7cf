//! What became of installations, from their state before a commit and after it. Plain
//! functions over values; [`crate::store::changes`] records what they find.

use std::collections::{BTreeMap, BTreeSet};

use domain::event::Fact;
use domain::fold::Recorded;
use jiff::Timestamp;

use crate::store::changes::NewChange;
use crate::store::installations::{InstallationView, Row, State};

/// What a change may be, for docs and the command line.
pub(crate) const TYPES: [&str; 14] = [
    "installation.pending",
    "installation.activated",
    "installation.confirmed",
    "installation.unconfirmed",
    "installation.unverified",
    "installation.suspended",
    "installation.resumed",
    "installation.superseded",
    "installation.deactivated",
    "installation.updated",
    "installation.erased",
    "installation.removed",
    "credential.replaced",
    "permissions.changed",
];

/// What an installation is found by.
type Key = (String, String, String);

fn key(State { view, .. }: &State) -> Key {
    (view.source.clone(), view.place.clone(), view.installation_id.clone())
}

fn by_key(states: Vec<State>) -> BTreeMap<Key, State> {
    states.into_iter().map(|state| (key(&state), state)).collect()
}

/// What the events of a batch led to, place by place.
pub(crate) fn between(before: Vec<State>, after: &[Row], batch: &[&Recorded]) -> Vec<NewChange> {
    let mut before = by_key(before);
    let (erased, occurred) = (erased(batch), occurred(batch));
    let mut changes = Vec::new();
    for row in after {
        let now = State::from(row);
        let key = key(&now);
        let was = before.remove(&key);
        let mut types = types(was.as_ref(), &now);
        if erased.contains(&key) {
            types.retain(|it| *it != "installation.updated");
            types.push("installation.erased");
        }
        let place = (key.0, key.1);
        let occurred_at = occurred.get(&place).copied().unwrap_or(Timestamp::UNIX_EPOCH);
        let change = |r#type| NewChange { r#type, occurred_at, installation: now.view.clone() };
        changes.extend(types.into_iter().map(change));
    }
    changes
}

/// What a rebuilt projection says otherwise than the one it replaces.
pub(crate) fn of_rebuild(live: Vec<State>, built: Vec<State>, now: Timestamp) -> Vec<NewChange> {
    let mut live = by_key(live);
    let mut changes = Vec::new();
    let change = |r#type, view: &InstallationView| NewChange {
        r#type,
        occurred_at: now,
        installation: view.clone(),
    };
    for state in built {
        let was = live.remove(&key(&state));
        let types = types(was.as_ref(), &state);
        changes.extend(types.into_iter().map(|it| change(it, &state.view)));
    }
    changes.extend(live.into_values().map(|gone| change("installation.removed", &gone.view)));
    changes
}

/// Which of the batch were erasures.
fn erased(batch: &[&Recorded]) -> BTreeSet<Key> {
    let key = |recorded: &&Recorded| match &recorded.event.fact {
        Fact::Erased { identity } => Some((
            recorded.event.source.to_string(),
            identity.place.as_str().to_owned(),
            identity.installation_id.to_string(),
        )),
        _ => None,
    };
    batch.iter().filter_map(key).collect()
}

/// When the last event of each place in the batch happened.
fn occurred(batch: &[&Recorded]) -> BTreeMap<(String, String), Timestamp> {
    let mut by_log: Vec<&&Recorded> = batch.iter().collect();
    by_log.sort_by_key(|recorded| recorded.sequence);
    let of = |recorded: &&Recorded| {
        let event = &recorded.event;
        let place = event.fact.identity()?.place.as_str().to_owned();
        Some(((event.source.to_string(), place), event.occurred_at.unwrap_or(event.received_at)))
    };
    by_log.into_iter().filter_map(of).collect()
}

/// What a reader is told who knew the state before.
pub(crate) fn types(was: Option<&State>, now: &State) -> Vec<&'static str> {
    let Some(was) = was else { return vec![became(None, &now.view.status)] };
    let has_begun_anew = was.view.generation != now.view.generation;
    let mut types = Vec::new();
    if was.view.status != now.view.status || has_begun_anew {
        types.push(became(Some(&was.view.status), &now.view.status));
    }
    // Whoever hears that it is active looks at all of it.
    if types.contains(&"installation.activated") {
        return types;
    }
    let is_replaced = now.view.has_credential && was.credential_event != now.credential_event;
    if is_replaced {
        types.push("credential.replaced");
    }
    if was.view.granted_permissions != now.view.granted_permissions {
        types.push("permissions.changed");
    }
    if types.is_empty() && is_updated(&was.view, &now.view) {
        types.push("installation.updated");
    }
    types
}

fn became(was: Option<&str>, now: &str) -> &'static str {
    match (was, now) {
        (Some("unconfirmed"), "active") => "installation.confirmed",
        (Some("suspended"), "active") => "installation.resumed",
        (_, "active") => "installation.activated",
        (_, "pending") => "installation.pending",
        (_, "suspended") => "installation.suspended",
        (_, "superseded") => "installation.superseded",
        (_, "unconfirmed") => "installation.unconfirmed",
        (_, "unverified") => "installation.unverified",
        _ => "installation.deactivated",
    }
}

/// Whether what a reader sees differs otherwise. The last event alone is no news.
fn is_updated(was: &InstallationView, now: &InstallationView) -> bool {
    was.app_id != now.app_id
        || was.scope != now.scope
        || was.details != now.details
        || was.has_credential != now.has_credential
        || was.credential_prefix != now.credential_prefix
        || was.credential_expires_at != now.credential_expires_at
        || was.installed_at != now.installed_at
        || was.uninstalled_at != now.uninstalled_at
        || was.superseded_by != now.superseded_by
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::installations::example;

    fn state(status: &str) -> State {
        let view = example("a", status);
        State { view, credential_event: Some("blnk:install:a".to_owned()) }
    }

    fn told(was: &State, change: impl Fn(&mut State)) -> Vec<&'static str> {
        let mut now = was.clone();
        change(&mut now);
        types(Some(was), &now)
    }

    #[test]
    fn each_change_of_status_has_its_name() {
        let from_to = |was: &str, now: &str| types(Some(&state(was)), &state(now));
        for (was, now, expected) in [
            ("pending", "active", "installation.activated"),
            ("inactive", "active", "installation.activated"),
            ("unverified", "active", "installation.activated"),
            ("unconfirmed", "active", "installation.confirmed"),
            ("suspended", "active", "installation.resumed"),
            ("active", "suspended", "installation.suspended"),
            ("active", "unconfirmed", "installation.unconfirmed"),
            ("active", "superseded", "installation.superseded"),
            ("active", "inactive", "installation.deactivated"),
            ("inactive", "unverified", "installation.unverified"),
            ("inactive", "pending", "installation.pending"),
        ] {
            assert_eq!(from_to(was, now), [expected], "{was} to {now}");
        }
        for status in domain::fold::Status::NAMES {
            assert_eq!(from_to(status, status), [""; 0]);
            let [first] = types(None, &state(status))[..] else { panic!("{status}") };
            assert!(TYPES.contains(&first), "{first}");
        }
    }

    #[test]
    fn what_changes_beside_the_status_is_told_by_its_name() {
        let active = state("active");
        let replaced = |now: &mut State| now.credential_event = Some("another".to_owned());
        let permitted = |now: &mut State| now.view.granted_permissions.push("more".to_owned());
        assert_eq!(told(&active, replaced), ["credential.replaced"]);
        assert_eq!(told(&active, permitted), ["permissions.changed"]);
        let both = |now: &mut State| {
            replaced(now);
            permitted(now);
        };
        assert_eq!(told(&active, both), ["credential.replaced", "permissions.changed"]);
        let plan = |now: &mut State| now.view.details.plan_id = Some("gold".to_owned());
        assert_eq!(told(&active, plan), ["installation.updated"]);
        let touched = |now: &mut State| now.view.last_event.sequence += 1;
        assert_eq!(told(&active, touched), [""; 0]);
    }

    #[test]
    fn a_reinstall_under_the_same_id_is_told_once() {
        let again = |now: &mut State| {
            now.view.generation += 1;
            now.credential_event = Some("another".to_owned());
        };
        assert_eq!(told(&state("active"), again), ["installation.activated"]);
    }

    #[test]
    fn a_credential_that_is_removed_is_not_replaced() {
        let removed = |now: &mut State| {
            now.credential_event = None;
            now.view.has_credential = false;
        };
        assert_eq!(told(&state("active"), removed), ["installation.updated"]);
    }
}
