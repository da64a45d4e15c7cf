//! The fold: from the events of one place to the installations in it.
//!
//! The result depends on the set of distinct events alone. Order of arrival,
//! duplicates and the number of workers change nothing, because the fold sorts
//! by what the events themselves say and never patches a former result. It has
//! no clock, no I/O, and cannot fail.
//!
//! The rules, for the installations of one place:
//! 1. An installation that was ever uninstalled is inactive. An install that
//!    comes late or again does not revive it.
//! 2. Of the others the one that was installed last is active; it supersedes
//!    those before it. If not every install says when it happened, the one counts
//!    as last whose first install came last in the log. An installation that was uninstalled later
//!    still superseded them while it lived, so they do not come back; one that
//!    was over before another began superseded nothing.
//! 3. Of several installs of one installation the last one counts: same
//!    idempotency key, new secret means a replaced credential.
//! 4. Same kind, installation, idempotency key and secret, other content is a
//!    conflict: the first in the log counts, the others are history.
//! 5. An installation whose last change the platform may not have seen
//!    acknowledged is unconfirmed, until an event settles it.
//! 6. An erasure removes the credentials that came before it in the log, and
//!    what is renewed of them later.
//!
//! 7. A credential that comes apart from its install, as tokens of OAuth do, may
//!    come first: the installation is pending until its install arrives. It is
//!    replaced by a later one, and a new install without an uninstall before it
//!    keeps it.
//!
//! Rules 1 and 3 are for platforms that give each generation an id of its own.
//! Where a reinstall has the same id, the events of the id are told apart by
//! when they happened:
//! 8. An install begins a generation. One that does not say when it happened
//!    might be a repetition: it begins one only if none is active.
//! 9. An uninstall ends the generation before it, and no later one.
//! 10. An update changes the generation before it, if that has not ended. It says
//!     nothing of whether something is installed. A renewed token is no more.
//! 11. What a user authorizes after an uninstall belongs to the next generation.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::details::Details;
use crate::event::{Event, Fact, Identity, Reinstall, SealedCredential};
use crate::id::{InstallationId, MessageId, StreamSequence};

/// An event with its position in the log.
#[derive(Debug, Clone, PartialEq)]
pub struct Recorded {
    pub sequence: StreamSequence,
    pub event: Event,
}

/// What becomes of the sealed secret in the projection when an installation
/// ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retention {
    Remove,
    Keep,
}

/// The state of one installation.
#[derive(Debug, Clone, PartialEq)]
pub struct Installation {
    pub identity: Identity,
    /// The n-th time that the app was installed in this place.
    pub generation: u32,
    pub status: Status,
    pub granted_permissions: Vec<String>,
    /// `None` until an install arrives.
    pub installed_at: Option<Timestamp>,
    /// The start of the last secret, to tell keys apart. It stays when the
    /// secret is removed.
    pub credential_prefix: Option<String>,
    pub credential: Option<Credential>,
    /// When the credential ends, where that is known.
    pub credential_expires_at: Option<Timestamp>,
    pub details: Details,
    pub last_event: LastEvent,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// It was authorized; its install has not arrived.
    Pending,
    Active,
    /// A newer installation took its place.
    Superseded {
        by: InstallationId,
    },
    Inactive {
        uninstalled_at: Timestamp,
    },
    /// The platform may have cancelled its last change.
    Unconfirmed,
}

/// A sealed credential and the event that brought it, which it is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    pub event: MessageId,
    pub sealed: SealedCredential,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastEvent {
    pub sequence: StreamSequence,
    pub kind: &'static str,
}

impl Status {
    /// What [`Status::name`] may say.
    pub const NAMES: [&'static str; 5] =
        ["pending", "active", "superseded", "inactive", "unconfirmed"];

    pub fn name(&self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Superseded { .. } => "superseded",
            Self::Inactive { .. } => "inactive",
            Self::Unconfirmed => "unconfirmed",
        }
    }
}

/// The events of one installation id, of its last generation.
struct History<'a> {
    identity: &'a Identity,
    /// How often it was installed before, under the same id.
    earlier: u32,
    /// In log order, or by time where a reinstall has the same id.
    installs: Vec<&'a Recorded>,
    /// The last credential that came apart from an install.
    authorized: Option<&'a Recorded>,
    /// The last thing in the log that a user did for it: an install, or a grant.
    granted: Option<StreamSequence>,
    details: Details,
    uninstalled_at: Option<Timestamp>,
    /// The last change.
    last: &'a Recorded,
    /// Changes that were perhaps not seen acknowledged, and when we noted that.
    missed: Vec<(&'a MessageId, StreamSequence)>,
    delivered: Vec<&'a MessageId>,
    /// The last erasure.
    erased: Option<StreamSequence>,
}

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

/// The events that another one with the same key and secret contradicts.
pub fn conflicts<'a>(events: impl IntoIterator<Item = &'a Recorded>) -> BTreeSet<&'a MessageId> {
    let in_log_order = in_log_order(events);
    let (_, conflicts) = first_of_each_key(&in_log_order);
    conflicts.into_iter().map(|recorded| &recorded.event.message_id).collect()
}

/// The events, distinct and in log order.
fn in_log_order<'a>(events: impl IntoIterator<Item = &'a Recorded>) -> Vec<&'a Recorded> {
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

/// What counts, and what is in conflict with it.
fn first_of_each_key<'a>(in_log_order: &[&'a Recorded]) -> (Vec<&'a Recorded>, Vec<&'a Recorded>) {
    let mut seen = BTreeSet::new();
    in_log_order.iter().partition(|recorded| {
        let event = &recorded.event;
        match &event.fact {
            Fact::Installed { .. }
            | Fact::Updated { .. }
            | Fact::Uninstalled { .. }
            | Fact::Authorized { .. }
            | Fact::Unrecognized { .. } => {
                let installation = event.fact.identity().map(|found| &found.installation_id);
                let (kind, secret) = (event.fact.kind(), &event.secret_fingerprint);
                seen.insert((&event.source, &event.idempotency_key, secret, kind, installation))
            }
            // They have the key of the event that they are about.
            Fact::AckMissed { .. } | Fact::AckDelivered { .. } => true,
            Fact::Erased { .. } => true,
        }
    })
}

fn histories<'a>(events: impl IntoIterator<Item = &'a Recorded>) -> Vec<History<'a>> {
    let (counting, _) = first_of_each_key(&in_log_order(events));
    let mut changes: BTreeMap<&InstallationId, Vec<&Recorded>> = BTreeMap::new();
    for &recorded in &counting {
        match &recorded.event.fact {
            Fact::Installed { identity, .. }
            | Fact::Updated { identity, .. }
            | Fact::Uninstalled { identity }
            | Fact::Authorized { identity, .. } => {
                changes.entry(&identity.installation_id).or_default().push(recorded);
            }
            // History, not state.
            Fact::Unrecognized { .. } => {}
            // About events that may come later in the log, or never.
            Fact::AckMissed { .. } | Fact::AckDelivered { .. } | Fact::Erased { .. } => {}
        }
    }
    let mut histories: BTreeMap<&InstallationId, History<'_>> =
        changes.into_iter().filter_map(|(id, changes)| Some((id, History::of(changes)?))).collect();
    for &recorded in &counting {
        match &recorded.event.fact {
            Fact::AckMissed { identity, answer_to } => {
                if let Some(history) = histories.get_mut(&identity.installation_id) {
                    history.missed.push((answer_to, recorded.sequence));
                }
            }
            Fact::AckDelivered { identity, answer_to } => {
                if let Some(history) = histories.get_mut(&identity.installation_id) {
                    history.delivered.push(answer_to);
                }
            }
            Fact::Erased { identity } => {
                if let Some(history) = histories.get_mut(&identity.installation_id) {
                    history.erased = history.erased.max(Some(recorded.sequence));
                }
            }
            Fact::Installed { .. }
            | Fact::Updated { .. }
            | Fact::Uninstalled { .. }
            | Fact::Authorized { .. }
            | Fact::Unrecognized { .. } => {}
        }
    }
    histories.into_values().collect()
}

/// When it happened, as far as is known.
fn happened_at(recorded: &Recorded) -> Timestamp {
    recorded.event.occurred_at.unwrap_or(recorded.event.received_at)
}

impl<'a> History<'a> {
    /// `None` if nothing says that it was ever installed or uninstalled.
    fn of(mut changes: Vec<&'a Recorded>) -> Option<Self> {
        let reinstall = changes.first()?.event.fact.identity()?.reinstall;
        if reinstall == Reinstall::SameId {
            changes.sort_by_key(|recorded| (happened_at(recorded), recorded.sequence));
        }
        let mut history: Option<Self> = None;
        // Updates that were logged before the install of an id that is used once.
        let mut early = Vec::new();
        for recorded in changes {
            match (&recorded.event.fact, &mut history) {
                (Fact::Updated { details, .. }, None) => early.push(details),
                (Fact::Installed { identity, .. } | Fact::Uninstalled { identity }, None) => {
                    history.insert(Self::begin(identity, recorded)).change(recorded);
                }
                (Fact::Installed { identity, .. }, Some(before))
                    if reinstall == Reinstall::SameId && before.is_before(recorded) =>
                {
                    let authorized = before.authorized.filter(|_| before.uninstalled_at.is_none());
                    let earlier = before.generations();
                    let next = Self { earlier, authorized, ..Self::begin(identity, recorded) };
                    history.insert(next).change(recorded);
                }
                (Fact::Authorized { grant, .. }, None) if !grant.is_by_user() => {}
                (Fact::Authorized { identity, .. }, None) => {
                    history.insert(Self::begin(identity, recorded)).change(recorded);
                }
                (Fact::Authorized { identity, grant, .. }, Some(before))
                    if before.uninstalled_at.is_some() =>
                {
                    if reinstall == Reinstall::SameId && grant.is_by_user() {
                        let earlier = before.generations();
                        let next = Self { earlier, ..Self::begin(identity, recorded) };
                        history.insert(next).change(recorded);
                    }
                }
                // It ended before, and cannot end or change again.
                (Fact::Uninstalled { .. }, Some(before))
                    if reinstall == Reinstall::SameId && before.uninstalled_at.is_some() => {}
                (Fact::Updated { .. }, Some(before)) if before.uninstalled_at.is_some() => {}
                (_, Some(history)) => history.change(recorded),
                (_, None) => {}
            }
            if let Some(history) = &mut history
                && reinstall == Reinstall::NewId
                && !history.installs.is_empty()
            {
                let details = std::mem::take(&mut history.details);
                history.details = early.drain(..).fold(details, Details::updated);
            }
        }
        history
    }

    fn begin(identity: &'a Identity, first: &'a Recorded) -> Self {
        Self {
            identity,
            earlier: 0,
            installs: Vec::new(),
            authorized: None,
            granted: None,
            details: Details::default(),
            uninstalled_at: None,
            last: first,
            missed: Vec::new(),
            delivered: Vec::new(),
            erased: None,
        }
    }

    /// How often it was installed, this time included.
    fn generations(&self) -> u32 {
        self.earlier.saturating_add(if self.installs.is_empty() { 0 } else { 1 })
    }

    /// Whether `install` begins another generation under the same id.
    fn is_before(&self, install: &Recorded) -> bool {
        self.uninstalled_at.is_some() || install.event.occurred_at.is_some()
    }

    fn change(&mut self, recorded: &'a Recorded) {
        match &recorded.event.fact {
            Fact::Installed { identity, details, .. } => {
                // What an install says of the scope counts before what an uninstall says.
                self.identity = identity;
                self.details = std::mem::take(&mut self.details).updated(details);
                self.installs.push(recorded);
                self.granted = self.granted.max(Some(recorded.sequence));
            }
            Fact::Updated { details, .. } => {
                self.details = std::mem::take(&mut self.details).updated(details);
            }
            Fact::Uninstalled { .. } => {
                let at = happened_at(recorded);
                self.uninstalled_at = Some(self.uninstalled_at.map_or(at, |first| first.min(at)));
            }
            Fact::Authorized { grant, .. } => {
                self.authorized = Some(recorded);
                if grant.is_by_user() {
                    self.granted = self.granted.max(Some(recorded.sequence));
                }
            }
            Fact::AckMissed { .. }
            | Fact::AckDelivered { .. }
            | Fact::Erased { .. }
            | Fact::Unrecognized { .. } => {}
        }
        if !matches!(recorded.event.fact, Fact::Updated { .. } | Fact::Authorized { .. }) {
            self.last = recorded;
        }
    }

    /// Whether its order among others is known from what installs say.
    fn is_dated(&self) -> bool {
        self.installs.iter().all(|install| install.event.occurred_at.is_some())
    }

    /// Generations count by when they were installed if all installs say so, else
    /// by the first install in the log. One whose install has not arrived stands
    /// first: nothing is known to precede it.
    fn order(&self, are_dated: bool) -> impl Ord + use<> {
        let times = self.installs.iter().filter_map(|install| install.event.occurred_at);
        let installed_at = times.min().filter(|_| are_dated);
        let first = self.installs.first().map(|install| install.sequence);
        (installed_at, first, self.identity.installation_id.clone())
    }

    fn installed_at(&self) -> Option<Timestamp> {
        self.installs.first().map(|first| happened_at(first))
    }

    /// Whether the platform may have cancelled the last change. A note from
    /// before the change is about an earlier attempt to append it. What a user
    /// granted since shows that it stands.
    fn is_unconfirmed(&self) -> bool {
        let last = &self.last.event.message_id;
        let is_missed = |(id, noted): &(&MessageId, StreamSequence)| {
            *id == last && *noted > self.last.sequence && self.granted < Some(*noted)
        };
        self.missed.iter().any(is_missed) && !self.delivered.contains(&last)
    }

    /// Whether this installation, which comes later in the log, took the place
    /// of `earlier`. It did not if it was over before `earlier` began: then it
    /// is its install that came late.
    fn superseded(&self, earlier: &History<'_>) -> bool {
        let Some(began) = earlier.installed_at() else { return false };
        self.uninstalled_at.is_none_or(|ended| ended >= began)
    }

    fn installation(
        &self,
        index: usize,
        superseded_by: Option<&History<'_>>,
        retention: Retention,
    ) -> Installation {
        let status = match (self.uninstalled_at, superseded_by) {
            // What came after it settles it, too.
            (_, None) if self.is_unconfirmed() => Status::Unconfirmed,
            (Some(uninstalled_at), _) => Status::Inactive { uninstalled_at },
            (None, Some(by)) => Status::Superseded { by: by.identity.installation_id.clone() },
            (None, None) if self.installs.is_empty() => Status::Pending,
            (None, None) => Status::Active,
        };
        let may_live = matches!(status, Status::Pending | Status::Active | Status::Unconfirmed);
        let keeps_credential = may_live || retention == Retention::Keep;
        let found = self.credential();
        let credential_prefix = found.as_ref().and_then(|found| found.sealed.prefix.clone());
        // What was renewed after an erasure comes of what was erased.
        let found_at = found.as_ref().map(|found| found.sequence);
        let is_erased = |by: StreamSequence| found_at < Some(by) || self.granted < Some(by);
        let is_kept = keeps_credential && !self.erased.is_some_and(is_erased);
        let kept = found.filter(|_| is_kept);
        let credential_expires_at = kept.as_ref().and_then(|found| found.expires_at);
        let credential = kept
            .map(|found| Credential { event: found.event.clone(), sealed: found.sealed.clone() });
        let last = self.last;
        Installation {
            identity: self.identity.clone(),
            generation: u32::try_from(index + 1).unwrap_or(u32::MAX).saturating_add(self.earlier),
            status,
            granted_permissions: self.granted_permissions(),
            installed_at: self.installed_at(),
            credential_prefix,
            credential,
            credential_expires_at,
            details: self.details.clone(),
            last_event: LastEvent { sequence: last.sequence, kind: last.event.fact.kind() },
        }
    }

    /// Of what came with installs and what came apart the last in the log.
    fn credential(&self) -> Option<FoundCredential<'a>> {
        let of_installs =
            self.installs.iter().rev().find_map(|install| FoundCredential::of(install));
        let apart = self.authorized.and_then(FoundCredential::of);
        of_installs.into_iter().chain(apart).max_by_key(|found| found.sequence)
    }

    /// What was granted last, if anything is said of it.
    fn granted_permissions(&self) -> Vec<String> {
        let last_install = self.installs.last().copied();
        let of = |recorded: &Recorded| match &recorded.event.fact {
            Fact::Installed { granted_permissions, .. }
            | Fact::Authorized { granted_permissions, .. } => granted_permissions.clone(),
            _ => Vec::new(),
        };
        let authorized = self.authorized.map(of).filter(|permissions| !permissions.is_empty());
        authorized.or_else(|| last_install.map(of)).unwrap_or_default()
    }
}

/// A credential in the event that brought it.
struct FoundCredential<'a> {
    sequence: StreamSequence,
    event: &'a MessageId,
    sealed: &'a SealedCredential,
    expires_at: Option<Timestamp>,
}

impl<'a> FoundCredential<'a> {
    fn of(recorded: &'a Recorded) -> Option<Self> {
        let (sealed, expires_at) = match &recorded.event.fact {
            Fact::Installed { credential, .. } => (credential.as_ref()?, None),
            Fact::Authorized { credential, expires_at, .. } => (credential, *expires_at),
            _ => return None,
        };
        let (sequence, event) = (recorded.sequence, &recorded.event.message_id);
        Some(Self { sequence, event, sealed, expires_at })
    }
}

#[cfg(test)]
mod tests;
