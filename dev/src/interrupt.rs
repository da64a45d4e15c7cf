//! Ctrl-C, SIGTERM and SIGHUP. A signal sets a flag that every wait checks. The wait then fails, and
//! the handles on the stack stop their children in order.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::processes;

/// Zero until a signal arrives, then the signal's number.
static SIGNAL: OnceLock<Arc<AtomicUsize>> = OnceLock::new();

/// Starts to watch for signals. Only the command line does this; in tests, the runner handles them.
pub fn watch() -> Result<()> {
    let signal = SIGNAL.get_or_init(Arc::default);
    for number in [SIGINT, SIGTERM, SIGHUP] {
        let value = usize::try_from(number).context("a signal number is positive")?;
        signal_hook::flag::register_usize(number, Arc::clone(signal), value)
            .with_context(|| format!("watching for signal {number}"))?;
    }
    Ok(())
}

/// Whether we were asked to stop.
#[must_use]
pub fn requested() -> bool {
    SIGNAL.get().is_some_and(|signal| signal.load(Ordering::Relaxed) != 0)
}

/// Passes the signal on to a child in our own process group, unless it was Ctrl-C. The terminal sends
/// Ctrl-C to the whole group, and to test runners a second one means "stop at once".
pub fn pass_on(pid: u32) -> Result<()> {
    let signal = SIGNAL.get().map_or(0, |signal| signal.load(Ordering::Relaxed));
    if signal == 0 || usize::try_from(SIGINT) == Ok(signal) {
        return Ok(());
    }
    processes::signal(pid, Signal::TERM)
}
