//! The events of one installation id, and what they say of its last generation.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::answers::{Answers, counting, in_log_order};
use super::installation::{Credential, Installation, LastEvent, Recorded, Retention, Status};
use crate::details::Details;
use crate::event::{Fact, Identity, Reinstall, SealedCredential};
use crate::id::{InstallationId, MessageId, StreamSequence};

/// The events of one installation id, of its last generation.
pub(super) struct History<'a> {
    identity: &'a Identity,
    /// How often it was installed before in this place, under the same id.
    earlier: u32,
    /// In log order, or by time where a reinstall has the same id.
    installs: Vec<&'a Recorded>,
    /// The last credential that arrived separately from an install.
    authorized: Option<&'a Recorded>,
    /// The last thing in the log that a user did for it: an install, or a grant.
    granted: Option<StreamSequence>,
    /// The last thing in the log that shows that it is installed: a grant, or an
    /// install that we acknowledged in time.
    shown: Option<StreamSequence>,
    details: Details,
    uninstalled_at: Option<Timestamp>,
    /// Whether an uninstall of it was acknowledged in time.
    has_ended: bool,
    /// The last change.
    last: &'a Recorded,
    /// Since when it is unknown whether the platform got our answer to that.
    in_doubt_since: Option<StreamSequence>,
    /// The last erasure.
    erased: Option<StreamSequence>,
}

pub(super) fn histories<'a>(events: impl IntoIterator<Item = &'a Recorded>) -> Vec<History<'a>> {
    let distinct = in_log_order(events);
    let answers = Answers::of(&distinct);
    let (counting, _) = counting(&distinct, &answers);
    let mut changes: BTreeMap<&InstallationId, Vec<&Recorded>> = BTreeMap::new();
    let mut erasures: BTreeMap<&InstallationId, StreamSequence> = BTreeMap::new();
    for recorded in counting {
        match &recorded.event.fact {
            Fact::Installed { identity, .. }
            | Fact::Updated { identity, .. }
            | Fact::Uninstalled { identity }
            | Fact::Authorized { identity, .. } => {
                changes.entry(&identity.installation_id).or_default().push(recorded);
            }
            Fact::Erased { identity } => {
                erasures.insert(&identity.installation_id, recorded.sequence);
            }
            // History, not state.
            Fact::Unrecognized { .. } => {}
            // About events; they are in the answers.
            Fact::AckMissed { .. } | Fact::AckDelivered { .. } => {}
        }
    }
    let history = |(id, changes)| {
        let history = History::of(changes, &answers)?;
        Some(History { erased: erasures.get(id).copied(), ..history })
    };
    changes.into_iter().filter_map(history).collect()
}

/// When it happened, as far as is known.
fn happened_at(recorded: &Recorded) -> Timestamp {
    recorded.event.occurred_at.unwrap_or(recorded.event.received_at)
}

impl<'a> History<'a> {
    /// `None` if nothing says that it was ever installed or uninstalled.
    fn of(mut changes: Vec<&'a Recorded>, answers: &Answers<'_>) -> Option<Self> {
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
                    history.insert(Self::begin(identity, recorded)).change(recorded, answers);
                }
                (Fact::Installed { identity, .. }, Some(before))
                    if reinstall == Reinstall::SameId && before.is_before(recorded) =>
                {
                    let authorized = before.authorized.filter(|_| before.uninstalled_at.is_none());
                    let earlier = before.generations();
                    let next = Self { earlier, authorized, ..Self::begin(identity, recorded) };
                    history.insert(next).change(recorded, answers);
                }
                (Fact::Authorized { grant, .. }, None) if !grant.is_by_user() => {}
                (Fact::Authorized { identity, .. }, None) => {
                    history.insert(Self::begin(identity, recorded)).change(recorded, answers);
                }
                (Fact::Authorized { identity, grant, .. }, Some(before))
                    if before.uninstalled_at.is_some() =>
                {
                    if reinstall == Reinstall::SameId && grant.is_by_user() {
                        let earlier = before.generations();
                        let next = Self { earlier, ..Self::begin(identity, recorded) };
                        history.insert(next).change(recorded, answers);
                    }
                }
                // It ended before, and cannot end or change again.
                (Fact::Uninstalled { .. }, Some(before))
                    if reinstall == Reinstall::SameId && before.uninstalled_at.is_some() =>
                {
                    before.has_ended |= answers.in_doubt_since(recorded).is_none();
                }
                (Fact::Updated { .. }, Some(before)) if before.uninstalled_at.is_some() => {}
                (_, Some(history)) => history.change(recorded, answers),
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
            shown: None,
            details: Details::default(),
            uninstalled_at: None,
            has_ended: false,
            last: first,
            in_doubt_since: None,
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

    fn change(&mut self, recorded: &'a Recorded, answers: &Answers<'_>) {
        let in_doubt_since = answers.in_doubt_since(recorded);
        match &recorded.event.fact {
            Fact::Installed { identity, details, .. } => {
                // What an install says of the scope counts before what an uninstall says.
                self.identity = identity;
                self.details = std::mem::take(&mut self.details).updated(details);
                self.installs.push(recorded);
                self.granted = self.granted.max(Some(recorded.sequence));
                if in_doubt_since.is_none() {
                    self.shown = self.shown.max(Some(recorded.sequence));
                }
            }
            Fact::Updated { details, .. } => {
                self.details = std::mem::take(&mut self.details).updated(details);
            }
            Fact::Uninstalled { .. } => {
                let at = happened_at(recorded);
                self.uninstalled_at = Some(self.uninstalled_at.map_or(at, |first| first.min(at)));
                self.has_ended |= in_doubt_since.is_none();
            }
            Fact::Authorized { grant, .. } => {
                self.authorized = Some(recorded);
                if grant.is_by_user() {
                    self.granted = self.granted.max(Some(recorded.sequence));
                    self.shown = self.shown.max(Some(recorded.sequence));
                }
            }
            Fact::AckMissed { .. }
            | Fact::AckDelivered { .. }
            | Fact::Erased { .. }
            | Fact::Unrecognized { .. } => {}
        }
        if !matches!(recorded.event.fact, Fact::Updated { .. } | Fact::Authorized { .. }) {
            self.last = recorded;
            self.in_doubt_since = in_doubt_since;
        }
    }

    /// Whether its order among others is known from what installs say.
    pub(super) fn is_dated(&self) -> bool {
        self.installs.iter().all(|install| install.event.occurred_at.is_some())
    }

    /// Generations count by when they were installed if all installs say so, else
    /// by the first install in the log. One whose install has not arrived stands
    /// first: nothing is known to precede it.
    pub(super) fn order(&self, are_dated: bool) -> impl Ord + use<> {
        let times = self.installs.iter().filter_map(|install| install.event.occurred_at);
        let installed_at = times.min().filter(|_| are_dated);
        let first = self.installs.first().map(|install| install.sequence);
        (installed_at, first, self.identity.installation_id.clone())
    }

    fn installed_at(&self) -> Option<Timestamp> {
        self.installs.first().map(|first| happened_at(first))
    }

    /// Whether the platform may have cancelled the last change, and nothing since
    /// shows what became of it.
    fn is_unconfirmed(&self) -> bool {
        !self.has_ended && self.in_doubt_since.is_some_and(|since| self.shown < Some(since))
    }

    /// Whether this installation, which comes later in the log, took the place
    /// of `earlier`. It did not if it was over before `earlier` began: then it
    /// is its install that came late.
    pub(super) fn superseded(&self, earlier: &History<'_>) -> bool {
        let Some(began) = earlier.installed_at() else { return false };
        self.uninstalled_at.is_none_or(|ended| ended >= began)
    }

    pub(super) fn installation(
        &self,
        index: usize,
        superseded_by: Option<&History<'_>>,
        retention: Retention,
    ) -> Installation {
        let status = match (self.uninstalled_at, superseded_by) {
            // A later installation settles it as well.
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
        // A token renewed after an erasure derives from an erased one.
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

    /// The last credential in the log, whether it came with an install or
    /// separately.
    fn credential(&self) -> Option<FoundCredential<'a>> {
        let of_installs =
            self.installs.iter().rev().find_map(|install| FoundCredential::of(install));
        let separate = self.authorized.and_then(FoundCredential::of);
        of_installs.into_iter().chain(separate).max_by_key(|found| found.sequence)
    }

    /// The permissions granted last, if any event names them.
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
