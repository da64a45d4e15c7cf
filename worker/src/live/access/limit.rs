//! How often a caller may ask.

use std::num::NonZeroU32;

use governor::clock::{Clock as _, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

/// So many requests a second, and after a pause as many at once.
#[derive(Debug)]
pub(super) struct Limiter {
    limiter: RateLimiter<NotKeyed, InMemoryState, DefaultClock, StateInformationMiddleware>,
    clock: DefaultClock,
}

/// What a caller may still ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Left {
    /// Requests a second.
    pub(crate) quota: u32,
    /// At once.
    pub(crate) requests: u32,
    /// If it asked too often.
    pub(crate) again_in_s: Option<u32>,
}

impl Limiter {
    pub(super) fn new(requests_per_second: NonZeroU32) -> Self {
        let clock = DefaultClock::default();
        let limiter = RateLimiter::direct(Quota::per_second(requests_per_second));
        Self { limiter: limiter.with_middleware(), clock }
    }

    /// In how many seconds to come again, if it was one request too many.
    pub(super) fn take(&self) -> Result<Left, u32> {
        let taken = self.limiter.check().map(|now| Left {
            quota: now.quota().burst_size().get(),
            requests: now.remaining_burst_capacity(),
            again_in_s: None,
        });
        taken.map_err(|not_until| {
            let wait = not_until.wait_time_from(self.clock.now());
            // Whole seconds, rounded up.
            u32::try_from(wait.as_secs()).unwrap_or(u32::MAX).saturating_add(1)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_request_too_many_is_told_when_to_come_again() {
        let limiter = Limiter::new(NonZeroU32::new(2).unwrap());
        let left = |requests| Ok(Left { quota: 2, requests, again_in_s: None });
        assert_eq!((limiter.take(), limiter.take()), (left(1), left(0)));
        assert_eq!(limiter.take(), Err(1));
    }
}
