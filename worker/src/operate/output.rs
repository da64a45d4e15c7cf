//! Answers on standard output, as JSON for programs or as text for people.

use std::io::{self, Write as _};

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;
use serde_json::Value;

/// Whoever read the answer has seen enough, as `head` has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("standard output is closed")]
pub(crate) struct Closed;

/// How a command answers.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(crate) struct Format {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Format {
    /// Prints a report as JSON, or as `text` renders it.
    pub(crate) fn print<R: Serialize + ?Sized>(
        &self,
        report: &R,
        text: impl FnOnce(&R) -> String,
    ) -> anyhow::Result<()> {
        print(&if self.json { serde_json::to_string_pretty(report)? } else { text(report) })
    }
}

/// Prints lines.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{text}").and_then(|()| stdout.flush()).or_else(unwritten)
}

/// What it means that an answer could not be written.
pub(crate) fn unwritten<T>(error: io::Error) -> anyhow::Result<T> {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Err(Closed.into()),
        _ => Err(error).context("writing to standard output"),
    }
}

/// Each field on a line of its own, named as in JSON.
pub(crate) fn fields(found: &impl Serialize) -> String {
    let Ok(Value::Object(fields)) = serde_json::to_value(found) else { return String::new() };
    let line = |(name, value)| match value {
        Value::Null => None,
        Value::String(text) => Some(format!("{name:<20} {text}")),
        other => Some(format!("{name:<20} {other}")),
    };
    let lines: Vec<String> = fields.into_iter().filter_map(line).collect();
    lines.join("\n")
}
