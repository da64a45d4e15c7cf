//! `worker doctor`: is everything as it must be, and how to fix what is not.
//! It changes nothing.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Args;
use domain::key_ring::KeyRing;
use eventlog::breach::Breach;
use eventlog::connect::Connection;
use eventlog::contract::{Fill, Room, ServerStatus};
use eventlog::status::{self, StreamStatus};
use eventlog::{forward, keys as data_keys, message};
use jiff::Timestamp;
use serde::Serialize;
use service::clock;
use service::config::Config;
use service::http_client;
use sqlx::{PgConnection, PgPool};
use tokio::time::timeout;

use crate::error_chain::chain;
use crate::operate::backends;
use crate::operate::context::{Command, Context};
use crate::operate::exit::Differs;
use crate::operate::keys::{self, KeyUse, KeysInUse};
use crate::operate::migrate;
use crate::operate::output::Format;
use crate::settings::BackendSettings;
use crate::store::database;
use crate::store::dead_letters;
use crate::store::log_identity::{self, OtherLog};
use crate::store::rebuilds;

mod archive;
mod configured;
mod fix;

const POSTGRES_VERSION_MIN: i32 = 150_000;
/// Times are compared with those of platforms; signatures allow some minutes.
const CLOCK_SKEW_MAX: Duration = Duration::from_secs(2);
/// Whoever waits for the answer is not helped by a longer wait.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(4);

/// Check configuration, streams, database, clocks, keys and rights; says how to fix it
#[derive(Args)]
#[command(
    after_help = "Exit code 3: a check failed. Warnings leave it at 0. It needs the rights of `worker migrate`."
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Ok,
    /// It works, and should be looked at.
    Warning,
    Failed,
}

#[derive(Debug, Clone, Serialize)]
struct Finding {
    check: &'static str,
    verdict: Verdict,
    found: String,
    /// How to fix it, where that is known.
    fix: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, found: impl ToString) -> Self {
        Self { check, verdict: Verdict::Ok, found: found.to_string(), fix: None }
    }

    fn warning(check: &'static str, found: impl ToString, fix: impl ToString) -> Self {
        let fix = Some(fix.to_string());
        Self { check, verdict: Verdict::Warning, found: found.to_string(), fix }
    }

    fn failed(check: &'static str, found: impl ToString, fix: impl ToString) -> Self {
        let fix = Some(fix.to_string());
        Self { check, verdict: Verdict::Failed, found: found.to_string(), fix }
    }

    /// The check could not be made.
    fn error(check: &'static str, error: &anyhow::Error) -> Self {
        let (found, fix) = (format!("{error:#}"), fix::of(error).map(str::to_owned));
        Self { check, verdict: Verdict::Failed, found, fix }
    }
}

impl Command for Arguments {
    async fn run(self, context: &Context) -> anyhow::Result<()> {
        let findings = Box::pin(examine(context)).await?;
        self.format.print(findings.as_slice(), render)?;
        let failed = findings.iter().filter(|found| found.verdict == Verdict::Failed).count();
        if failed > 0 {
            bail!(Differs(format!("{failed} checks failed")));
        }
        Ok(())
    }
}

fn render(findings: &[Finding]) -> String {
    let mut lines = Vec::new();
    for Finding { check, verdict, found, fix } in findings {
        let verdict = match verdict {
            Verdict::Ok => "ok",
            Verdict::Warning => "WARNING",
            Verdict::Failed => "FAILED",
        };
        lines.push(format!("{verdict:<8} {check:<16} {found}"));
        lines.extend(fix.as_ref().map(|fix| format!("{:25} fix: {fix}", "")));
    }
    lines.join("\n")
}

/// Every check that can be made, whatever came of the others.
async fn examine(context: &Context) -> anyhow::Result<Vec<Finding>> {
    let config = &context.config;
    let BackendSettings { nats, postgres, archive: archived, .. } = context.backend_settings()?;
    let (pool, ring) = (database::pool(&postgres), context.key_ring()?);
    let (nats, postgres) =
        tokio::join!(backends::connect(&nats, "doctor"), database::acquire(&pool));
    let mut findings = configured::check(config, clock::now());
    match &nats {
        Ok(connection) => findings.extend(Box::pin(log(connection, config)).await),
        Err(error) => {
            findings.push(Finding::error("nats", error));
            findings.extend(durability(config).await);
        }
    }
    match postgres {
        Ok(mut connection) => {
            findings.extend(tables(&mut connection).await);
            if let Ok(nats) = &nats {
                findings.push(identity(nats, &pool).await);
                findings.extend(archive::check(nats, archived.as_ref(), &mut connection).await);
                findings.push(sealing(nats, &pool, &ring, context).await);
                findings.push(rings(nats, &ring).await);
            }
        }
        Err(error) => findings.push(Finding::error("postgres", &error.into())),
    }
    Ok(findings)
}

/// What NATS says of itself and of the streams.
async fn log(connection: &Connection, config: &Config) -> Vec<Finding> {
    let (nats, durability, log, keys, new_keys, consumer, forwarded) = tokio::join!(
        answers(connection),
        durability(config),
        stream(connection, config, message::STREAM),
        stream(connection, config, data_keys::STREAM),
        stream(connection, config, data_keys::NEW_STREAM),
        consumer(connection),
        forwarded(connection, config),
    );
    [vec![nats], durability, log, keys, new_keys, vec![consumer], forwarded].concat()
}

/// Where callbacks wait for the app, if any are forwarded.
async fn forwarded(connection: &Connection, config: &Config) -> Vec<Finding> {
    if !config.forwards() {
        return Vec::new();
    }
    match in_time(status::stream(connection, forward::STREAM)).await {
        Ok(stream) => vec![filling(forward::STREAM, &stream)],
        Err(error) => vec![Finding::error(forward::STREAM, &error)],
    }
}

async fn in_time<T>(asked: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    match timeout(ANSWER_TIMEOUT, asked).await {
        Ok(answer) => answer,
        Err(_elapsed) => bail!("no answer within {} s", ANSWER_TIMEOUT.as_secs()),
    }
}

async fn answers(connection: &Connection) -> Finding {
    let started = Instant::now();
    match in_time(status::log(connection)).await {
        Ok(_) => Finding::ok("nats", format!("answers in {} ms", started.elapsed().as_millis())),
        Err(error) => Finding::error("nats", &error),
    }
}

/// What the server says of itself on its monitoring endpoint.
async fn durability(config: &Config) -> Vec<Finding> {
    const CHECK: &str = "nats durability";
    let Some(monitor_url) = &config.nats.monitor_url else {
        return vec![Finding::warning(
            CHECK,
            "whether sync_interval is 'always' is not known",
            "set nats.monitor_url",
        )];
    };
    let http = match http_client::builder().build() {
        Ok(http) => http,
        Err(error) => return vec![Finding::failed(CHECK, error, "can this machine do TLS?")],
    };
    let answers = ServerStatus::ask_each(&http, monitor_url).await;
    let (servers, replicas) = (answers.len(), config.stream.replicas);
    let mut found = Vec::new();
    for (url, answer) in answers {
        match answer {
            Err(error) => {
                let away =
                    Finding::failed(CHECK, chain(&error), "is it away, or nats.monitor_url wrong?");
                found.push(away);
            }
            Ok(server) if !server.sync_always => {
                let why = format!("a power loss takes acknowledged events from {url}");
                let fix = "set `sync_interval: always` in the server's jetstream section";
                found.push(Finding::failed(CHECK, why, fix));
            }
            Ok(server) => found.extend(server.now.and_then(skew).map(|skew| {
                Finding::warning(CHECK, format!("{url}: {skew}"), "synchronise the clocks (NTP)")
            })),
        }
    }
    if servers < replicas {
        let why = format!("{servers} of {replicas} servers are checked");
        found.push(Finding::warning(CHECK, why, "name all of them in nats.monitor_url"));
    }
    if found.is_empty() {
        let on = if servers > 1 { format!(" on {servers} servers") } else { String::new() };
        found.push(Finding::ok(CHECK, format!("sync_interval is always{on}; the clocks agree")));
    }
    found
}

/// Whether the servers that are to have a stream have it.
fn in_step(name: &'static str, stream: &StreamStatus) -> Option<Finding> {
    let behind = &stream.replicas_behind;
    if behind.is_empty() {
        return None;
    }
    let (count, names) = (behind.len(), behind.join(", "));
    let found = format!("{count} of {} replicas are behind: {names}", stream.replicas);
    let fix = "look at these servers: `nats stream info` shows how far they are";
    Some(Finding::warning(name, found, fix))
}

fn skew(theirs: Timestamp) -> Option<String> {
    let skew = clock::now().duration_since(theirs).unsigned_abs();
    (skew > CLOCK_SKEW_MAX).then(|| format!("the clocks differ by {:.1} s", skew.as_secs_f64()))
}

async fn stream(connection: &Connection, config: &Config, name: &'static str) -> Vec<Finding> {
    let stream = match in_time(status::stream(connection, name)).await {
        Ok(stream) => stream,
        Err(error) => return vec![Finding::error(name, &error)],
    };
    let broken: BTreeSet<Breach> = stream.breaches.iter().copied().collect();
    let accepted: BTreeSet<Breach> = config.stream.allow.iter().copied().collect();
    let mut findings = Vec::new();
    for breach in broken.difference(&accepted) {
        findings.push(Finding::failed(
            name,
            breach,
            "`worker migrate` sets it, or says why it cannot",
        ));
    }
    for breach in broken.intersection(&accepted) {
        findings.push(Finding::warning(name, breach, "allowed by stream.allow"));
    }
    if findings.is_empty() {
        findings.push(filling(name, &stream));
    }
    findings.extend(in_step(name, &stream));
    findings
}

fn filling(name: &'static str, stream: &StreamStatus) -> Finding {
    let found = format!("{} messages, {} MiB", stream.messages, stream.bytes >> 20);
    if stream.bytes_max.is_none() {
        return Finding::ok(name, found);
    }
    let fill = Fill { bytes: stream.bytes, bytes_max: stream.bytes_max };
    let found = format!("{found}, {} % full", fill.percent());
    let fix = "archive (worker.archive), or raise stream.max_bytes and run `worker migrate`: a full log \
               refuses callbacks";
    match fill.room() {
        Room::Enough => Finding::ok(name, found),
        Room::Scarce => Finding::warning(name, found, fix),
        Room::Full => Finding::failed(name, found, fix),
    }
}

async fn consumer(connection: &Connection) -> Finding {
    const CHECK: &str = "worker";
    let consumer = match in_time(status::consumer(connection)).await {
        Ok(consumer) => consumer,
        Err(error) => return Finding::error(CHECK, &error),
    };
    if !consumer.redelivers {
        let fix = "`worker migrate`: events that were not applied would not come again";
        return Finding::failed(CHECK, "the consumer has other settings than ours", fix);
    }
    let behind = consumer.behind();
    let floor = consumer.acknowledged_up_to;
    let found = format!("{behind} events behind, applied up to sequence {floor}");
    if behind > 0 && consumer.pulls_waiting == 0 && consumer.unacknowledged == 0 {
        let found = format!("{found}; no worker is pulling");
        return Finding::failed(CHECK, found, "start a worker");
    }
    Finding::ok(CHECK, found)
}

/// What Postgres says of itself and of our tables.
async fn tables(connection: &mut PgConnection) -> Vec<Finding> {
    let mut findings = Vec::new();
    let error = |check, error: sqlx::Error| Finding::error(check, &error.into());
    findings.push(schema(connection).await.unwrap_or_else(|cause| error("postgres", cause)));
    findings.push(privileges(connection).await.unwrap_or_else(|cause| error("privileges", cause)));
    match unfinished(connection).await {
        Ok(found) => findings.extend(found),
        Err(cause) => findings.push(error("operations", cause)),
    }
    findings
}

async fn identity(connection: &Connection, pool: &PgPool) -> Finding {
    const CHECK: &str = "log and journal";
    match in_time(log_identity::check(connection, pool)).await {
        Ok(()) => Finding::ok(CHECK, "the journal was filled from this log"),
        Err(error) if matches!(error.downcast_ref(), Some(OtherLog::Behind { .. })) => {
            Finding::failed(CHECK, error, "`worker replay --apply`")
        }
        Err(error) if error.is::<OtherLog>() => Finding::failed(
            CHECK,
            error,
            "restore the newest backup of the stream; the workers refuse to go on until then",
        ),
        Err(error) => Finding::error(CHECK, &error),
    }
}

async fn schema(connection: &mut PgConnection) -> Result<Finding, sqlx::Error> {
    const CHECK: &str = "postgres";
    let server = database::server(connection).await?;
    if server.version < POSTGRES_VERSION_MIN {
        return Ok(Finding::failed(
            CHECK,
            format!("version {}", server.version_name),
            "15 or newer",
        ));
    }
    let missing = migrate::pending(connection).await?;
    if missing > 0 {
        let found = format!("{missing} migrations of this version are not applied");
        return Ok(Finding::failed(CHECK, found, "`worker migrate`"));
    }
    Ok(match skew(server.now) {
        Some(skew) => Finding::warning(CHECK, skew, "synchronise the clocks (NTP)"),
        None => {
            Finding::ok(CHECK, format!("version {}, the schema is up to date", server.version_name))
        }
    })
}

/// The worker's role may do its work, and may not rewrite history.
async fn privileges(connection: &mut PgConnection) -> Result<Finding, sqlx::Error> {
    const CHECK: &str = "privileges";
    Ok(match database::worker_role(connection).await? {
        None => Finding::warning(
            CHECK,
            "there is no role mooring_worker",
            "make one, run `worker migrate` again, and let `worker run` use it",
        ),
        Some(role) if !role.may_work => Finding::failed(
            CHECK,
            "mooring_worker lacks rights",
            "`worker migrate` grants them on a new schema; see worker/migrations for the list",
        ),
        Some(role) if role.is_superuser || role.may_rewrite_history => Finding::warning(
            CHECK,
            "mooring_worker could delete events or change the audit",
            "revoke what worker/migrations does not grant",
        ),
        Some(_) => Finding::ok(CHECK, "mooring_worker may do its work and no more"),
    })
}

async fn unfinished(connection: &mut PgConnection) -> Result<Vec<Finding>, sqlx::Error> {
    let by_reason = dead_letters::count_unresolved(connection).await?;
    let dead: i64 = by_reason.iter().map(|(_, count)| count).sum();
    let mut findings = Vec::new();
    if dead > 0 {
        let what = format!("{dead} are open");
        findings.push(Finding::warning("dead letters", what, "`worker dead-letters list`"));
    } else {
        findings.push(Finding::ok("dead letters", "none is open"));
    }
    if rebuilds::unfinished(connection).await?.is_some() {
        let fix = "`worker rebuild` continues it, `worker rebuild --abandon` drops it";
        findings.push(Finding::warning("rebuild", "one is not finished", fix));
    }
    Ok(findings)
}

async fn sealing(
    connection: &Connection,
    pool: &PgPool,
    ring: &KeyRing,
    context: &Context,
) -> Finding {
    match keys::list(connection, pool, ring, &context.shutdown).await {
        Ok(found) => judge_keys(&found),
        Err(error) => Finding::error("keys", &error),
    }
}

/// What the running services have of the ring.
async fn rings(connection: &Connection, ring: &KeyRing) -> Finding {
    const CHECK: &str = "key rings";
    let running = match in_time(data_keys::report::reports(connection)).await {
        Ok(running) => running,
        Err(error) => return Finding::error(CHECK, &error),
    };
    let wrong = keys::disagreements(&running, ring);
    if wrong.is_empty() {
        return Finding::ok(
            CHECK,
            format!("{} running services seal with known keys", running.len()),
        );
    }
    let fix = "at once, give every host the same sealing.keys: what is sealed so may never open";
    Finding::failed(CHECK, wrong.join("; "), fix)
}

fn judge_keys(found: &KeysInUse) -> Finding {
    const CHECK: &str = "keys";
    let KeysInUse { keys, damaged_pages } = found;
    let ids = |is_meant: fn(&KeyUse) -> bool| {
        let meant: Vec<&str> =
            keys.iter().filter(|(_, key)| is_meant(key)).map(|(id, _)| id.as_str()).collect();
        meant.join(", ")
    };
    let missing = ids(|key| !key.configured);
    if !missing.is_empty() {
        let found = format!("secrets are sealed with keys that are not configured: {missing}");
        return Finding::failed(CHECK, found, "put them back into sealing.keys");
    }
    let not_opened = ids(|key| key.newest_page_opens == Some(false));
    if !not_opened.is_empty() {
        let found = format!("the newest page of data keys does not open, sealed with {not_opened}");
        let fix = "compare sealing.keys of ingest and worker; `worker keys reseal` tries each page";
        return Finding::failed(CHECK, found, fix);
    }
    if *damaged_pages > 0 {
        let found = format!("{damaged_pages} pages of data keys are no pages at all");
        let fix = "`worker keys reseal` mends what can be mended";
        return Finding::warning(CHECK, found, fix);
    }
    if keys.values().any(|key| !key.active && key.pages > 0) {
        let found = "pages are sealed with a retired key";
        return Finding::warning(CHECK, found, "`worker keys reseal`");
    }
    Finding::ok(CHECK, format!("{} seals all data keys", ids(|key| key.active)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operate::tests::assert_view;

    #[test]
    fn findings_are_listed_with_how_to_fix_them() {
        let findings = [
            Finding::ok("nats", "answers in 1 ms"),
            Finding::warning("nats durability", "the clocks differ by 3.0 s", "synchronise them"),
            Finding::failed("worker", "7 events behind; no worker is pulling", "start a worker"),
        ];
        assert_view("doctor", &render(&findings));
    }
}
