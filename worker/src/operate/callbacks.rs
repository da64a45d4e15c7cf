//! `worker callbacks`: what became of callbacks that are not in the log.

use clap::Args;
use domain::id::SourceName;
use eventlog::audit::{self, Outcome, Record};

use crate::operate::context::{Command, Context};
use crate::operate::output::Format;

/// Callbacks of the last seven days that were refused or repeated
#[derive(Args)]
pub(crate) struct Arguments {
    /// Only callbacks of this source
    #[arg(long, value_parser = |text: &str| SourceName::parse(text))]
    source: Option<SourceName>,
    /// Only callbacks that were refused
    #[arg(long)]
    refused: bool,
    #[command(flatten)]
    format: Format,
}

impl Command for Arguments {
    async fn run(self, context: &Context) -> anyhow::Result<()> {
        let backends = context.backends().await?;
        let mut found = audit::records(&backends.connection, self.source.as_ref()).await?;
        if self.refused {
            found.retain(|record| matches!(record.outcome, Outcome::Refused { .. }));
        }
        self.format.print(found.as_slice(), render)
    }
}

fn render(found: &[Record]) -> String {
    if found.is_empty() {
        return "no callbacks on record".to_owned();
    }
    let line = |record: &Record| {
        let Record { source, received_at, trace_id, outcome, omitted } = record;
        let others =
            if *omitted > 0 { format!("  and {omitted} before it") } else { String::new() };
        let trace = trace_id.as_ref().map(|id| format!("  trace {id}")).unwrap_or_default();
        let what = match outcome {
            Outcome::Refused { status, reason, .. } => format!("refused {status} {reason}"),
            Outcome::Duplicate { installation_id, r#type, sequence } => format!(
                "duplicate of sequence {sequence}: {type} {}",
                installation_id.as_deref().unwrap_or_default(),
                type = r#type
            ),
        };
        format!("{:<30} {:<12} {what}{others}{trace}", received_at.to_string(), source.as_str())
    };
    let lines: Vec<String> = found.iter().map(line).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::operate::tests::assert_view;

    #[test]
    fn refused_and_repeated_callbacks_are_listed() {
        let record = |outcome, trace_id: Option<&str>, omitted| Record {
            omitted,
            source: SourceName::parse("blnk").unwrap(),
            received_at: Timestamp::UNIX_EPOCH,
            trace_id: trace_id.map(str::to_owned),
            outcome,
        };
        let reason = "unauthentic".to_owned();
        let refused = Outcome::Refused { status: 401, reason, verified: false };
        let duplicate = Outcome::Duplicate {
            installation_id: Some("instapp_1".into()),
            r#type: "installed".into(),
            sequence: 7,
        };
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let found = [record(refused, Some(trace), 7), record(duplicate, None, 0)];
        assert_view("callbacks", &render(&found));
        assert_view("callbacks-none", &render(&[]));
    }
}
