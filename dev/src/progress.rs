//! What the person at the terminal is told while things start. On stderr: stdout is for results.
#![expect(clippy::print_stderr, reason = "telling the person at the terminal is its purpose")]

use std::time::Instant;

use anyhow::Result;

/// One line.
pub fn say(line: &str) {
    eprintln!("{line}");
}

/// Does one step of a list and says how long it took. A step that fails leaves the line to the error.
pub fn step<T>(name: &str, run: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let done = run()?;
    eprintln!("  {name:<44} {:>6.1} s", start.elapsed().as_secs_f64());
    Ok(done)
}

/// Does one step that prints a lot itself: a heading before, its duration after.
pub fn chapter<T>(name: &str, run: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    heading(name);
    let done = run()?;
    eprintln!("   done in {:.1} s", start.elapsed().as_secs_f64());
    Ok(done)
}

/// The heading alone, for the step whose own summary must stay the last thing on the screen.
pub fn heading(name: &str) {
    eprintln!("\n== {name}");
}
