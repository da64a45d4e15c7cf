//! Every expression of the dashboards and rules, asked of a real Prometheus that
//! scraped a real run: each must have something to say.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use dev::config::SIMULATED;
use serde_json::{Value, json};
use service::telemetry::names::attribute;

use crate::archive;
use crate::oauth;
use crate::payload::{install, with};
use crate::push;
use crate::simulate;
use crate::token_server::{Codes, TokenServer};
use crate::world::{Setup, World, eventually};

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(path)
}

/// `None`, and a word about it, where the machine has none.
fn prometheus() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found =
        std::env::split_paths(&path).map(|it| it.join("prometheus")).find(|it| it.is_file());
    if found.is_none() {
        let required = std::env::var_os("MOORING_TEST_PROMETHEUS").is_some();
        assert!(!required, "MOORING_TEST_PROMETHEUS is set, and there is no prometheus in PATH");
        eprintln!("not tested against Prometheus: there is none in PATH");
    }
    found
}

/// Ended when it is dropped.
struct Prometheus {
    process: Child,
    url: String,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

impl Prometheus {
    /// Scrapes every second. The rules count by minutes; here a minute has five
    /// seconds.
    async fn start(program: &Path, world: &World, rebuild_port: u16) -> Self {
        let folder = world.folder.path().join("prometheus");
        fs::create_dir(&folder).unwrap();
        let rules = fs::read_to_string(deploy("prometheus/rules/mooring.yml")).unwrap();
        let rules = rules.replace("offset 1m", "offset 5s").replace("interval: 1m", "interval: 5s");
        fs::write(folder.join("rules.yml"), rules.replace("interval: 30s", "interval: 5s"))
            .unwrap();
        let job = |name: &str, ports: &[u16]| {
            let targets: Vec<String> = ports.iter().map(|it| format!("localhost:{it}")).collect();
            json!({ "job_name": name, "static_configs": [{ "targets": targets }] })
        };
        let config = json!({
            "global": { "scrape_interval": "1s", "evaluation_interval": "5s" },
            "rule_files": [folder.join("rules.yml")],
            "scrape_configs": [
                job("mooring-ingest", &[world.metrics_port("ingest", 0)]),
                job("mooring-worker", &[0, 1].map(|index| world.metrics_port("worker", index))),
                job("mooring-rebuild", &[rebuild_port]),
            ],
        });
        // JSON is YAML.
        fs::write(folder.join("prometheus.yml"), config.to_string()).unwrap();
        let port = dev::ports::free_port().unwrap();
        let process = Command::new(program)
            .arg(format!("--config.file={}", folder.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.join("log")).unwrap())
            .spawn()
            .unwrap();
        let prometheus = Self { process, url: format!("http://127.0.0.1:{port}") };
        let ready = format!("{}/-/ready", prometheus.url);
        let is_ready = async || {
            world.http.get(&ready).send().await.is_ok_and(|answer| answer.status().is_success())
        };
        assert!(eventually(is_ready).await, "Prometheus did not start");
        prometheus
    }

    async fn get(&self, world: &World, path: &str, query: &[(&str, &str)]) -> Value {
        let answer = world.http.get(format!("{}/api/v1/{path}", self.url)).query(query).send();
        let answer: Value = answer.await.unwrap().json().await.unwrap();
        assert_eq!(answer["status"], "success", "{query:?}: {answer}");
        answer["data"].clone()
    }

    async fn has_data(&self, world: &World, expression: &str) -> bool {
        let data = self.get(world, "query", &[("query", expression)]).await;
        !data["result"].as_array().unwrap().is_empty()
    }
}

/// Of every panel and annotation of a dashboard, as Grafana would send it.
fn expressions(dashboard: &Value, found: &mut BTreeSet<String>) {
    match dashboard {
        Value::Object(fields) => {
            if let Some(Value::String(expression)) = fields.get("expr") {
                let variables = [
                    ("$__rate_interval", "30s"),
                    ("$__interval", "15s"),
                    ("$__range", "5m"),
                    ("${source:regex}", ".*"),
                    ("$source", ".*"),
                    (":1m]", ":5s]"),
                ];
                let expression = variables
                    .iter()
                    .fold(expression.clone(), |text, (name, value)| text.replace(name, value));
                assert!(!expression.contains('$'), "a variable is not known: {expression}");
                found.insert(expression);
            }
            fields.values().for_each(|field| expressions(field, found));
        }
        Value::Array(items) => items.iter().for_each(|item| expressions(item, found)),
        _ => {}
    }
}

/// Callbacks of every platform, a dead letter, tokens that are renewed.
async fn traffic(world: &World, seed: &str) {
    let url = world.ingest_url(0, "");
    for (platform, secret) in SIMULATED {
        let secret = world.secrets.path(secret).to_string_lossy().into_owned();
        let action = if platform == "securityscorecard" { "install" } else { "uninstall" };
        let args = [
            platform,
            action,
            "--url",
            &url,
            "--secret-file",
            &secret,
            "--seed",
            seed,
            "--count",
            "20",
            "--late-uninstall",
            "0.5",
            "--duplicate",
            "0.3",
            "--forge",
            "0.3",
        ];
        world.command("simulate", &args, &[]).unwrap();
    }
    let stranger = world.http.get(world.worker_url(0, "/v1/installations")).bearer_auth("wrong");
    assert_eq!(stranger.send().await.unwrap().status(), 401);
    let jetstream = world.jetstream().await;
    let subject = "installations.blnk.1";
    jetstream.publish(subject, "no event".into()).await.unwrap().await.unwrap();
}

/// Conflicts, and an install that fails because the log is away.
async fn trouble(world: &mut World) {
    // Several: one is not counted whose first event is applied by another worker, and later.
    for id in ["conflict", "conflict_2", "conflict_3", "conflict_4"] {
        world.acknowledged(&install(id)).await;
        world.acknowledged(&with(install(id), "note", "another")).await;
    }
    world.nats.kill().unwrap();
    assert_eq!(world.send(&install("failed")).await.status, 503);
    world.nats.start_again().unwrap();
    world.wait_ingest_ready(0);
    // So many that a rebuild takes a while.
    let secret = world.secrets.path("blnk-path-token").to_string_lossy().into_owned();
    let url = world.ingest_url(0, "");
    let args = ["blnk", "install", "--url", &url, "--secret-file", &secret, "--count", "3000"];
    world.command("simulate", &args, &[]).unwrap();
    world.wait_applied().await;
}

async fn start(tokens: &TokenServer, rebuild_port: u16) -> World {
    let setup = Setup { workers: 2, scraped: true, ..Setup::default() };
    let world = World::servers(setup.env("MOORING__STREAM__MAX_BYTES", 100_000_000));
    simulate::configure(&world);
    world.configure(&oauth::sections(&world, tokens, "state = \"when_present\""));
    // Nobody is there.
    world.configure(&format!(
        "[worker.push.crm]\nurl = \"http://127.0.0.1:1/\"\nallow_private = true\n{}",
        push::secrets(&world)
    ));
    // Of the limit of the log so little that something is always due.
    archive::configure(&world, &archive::by_workers(&world, "log_full_percent = 1"));
    let mut world = world.with_services().await;
    world.set_env("OTEL_METRICS_EXPORTER", "prometheus".to_owned());
    world.set_env("OTEL_EXPORTER_PROMETHEUS_PORT", rebuild_port.to_string());
    world
}

#[test]
fn the_alerts_fire_when_they_should_and_only_then() {
    let Some(program) = prometheus() else { return };
    let promtool = program.with_file_name("promtool");
    for args in [
        ["check", "rules", "prometheus/rules/mooring.yml"],
        ["test", "rules", "prometheus/tests/mooring.test.yml"],
    ] {
        let file = deploy(args[2]);
        let output = Command::new(&promtool).args(&args[..2]).arg(file).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stdout));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_expression_has_something_to_say() {
    let Some(program) = prometheus() else { return };
    let code = json!({ "userType": "Location", "locationId": "l1", "companyId": "c1" });
    let tokens = TokenServer::start(Codes::from([("code-1", code)]), "", 6).await;
    let rebuild_port = dev::ports::free_port().unwrap();
    let mut world = start(&tokens, rebuild_port).await;
    let prometheus = Prometheus::start(&program, &world, rebuild_port).await;
    // Counts are of what comes after a process is known.
    let known = "last_over_time(mooring_nats_connected[1m] offset 5s)";
    assert!(eventually(async || prometheus.has_data(&world, known).await).await);
    traffic(&world, "1").await;
    trouble(&mut world).await;
    let back = world.ingest_url(0, "/oauth/highlevel/callback?code=code-1");
    assert_eq!(world.http.get(back).send().await.unwrap().status(), 200);
    let credential = world.read("/v1/installations?source=blnk&status=active").await.body;
    let id = credential["installations"][0]["installation_id"].as_str().unwrap().to_owned();
    assert_eq!(world.credential(&id).await.status, 200);

    let mut wanted = BTreeSet::new();
    for name in ["ack-slo", "pipeline", "installations", "rebuild"] {
        let text = fs::read_to_string(deploy(&format!("grafana/dashboards/{name}.json"))).unwrap();
        expressions(&serde_json::from_str(&text).unwrap(), &mut wanted);
    }
    let rules = prometheus.get(&world, "rules", &[]).await;
    let rules = rules["groups"].as_array().unwrap().iter();
    let rules: Vec<Value> = rules.flat_map(|it| it["rules"].as_array().unwrap().clone()).collect();
    let of = |kind: &str| {
        let found = rules.iter().filter(move |rule| rule["type"] == kind);
        found.map(|rule| rule["query"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    wanted.extend(of("recording"));
    assert!(wanted.len() > 60, "{}", wanted.len());

    // Again and again, with a rebuild beside it: some look at what is going on just now.
    let mut silent = wanted.clone();
    let mut rebuilt = Vec::new();
    let mut round = 1;
    let mut all = async || {
        round += 1;
        traffic(&world, &round.to_string()).await;
        // Only one that loads tells how far it is.
        world.operate(&["rebuild", "--abandon"]).await;
        let rebuild = world.operate(&["rebuild", "--max-rate", "1000", "--no-swap"]);
        let ask = async {
            for _ in 0..3 {
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                for expression in silent.clone() {
                    if prometheus.has_data(&world, &expression).await {
                        silent.remove(&expression);
                    }
                }
            }
        };
        let (done, ()) = tokio::join!(rebuild, ask);
        rebuilt.push(done);
        silent.is_empty()
    };
    // A slow machine has fewer rounds in the time that others have.
    let complete = eventually(&mut all).await || eventually(all).await;
    assert!(complete, "without data: {silent:#?}; rebuilds: {rebuilt:#?}");

    // Whether alerts fire is tested by promtool; here that what they look at is there.
    let names = prometheus.get(&world, "label/__name__/values", &[]).await;
    let names: BTreeSet<&str> =
        names.as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    for alert in of("alerting") {
        prometheus.get(&world, "query", &[("query", &alert)]).await;
        let words = alert.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':');
        for word in words.filter(|word| word.starts_with("mooring_")) {
            let is_label = attribute::ALL.iter().any(|(name, _)| name.replace('.', "_") == word);
            assert!(is_label || names.contains(word), "{word} of {alert}");
        }
    }
}
