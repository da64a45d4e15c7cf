//! How often a caller may ask.

use std::num::NonZeroU32;

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

/// So many requests a second, and after a pause as many at once.
#[derive(Debug)]
pub(super) struct Limiter {
    limiter: DefaultDirectRateLimiter,
    clock: DefaultClock,
}

impl Limiter {
    pub(super) fn new(requests_per_second: NonZeroU32) -> Self {
        let clock = DefaultClock::default();
        Self { limiter: RateLimiter::direct(Quota::per_second(requests_per_second)), clock }
    }

    /// In how many seconds to come again, if it was one request too many.
    pub(super) fn take(&self) -> Result<(), u32> {
        self.limiter.check().map_err(|not_until| {
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
        assert_eq!((limiter.take(), limiter.take()), (Ok(()), Ok(())));
        assert_eq!(limiter.take(), Err(1));
    }
}
