//! Waiting for a condition until a deadline or Ctrl-C.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::interrupt;

/// Short enough to go unnoticed, and long enough to leave the processor to what we wait for.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Calls `attempt` until it returns `Some` or fails. Returns `None` when the deadline passes, and fails
/// with "interrupted" on Ctrl-C.
pub fn until<T>(
    deadline: Duration,
    mut attempt: impl FnMut() -> Result<Option<T>>,
) -> Result<Option<T>> {
    until_even_if_interrupted(deadline, || {
        if interrupt::requested() {
            bail!("interrupted");
        }
        attempt()
    })
}

/// As [`until`], but Ctrl-C does not end it: for the waits that belong to stopping.
pub(crate) fn until_even_if_interrupted<T>(
    deadline: Duration,
    mut attempt: impl FnMut() -> Result<Option<T>>,
) -> Result<Option<T>> {
    let start = Instant::now();
    loop {
        if let Some(found) = attempt()? {
            return Ok(Some(found));
        }
        if start.elapsed() >= deadline {
            return Ok(None);
        }
        #[expect(clippy::disallowed_methods, reason = "no runtime is here")]
        thread::sleep(POLL_INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deadline_ends_the_wait() {
        let found = until(Duration::from_millis(30), || Ok(None::<()>)).unwrap();
        assert_eq!(found, None);
    }

    #[test]
    fn the_first_answer_ends_the_wait() {
        let mut calls = 0;
        let found = until(Duration::from_secs(5), || {
            calls += 1;
            Ok((calls == 3).then_some(calls))
        });
        assert_eq!(found.unwrap(), Some(3));
    }
}
