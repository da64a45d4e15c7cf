//! `cargo dev demo`: one installation from callback to database and back, against the running `up`.
//! The steps are numbered as in the platform's own documentation.

use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use dev::config::SIMULATED;
use dev::data_dir::Running;
use dev::http::{self, Answer};
use dev::secrets::{Secrets, new_token};
use dev::services::{self, Profile};
use dev::wait;
use serde_json::{Value, json};

use super::cargo::{build, require, run_here};
use super::data::Data;
use super::up::PREFIX_LENGTH;

/// The platform cancels the installation after this time.
const CALLBACK_TIMEOUT: Duration = Duration::from_secs(10);
const READ_TIMEOUT: Duration = Duration::from_secs(5);
const PROJECTION_DEADLINE: Duration = Duration::from_secs(10);

/// Take one installation through the running `up`, showing the answer to each step
#[derive(Args)]
pub(crate) struct Demo {
    #[command(flatten)]
    data: Data,
}

impl Demo {
    pub(crate) fn run(&self) -> Result<ExitCode> {
        let data = self.data.dir()?;
        let running = data.running()?;
        require(build(&["simulate"], Profile::Own).arg("--quiet"))?;
        let secrets = Secrets::existing(data.secrets());
        let walk = Walkthrough::new(&running, &secrets)?;
        walk.run()?;
        println!("\nall steps passed for {}\n", walk.id);
        every_platform(&running, &secrets)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Sends the callbacks of every platform, with some sent twice, out of order, late or forged.
fn every_platform(running: &Running, secrets: &Secrets) -> Result<()> {
    let simulate = services::binary("simulate")?;
    for (platform, secret) in SIMULATED {
        let action = if platform == "securityscorecard" { "install" } else { "uninstall" };
        let mut command = services::command(&simulate);
        command
            .args([platform, action, "--url", &running.ingest_url, "--count", "50"])
            .args(["--duplicate", "0.2", "--reorder", "0.2", "--late-uninstall", "0.5"])
            .args(["--forge", "0.1", "--secret-file"])
            .arg(secrets.path(secret));
        if !run_here(&mut command)?.success() {
            bail!("`simulate {platform}` did not get the answers that it expected");
        }
    }
    println!("\nevery platform's callbacks were answered as expected; read them with:");
    println!("   cargo dev worker -- installations list --source highlevel");
    Ok(())
}

/// One installation on its way through the two services.
struct Walkthrough<'a> {
    running: &'a Running,
    path_token: String,
    read_token: String,
    id: String,
    instance: String,
    api_key: String,
}

impl<'a> Walkthrough<'a> {
    fn new(running: &'a Running, secrets: &Secrets) -> Result<Self> {
        let unique = format!("{:012x}", rand::random::<u64>() >> 16);
        Ok(Self {
            running,
            path_token: secrets.read("blnk-path-token")?,
            read_token: secrets.read("read-token")?,
            id: format!("instapp_demo_{unique}"),
            instance: format!("inst_demo_{unique}"),
            api_key: format!("blnk_{}", new_token()),
        })
    }

    fn run(&self) -> Result<()> {
        let began = self.feed_now().context("the list of installations")?;
        let installed_at = self.install().context("the install callback")?;
        // Before the retry, whose own time would otherwise count as the worker's.
        self.becomes("active", "5. the install is active in the database", installed_at)?;
        self.install_again().context("the retry of the install callback")?;
        self.credential_opens().context("the credential endpoint")?;
        let uninstalled_at = self.uninstall().context("the uninstall callback")?;
        self.becomes("inactive", "8. it is no longer active in the database", uninstalled_at)?;
        self.credential_is_gone().context("the credential endpoint after the uninstall")?;
        self.app_was_told(&began).context("the change feed")
    }

    fn install(&self) -> Result<Instant> {
        println!("3. the callback URL receives the install event");
        println!("   POST {}/callbacks/blnk/***", self.running.ingest_url);
        let (answer, took) = self.send(&self.install_payload())?;
        println!(
            "4. answered {} in {} ms\n   {}",
            answer.status,
            took.as_millis(),
            answer.body.trim_end()
        );
        Ok(Instant::now())
    }

    fn install_again(&self) -> Result<()> {
        println!("   the platform retries and sends the same callback again");
        let (answer, took) = self.send(&self.install_payload())?;
        let duplicate = parse(&answer)?.get("duplicate").and_then(Value::as_bool);
        if duplicate != Some(true) {
            bail!("expected `\"duplicate\":true` in the answer, found: {}", answer.body.trim_end());
        }
        println!("   answered {} in {} ms, \"duplicate\":true", answer.status, took.as_millis());
        Ok(())
    }

    fn uninstall(&self) -> Result<Instant> {
        println!("6. the customer uninstalls");
        let now = now()?;
        let payload = json!({
            "installed_app_id": self.id,
            "app_id": "app_demo",
            "instance_id": self.instance,
            "uninstalled_at": now,
            "idempotency_key": format!("uninstall:{}", self.id),
        });
        println!("7. the callback URL receives the uninstall event, uninstalled_at {now}");
        let (answer, took) = self.send(&payload)?;
        println!(
            "   answered {} in {} ms\n   {}",
            answer.status,
            took.as_millis(),
            answer.body.trim_end()
        );
        Ok(Instant::now())
    }

    /// Polls the read API until the installation has this status.
    fn becomes(&self, status: &str, step: &str, acknowledged_at: Instant) -> Result<()> {
        println!("{step}");
        let mut last = "nothing".to_owned();
        let found = wait::until(PROJECTION_DEADLINE, || {
            let answer = self.read("")?;
            last = format!("{}: {}", answer.status, answer.body.trim_end());
            let found = answer.is_success()
                && parse(&answer)?.get("status").and_then(Value::as_str) == Some(status);
            Ok(found.then_some(()))
        })
        .with_context(|| step.to_owned())?;
        if found.is_none() {
            bail!(
                "{step}: expected status \"{status}\" within {} s, last found {last}",
                PROJECTION_DEADLINE.as_secs()
            );
        }
        println!("   GET {}/v1/installations/{}", self.running.worker_url, self.id);
        println!(
            "   status \"{status}\", {} ms after the answer",
            acknowledged_at.elapsed().as_millis()
        );
        Ok(())
    }

    /// Compares the key with the one that was sent, and shows neither.
    fn credential_opens(&self) -> Result<()> {
        let answer = self.read("/credential")?;
        if !answer.is_success() {
            bail!("expected 200, found {}: {}", answer.status, answer.body.trim_end());
        }
        let opened = parse(&answer)?;
        match opened.get("credential").and_then(Value::as_str) {
            Some(key) if key == self.api_key => {
                println!("   credential: opened, and it is the key that was sent")
            }
            Some(_) => bail!("the credential opened, but it is not the key that was sent"),
            None => bail!("the answer has no field `credential`"), // not shown: it may hold the key
        }
        Ok(())
    }

    fn credential_is_gone(&self) -> Result<()> {
        let answer = self.read("/credential")?;
        if !matches!(answer.status, 404 | 410) {
            bail!("expected 404 or 410, found {}", answer.status);
        }
        println!("   credential: gone ({})", answer.status);
        Ok(())
    }

    /// Where an app would begin to follow what happens.
    fn feed_now(&self) -> Result<String> {
        let list = self.get("/v1/installations?limit=1")?;
        let cursor = list.get("changes_cursor").and_then(Value::as_str);
        Ok(cursor.context("the list has no `changes_cursor`")?.to_owned())
    }

    /// What a consumer of the feed has seen of it.
    fn app_was_told(&self, began: &str) -> Result<()> {
        println!("9. the app that follows the feed has seen each step");
        let page = self.get(&format!("/v1/changes?limit=1000&after={began}"))?;
        let changes = page.get("changes").and_then(Value::as_array);
        let of_it = changes.into_iter().flatten().filter(|change| {
            change.get("installation_id").and_then(Value::as_str) == Some(&self.id)
        });
        let told: Vec<&str> =
            of_it.filter_map(|change| change.get("type").and_then(Value::as_str)).collect();
        if told != ["installation.activated", "installation.deactivated"] {
            bail!("expected that it was activated and deactivated, found {told:?}");
        }
        println!("   GET {}/v1/changes: {}", self.running.worker_url, told.join(", "));
        Ok(())
    }

    fn get(&self, path: &str) -> Result<Value> {
        let url = format!("{}{path}", self.running.worker_url);
        let answer = http::get(&url, Some(&self.read_token), READ_TIMEOUT)
            .with_context(|| format!("GET {url}"))?;
        if !answer.is_success() {
            bail!("GET {url}: expected 200, found {}: {}", answer.status, answer.body.trim_end());
        }
        parse(&answer)
    }

    fn send(&self, payload: &Value) -> Result<(Answer, Duration)> {
        let url = format!("{}/callbacks/blnk/{}", self.running.ingest_url, self.path_token);
        let start = Instant::now();
        let answer = http::post_json(&url, &payload.to_string(), CALLBACK_TIMEOUT)?;
        let took = start.elapsed();
        if !answer.is_success() {
            bail!("expected 2xx, found {}: {}", answer.status, answer.body.trim_end());
        }
        Ok((answer, took))
    }

    fn read(&self, below: &str) -> Result<Answer> {
        let url = format!("{}/v1/installations/{}{below}", self.running.worker_url, self.id);
        http::get(&url, Some(&self.read_token), READ_TIMEOUT).with_context(|| format!("GET {url}"))
    }

    fn install_payload(&self) -> Value {
        json!({
            "installed_app_id": self.id,
            "app_id": "app_demo",
            "instance_id": self.instance,
            "api_key": self.api_key,
            "api_key_prefix": self.api_key.get(..PREFIX_LENGTH),
            "granted_permissions": ["data:read", "data:write"],
            "idempotency_key": format!("install:{}", self.id),
        })
    }
}

/// The time in RFC 3339, in UTC. A crate for dates would be compiled for this line alone.
fn now() -> Result<String> {
    let output = Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%SZ"]).output();
    let output = output.context("asking `date` for the time")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

fn parse(answer: &Answer) -> Result<Value> {
    serde_json::from_str(&answer.body).context("expected a JSON answer")
}
