//! How fast a projection is rebuilt, beside its limits: reading the log raw,
//! and copying the same rows into Postgres.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use dev::postgres::Role;
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use sqlx::PgConnection;

use crate::fill::fill;
use crate::load::{self, Shape};
use crate::stack::{Stack, Subject};
use crate::{cpu, report, verify};

const LIVE_PER_SECOND: u64 = 500;
const LIVE_BEFORE: Duration = Duration::from_secs(5);
/// With more it takes many minutes.
const GENTLE_EVENTS_MAX: u64 = 1_000_000;
/// Filling its store with more takes longer than all else.
const EMMETT_EVENTS_MAX: u64 = 100_000;
/// Numbers of callbacks that are not in the log yet.
const FIRST_LIVE: u64 = 500_000_000;
/// Of `--max-rate`.
const GENTLE_RATE: &str = "20000";
const POLL: Duration = Duration::from_millis(20);

#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo dev bench -- rebuild                                10,000, 100,000 and 1,000,000 events
  cargo dev bench -- rebuild --events 10000                 only so many
  cargo dev bench -- rebuild --events 10000 --events 3000000    the log holds 4 GiB

Without `npm ci` in peers/emmett, emmett-postgresql is left out.")]
pub(crate) struct Rebuild {
    /// How many events are in the log; may be given several times
    #[arg(long, default_values_t = [10_000, 100_000, 1_000_000])]
    events: Vec<u64>,
}

/// What one size gave.
struct Measured {
    events: u64,
    rows: i64,
    rebuild: Value,
    seconds: f64,
    cpu_seconds: f64,
    peak_rss_mib: f64,
    raw_read: f64,
    copy_rows: f64,
    p99_before_ms: f64,
    p99_during_ms: f64,
    p99_gently_ms: Option<f64>,
    /// Events a second of emmett-postgresql's rebuild.
    emmett: Option<f64>,
}

#[tokio::main]
pub(crate) async fn run(args: &Rebuild, folder: &Path) -> Result<()> {
    let mut all = Vec::new();
    for events in &args.events {
        eprintln!("{events} events");
        let measured =
            Box::pin(measure(*events)).await.with_context(|| format!("{events} events"))?;
        all.push(measured);
    }
    let text = table(&all);
    println!("{text}");
    let results: Vec<Value> = all.iter().map(Measured::json).collect();
    fs::write(folder.join("results/rebuild.json"), serde_json::to_string_pretty(&results)?)?;
    report::replace(&folder.join("README.md"), "rebuild", &text)
}

async fn measure(events: u64) -> Result<Measured> {
    let mut stack = Stack::start(Subject::Mooring).await?;
    step("filling the log", Box::pin(fill_log(&stack, events))).await?;
    stack.start_worker()?;
    let mut database = stack.database().await?;
    step("applying it", applied(&mut database, events)).await?;
    let raw_read = Box::pin(step("reading it raw", read_raw(&stack, events))).await?;
    let copy_rows = step("copying its rows", copy_rows(&mut database)).await?;
    let rows = count(&mut database, "SELECT count(*) FROM projection.installations").await?;

    let emmett = step("emmett-postgresql", emmett(&stack, &mut database, events)).await?;
    // Beside the load it is slower, so its own rate is measured without.
    let alone = step("rebuilding", rebuild(&stack, &["rebuild", "--json"])).await?;
    stack.target.next.store(FIRST_LIVE, Ordering::Relaxed);
    let live = |duration| Shape::Open { per_second: LIVE_PER_SECOND, duration };
    let before = load::send(&stack.target, live(LIVE_BEFORE)).await?;
    let duration = Duration::from_secs_f64(alone.seconds.max(3.0));
    let (during, beside) = tokio::join!(
        load::send(&stack.target, live(duration)),
        step("rebuilding beside live traffic", rebuild(&stack, &["rebuild", "--json"]))
    );
    beside?;
    let gently = if events > GENTLE_EVENTS_MAX {
        None
    } else {
        let duration = Duration::from_secs_f64((2.0 * seconds_at_gentle_rate(events)).max(3.0));
        let gentle = ["rebuild", "--json", "--max-rate", GENTLE_RATE];
        let (gently, beside) = tokio::join!(
            load::send(&stack.target, live(duration)),
            step("rebuilding gently beside live traffic", rebuild(&stack, &gentle))
        );
        beside?;
        Some(gently?.percentile_ms(99.0))
    };
    Ok(Measured {
        events,
        rows,
        rebuild: alone.report,
        seconds: alone.seconds,
        cpu_seconds: alone.cpu_seconds,
        peak_rss_mib: alone.peak_rss_mib,
        raw_read,
        copy_rows,
        p99_before_ms: before.percentile_ms(99.0),
        p99_during_ms: during?.percentile_ms(99.0),
        p99_gently_ms: gently,
        emmett,
    })
}

/// Reading, then folding.
fn seconds_at_gentle_rate(events: u64) -> f64 {
    let rate: f64 = GENTLE_RATE.parse().unwrap_or(1.0);
    per_second(events, rate)
}

async fn step<T>(what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    let started = Instant::now();
    let result = work.await.with_context(|| what.to_owned())?;
    eprintln!("  {what}: {:.1} s", started.elapsed().as_secs_f64());
    Ok(result)
}

async fn fill_log(stack: &Stack, events: u64) -> Result<()> {
    fill(stack.connection().await?, stack.keys()?, events).await
}

async fn count(database: &mut PgConnection, sql: &'static str) -> Result<i64> {
    Ok(sqlx::query_scalar(sql).fetch_one(database).await?)
}

async fn applied(database: &mut PgConnection, events: u64) -> Result<()> {
    let mut last = (Instant::now(), -1);
    loop {
        let rows = count(database, "SELECT count(*) FROM mooring.journal").await?;
        if rows == i64::try_from(events)? {
            return Ok(());
        }
        if rows > last.1 {
            last = (Instant::now(), rows);
        } else if last.0.elapsed() > Duration::from_secs(60) {
            bail!("the worker stands still at {rows} of {events} events");
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Events a second to a reader that does nothing with them.
async fn read_raw(stack: &Stack, events: u64) -> Result<f64> {
    let config = pull::OrderedConfig {
        deliver_policy: DeliverPolicy::All,
        max_batch: 4_000,
        ..pull::OrderedConfig::default()
    };
    let started = Instant::now();
    let consumer = verify::stream(stack).await?.create_consumer(config).await?;
    let mut messages = consumer.messages().await?;
    for _ in 0..events {
        messages.next().await.context("the log ended early")??;
    }
    Ok(per_second(events, started.elapsed().as_secs_f64()))
}

/// Rows a second by COPY, out of the projection and into one of the same shape.
async fn copy_rows(database: &mut PgConnection) -> Result<f64> {
    let mut rows = Vec::new();
    let mut out =
        database.copy_out_raw("COPY projection.installations TO STDOUT (FORMAT binary)").await?;
    while let Some(chunk) = out.next().await {
        rows.extend_from_slice(&chunk?);
    }
    drop(out);
    sqlx::raw_sql("CREATE TABLE copied (LIKE projection.installations INCLUDING ALL)")
        .execute(&mut *database)
        .await?;
    let started = Instant::now();
    let mut copy = database.copy_in_raw("COPY copied FROM STDIN (FORMAT binary)").await?;
    for chunk in rows.chunks(1 << 16) {
        copy.send(chunk).await?;
    }
    let copied = copy.finish().await?;
    let seconds = started.elapsed().as_secs_f64();
    sqlx::raw_sql("DROP TABLE copied").execute(database).await?;
    Ok(per_second(copied, seconds))
}

/// Its own rebuild of as many events, in a database of its own; `None` where it is not installed,
/// or too slow to fill.
async fn emmett(stack: &Stack, database: &mut PgConnection, events: u64) -> Result<Option<f64>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/emmett");
    if events > EMMETT_EVENTS_MAX || !folder.join("node_modules").is_dir() {
        return Ok(None);
    }
    sqlx::raw_sql("CREATE DATABASE emmett").execute(&mut *database).await?;
    let mut node = Command::new("node");
    node.arg("rebuild.js")
        .arg(stack.postgres.url(Role::Superuser, "emmett"))
        .arg(events.to_string())
        .current_dir(folder);
    let output = node.output().context("starting node")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr));
    }
    let report: Value = serde_json::from_slice(&output.stdout).context("what it printed")?;
    let seconds = report.get("seconds").and_then(Value::as_f64).context("it tells no time")?;
    sqlx::raw_sql("DROP DATABASE emmett WITH (FORCE)").execute(database).await?;
    Ok(Some(per_second(events, seconds)))
}

struct Rebuilt {
    report: Value,
    seconds: f64,
    cpu_seconds: f64,
    peak_rss_mib: f64,
}

/// The whole command, from its start to its end.
async fn rebuild(stack: &Stack, args: &[&str]) -> Result<Rebuilt> {
    let mut command = stack.worker_command(args)?;
    let pids = stack.pids();
    let (started, cpu_before) = (Instant::now(), cpu::seconds(&pids));
    let mut child = command.spawn()?;
    let (mut peak_rss_mib, mut own) = (0.0, 0.0);
    while child.try_wait()?.is_none() {
        peak_rss_mib = cpu::peak_rss_mib(child.id()).max(peak_rss_mib);
        own = cpu::seconds(&[child.id()]).max(own);
        tokio::time::sleep(POLL).await;
    }
    let seconds = started.elapsed().as_secs_f64();
    let cpu_seconds = cpu::seconds(&pids) - cpu_before + own;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr));
    }
    // What it says of its progress, without its log.
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    for line in said.lines().filter(|line| !line.contains("INFO")) {
        eprintln!("    {line}");
    }
    let report = serde_json::from_slice(&output.stdout)?;
    Ok(Rebuilt { report, seconds, cpu_seconds, peak_rss_mib })
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn per_second(count: u64, seconds: f64) -> f64 {
    count as f64 / seconds
}

impl Measured {
    fn rate(&self) -> f64 {
        per_second(self.events, self.seconds)
    }

    fn json(&self) -> Value {
        json!({
            "events": self.events,
            "installations": self.rows,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "peak_rss_mib": self.peak_rss_mib,
            "raw_read_events_per_second": self.raw_read,
            "copy_rows_per_second": self.copy_rows,
            "p99_before_ms": self.p99_before_ms,
            "p99_during_ms": self.p99_during_ms,
            "p99_gently_ms": self.p99_gently_ms,
            "emmett_events_per_second": self.emmett,
            "report": self.rebuild,
        })
    }
}

fn table(all: &[Measured]) -> String {
    let mut text = "| events | installations | whole command, s | events/s | over reading raw | \
                    over COPY of the rows | over emmett-postgresql | CPU s per 100,000 events | peak RSS, MiB | \
                    workers paused, ms | live ack p99, ms: before, during, during with `--max-rate 20000` |\n\
                    |---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n"
        .to_owned();
    for found in all {
        #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
        let copy_seconds = found.rows as f64 / found.copy_rows;
        text += &format!(
            "| {} | {} | {:.1} | {:.0} | {:.2} | {:.2} | {} | {:.2} | {:.0} | {} | {:.1}, {:.1}, {} |\n",
            found.events,
            found.rows,
            found.seconds,
            found.rate(),
            found.rate() / found.raw_read,
            copy_seconds / found.seconds,
            found.emmett.map_or_else(String::new, |emmett| format!("{:.0}", found.rate() / emmett)),
            found.cpu_seconds / per_second(found.events, 100_000.0),
            found.peak_rss_mib,
            found.rebuild.get("paused_ms").unwrap_or(&Value::Null),
            found.p99_before_ms,
            found.p99_during_ms,
            found.p99_gently_ms.map_or_else(|| "–".to_owned(), |ms| format!("{ms:.1}")),
        );
    }
    text
}
