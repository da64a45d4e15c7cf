//! Which services run, and what they have of the ring: nothing is made active or
//! retired before all of them are ready for it.

use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Args;
use domain::id::KeyId;
use domain::key_ring::KeyRing;
use eventlog::connect::Connection;
use eventlog::keys::report::{self, RingReport};
use tokio_util::sync::CancellationToken;

use crate::operate::exit::{Differs, Interrupted};
use crate::operate::progress::note;

const POLL: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
pub(super) struct Patience {
    /// How long to wait for services that have not reported the new ring, in seconds
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    wait_s: u64,
}

/// What a service lacks, if anything.
type Lacks = fn(&RingReport, &KeyId) -> Option<String>;

/// Waits until every worker can open with the key. How many there are.
pub(super) async fn every_worker_opens_with(
    id: &KeyId,
    connection: &Connection,
    patience: &Patience,
    shutdown: &CancellationToken,
) -> anyhow::Result<usize> {
    let lacks: Lacks = |report, id| {
        let lacks_it = report.service == "worker" && !report.held.opens.contains(id);
        lacks_it.then(|| format!("cannot open with {id}"))
    };
    let running = until_none(lacks, id, connection, patience, shutdown).await?;
    match running.iter().filter(|report| report.service == "worker").count() {
        0 => bail!(Differs("no worker reports its key ring: is one running?".to_owned())),
        workers => Ok(workers),
    }
}

/// Waits until no service seals with the key.
pub(super) async fn nobody_seals_with(
    id: &KeyId,
    connection: &Connection,
    patience: &Patience,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let lacks: Lacks =
        |report, id| (report.held.active == *id).then(|| format!("still seals with {id}"));
    until_none(lacks, id, connection, patience, shutdown).await?;
    Ok(())
}

async fn until_none(
    lacks: Lacks,
    id: &KeyId,
    connection: &Connection,
    Patience { wait_s }: &Patience,
    shutdown: &CancellationToken,
) -> anyhow::Result<Vec<RingReport>> {
    let started = Instant::now();
    let mut last_said = String::new();
    loop {
        let running = report::reports(connection).await?;
        let late: Vec<String> = running
            .iter()
            .filter_map(|report| Some(format!("{} {}", name(report), lacks(report, id)?)))
            .collect();
        if late.is_empty() {
            return Ok(running);
        }
        let said = late.join("; ");
        if started.elapsed() >= Duration::from_secs(*wait_s) {
            bail!(Differs(format!("{said}: has its configuration been changed?")));
        }
        if said != last_said {
            note(&format!("waiting: {said}"));
            last_said = said;
        }
        tokio::select! {
            () = tokio::time::sleep(POLL) => {}
            () = shutdown.cancelled() => bail!(Interrupted),
        }
    }
}

fn name(report: &RingReport) -> String {
    format!("{} {}", report.service, report.instance)
}

/// Where a service seals with what no worker, by our ring, can open.
pub(crate) fn disagreements(running: &[RingReport], ring: &KeyRing) -> Vec<String> {
    let ours = ring.sealing_key();
    let mut found = Vec::new();
    for report in running {
        let held = &report.held;
        if !ring.key_ids().any(|id| *id == held.active) {
            found.push(format!(
                "{} seals with {}, which is unknown here",
                name(report),
                held.active
            ));
        } else if held.active == *ours.id() && held.public != ours.public().to_string() {
            let what = "has another public half of";
            found.push(format!("{} {what} {}", name(report), held.active));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use domain::key_pair::{NewPair, PrivateKey};
    use eventlog::keys::report::Held;

    use super::*;

    #[test]
    fn whoever_seals_with_what_does_not_open_is_named() {
        let id = |id| KeyId::parse(id).unwrap();
        let pair = PrivateKey::parse(&NewPair::generate().private).unwrap();
        let ring = KeyRing::new(id("k2"), [(id("k2"), pair)], []).unwrap();
        let ours = ring.sealing_key().public().to_string();
        let report = |instance: &str, active, public: &str| RingReport {
            service: "ingest".to_owned(),
            instance: instance.to_owned(),
            held: Held { active: id(active), public: public.to_owned(), opens: vec![] },
        };
        let running = [
            report("a", "k2", &ours),
            report("b", "k2", "x25519-public.another"),
            report("c", "k3", &ours),
        ];
        let said = disagreements(&running, &ring);
        assert_eq!(
            said,
            [
                "ingest b has another public half of k2",
                "ingest c seals with k3, which is unknown here"
            ]
        );
    }
}
