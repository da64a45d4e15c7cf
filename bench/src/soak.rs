//! `cargo dev bench -- soak`: a year in minutes. Months of installs, reinstalls,
//! repeated and late callbacks, hourly tokens and one hot place go through a real
//! log, worker, archive and Postgres. What an event costs, and what is kept hot,
//! must not grow with the year.
//!
//! The times in the events are those of the year; the servers' clocks are not. So
//! the archive is driven by how full a small log is, and Postgres is vacuumed at
//! each month's end, which a real month leaves to autovacuum.

use std::collections::BTreeMap;
use std::fs;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use domain::event::Identity;
use eventlog::connect::Connection;
use eventlog::{keys, status};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::{Value, json};
use sqlx::PgConnection;

use crate::fill::Filler;
use crate::stack::{Stack, Subject};
use crate::{chart, cpu, report};

const DAY_S: i64 = 86_400;
const MONTH_DAYS: i64 = 30;
/// Of the log, so that months fill it again and again.
const LOG_BYTES_MAX: u64 = 64 << 20;
const ARCHIVED_AT_PERCENT: u64 = 60;
const ARCHIVED_AT_BYTES: u64 = LOG_BYTES_MAX / 100 * ARCHIVED_AT_PERCENT;
const SEGMENT_BYTES: u64 = 4 << 20;
/// One installation in so many has a token that lasts an hour.
const TOKENS_OF: u64 = 10;
/// One installation in so many is uninstalled and installed anew each month.
const REINSTALLED_OF: u64 = 20;
/// One uninstall in so many comes a month late.
const LATE_OF: u64 = 5;
/// One install in so many is sent again, long after.
const REPEATED_OF: u64 = 50;
/// Renewals of the hot place in an hour.
const HOT: u64 = 10;
const STANDS_STILL: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(200);

#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo dev bench -- soak                          200 installations, twelve months
  cargo dev bench -- soak --installations 1000     about as many minutes more as there are renewals / 60,000")]
pub(crate) struct Soak {
    /// How many installations
    #[arg(long, default_value_t = 200)]
    installations: u64,
    /// How many months of 30 days
    #[arg(long, default_value_t = 12)]
    months: u32,
}

/// At the end of a month.
#[derive(Debug, Serialize)]
struct Month {
    month: u32,
    events: u64,
    /// Of worker, nats-server and Postgres, archiving included.
    cpu_us_per_event: f64,
    seconds: f64,
    log_mib: f64,
    journal_rows: i64,
    journal_mib: f64,
    projection_rows: i64,
    archive_mib: f64,
    key_pages: u64,
    worker_rss_mib: f64,
    nats_rss_mib: f64,
}

/// One place of the year: how often it was installed, and as what.
struct Installed {
    generation: u64,
    identity: Identity,
}

struct Year {
    filler: Filler,
    /// By place.
    installed: BTreeMap<u64, Installed>,
    /// Uninstalls that come with the next month.
    late: Vec<Vec<u8>>,
    now: Timestamp,
    events: u64,
}

#[tokio::main]
pub(crate) async fn run(args: &Soak, folder: &Path) -> Result<()> {
    ensure!(args.installations >= TOKENS_OF, "at least {TOKENS_OF} installations");
    let mut stack = Stack::start(Subject::Mooring).await?;
    configure(&stack)?;
    operate(&stack, &["migrate"])?;
    stack.start_worker()?;
    let operator = stack.operator().await?;
    let mut database = stack.database().await?;
    let mut year = Year {
        filler: Filler::new(stack.connection().await?, stack.keys()?),
        installed: BTreeMap::new(),
        late: Vec::new(),
        now: "2026-01-01T00:00:00Z".parse()?,
        events: 0,
    };
    let mut months = Vec::new();
    for month in 1..=args.months {
        let (started, cpu_before) = (Instant::now(), cpu::seconds(&stack.pids()));
        let before = year.events;
        Box::pin(year.month(args.installations, &operator)).await?;
        settled(&operator, ARCHIVED_AT_BYTES).await?;
        let cpu_seconds = cpu::seconds(&stack.pids()) - cpu_before;
        let seconds = started.elapsed().as_secs_f64();
        operate(&stack, &["keys", "collect", "--yes"])?;
        sqlx::raw_sql("VACUUM mooring.journal").execute(&mut database).await?;
        let events = year.events - before;
        let measured =
            measure(&stack, &operator, &mut database, (month, events, cpu_seconds, seconds));
        let measured = Box::pin(measured).await?;
        eprintln!("{}", serde_json::to_string(&measured)?);
        months.push(measured);
    }
    for args in [&["verify"][..], &["archive", "verify"], &["rebuild"]] {
        operate(&stack, args)?;
    }
    let text = table(&months);
    println!("{text}");
    fs::write(folder.join("results/soak.json"), serde_json::to_string_pretty(&months)?)?;
    let lines = [
        ("µs of CPU an event", series(&months, |it| it.cpu_us_per_event)),
        ("MiB of log", series(&months, |it| it.log_mib)),
        ("MiB of journal", series(&months, |it| it.journal_mib)),
        ("MiB of memory of the worker", series(&months, |it| it.worker_rss_mib)),
    ];
    chart::write_lines(&folder.join("results/soak.svg"), &lines)?;
    report::replace(&folder.join("README.md"), "soak", &text)
}

fn configure(stack: &Stack) -> Result<()> {
    let archive = stack.folder().join("archive");
    fs::create_dir(&archive)?;
    let password = stack.secrets().path("nats-archiver-password");
    let text = format!(
        "\n[stream]\nmax_bytes = {LOG_BYTES_MAX}\n\n[worker.archive]\nurl = \"file://{}\"\n\
         nats_user = \"archiver\"\nnats_password = {{ file = {} }}\nevery_ms = 500\n\
         log_full_percent = {ARCHIVED_AT_PERCENT}\nsegment_bytes = {SEGMENT_BYTES}\n",
        archive.display(),
        Value::from(password.to_string_lossy()),
    );
    let text = format!("{}{text}", fs::read_to_string(stack.config())?)
        .replace("[sealing]\n", "[sealing]\ndata_key_unused_max_s = 1\n");
    let mut file = OpenOptions::new().write(true).truncate(true).open(stack.config())?;
    Ok(file.write_all(text.as_bytes())?)
}

pub(crate) fn operate(stack: &Stack, args: &[&str]) -> Result<()> {
    let output = stack.worker_command(args)?.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "worker {}: {said}", args.join(" "));
    Ok(())
}

impl Year {
    /// Appends what happens in a month.
    async fn month(&mut self, places: u64, operator: &Connection) -> Result<()> {
        let begins = self.now;
        for place in 0..places {
            match self.installed.get(&place).map(|known| known.generation) {
                None => self.install(place, 1).await?,
                Some(generation) if self.chance(place, REINSTALLED_OF) => {
                    self.uninstall(place, generation).await?;
                    self.install(place, generation + 1).await?;
                }
                Some(generation) if self.chance(place, REPEATED_OF) => {
                    self.callback(&install(place, generation)).await?;
                }
                Some(_) => {}
            }
        }
        for late in std::mem::take(&mut self.late) {
            self.callback(&late).await?;
        }
        for hour in 0..MONTH_DAYS * 24 {
            if hour % (7 * 24) == 0 {
                // Or a year in minutes would fill the log faster than it is archived.
                self.filler.flush().await?;
                settled(operator, ARCHIVED_AT_BYTES).await?;
            }
            self.now = begins + SignedDuration::from_hours(hour + 1);
            for place in (0..places).step_by(usize::try_from(TOKENS_OF)?) {
                let times = if place == 0 { HOT } else { 1 };
                for _ in 0..times {
                    self.now += SignedDuration::from_millis(1);
                    let installed = self.installed.get(&place).context("all are installed")?;
                    self.filler.renewal(&installed.identity, self.now).await?;
                    self.events += 1;
                }
            }
        }
        self.now = begins + SignedDuration::from_secs(MONTH_DAYS * DAY_S);
        self.filler.flush().await
    }

    /// One place in `of`, another one each month.
    fn chance(&self, place: u64, of: u64) -> bool {
        let month = self.now.as_second().unsigned_abs() / (MONTH_DAYS * DAY_S).unsigned_abs();
        (place + month).is_multiple_of(of)
    }

    async fn install(&mut self, place: u64, generation: u64) -> Result<()> {
        let identity = self.callback(&install(place, generation)).await?.context("an install")?;
        self.installed.insert(place, Installed { generation, identity });
        Ok(())
    }

    async fn uninstall(&mut self, place: u64, generation: u64) -> Result<()> {
        let callback = json!({
            "installed_app_id": id(place, generation),
            "app_id": "app_bench",
            "instance_id": format!("inst_{place:09}"),
            "uninstalled_at": self.now.to_string(),
            "idempotency_key": format!("uninstall:{}", id(place, generation)),
        });
        let body = callback.to_string().into_bytes();
        if self.chance(place / REINSTALLED_OF, LATE_OF) {
            self.late.push(body);
            return Ok(());
        }
        self.callback(&body).await.map(|_| ())
    }

    async fn callback(&mut self, body: &[u8]) -> Result<Option<Identity>> {
        self.events += 1;
        self.filler.callback(body, self.now).await
    }
}

fn id(place: u64, generation: u64) -> String {
    format!("instapp_{place:09}_{generation}")
}

fn install(place: u64, generation: u64) -> Vec<u8> {
    let id = id(place, generation);
    let callback = json!({
        "installed_app_id": id,
        "app_id": "app_bench",
        "instance_id": format!("inst_{place:09}"),
        "api_key": format!("blnk_{place:030}{generation:010}"),
        "api_key_prefix": "blnk_000",
        "granted_permissions": ["data:read", "data:write", "alerts:read"],
        "idempotency_key": format!("install:{id}"),
    });
    callback.to_string().into_bytes()
}

/// Until everything is applied, and the log has fewer bytes than this.
pub(crate) async fn settled(operator: &Connection, log_bytes: u64) -> Result<()> {
    let mut last = (Instant::now(), (0, 0));
    loop {
        let (log, consumer) = (status::log(operator).await?, status::consumer(operator).await?);
        let applied = consumer.applied_up_to();
        if applied >= log.last_sequence && log.bytes < log_bytes {
            return Ok(());
        }
        let now = (applied, log.first_sequence);
        if now != last.1 {
            last = (Instant::now(), now);
        } else if last.0.elapsed() > STANDS_STILL {
            bail!("it stands still: applied {applied} of {}, from {}", log.last_sequence, now.1);
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn measure(
    stack: &Stack,
    operator: &Connection,
    database: &mut PgConnection,
    (month, events, cpu_seconds, seconds): (u32, u64, f64, f64),
) -> Result<Month> {
    let mut number = async |sql: &'static str| -> Result<i64> {
        Ok(sqlx::query_scalar(sql).fetch_one(&mut *database).await?)
    };
    let mut key_pages = 0;
    for name in [keys::STREAM, keys::NEW_STREAM] {
        key_pages += status::stream(operator, name).await?.messages;
    }
    let worker = stack.worker.as_ref().and_then(dev::services::Service::pid).unwrap_or_default();
    Ok(Month {
        month,
        events,
        cpu_us_per_event: cpu_seconds * 1e6 / count(events),
        seconds,
        log_mib: mib(status::log(operator).await?.bytes),
        journal_rows: number("SELECT count(*) FROM mooring.journal").await?,
        journal_mib: mib(number("SELECT pg_total_relation_size('mooring.journal')")
            .await?
            .unsigned_abs()),
        projection_rows: number("SELECT count(*) FROM projection.installations").await?,
        archive_mib: mib(size_of(&stack.folder().join("archive"))?),
        key_pages,
        worker_rss_mib: cpu::rss_mib(worker),
        nats_rss_mib: cpu::rss_mib(stack.nats.pid().unwrap_or_default()),
    })
}

fn size_of(folder: &Path) -> Result<u64> {
    let mut size = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let found = entry.metadata()?;
        size += if found.is_dir() { size_of(&entry.path())? } else { found.len() };
    }
    Ok(size)
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
pub(crate) fn count(number: u64) -> f64 {
    number as f64
}

fn mib(bytes: u64) -> f64 {
    count(bytes) / f64::from(1 << 20)
}

fn series(months: &[Month], of: impl Fn(&Month) -> f64) -> Vec<f64> {
    months.iter().map(of).collect()
}

fn table(months: &[Month]) -> String {
    let mut text = "| month | events | CPU µs an event | log, MiB | journal rows | journal, MiB | projection rows | \
                    archive, MiB | key pages | worker RSS, MiB | nats-server RSS, MiB |\n\
                    |---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n"
        .to_owned();
    for it in months {
        text += &format!(
            "| {} | {} | {:.0} | {:.1} | {} | {:.1} | {} | {:.1} | {} | {:.0} | {:.0} |\n",
            it.month,
            it.events,
            it.cpu_us_per_event,
            it.log_mib,
            it.journal_rows,
            it.journal_mib,
            it.projection_rows,
            it.archive_mib,
            it.key_pages,
            it.worker_rss_mib,
            it.nats_rss_mib,
        );
    }
    text
}
