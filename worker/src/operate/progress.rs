//! How far a long command is, on standard error: a bar on a terminal, a line now
//! and then elsewhere.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use opentelemetry::KeyValue;
use service::telemetry::names::attribute;

use crate::metrics::METRICS;

const LINE_EVERY: Duration = Duration::from_secs(2);
const STYLE: &str = "{msg} {wide_bar} {human_pos}/{human_len} {per_sec} {eta} left";

pub(crate) struct Progress {
    what: String,
    /// Of a rebuild, for its metric.
    phase: Option<&'static str>,
    bar: Option<ProgressBar>,
    total: u64,
    done: u64,
    started: Instant,
    last_line: Instant,
}

impl Progress {
    pub(crate) fn new(what: &str, total: u64) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template(STYLE);
            let bar = ProgressBar::new(total);
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_message(what.to_owned());
            bar
        });
        let now = Instant::now();
        Self {
            what: what.to_owned(),
            phase: None,
            bar,
            total,
            done: 0,
            started: now,
            last_line: now,
        }
    }

    pub(crate) fn of_rebuild(what: &str, phase: &'static str, total: u64) -> Self {
        Self { phase: Some(phase), ..Self::new(what, total) }
    }

    pub(crate) fn add(&mut self, count: u64) {
        self.done += count;
        if let Some(phase) = self.phase {
            let done = self.done.min(self.total) as f64 / self.total.max(1) as f64;
            METRICS.rebuild_progress.record(done, &[KeyValue::new(attribute::PHASE, phase)]);
        }
        match &self.bar {
            Some(bar) => bar.inc(count),
            None if self.last_line.elapsed() >= LINE_EVERY => {
                self.last_line = Instant::now();
                note(&self.line());
            }
            None => {}
        }
    }

    fn line(&self) -> String {
        let rate = self.rate();
        let left = self.total.saturating_sub(self.done).checked_div(rate).unwrap_or_default();
        format!("{} {} of {}, {rate}/s, {left} s left", self.what, self.done, self.total)
    }

    /// A second.
    fn rate(&self) -> u64 {
        let milliseconds = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.done.saturating_mul(1_000).checked_div(milliseconds).unwrap_or_default()
    }

    pub(crate) fn finish(self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let seconds = self.started.elapsed().as_secs_f64();
        note(&format!("{} {} in {seconds:.1} s, {}/s", self.what, self.done, self.rate()));
    }
}

/// One line about what is going on, on standard error. Nobody may be left to
/// read it.
pub(crate) fn note(text: &str) {
    writeln!(io::stderr(), "{text}").ok();
}
