//! `worker doctor`: arguments and answers.
#![expect(clippy::print_stdout, reason = "answers go to standard output")]

use anyhow::bail;
use clap::Args;
use domain::seal::KeyRing;
use service::config::Config;
use tokio_util::sync::CancellationToken;
use worker::operate::backends::Backends;
use worker::operate::doctor::{self, Patient, Verdict};

use super::{Differs, print_json};

#[derive(Args)]
#[command(
    after_help = "Exit code 3: a check failed. Warnings leave it at 0. It needs the rights of `worker migrate`."
)]
pub(crate) struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) async fn doctor(
    backends: &Backends,
    ring: &KeyRing,
    config: &Config,
    args: DoctorArgs,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let patient = Patient {
        backends,
        ring,
        monitor_url: config.nats.monitor_url.clone(),
        accepted: config.stream.allow.clone(),
    };
    let findings = doctor::examine(&patient, shutdown).await;
    if args.json {
        print_json(&findings)?;
    } else {
        for found in &findings {
            let verdict = match found.verdict {
                Verdict::Ok => "ok",
                Verdict::Warning => "WARNING",
                Verdict::Failed => "FAILED",
            };
            println!("{verdict:<8} {:<16} {}", found.check, found.found);
            if let Some(mend) = &found.mend {
                println!("{:25} mend: {mend}", "");
            }
        }
    }
    let failed = findings.iter().filter(|found| found.verdict == Verdict::Failed).count();
    if failed > 0 {
        bail!(Differs(format!("{failed} checks failed")));
    }
    Ok(())
}
