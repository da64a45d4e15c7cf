//! `worker explain` and `worker callbacks`: arguments and answers.
#![expect(clippy::print_stdout, reason = "answers go to standard output")]

use clap::Args;
use domain::id::{InstallationId, SourceName};
use eventlog::audit::{self, Outcome, Record};
use worker::operate::backends::Backends;
use worker::operate::explain;

use super::{WhichArgs, print_json};

#[derive(Args)]
#[command(after_help = "\
Shows events, repeated callbacks, conflicts, dead letters and notes about answers in one timeline,
with the trace of each. Refused callbacks name no installation: see `worker callbacks`.")]
pub(crate) struct ExplainArgs {
    /// The platform's id of the installation
    #[arg(value_parser = |text: &str| InstallationId::parse(text))]
    installation: InstallationId,
    #[command(flatten)]
    which: WhichArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(crate) struct CallbacksArgs {
    /// Only of this source
    #[arg(long, value_parser = |text: &str| SourceName::parse(text))]
    source: Option<SourceName>,
    /// Only those that were refused
    #[arg(long)]
    refused: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) async fn explain(backends: &Backends, args: ExplainArgs) -> anyhow::Result<()> {
    let found = explain::explain(backends, &args.which.into(), &args.installation).await?;
    if args.json {
        return print_json(&found);
    }
    println!("{} of {}", found.installation.installation_id, found.installation.source);
    println!("{}", found.because);
    println!("{}\n", found.credential);
    for entry in found.timeline {
        let sequence = entry.sequence.map(|sequence| sequence.to_string()).unwrap_or_default();
        let trace = entry.trace_id.map(|id| format!("  trace {id}")).unwrap_or_default();
        println!("{:<30} {sequence:>8}  {}{trace}", entry.at.to_string(), entry.what);
    }
    Ok(())
}

pub(crate) async fn callbacks(backends: &Backends, args: CallbacksArgs) -> anyhow::Result<()> {
    let mut found = audit::records(&backends.connection, args.source.as_ref()).await?;
    if args.refused {
        found.retain(|record| matches!(record.outcome, Outcome::Refused { .. }));
    }
    if args.json {
        return print_json(&found);
    }
    if found.is_empty() {
        println!("none is remembered");
    }
    for Record { source, received_at, trace_id, outcome } in found {
        let trace = trace_id.map(|id| format!("  trace {id}")).unwrap_or_default();
        let what = match outcome {
            Outcome::Refused { status, reason } => format!("refused {status} {reason}"),
            Outcome::Duplicate { installation_id, r#type, sequence } => format!(
                "duplicate of sequence {sequence}: {type} {}",
                installation_id.unwrap_or_default(),
                type = r#type
            ),
        };
        println!("{:<30} {source:<12} {what}{trace}", received_at.to_string());
    }
    Ok(())
}
