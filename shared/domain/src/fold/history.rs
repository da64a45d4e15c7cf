//! The events of one installation id, and what they say of its last generation.

use jiff::Timestamp;

use super::answers::{Answers, counting, in_log_order};
use super::changes::{Changes, by_installation, happened_at, in_time};
use super::installation::{Credential, Installation, LastEvent, Recorded, Retention, Status};
use crate::details::Details;
use crate::event::{Fact, Identity, Reinstall, SealedCredential};
use crate::id::{MessageId, StreamSequence};

/// The events of one installation id, of its last generation.
pub(super) struct History<'a> {
    /// What it began with, and what that says it is.
    first: &'a Recorded,
    identity: &'a Identity,
    /// How often it was installed before in this place, under the same id.
    earlier: u32,
    /// In log order, or by time where a reinstall has the same id.
    installs: Vec<&'a Recorded>,
    /// The last credential that arrived separately from an install.
    authorized: Option<&'a Recorded>,
    /// The last that a user granted.
    grant: Option<&'a Recorded>,
    /// The last install in the log that we acknowledged in time.
    acknowledged: Option<StreamSequence>,
    details: Details,
    uninstalled_at: Option<Timestamp>,
    /// Whether an uninstall of it was acknowledged in time.
    has_ended: bool,
    /// The last install or uninstall.
    last: Option<&'a Recorded>,
    /// Since when it is unknown whether the platform got our answer to that.
    in_doubt_since: Option<StreamSequence>,
    /// When it was suspended or resumed, if nothing has ended that.
    suspension: Option<&'a Recorded>,
    /// The last change of its permissions alone.
    permissions: Option<&'a Recorded>,
    /// The last erasure.
    erased: Option<StreamSequence>,
    /// The last uninstall in the log of an id that is used once.
    ended_for_good: Option<StreamSequence>,
}

pub(super) fn histories<'a>(events: impl IntoIterator<Item = &'a Recorded>) -> Vec<History<'a>> {
    let distinct = in_log_order(events);
    let answers = Answers::of(&distinct);
    let (counting, _) = counting(&distinct, &answers);
    let changes = by_installation(&distinct, &counting);
    changes.into_values().filter_map(|changes| History::of(&changes, &answers)).collect()
}

impl<'a> History<'a> {
    /// `None` if nothing says that it was ever installed or uninstalled.
    fn of(changes: &Changes<'a>, answers: &Answers<'_>) -> Option<Self> {
        let reinstall = changes.reinstall;
        let mut history: Option<Self> = None;
        // Updates that were logged before the install of an id that is used once.
        let mut early: Vec<&Details> = Vec::new();
        for &recorded in &changes.counting {
            let fact = &recorded.event.fact;
            match (fact, &mut history) {
                (Fact::Updated { details, .. }, None) => early.push(details),
                (Fact::Updated { details, .. }, Some(history))
                    if reinstall == Reinstall::NewId && history.installs.is_empty() =>
                {
                    early.push(details);
                }
                // A renewal does not show that something is installed.
                (Fact::Authorized { grant, .. }, None) if !grant.is_by_user() => {}
                (
                    Fact::Suspended { .. } | Fact::Resumed { .. } | Fact::PermissionsChanged { .. },
                    None,
                ) => {}
                (_, None) => {
                    let mut first = Self::begin(recorded, fact.identity()?);
                    if reinstall == Reinstall::SameId {
                        first.update(early.drain(..));
                    }
                    first.change(recorded, answers);
                    history = Some(first);
                }
                (_, Some(before))
                    if reinstall == Reinstall::SameId && before.is_before(recorded) =>
                {
                    let next = before.next(recorded, fact.identity()?);
                    history.insert(next).change(recorded, answers);
                }
                (_, Some(history)) => history.change(recorded, answers),
            }
            if reinstall == Reinstall::NewId
                && let Some(history) = history.as_mut().filter(|it| !it.installs.is_empty())
            {
                history.update(early.drain(..));
            }
        }
        if reinstall == Reinstall::NewId
            && let Some(history) = &mut history
        {
            history.update(early.drain(..));
        }
        let erased = changes.erased.map(|erased| erased.sequence);
        let uninstalled = changes.uninstalled.filter(|_| reinstall == Reinstall::NewId);
        let ended_for_good = uninstalled.map(|uninstalled| uninstalled.sequence);
        let (suspension, permissions) = (changes.suspension(), changes.permissions());
        history.map(|history| Self { suspension, permissions, erased, ended_for_good, ..history })
    }

    fn begin(first: &'a Recorded, identity: &'a Identity) -> Self {
        Self {
            first,
            identity,
            earlier: 0,
            installs: Vec::new(),
            authorized: None,
            grant: None,
            acknowledged: None,
            details: Details::default(),
            uninstalled_at: None,
            has_ended: false,
            last: None,
            in_doubt_since: None,
            suspension: None,
            permissions: None,
            erased: None,
            ended_for_good: None,
        }
    }

    /// The generation after this one, under the same id. It keeps the credential
    /// of one that was not uninstalled, and until its install comes what was said
    /// last.
    fn next(&self, first: &'a Recorded, identity: &'a Identity) -> Self {
        let authorized = self.authorized.filter(|_| self.uninstalled_at.is_none());
        let (earlier, details) = (self.generations(), self.details.clone());
        Self { earlier, authorized, details, ..Self::begin(first, identity) }
    }

    /// How often it was installed, this time included.
    fn generations(&self) -> u32 {
        self.earlier.saturating_add(if self.installs.is_empty() { 0 } else { 1 })
    }

    /// Whether `recorded` begins another generation under the same id.
    fn is_before(&self, recorded: &Recorded) -> bool {
        let has_ended = self.uninstalled_at.is_some();
        match &recorded.event.fact {
            Fact::Installed { .. } => {
                has_ended || (recorded.event.occurred_at.is_some() && !self.is_granted_only())
            }
            Fact::Authorized { grant, .. } => has_ended && grant.is_by_user(),
            Fact::Updated { .. }
            | Fact::Uninstalled { .. }
            | Fact::Suspended { .. }
            | Fact::Resumed { .. }
            | Fact::PermissionsChanged { .. }
            | Fact::AckMissed { .. }
            | Fact::AckDelivered { .. }
            | Fact::Erased { .. }
            | Fact::Unrecognized { .. } => false,
        }
    }

    /// Whether all that shows an install is a user's grant.
    fn is_granted_only(&self) -> bool {
        let is_grant = |install: &&Recorded| matches!(install.event.fact, Fact::Authorized { .. });
        !self.installs.is_empty() && self.installs.iter().all(is_grant)
    }

    fn change(&mut self, recorded: &'a Recorded, answers: &Answers<'_>) {
        let in_doubt_since = answers.in_doubt_since(recorded);
        match &recorded.event.fact {
            Fact::Installed { details, .. } => {
                if self.installs.is_empty() {
                    self.details = Details::default();
                }
                self.update([details]);
                self.installs.push(recorded);
                if in_doubt_since.is_none() {
                    self.acknowledged = self.acknowledged.max(Some(recorded.sequence));
                }
                (self.last, self.in_doubt_since) = (Some(recorded), in_doubt_since);
            }
            Fact::Updated { details, .. } => self.update([details]),
            Fact::Uninstalled { .. } => {
                let at = happened_at(recorded);
                self.uninstalled_at = Some(self.uninstalled_at.map_or(at, |first| first.min(at)));
                self.has_ended |= in_doubt_since.is_none();
                (self.last, self.in_doubt_since) = (Some(recorded), in_doubt_since);
            }
            Fact::Authorized { grant, is_install, .. } => {
                self.authorized = Some(recorded);
                if grant.is_by_user() {
                    self.grant = Some(recorded);
                }
                if *is_install {
                    self.installs.push(recorded);
                    self.acknowledged = self.acknowledged.max(Some(recorded.sequence));
                    (self.last, self.in_doubt_since) = (Some(recorded), None);
                }
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

    fn update<'b>(&mut self, newer: impl IntoIterator<Item = &'b Details>) {
        let details = std::mem::take(&mut self.details);
        self.details = newer.into_iter().fold(details, Details::updated);
    }

    /// What an install says of the scope counts before what a grant says, and
    /// that before what an uninstall says. Tokens complete it: they were issued for it.
    fn identity(&self) -> Identity {
        let said = self.installs.last().copied().or(self.grant);
        let said = said.and_then(|recorded| recorded.event.fact.identity());
        let mut identity = said.unwrap_or(self.identity).clone();
        let authorized = self.authorized.and_then(|recorded| recorded.event.fact.identity());
        for (name, id) in authorized.iter().flat_map(|it| &it.scope) {
            identity.scope.entry(name.clone()).or_insert_with(|| id.clone());
        }
        identity
    }

    /// The last thing in the log that a user did for it: an install, or a grant.
    fn granted(&self) -> Option<StreamSequence> {
        self.installs.iter().copied().chain(self.grant).map(|recorded| recorded.sequence).max()
    }

    /// The last thing in the log that shows that it is installed.
    fn shown(&self) -> Option<StreamSequence> {
        self.acknowledged.max(self.grant.map(|grant| grant.sequence))
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

    fn is_suspended(&self) -> bool {
        let fact = self.suspension.map(|recorded| &recorded.event.fact);
        matches!(fact, Some(Fact::Suspended { .. }))
    }

    /// Whether an id that is used once got another secret after it had ended. A copy of an
    /// install that comes late brings the secret that it had.
    fn is_unverified(&self) -> bool {
        let Some(ended) = self.ended_for_good else { return false };
        let (before, after): (Vec<&Recorded>, Vec<&Recorded>) =
            self.installs.iter().copied().partition(|install| install.sequence < ended);
        let secret = |install: &&Recorded| install.event.secret_fingerprint.clone();
        let known: Vec<_> = before.iter().filter_map(secret).collect();
        !before.is_empty() && after.iter().filter_map(secret).any(|new| !known.contains(&new))
    }

    fn installed_at(&self) -> Option<Timestamp> {
        self.installs.first().map(|first| happened_at(first))
    }

    /// Whether the platform may have cancelled the last change, and nothing since
    /// shows what became of it.
    fn is_unconfirmed(&self) -> bool {
        let is_open = |since| self.uninstalled_at.is_some() || self.shown() < Some(since);
        !self.has_ended && self.in_doubt_since.is_some_and(is_open)
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
            (Some(_), None) if self.is_unverified() => Status::Unverified,
            (Some(uninstalled_at), _) => Status::Inactive { uninstalled_at },
            (None, Some(by)) => Status::Superseded { by: by.identity.installation_id.clone() },
            (None, None) if self.is_suspended() => Status::Suspended,
            (None, None) if self.installs.is_empty() => Status::Pending,
            (None, None) => Status::Active,
        };
        let has_ended = matches!(status, Status::Superseded { .. } | Status::Inactive { .. });
        let keeps_credential = !has_ended || retention == Retention::Keep;
        let found = self.credential();
        let credential_prefix = found.as_ref().and_then(|found| found.sealed.prefix.clone());
        // A token renewed after an erasure derives from an erased one.
        let found_at = found.as_ref().map(|found| found.sequence);
        let granted = self.granted();
        let is_erased = |by: StreamSequence| found_at < Some(by) || granted < Some(by);
        let is_kept = keeps_credential && !self.erased.is_some_and(is_erased);
        let kept = found.filter(|_| is_kept);
        let credential_expires_at = kept.as_ref().and_then(|found| found.expires_at);
        let credential = kept
            .map(|found| Credential { event: found.event.clone(), sealed: found.sealed.clone() });
        let last = self.last.or(self.grant).unwrap_or(self.first);
        let last = self.suspension.filter(|it| in_time(it) > in_time(last)).unwrap_or(last);
        Installation {
            identity: self.identity(),
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
            | Fact::PermissionsChanged { granted_permissions, .. }
            | Fact::Authorized { granted_permissions, .. } => granted_permissions.clone(),
            _ => Vec::new(),
        };
        let authorized = self.authorized.filter(|recorded| !of(recorded).is_empty());
        let granted = authorized.or(last_install);
        let changed = self
            .permissions
            .filter(|changed| granted.is_none_or(|granted| in_time(granted) < in_time(changed)));
        changed.or(granted).map(of).unwrap_or_default()
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
