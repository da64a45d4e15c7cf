//! Which refusals get a record of their own. Anybody can cause refusals without end, so
//! each kind of caller has a budget of records; what exceeds it is counted. A flood by
//! one uses up its own budget and hides nothing of another.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::store::access::{Entry, Outcome};

/// Records that a class may have at once after a pause.
const BURST: u32 = 50;
/// A record more in each such time.
const REFILL_EVERY: Duration = Duration::from_secs(10);
/// Classes that are kept apart. Configured callers are few; what is beyond shares one.
const CLASSES_MAX: usize = 1_024;
const LENGTH_MAX: usize = 200;

/// One request that was refused. Requests that are equal share a record.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Denial {
    /// `None`: a stranger.
    pub(crate) caller: Option<String>,
    pub(crate) reason: &'static str,
    pub(crate) status: u16,
    pub(crate) subject: Option<String>,
    pub(crate) client_address: Option<String>,
    pub(crate) route: String,
}

/// A caller's refusals are its own; strangers' are told apart by their reasons.
type Class = (Option<String>, &'static str);

struct Budget {
    left: u32,
    refilled_at: Instant,
    /// With the status of the last of them.
    others: Option<(u16, u64)>,
}

#[derive(Default)]
pub(super) struct Denials {
    budgets: BTreeMap<Class, Budget>,
    /// With how many there were, and the trace of the first.
    counted: BTreeMap<Denial, (u64, Option<String>)>,
}

impl Denials {
    pub(super) fn note(&mut self, denial: Denial, trace_id: Option<String>, now: Instant) {
        if let Some((count, _)) = self.counted.get_mut(&denial) {
            *count += 1;
            return;
        }
        let mut class = (denial.caller.clone(), denial.reason);
        if self.budgets.len() >= CLASSES_MAX && !self.budgets.contains_key(&class) {
            class = (None, "various");
        }
        let fresh = || Budget { left: BURST, refilled_at: now, others: None };
        let budget = self.budgets.entry(class).or_insert_with(fresh);
        if budget.take(now) {
            self.counted.insert(denial, (1, trace_id));
        } else {
            let (_, others) = budget.others.unwrap_or((denial.status, 0));
            budget.others = Some((denial.status, others + 1));
        }
    }

    /// What is to be recorded now.
    pub(super) fn take(&mut self) -> Vec<Entry> {
        let counted = std::mem::take(&mut self.counted).into_iter();
        let own = counted.map(|(denial, (requests, trace_id))| Entry {
            outcome: Outcome::Refused,
            reason: denial.reason,
            status: Some(denial.status),
            requests,
            caller: denial.caller,
            subject: denial.subject.map(storable),
            client_address: denial.client_address,
            trace_id,
            route: Some(denial.route),
            opened: None,
        });
        let mut entries: Vec<Entry> = own.collect();
        for ((caller, reason), budget) in &mut self.budgets {
            let Some((status, requests)) = budget.others.take() else { continue };
            entries.push(Entry {
                outcome: Outcome::OthersRefused,
                reason,
                status: Some(status),
                requests,
                caller: caller.clone(),
                subject: None,
                client_address: None,
                trace_id: None,
                route: None,
                opened: None,
            });
        }
        entries
    }
}

impl Budget {
    fn take(&mut self, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.refilled_at).as_secs();
        let refills = u32::try_from(elapsed / REFILL_EVERY.as_secs()).unwrap_or(u32::MAX);
        if refills > 0 {
            self.refilled_at += REFILL_EVERY.saturating_mul(refills);
            self.left = self.left.saturating_add(refills).min(BURST);
        }
        let has = self.left > 0;
        self.left = self.left.saturating_sub(1);
        has
    }
}

/// Postgres takes no NUL, and a record is no place for an essay.
pub(super) fn storable(text: String) -> String {
    text.chars().filter(|c| !c.is_control()).take(LENGTH_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denial(caller: Option<&str>, reason: &'static str, address: &str) -> Denial {
        Denial {
            caller: caller.map(str::to_owned),
            reason,
            status: 401,
            subject: None,
            client_address: Some(address.to_owned()),
            route: "/v1/installations".to_owned(),
        }
    }

    #[test]
    fn equal_refusals_share_a_record() {
        let (mut denials, now) = (Denials::default(), Instant::now());
        for _ in 0..1_000_000 {
            denials.note(denial(None, "unknown-token", "::1"), None, now);
        }
        let [only] = &denials.take()[..] else { panic!("more than one record") };
        assert_eq!((only.outcome, only.requests), (Outcome::Refused, 1_000_000));
        assert_eq!(denials.take(), []);
    }

    #[test]
    fn a_flood_is_counted_and_hides_nothing_of_others() {
        let (mut denials, mut now) = (Denials::default(), Instant::now());
        let mut recorded = Vec::new();
        for second in 0..3_600_u64 {
            now += Duration::from_secs(1);
            for number in 0..100 {
                let address = format!("10.{}.{}.{number}", second / 250, second % 250);
                denials.note(denial(None, "unknown-token", &address), None, now);
            }
            if second == 1_800 {
                denials.note(denial(None, "no-token", "192.0.2.1"), None, now);
                denials.note(denial(Some("app"), "unknown-token", "192.0.2.2"), None, now);
            }
            if second % 10 == 0 {
                recorded.extend(denials.take());
            }
        }
        recorded.extend(denials.take());
        let of =
            |address: &str| recorded.iter().any(|it| it.client_address.as_deref() == Some(address));
        assert!(of("192.0.2.1") && of("192.0.2.2"), "a real refusal is hidden");
        let requests: u64 = recorded.iter().map(|it| it.requests).sum();
        assert_eq!(requests, 360_002, "every refusal is counted");
        assert!(recorded.len() < 50 + 2 * 360 + 3, "{} records in an hour", recorded.len());
    }

    #[test]
    fn invented_callers_take_no_memory() {
        let (mut denials, now) = (Denials::default(), Instant::now());
        for number in 0..10_000 {
            let name = number.to_string();
            denials.note(denial(Some(&name), "expired", "::1"), None, now);
        }
        assert!(denials.budgets.len() <= CLASSES_MAX + 1);
        assert!(denials.counted.len() <= CLASSES_MAX + 50);
        assert_eq!(denials.take().iter().map(|it| it.requests).sum::<u64>(), 10_000);
    }
}
