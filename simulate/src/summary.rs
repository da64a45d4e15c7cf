//! What is said at the end.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::send::Outcome;

#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    platform: &'static str,
    seed: u64,
    sent: u64,
    seconds: f64,
    /// By status; "no answer" where there was none.
    answers: BTreeMap<String, u64>,
    forged_answers: BTreeMap<String, u64>,
    duplicates: u64,
    /// Genuine ones that were not answered 2xx, and forged ones that were not 401.
    pub(crate) unexpected: u64,
    latency_ms: Latency,
}

#[derive(Debug, Serialize)]
struct Latency {
    p50: f64,
    p99: f64,
    max: f64,
}

impl Summary {
    pub(crate) fn of(platform: &'static str, seed: u64, outcome: &Outcome) -> Self {
        let by_status = |forged: bool| {
            let of = outcome.answers.iter().filter(move |((is_forged, _), _)| *is_forged == forged);
            of.map(|((_, status), count)| (name(*status), *count)).collect()
        };
        let is_expected = |forged: bool, status: u16| match forged {
            true => status == 401,
            false => (200..300).contains(&status),
        };
        let unexpected = outcome.answers.iter().filter(|((f, s), _)| !is_expected(*f, *s));
        let latency = |quantile: f64| {
            let us = outcome.latency_us.value_at_quantile(quantile);
            u32::try_from(us).map_or(f64::INFINITY, f64::from) / 1_000.0
        };
        Self {
            platform,
            seed,
            sent: outcome.answers.values().sum(),
            seconds: outcome.elapsed.as_secs_f64(),
            answers: by_status(false),
            forged_answers: by_status(true),
            duplicates: outcome.duplicates,
            unexpected: unexpected.map(|(_, count)| count).sum(),
            latency_ms: Latency { p50: latency(0.5), p99: latency(0.99), max: latency(1.0) },
        }
    }
}

fn name(status: u16) -> String {
    if status == 0 { "no answer".to_owned() } else { status.to_string() }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { platform, seed, sent, seconds, duplicates, unexpected, .. } = self;
        let Latency { p50, p99, max } = self.latency_ms;
        let list = |answers: &BTreeMap<String, u64>| {
            let each = answers.iter().map(|(status, count)| format!("{count} × {status}"));
            each.collect::<Vec<_>>().join(", ")
        };
        writeln!(f, "{platform}: {sent} callbacks in {seconds:.1} s (seed {seed})")?;
        writeln!(f, "  answers     {}", list(&self.answers))?;
        if !self.forged_answers.is_empty() {
            writeln!(f, "  forged      {}", list(&self.forged_answers))?;
        }
        writeln!(f, "  duplicates  {duplicates}")?;
        writeln!(f, "  latency     p50 {p50:.1} ms, p99 {p99:.1} ms, max {max:.1} ms")?;
        if *unexpected > 0 {
            writeln!(f, "  UNEXPECTED  {unexpected} answers")?;
        }
        Ok(())
    }
}
