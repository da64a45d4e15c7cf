//! Messages to the person at the terminal while things start and stop. They go to stderr, because
//! stdout is for results.
#![expect(clippy::print_stderr, reason = "this module writes to the terminal for all others")]

use std::time::Instant;

use anyhow::Result;

/// Prints one line.
pub fn say(line: &str) {
    eprintln!("{line}");
}

/// Runs one step of a list and prints how long it took. A step that fails prints nothing: its error
/// is shown instead.
pub fn step<T>(name: &str, run: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let done = run()?;
    eprintln!("  {name:<44} {:>6.1} s", start.elapsed().as_secs_f64());
    Ok(done)
}

/// Runs a step that prints much itself, with a heading before it and its duration after it.
pub fn chapter<T>(name: &str, run: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    heading(name);
    let done = run()?;
    eprintln!("   done in {:.1} s", start.elapsed().as_secs_f64());
    Ok(done)
}

/// Prints a heading alone, for a step whose own summary must stay the last thing on the screen.
pub fn heading(name: &str) {
    eprintln!("\n== {name}");
}
