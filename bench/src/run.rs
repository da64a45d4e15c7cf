//! Runs the scenarios, round by round, so that what drifts hits all alike.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use dev::temporary;
use sqlx::{Connection as _, PgConnection};

use crate::endpoint::Endpoint;
use crate::load::{self, Outcome, Shape};
use crate::results::{Figures, Results};
use crate::scenario::{self, Scenario};
use crate::stack::{self, Stack};
use crate::{Run, cpu, raw, report, verify};

const DRAIN_DEADLINE: Duration = Duration::from_secs(120);

#[tokio::main(worker_threads = 1)]
pub(crate) async fn run(args: &Run) -> Result<()> {
    let (rounds, seconds) = if args.quick { (1, 1) } else { (args.rounds, args.seconds) };
    let mut scenarios = scenario::all(Duration::from_secs(seconds), stack::has_express());
    if let Some(only) = &args.only {
        scenarios.retain(|scenario| scenario.name.contains(only.as_str()));
    }
    if scenarios.is_empty() {
        bail!("no scenario has that in its name");
    }
    let mut results = Results {
        scenarios: scenarios.iter().map(|found| (found.name.clone(), Vec::new())).collect(),
        fsyncs_per_second: Vec::new(),
    };
    for round in 1..=rounds {
        results.fsyncs_per_second.push(fsyncs_per_second()?);
        for (scenario, (_, figures)) in scenarios.iter().zip(&mut results.scenarios) {
            eprint!("round {round} of {rounds}  {:<52}", scenario.name);
            std::io::stderr().flush()?;
            let found = measure(scenario).await.with_context(|| scenario.name.clone())?;
            eprintln!("{}", report::short(&found));
            figures.push(found);
        }
    }
    report::write(&results, args, rounds, seconds)
}

/// The limit of a log that syncs each message.
fn fsyncs_per_second() -> Result<f64> {
    let folder = temporary::folder()?;
    let mut file = std::fs::File::create(folder.path().join("fsync"))?;
    let start = Instant::now();
    let mut count = 0_u32;
    while start.elapsed() < Duration::from_secs(1) {
        file.write_all(&[0; 512])?;
        file.sync_data()?;
        count += 1;
    }
    Ok(f64::from(count) / start.elapsed().as_secs_f64())
}

async fn measure(scenario: &Scenario) -> Result<Figures> {
    let mut stack = Stack::start(scenario.subject).await?;
    let endpoint = if scenario.pushed { Some(Endpoint::start().await?) } else { None };
    if let Some(endpoint) = &endpoint {
        stack.configure(&endpoint.section(&stack.folder().join("push-secret"))?)?;
    }
    if scenario.with_worker {
        stack.start_worker()?;
    }
    let pids = stack.pids();
    let (cpu_before, own_before) = (cpu::seconds(&pids), cpu::seconds(&[std::process::id()]));
    let outcome = match scenario.shape {
        Shape::Batches { events, duration } => raw::send(&stack, events, duration).await?,
        shape @ Shape::Faults { duration, .. } => {
            let target = stack.target.clone();
            let (outcome, killed) =
                tokio::join!(load::send(&target, shape), kill_and_restart(&mut stack, duration));
            killed.context("killing and restarting")?;
            outcome?
        }
        shape => load::send(&stack.target, shape).await?,
    };
    let may_fail = matches!(scenario.shape, Shape::Faults { .. });
    let cpu_used = cpu::seconds(&pids) - cpu_before;
    // The servers are our children, so their time stands in ours.
    let own_used = cpu::seconds(&[std::process::id()]) - own_before - cpu_used;
    if outcome.failed > 0 && !may_fail {
        bail!("{} callbacks were not acknowledged", outcome.failed);
    }
    let mut figures = figures(&outcome, cpu_used, own_used);
    if may_fail {
        // Of processes that are no more.
        figures.retain(|name, _| !name.starts_with("CPU"));
    } else if let Some(pid) = stack.subject.pid() {
        figures.insert("peak RSS, MiB", cpu::peak_rss_mib(pid));
    }
    verify::all_stored(&stack, &outcome.acknowledged).await?;
    if scenario.with_worker {
        figures.extend(row_lag(&stack, distinct(&outcome)).await?);
    }
    if let Some(endpoint) = &endpoint {
        figures.extend(endpoint.figures(distinct(&outcome)).await?);
    }
    if scenario.then_drain {
        stack.stop_subject()?;
        figures.insert("events/s into Postgres", drain(&mut stack).await?);
    }
    Ok(figures)
}

/// Kills the log and what answers in turn, each twice. It blocks while a server
/// starts; the load runs on another thread.
async fn kill_and_restart(stack: &mut Stack, duration: Duration) -> Result<()> {
    for _ in 0..2 {
        tokio::time::sleep(duration / 5).await;
        stack.nats.kill()?;
        stack.nats.start_again()?;
        tokio::time::sleep(duration / 5).await;
        stack.subject.kill()?;
        stack.subject.start_again()?;
    }
    Ok(())
}

fn distinct(outcome: &Outcome) -> u64 {
    outcome.acknowledged.iter().collect::<std::collections::HashSet<_>>().len() as u64
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn figures(outcome: &Outcome, cpu_used: f64, own_used: f64) -> Figures {
    let thousands = outcome.count as f64 / 1000.0;
    BTreeMap::from([
        ("acks/s", outcome.per_second()),
        ("p50, ms", outcome.percentile_ms(50.0)),
        ("p99, ms", outcome.percentile_ms(99.0)),
        ("last ack, ms", outcome.elapsed.as_secs_f64() * 1000.0),
        ("CPU s per 1,000", cpu_used / thousands),
        ("CPU s per 1,000, load", own_used / thousands),
    ])
}

/// From the receipt of a callback to the commit of its row.
async fn row_lag(stack: &Stack, events: u64) -> Result<Figures> {
    let mut database = stack.database().await?;
    wait_for_rows(&mut database, events).await?;
    let (p50, p99): (f64, f64) = sqlx::query_as(
        "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY lag), \
                percentile_cont(0.99) WITHIN GROUP (ORDER BY lag) \
         FROM (SELECT extract(epoch FROM pg_xact_commit_timestamp(xmin) - received_at)::float8 * 1000 AS lag \
               FROM mooring.journal) AS lags",
    )
    .fetch_one(&mut database)
    .await?;
    database.close().await?;
    Ok(BTreeMap::from([("row p50, ms", p50), ("row p99, ms", p99)]))
}

async fn wait_for_rows(database: &mut PgConnection, events: u64) -> Result<()> {
    let start = Instant::now();
    let events = i64::try_from(events)?;
    loop {
        let sql = "SELECT count(*) FROM mooring.journal";
        let rows: i64 = sqlx::query_scalar(sql).fetch_one(&mut *database).await?;
        if rows >= events {
            return Ok(());
        }
        if start.elapsed() > DRAIN_DEADLINE {
            bail!("only {rows} of {events} events were applied");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Events a second into Postgres, from the first row to the last.
async fn drain(stack: &mut Stack) -> Result<f64> {
    let events = verify::stream(stack).await?.cached_info().state.messages;
    stack.start_worker()?;
    let mut database = stack.database().await?;
    wait_for_rows(&mut database, events).await?;
    let seconds: f64 = sqlx::query_scalar(
        "SELECT extract(epoch FROM max(pg_xact_commit_timestamp(xmin)) - min(pg_xact_commit_timestamp(xmin)))::float8 \
         FROM mooring.journal",
    )
    .fetch_one(&mut database)
    .await?;
    database.close().await?;
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    Ok(events as f64 / seconds)
}
