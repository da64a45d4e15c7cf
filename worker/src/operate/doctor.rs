//! `worker doctor`: is everything as it must be, and how to mend what is not.
//! It changes nothing.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use domain::seal::KeyRing;
use eventlog::breach::Breach;
use eventlog::contract::ServerStatus;
use eventlog::status::{self, StreamStatus};
use eventlog::{keys as data_keys, message};
use jiff::Timestamp;
use serde::Serialize;
use service::http_client;
use sqlx::PgConnection;
use tokio_util::sync::CancellationToken;

use crate::operate::backends::Backends;
use crate::operate::keys;
use crate::operate::migrate;
use crate::store::database;
use crate::store::dead_letters;
use crate::store::log_identity::{self, OtherLog};
use crate::store::rebuilds;

const POSTGRES_VERSION_MIN: i32 = 150_000;
/// Times are compared with those of platforms; signatures allow some minutes.
const CLOCK_SKEW_MAX: Duration = Duration::from_secs(2);
const FULL_PERCENT_MAX: u64 = 80;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Ok,
    /// It works, and should be looked at.
    Warning,
    Failed,
}

#[derive(Debug, Serialize)]
pub struct Finding {
    pub check: &'static str,
    pub verdict: Verdict,
    pub found: String,
    /// How to mend it.
    pub mend: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, found: impl ToString) -> Self {
        Self { check, verdict: Verdict::Ok, found: found.to_string(), mend: None }
    }

    fn warning(check: &'static str, found: impl ToString, mend: impl ToString) -> Self {
        let mend = Some(mend.to_string());
        Self { check, verdict: Verdict::Warning, found: found.to_string(), mend }
    }

    fn failed(check: &'static str, found: impl ToString, mend: impl ToString) -> Self {
        let mend = Some(mend.to_string());
        Self { check, verdict: Verdict::Failed, found: found.to_string(), mend }
    }
}

/// What the doctor is told of the configuration.
pub struct Patient<'a> {
    pub backends: &'a Backends,
    pub ring: &'a KeyRing,
    pub monitor_url: Option<String>,
    /// Breaches that the configuration allows by name.
    pub accepted: Vec<Breach>,
}

/// Every check, whatever came of the others.
pub async fn examine(patient: &Patient<'_>, shutdown: &CancellationToken) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.push(nats(patient).await);
    findings.push(clock_of_nats(patient).await);
    findings.extend(stream(patient, message::STREAM).await);
    findings.extend(stream(patient, data_keys::STREAM).await);
    findings.push(consumer(patient).await);
    match database::acquire(&patient.backends.pool).await {
        Ok(mut connection) => findings.extend(postgres(patient, &mut connection, shutdown).await),
        Err(error) => findings.push(Finding::failed(
            "postgres",
            error,
            "is it up, and are postgres.url and postgres.password right?",
        )),
    }
    findings
}

async fn nats(patient: &Patient<'_>) -> Finding {
    let started = Instant::now();
    match status::log(&patient.backends.connection).await {
        Ok(_) => Finding::ok("nats", format!("answers in {} ms", started.elapsed().as_millis())),
        Err(error) => Finding::failed(
            "nats",
            format!("{error:#}"),
            "is it up, are nats.url, nats.user and nats.password right, and was `worker migrate` run?",
        ),
    }
}

/// What the server says of itself on its monitoring endpoint.
async fn clock_of_nats(patient: &Patient<'_>) -> Finding {
    const CHECK: &str = "nats durability";
    let Some(monitor_url) = &patient.monitor_url else {
        return Finding::warning(
            CHECK,
            "whether sync_interval is 'always' is not known",
            "set nats.monitor_url",
        );
    };
    let asked = async {
        let http = http_client::builder().build()?;
        ServerStatus::ask(&http, monitor_url).await
    };
    match asked.await {
        Err(error) => Finding::failed(CHECK, error, "is nats.monitor_url right?"),
        Ok(server) if !server.sync_always => {
            let mend = "set `sync_interval: always` in the server's jetstream section";
            Finding::failed(CHECK, "a power loss takes acknowledged events", mend)
        }
        Ok(server) => match server.now.and_then(skew) {
            Some(skew) => Finding::warning(CHECK, skew, "synchronise the clocks (NTP)"),
            None => Finding::ok(CHECK, "sync_interval is always; the clocks agree"),
        },
    }
}

fn skew(theirs: Timestamp) -> Option<String> {
    let skew = Timestamp::now().duration_since(theirs).unsigned_abs();
    (skew > CLOCK_SKEW_MAX).then(|| format!("the clocks differ by {:.1} s", skew.as_secs_f64()))
}

async fn stream(patient: &Patient<'_>, name: &'static str) -> Vec<Finding> {
    let stream = match status::stream(&patient.backends.connection, name).await {
        Ok(stream) => stream,
        Err(error) => return vec![Finding::failed(name, format!("{error:#}"), "`worker migrate`")],
    };
    let broken: BTreeSet<Breach> = stream.breaches.iter().copied().collect();
    let accepted: BTreeSet<Breach> = patient.accepted.iter().copied().collect();
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
    findings
}

fn filling(name: &'static str, stream: &StreamStatus) -> Finding {
    let found = format!("{} messages, {} MiB", stream.messages, stream.bytes >> 20);
    let Some(percent) = stream.bytes_max.and_then(|max| (stream.bytes * 100).checked_div(max))
    else {
        return Finding::ok(name, found);
    };
    if percent < FULL_PERCENT_MAX {
        return Finding::ok(name, format!("{found}, {percent} % full"));
    }
    let mend = "raise stream.max_bytes and run `worker migrate`: a full log refuses callbacks";
    Finding::warning(name, format!("{found}, {percent} % full"), mend)
}

async fn consumer(patient: &Patient<'_>) -> Finding {
    const CHECK: &str = "worker";
    let consumer = match status::consumer(&patient.backends.connection).await {
        Ok(consumer) => consumer,
        Err(error) => return Finding::failed(CHECK, format!("{error:#}"), "`worker migrate`"),
    };
    if !consumer.redelivers {
        let mend = "`worker migrate`: events that were not applied would not come again";
        return Finding::failed(CHECK, "the consumer has other settings than ours", mend);
    }
    let behind = consumer.behind();
    let floor = consumer.acknowledged_up_to;
    let found = format!("{behind} events behind, applied up to sequence {floor}");
    if behind > 0 && consumer.pulls_waiting == 0 && consumer.unacknowledged == 0 {
        return Finding::failed(CHECK, format!("{found}; nobody asks for more"), "start a worker");
    }
    Finding::ok(CHECK, found)
}

async fn postgres(
    patient: &Patient<'_>,
    connection: &mut PgConnection,
    shutdown: &CancellationToken,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    match schema(connection).await {
        Ok(finding) => findings.push(finding),
        Err(error) => findings.push(unasked("postgres", error)),
    }
    findings.push(
        match log_identity::check(&patient.backends.connection, &patient.backends.pool).await {
            Ok(()) => Finding::ok("log and journal", "the journal was filled from this log"),
            Err(error) if error.is::<OtherLog>() => Finding::failed(
                "log and journal",
                error,
                "restore the newest backup of the stream; the workers refuse to go on until then",
            ),
            Err(error) => Finding::failed("log and journal", format!("{error:#}"), "see above"),
        },
    );
    match privileges(connection).await {
        Ok(finding) => findings.push(finding),
        Err(error) => findings.push(unasked("privileges", error)),
    }
    match unfinished(connection).await {
        Ok(found) => findings.extend(found),
        Err(error) => findings.push(unasked("operations", error)),
    }
    findings.push(sealing(patient, shutdown).await);
    findings
}

fn unasked(check: &'static str, error: sqlx::Error) -> Finding {
    Finding::failed(check, error, "was `worker migrate` run with this version?")
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
        let mend = "`worker rebuild` goes on with it, `worker rebuild --abandon` drops it";
        findings.push(Finding::warning("rebuild", "one is not finished", mend));
    }
    Ok(findings)
}

async fn sealing(patient: &Patient<'_>, shutdown: &CancellationToken) -> Finding {
    const CHECK: &str = "keys";
    let found = match keys::list(patient.backends, patient.ring, shutdown).await {
        Ok(found) => found,
        Err(error) => return Finding::failed(CHECK, format!("{error:#}"), "see above"),
    };
    let missing: Vec<&str> =
        found.iter().filter(|(_, key)| !key.configured).map(|(id, _)| id.as_str()).collect();
    if !missing.is_empty() {
        let found =
            format!("secrets are sealed with keys that are not configured: {}", missing.join(", "));
        return Finding::failed(CHECK, found, "put them back into sealing.keys");
    }
    let old = found.values().any(|key| !key.active && key.pages > 0);
    if old {
        return Finding::warning(
            CHECK,
            "pages are sealed with a retired key",
            "`worker keys reseal`",
        );
    }
    Finding::ok(CHECK, format!("{} seals all data keys", patient.ring.active()))
}
