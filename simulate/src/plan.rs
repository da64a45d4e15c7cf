//! Which callbacks are sent in which order. Pure: it follows from the seed.

use jiff::{SignedDuration, Timestamp};
use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _};

/// So far a callback may be moved.
const REORDER_SPAN: usize = 16;
/// All of it has happened before it is sent.
const AGO: SignedDuration = SignedDuration::from_secs(10);

pub(crate) struct Plan {
    pub(crate) count: u64,
    /// Whether installations end.
    pub(crate) ends: bool,
    pub(crate) chances: Chances,
    pub(crate) began: Timestamp,
}

pub(crate) struct Chances {
    pub(crate) duplicate: f64,
    pub(crate) reorder: f64,
    pub(crate) late_uninstall: f64,
    pub(crate) forge: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Install,
    Uninstall,
}

/// Something that happened at the platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) kind: Kind,
    /// Random; the platform's ids are made of it.
    pub(crate) installation: u64,
    /// The how-many-th time it was installed.
    pub(crate) generation: u8,
    pub(crate) at: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Delivery {
    pub(crate) event: Event,
    pub(crate) forged: bool,
}

impl Plan {
    /// `tells_of_uninstalls`: some platforms do not, and a reinstall is all there is.
    pub(crate) fn deliveries(&self, rng: &mut StdRng, tells_of_uninstalls: bool) -> Vec<Delivery> {
        let mut deliveries = Vec::new();
        for _ in 0..self.count {
            for event in self.history(rng, tells_of_uninstalls) {
                deliveries.push(Delivery { event, forged: false });
                if rng.random_bool(self.chances.duplicate) {
                    deliveries.push(Delivery { event, forged: false });
                }
                if rng.random_bool(self.chances.forge) {
                    deliveries.push(Delivery { event, forged: true });
                }
            }
        }
        for index in 0..deliveries.len() {
            if rng.random_bool(self.chances.reorder) {
                let last = (index + REORDER_SPAN).min(deliveries.len() - 1);
                deliveries.swap(index, rng.random_range(index..=last));
            }
        }
        deliveries
    }

    /// What happens to one installation, in the order of delivery.
    fn history(&self, rng: &mut StdRng, tells_of_uninstalls: bool) -> Vec<Event> {
        let (installation, began) = (rng.next_u64(), self.began - AGO);
        let event = |kind, generation, seconds| {
            let at = began + SignedDuration::from_secs(seconds);
            Event { kind, installation, generation, at }
        };
        let is_late = rng.random_bool(self.chances.late_uninstall);
        let mut history = vec![event(Kind::Install, 1, 0)];
        let end = event(Kind::Uninstall, 1, 2);
        match (is_late, tells_of_uninstalls) {
            (true, true) => history.extend([event(Kind::Install, 2, 4), end]),
            (true, false) => history.push(event(Kind::Install, 2, 4)),
            (false, _) if self.ends => history.push(end),
            (false, _) => {}
        }
        history
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    fn deliveries(seed: u64, ends: bool, chances: Chances) -> Vec<Delivery> {
        let plan = Plan { count: 50, ends, chances, began: Timestamp::UNIX_EPOCH };
        plan.deliveries(&mut StdRng::seed_from_u64(seed), true)
    }

    const NONE: Chances = Chances { duplicate: 0.0, reorder: 0.0, late_uninstall: 0.0, forge: 0.0 };

    #[test]
    fn a_seed_makes_the_same_callbacks() {
        let chances = || Chances { duplicate: 0.5, reorder: 0.5, late_uninstall: 0.5, forge: 0.5 };
        assert_eq!(deliveries(1, true, chances()), deliveries(1, true, chances()));
        assert_ne!(deliveries(1, true, chances()), deliveries(2, true, chances()));
    }

    #[test]
    fn every_chance_does_what_it_says() {
        assert_eq!(deliveries(1, false, NONE).len(), 50);
        assert_eq!(deliveries(1, true, NONE).len(), 100);
        assert_eq!(deliveries(1, false, Chances { duplicate: 1.0, ..NONE }).len(), 100);
        let forged = deliveries(1, false, Chances { forge: 1.0, ..NONE });
        assert_eq!(forged.iter().filter(|it| it.forged).count(), 50);
        let late = deliveries(1, true, Chances { late_uninstall: 1.0, ..NONE });
        let [first, again, end] = [late[0].event, late[1].event, late[2].event];
        assert_eq!((first.generation, again.generation, end.kind), (1, 2, Kind::Uninstall));
        assert!(first.at < end.at && end.at < again.at);
        let reordered = deliveries(1, true, Chances { reorder: 1.0, ..NONE });
        assert_ne!(reordered, deliveries(1, true, NONE));
        assert_eq!(reordered.len(), 100);
    }
}
