//! What is not kept never matters again.

use super::*;
use crate::details::Whitelabel;

const GRANTS: [Grant; 4] =
    [Grant::AuthorizationCode, Grant::Form, Grant::RefreshToken, Grant::Location];

/// One event, as numbers. The log position is its index.
#[derive(Debug, Clone)]
struct Step {
    kind: u8,
    /// Of three installations; a reinstall of the first keeps its id.
    installation: usize,
    /// Few, so that some contradict each other.
    key: Option<u8>,
    secret: Option<bool>,
    occurred: Option<i64>,
    received_late: i64,
    plan: Option<bool>,
    company: Option<bool>,
    about: Index,
    grant: usize,
}

fn any_step() -> impl Strategy<Value = Step> {
    let what = (0_u8..20, 0_usize..3, prop::option::of(0_u8..2), prop::option::of(any::<bool>()));
    let when = (prop::option::weighted(0.7, 0_i64..24), 0_i64..6);
    let said = (prop::option::of(any::<bool>()), prop::option::of(any::<bool>()));
    (what, when, said, any::<Index>(), 0_usize..4).prop_map(
        |(
            (kind, installation, key, secret),
            (occurred, received_late),
            (plan, company),
            about,
            grant,
        )| {
            Step {
                kind,
                installation,
                key,
                secret,
                occurred,
                received_late,
                plan,
                company,
                about,
                grant,
            }
        },
    )
}

impl Step {
    fn identity(&self) -> Identity {
        // The platform of the last has changed what a reinstall does.
        let changed = if self.received_late < 2 { Reinstall::SameId } else { Reinstall::NewId };
        let (id, reinstall) =
            [("a", Reinstall::SameId), ("b", Reinstall::NewId), ("c", changed)][self.installation];
        let scope = self.plan.map(|plan| ("plan".to_owned(), plan.to_string()));
        Identity { reinstall, scope: scope.into_iter().collect(), ..identity(id) }
    }

    fn details(&self) -> Details {
        Details {
            plan_id: self.plan.map(|plan| format!("plan {plan} {}", self.grant)),
            company_name: self.company.map(|company| format!("company {company}")),
            // One that ended is said so.
            whitelabel: self.secret.map(|ended| Whitelabel {
                domain: (!ended).then(|| format!("{}.example", self.grant)),
                logo_url: None,
            }),
            ..Details::default()
        }
    }

    fn recorded(&self, n: u64, before: &[Recorded]) -> Recorded {
        let identity = self.identity();
        let changes: Vec<&Recorded> = before.iter().filter(answers::is_change).collect();
        let about = (!changes.is_empty()).then(|| *self.about.get(&changes));
        let credential = |prefix: &str| SealedCredential {
            field: "secret".to_owned(),
            prefix: Some(prefix.to_owned()),
            sealed: Sealed::from_stored(format!("v1.k1.{prefix}-{n}")),
        };
        let fact = match (self.kind, about) {
            (0..=2, _) => Fact::Installed {
                identity,
                granted_permissions: vec![format!("of {n}")],
                credential: self.secret.map(|_| credential("install")),
                details: self.details(),
            },
            (3..=4, _) => Fact::Uninstalled { identity },
            (5..=7, _) => Fact::Updated { identity, details: self.details() },
            (8..=10, _) => Fact::Authorized {
                is_install: self.plan == Some(true) && GRANTS[self.grant].is_by_user(),
                identity,
                grant: GRANTS[self.grant],
                granted_permissions: self
                    .company
                    .map(|_| format!("scope {n}"))
                    .into_iter()
                    .collect(),
                expires_at: self.occurred.map(at),
                credential: credential("tokens"),
            },
            (11, _) => Fact::Erased { identity },
            (12, _) => Fact::Unrecognized { kind: "odd".to_owned(), identity: Some(identity) },
            (13, Some(about)) => return answers::note(n, about, false),
            (14, Some(about)) => return answers::note(n, about, true),
            (15, _) => Fact::Suspended { identity },
            (16, _) => Fact::Resumed { identity },
            (17, _) => {
                let granted_permissions = vec![format!("changed {n}")];
                Fact::PermissionsChanged { identity, granted_permissions }
            }
            (_, Some(about)) => return Recorded { sequence: StreamSequence(n), ..about.clone() },
            (_, None) => Fact::Uninstalled { identity },
        };
        let received = i64::try_from(n).unwrap() + self.received_late;
        let mut event = event(&format!("{}-{n}", fact.kind()), received, self.occurred, fact);
        let is_said = matches!(self.kind, 0..11 | 15..18);
        if let Some(key) = self.key.filter(|_| is_said) {
            event.idempotency_key = IdempotencyKey::parse(format!("key-{key}")).unwrap();
        }
        let secret = self.secret.filter(|_| is_said);
        event.secret_fingerprint =
            secret.map(|secret| serde_json::from_str(&format!("\"{secret}\"")).unwrap());
        Recorded { sequence: StreamSequence(n), event }
    }
}

/// A log that prints an event a line.
#[derive(Clone)]
struct Log(Vec<Recorded>);

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for Recorded { sequence, event } in &self.0 {
            let second = |time: Timestamp| time.as_second() - at(0).as_second();
            let (received, occurred) = (second(event.received_at), event.occurred_at.map(second));
            let (id, key) = (&event.message_id, event.idempotency_key.as_str());
            writeln!(f, "{sequence} {id} ({key}), {occurred:?} {received}: {:?}", event.fact)?;
        }
        Ok(())
    }
}

/// A log of up to 24 events. Some are moved towards its start: a note before its
/// event, an uninstall before its install.
fn any_log() -> impl Strategy<Value = Log> {
    let step = (any_step(), prop::option::weighted(0.2, any::<Index>()));
    prop::collection::vec(step, 1..24).prop_map(|steps| {
        let mut log = Vec::new();
        let mut order: Vec<usize> = Vec::new();
        for (n, (step, moved)) in (1..).zip(steps) {
            let next = step.recorded(n, &log);
            let index = log.len();
            log.push(next);
            order.insert(moved.map_or(index, |moved| moved.index(index + 1)), index);
        }
        for (n, index) in (1..).zip(order) {
            log[index].sequence = StreamSequence(n);
        }
        Log(log)
    })
}

fn key(recorded: &Recorded) -> &IdempotencyKey {
    &recorded.event.idempotency_key
}

/// What a worker reads when `later` comes: what was kept, and what has a key of `later`.
fn read(journal: &[Recorded], kept: &BTreeSet<MessageId>, later: &[Recorded]) -> Vec<Recorded> {
    let keys: BTreeSet<&IdempotencyKey> = later.iter().map(key).collect();
    let is_read = |it: &&Recorded| kept.contains(&it.event.message_id) || keys.contains(key(it));
    journal.iter().filter(is_read).cloned().collect()
}

fn owned(kept: BTreeSet<&MessageId>) -> BTreeSet<MessageId> {
    kept.into_iter().cloned().collect()
}

fn both(events: &[Recorded]) -> [Vec<Installation>; 2] {
    [fold(events, Retention::Remove), fold(events, Retention::Keep)]
}

/// Of those in `later`, as the worker counts them.
fn new_conflicts(events: &[Recorded], later: &[Recorded]) -> BTreeSet<MessageId> {
    let is_new = |id: &&MessageId| later.iter().any(|it| it.event.message_id == **id);
    conflicts(events).into_iter().filter(is_new).cloned().collect()
}

/// The last position up to which everything has come.
fn floor(log: &[Recorded], arrived: &[Recorded]) -> StreamSequence {
    let missing = log
        .iter()
        .map(|it| it.sequence)
        .filter(|sequence| !arrived.iter().any(|it| it.sequence == *sequence));
    let first_missing = missing.min().map_or(u64::MAX, |sequence| sequence.0);
    StreamSequence(first_missing - 1)
}

/// How many events of an installation may be kept besides its installs, its
/// uninstalls and their notes: the first, the last erasure, one update for each
/// of the six details, the last credential, the last grant.
const KEPT_BESIDES: usize = 2 + 6 + 2;

proptest! {
    #![proptest_config(Config { cases: Config::default().cases.max(3000), ..Config::default() })]

    #[test]
    fn what_is_not_kept_never_matters_again(
        Log(log) in any_log(),
        complete_to in 0_u64..24,
        has_arrived in prop::collection::vec(any::<bool>(), 24),
    ) {
        let (journal, later): (Vec<Recorded>, Vec<Recorded>) = log.iter().cloned().partition(|it| {
            let n = usize::try_from(it.sequence.0).unwrap() - 1;
            it.sequence.0 <= complete_to || has_arrived[n]
        });
        let kept = owned(kept(&journal, StreamSequence(complete_to)));
        let mut with_kept = read(&journal, &kept, &later);
        with_kept.extend(later.iter().cloned());
        prop_assert_eq!(both(&with_kept), both(&log));
        prop_assert_eq!(new_conflicts(&with_kept, &later), new_conflicts(&log, &later));
    }

    #[test]
    fn a_worker_that_reads_what_it_kept_has_the_state_of_the_whole_history(
        Log(log) in any_log(),
        order in any::<u64>(),
        sizes in prop::collection::vec(1_usize..5, 24),
        lag in 0_u64..3,
    ) {
        let mut arriving = log.clone();
        shuffle(&mut arriving, order);
        let mut journal: Vec<Recorded> = Vec::new();
        let mut kept_before: BTreeSet<MessageId> = BTreeSet::new();
        let mut rest = arriving.as_slice();
        for size in sizes {
            let (batch, after) = rest.split_at(size.min(rest.len()));
            rest = after;
            let mut known = read(&journal, &kept_before, batch);
            known.extend(batch.iter().cloned());
            journal.extend(batch.iter().cloned());
            prop_assert_eq!(both(&known), both(&journal));
            // The floor may be an old one.
            let floor = StreamSequence(floor(&log, &journal).0.saturating_sub(lag));
            let read: BTreeSet<MessageId> =
                known.iter().map(|it| it.event.message_id.clone()).collect();
            kept_before.retain(|id| !read.contains(id));
            kept_before.extend(owned(kept(&known, floor)));
        }
    }

    #[test]
    fn what_is_kept_grows_with_installs_and_uninstalls_alone(Log(log) in any_log()) {
        let kept = owned(kept(&log, StreamSequence(u64::MAX)));
        let changes: BTreeSet<&MessageId> =
            log.iter().filter(answers::is_change).map(|it| &it.event.message_id).collect();
        // Each may have two notes.
        prop_assert!(kept.len() <= 3 * changes.len() + 3 * KEPT_BESIDES);
    }
}

#[test]
fn a_thousand_tokens_updates_and_forms_leave_a_handful() {
    let mut events = vec![installed(1, Some(0), "p")];
    for n in 2..=3001 {
        let second = Some(i64::try_from(n).unwrap());
        events.push(match n % 3 {
            0 => updated(n, second, "q"),
            1 => authorized(n, second, Grant::RefreshToken),
            _ => authorized(n, second, Grant::Form),
        });
    }
    let found = kept(&events, StreamSequence(3001));
    let sequences: Vec<u64> = events
        .iter()
        .filter(|it| found.contains(&it.event.message_id))
        .map(|it| it.sequence.0)
        .collect();
    // The install, the last form, the last update, the last token.
    assert_eq!(sequences, [1, 2999, 3000, 3001]);
    assert_eq!(kept(&events, StreamSequence(1000)).len(), 2001 + 4);
}
