//! `cargo dev bench -- history`: what an event costs after many others, in one place
//! and in the whole log. It must not depend on them.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use crate::fill::Filler;
use crate::soak::{count, operate, settled};
use crate::stack::{Stack, Subject};
use crate::{callback, cpu, report};

/// Events whose cost is measured.
const MEASURED: u64 = 5_000;
/// Numbers of installs that came before.
const FIRST: u64 = 100_000_000;

#[derive(clap::Args)]
#[command(after_help = "Example:
  cargo dev bench -- history --place 10 --place 100000 --log 10000")]
pub(crate) struct History {
    /// How many renewed tokens one place has had; may be given several times
    #[arg(long, default_values_t = [10, 1_000, 100_000])]
    place: Vec<u64>,
    /// How many installs the log has; may be given several times
    #[arg(long, default_values_t = [10_000, 100_000, 1_000_000])]
    log: Vec<u64>,
}

#[derive(Debug, Serialize)]
struct Cost {
    kind: Kind,
    before: u64,
    cpu_us_per_event: f64,
    events_per_second: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Place,
    Log,
}

#[tokio::main]
pub(crate) async fn run(args: &History, folder: &Path) -> Result<()> {
    let places = args.place.iter().map(|before| (Kind::Place, *before));
    let logs = args.log.iter().map(|before| (Kind::Log, *before));
    let mut costs: Vec<Cost> = Vec::new();
    for (kind, before) in places.chain(logs) {
        let cost = Box::pin(measure(kind, before)).await?;
        eprintln!("{}", serde_json::to_string(&cost)?);
        costs.push(cost);
    }
    let text = table(&costs);
    println!("{text}");
    fs::write(folder.join("results/history.json"), serde_json::to_string_pretty(&costs)?)?;
    report::replace(&folder.join("README.md"), "history", &text)
}

async fn measure(kind: Kind, before: u64) -> Result<Cost> {
    let mut stack = Stack::start(Subject::Mooring).await?;
    stack.start_worker()?;
    let operator = stack.operator().await?;
    let mut filler = Filler::new(stack.connection().await?, stack.keys()?);
    let mut now: Timestamp = Timestamp::now() - SignedDuration::from_hours(24);
    let of = filler.callback(&callback::install(0), now).await?.context("an install")?;
    let mut events = async |first: u64, count: u64| -> Result<()> {
        for number in 0..count {
            now += SignedDuration::from_micros(1);
            match kind {
                Kind::Place => filler.renewal(&of, now).await?,
                Kind::Log => {
                    filler.callback(&callback::install(first + number), now).await?;
                }
            }
        }
        filler.flush().await
    };
    events(1, before).await?;
    settled(&operator, u64::MAX).await?;
    // As a log of this age would be.
    operate_vacuum(&stack).await?;
    let (started, cpu_before) = (Instant::now(), cpu::seconds(&stack.pids()));
    events(FIRST, MEASURED).await?;
    settled(&operator, u64::MAX).await?;
    let (seconds, cpu_seconds) =
        (started.elapsed().as_secs_f64(), cpu::seconds(&stack.pids()) - cpu_before);
    operate(&stack, &["verify"])?;
    Ok(Cost {
        kind,
        before,
        cpu_us_per_event: cpu_seconds * 1e6 / count(MEASURED),
        events_per_second: count(MEASURED) / seconds,
    })
}

async fn operate_vacuum(stack: &Stack) -> Result<()> {
    let mut database = stack.database().await?;
    sqlx::raw_sql("VACUUM ANALYZE mooring.journal").execute(&mut database).await?;
    Ok(())
}

fn table(costs: &[Cost]) -> String {
    let mut text =
        "| after | CPU µs an event | over the first | events/s |\n|---|---:|---:|---:|\n"
            .to_owned();
    for Cost { kind, before, cpu_us_per_event, events_per_second } in costs {
        let first = costs.iter().find(|first| first.kind == *kind);
        let over = first.map_or(f64::NAN, |first| cpu_us_per_event / first.cpu_us_per_event);
        let after = match kind {
            Kind::Place => format!("{before} events of its place"),
            Kind::Log => format!("{before} events of other places"),
        };
        text +=
            &format!("| {after} | {cpu_us_per_event:.0} | {over:.2} | {events_per_second:.0} |\n");
    }
    text
}
