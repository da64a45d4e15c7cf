//! One environment of a test: servers, services, and what can be asked of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use async_nats::jetstream;
use async_nats::jetstream::stream::{Config, Stream};
use dev::config::{self, Ports};
use dev::nats::{ClusterNode, NatsOptions, NatsServer, Staging};
use dev::ports::free_port;
use dev::postgres::{Postgres, PostgresOptions, Role};
use dev::secrets::Secrets;
use dev::services::{self, Profile, Service};
use dev::temporary;
use domain::event::{Event, Fact};
use domain::fold::{Recorded, Retention, fold};
use domain::id::StreamSequence;
use eventlog::topology;
use reqwest::header::HeaderMap;
use serde_json::Value;
use service::http_client;
use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Row as _};
use tempfile::TempDir;

/// Generous: a slow machine must not fail a test, and a passing one never waits
/// for it.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
pub(crate) const STOP_DEADLINE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(25);

/// What a test wants different from the usual environment.
pub(crate) struct Setup {
    pub(crate) ingests: usize,
    pub(crate) workers: usize,
    /// Of NATS; several make a cluster, and a stream with as many replicas.
    pub(crate) nodes: usize,
    /// Whether the metrics of each service can be scraped.
    pub(crate) scraped: bool,
    /// For both services and `worker migrate`, as `MOORING__…` overrides.
    pub(crate) envs: Vec<(&'static str, String)>,
}

impl Default for Setup {
    fn default() -> Self {
        Self { ingests: 1, workers: 1, nodes: 1, scraped: false, envs: Vec::new() }
    }
}

impl Setup {
    pub(crate) fn env(mut self, name: &'static str, value: impl ToString) -> Self {
        self.envs.push((name, value.to_string()));
        self
    }
}

/// Fields are dropped in this order: services first.
pub(crate) struct World {
    pub(crate) ingests: Vec<Service>,
    pub(crate) workers: Vec<Service>,
    pub(crate) nats: NatsServer,
    /// The other nodes of a cluster.
    pub(crate) peers: Vec<NatsServer>,
    pub(crate) postgres: Postgres,
    pub(crate) http: reqwest::Client,
    pub(crate) secrets: Secrets,
    setup: Setup,
    pub(crate) ports: Ports,
    ingest_ports: Vec<u16>,
    worker_ports: Vec<u16>,
    /// By the port of the service.
    metrics_ports: BTreeMap<u16, u16>,
    admin_ports: BTreeMap<u16, u16>,
    pub(crate) folder: TempDir,
}

/// An HTTP answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

impl Answer {
    pub(crate) async fn of(response: reqwest::Response) -> Result<Self, reqwest::Error> {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = response.bytes().await?;
        let text = || Value::from(String::from_utf8_lossy(&body).into_owned());
        Ok(Self { status, headers, body: serde_json::from_slice(&body).unwrap_or_else(|_| text()) })
    }

    /// The name in a problem's type.
    pub(crate) fn problem(&self) -> &str {
        let name = self.body["type"].as_str().unwrap_or_default();
        name.strip_prefix("urn:mooring:problem:").unwrap_or(name)
    }
}

impl World {
    /// Everything is ready when it returns.
    pub(crate) async fn start(setup: Setup) -> Self {
        Self::servers(setup).with_services().await
    }

    /// Makes schema and stream, and starts all services.
    pub(crate) async fn with_services(mut self) -> Self {
        let world = &mut self;
        world.migrate();
        world.nats.stage_batches().unwrap();
        for index in 0..world.setup.ingests {
            world.start_ingest(index);
        }
        for index in 0..world.setup.workers {
            world.start_worker(index);
        }
        for index in 0..world.setup.ingests {
            world.wait_ingest_ready(index);
        }
        for index in 0..world.setup.workers {
            world.wait_worker_ready(index);
        }
        self
    }

    /// NATS and Postgres, empty.
    pub(crate) fn servers(mut setup: Setup) -> Self {
        let folder = temporary::folder().unwrap();
        let secrets = Secrets::ensure(folder.path().join("secrets"), false).unwrap();
        let port = || free_port().unwrap();
        let ports = Ports {
            ingest: port(),
            worker: port(),
            nats: port(),
            nats_monitor: port(),
            postgres: port(),
        };
        services::write_public_key(&secrets, Profile::Own).unwrap();
        let text = config::render(&ports, &secrets, None);
        fs::write(folder.path().join("mooring.toml"), text).unwrap();
        let postgres = Postgres::start(PostgresOptions {
            dir: folder.path().join("postgres"),
            port: ports.postgres,
            passwords: secrets.postgres().unwrap(),
        });
        let mut peers =
            NatsServer::start_cluster(nodes(&setup, &ports, &secrets, &folder)).unwrap();
        let nats = peers.remove(0);
        if !peers.is_empty() {
            let urls: Vec<String> =
                [&nats].into_iter().chain(&peers).map(NatsServer::url).collect();
            setup = setup.env("MOORING__NATS__URL", urls.join(","));
            let monitors: Vec<String> =
                [&nats].into_iter().chain(&peers).map(NatsServer::monitor_url).collect();
            setup = setup.env("MOORING__NATS__MONITOR_URL", monitors.join(","));
            setup = setup.env("MOORING__STREAM__REPLICAS", peers.len() + 1);
        }
        let http = http_client::builder().no_proxy().timeout(DEADLINE).build().unwrap();
        let ingest_ports: Vec<u16> = (0..setup.ingests).map(|_| port()).collect();
        let worker_ports: Vec<u16> = (0..setup.workers).map(|_| port()).collect();
        let all = ingest_ports.iter().chain(&worker_ports);
        let metrics_ports = all.clone().map(|of| (*of, port())).collect();
        let admin_ports = all.map(|of| (*of, port())).collect();
        Self {
            ingests: Vec::new(),
            workers: Vec::new(),
            nats,
            peers,
            postgres: postgres.unwrap(),
            http,
            ingest_ports,
            worker_ports,
            metrics_ports,
            admin_ports,
            secrets,
            setup,
            ports,
            folder,
        }
    }

    /// An override for what is started from here on.
    pub(crate) fn set_env(&mut self, name: &'static str, value: String) {
        self.setup.envs.push((name, value));
    }

    /// Appends to the configuration file.
    pub(crate) fn configure(&self, sections: &str) {
        let text = fs::read_to_string(self.config()).unwrap();
        fs::write(self.config(), format!("{text}\n{sections}\n")).unwrap();
    }

    pub(crate) fn replace_in_config(&self, from: &str, to: &str) {
        let text = fs::read_to_string(self.config()).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(self.config(), text.replace(from, to)).unwrap();
    }

    pub(crate) fn migrate(&self) {
        self.command("worker", &["migrate"], &config::migrate_envs(&self.ports, &self.secrets))
            .unwrap();
    }

    /// Runs one of our commands to its end; an error shows the end of its log.
    pub(crate) fn command(
        &self,
        name: &str,
        args: &[&str],
        envs: &[(&'static str, String)],
    ) -> anyhow::Result<String> {
        let mut all = self.setup.envs.clone();
        all.push(("MOORING_CONFIG", self.config()));
        all.extend_from_slice(envs);
        let log = self.folder.path().join(format!("{name}-command.log"));
        services::run_to_end(&services::binary(name)?, args, &all, &log)?;
        Ok(fs::read_to_string(log)?)
    }

    pub(crate) fn config(&self) -> String {
        self.folder.path().join("mooring.toml").to_string_lossy().into_owned()
    }

    /// What is set for services and commands alike.
    pub(crate) fn overrides(&self) -> Vec<(&'static str, String)> {
        self.setup.envs.clone()
    }

    /// Where the first node keeps its streams.
    pub(crate) fn nats_folder(&self) -> PathBuf {
        self.folder.path().join("nats-0")
    }

    /// Where the metrics of a service are.
    pub(crate) fn metrics_port(&self, name: &str, index: usize) -> u16 {
        let of = if name == "ingest" { &self.ingest_ports } else { &self.worker_ports };
        self.metrics_ports[&of[index]]
    }

    fn service(&self, name: &str, index: usize, envs: &[(&str, String)]) -> Service {
        let mut all: Vec<(&str, &str)> = Vec::new();
        let port = self.setup.scraped.then(|| self.metrics_port(name, index).to_string());
        if let Some(port) = &port {
            all.push(("OTEL_METRICS_EXPORTER", "prometheus"));
            all.push(("OTEL_EXPORTER_PROMETHEUS_PORT", port));
        }
        all.extend(self.setup.envs.iter().map(|(name, value)| (*name, value.as_str())));
        all.extend(envs.iter().map(|(name, value)| (*name, value.as_str())));
        let log = self.folder.path().join(format!("{name}-{index}.log"));
        Service::start(name, &["run", "--config", &self.config()], &all, &log).unwrap()
    }

    pub(crate) fn start_ingest(&mut self, index: usize) {
        let listen = format!("127.0.0.1:{}", self.ingest_ports[index]);
        let admin = format!("127.0.0.1:{}", self.admin_ports[&self.ingest_ports[index]]);
        let envs = [("MOORING__INGEST__LISTEN", listen), ("MOORING__INGEST__ADMIN_LISTEN", admin)];
        let service = self.service("ingest", index, &envs);
        self.ingests.push(service);
    }

    pub(crate) fn start_worker(&mut self, index: usize) {
        let mut envs = config::worker_envs(&self.secrets);
        let port = self.worker_ports[index];
        envs.push(("MOORING__WORKER__LISTEN", format!("127.0.0.1:{port}")));
        let admin = format!("127.0.0.1:{}", self.admin_ports[&port]);
        envs.push(("MOORING__WORKER__ADMIN_LISTEN", admin));
        let service = self.service("worker", index, &envs);
        self.workers.push(service);
    }

    /// A worker beside those that the world knows.
    pub(crate) fn spare_worker(&self) -> Service {
        let mut envs = config::worker_envs(&self.secrets);
        envs.push(("MOORING__WORKER__LISTEN", format!("127.0.0.1:{}", free_port().unwrap())));
        self.service("worker", 99, &envs)
    }

    pub(crate) fn wait_ingest_ready(&mut self, index: usize) {
        let url = self.ingest_url(index, "/readyz");
        self.ingests[index].wait_ready(&url, DEADLINE).unwrap();
    }

    pub(crate) fn wait_ingest_listens(&mut self, index: usize) {
        let url = self.ingest_url(index, "/livez");
        self.ingests[index].wait_ready(&url, DEADLINE).unwrap();
    }

    pub(crate) fn wait_worker_ready(&mut self, index: usize) {
        let url = self.worker_url(index, "/readyz");
        self.workers[index].wait_ready(&url, DEADLINE).unwrap();
    }

    pub(crate) fn stop_workers(&mut self) {
        for worker in &mut self.workers {
            worker.stop(STOP_DEADLINE).unwrap();
        }
    }

    pub(crate) fn start_workers_again(&mut self) {
        for worker in &mut self.workers {
            worker.start_again().unwrap();
        }
    }

    /// What a service says to those who run it.
    pub(crate) fn admin_url(&self, name: &str, index: usize, path: &str) -> String {
        let of = if name == "ingest" { &self.ingest_ports } else { &self.worker_ports };
        format!("http://127.0.0.1:{}{path}", self.admin_ports[&of[index]])
    }

    pub(crate) fn ingest_url(&self, index: usize, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.ingest_ports[index])
    }

    pub(crate) fn worker_url(&self, index: usize, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.worker_ports[index])
    }

    pub(crate) fn callback_url(&self, index: usize) -> String {
        let token = self.secrets.read("blnk-path-token").unwrap();
        self.ingest_url(index, &format!("/callbacks/blnk/{token}"))
    }

    /// Sends a callback to the first ingest.
    pub(crate) async fn send(&self, callback: &Value) -> Answer {
        self.send_to(0, callback).await
    }

    pub(crate) async fn send_to(&self, index: usize, callback: &Value) -> Answer {
        post(&self.http, &self.callback_url(index), callback).await.unwrap()
    }

    /// Sends a callback that must be acknowledged; says whether it was a
    /// duplicate.
    pub(crate) async fn acknowledged(&self, callback: &Value) -> bool {
        let answer = self.send(callback).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.body["ok"], true);
        answer.body["duplicate"].as_bool().unwrap()
    }

    /// Asks the read API of the first worker.
    pub(crate) async fn read(&self, path: &str) -> Answer {
        let token = self.secrets.read("read-token").unwrap();
        let request = self.http.get(self.worker_url(0, path)).bearer_auth(token);
        Answer::of(request.send().await.unwrap()).await.unwrap()
    }

    pub(crate) async fn installation(&self, id: &str) -> Value {
        let answer = self.read(&format!("/v1/installations/{id}")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body
    }

    pub(crate) async fn wait_for_status(&self, id: &str, status: &str) -> Value {
        let path = format!("/v1/installations/{id}");
        let mut last = None;
        let found = eventually(async || {
            let answer = self.read(&path).await;
            let found = answer.body["status"] == status;
            last = Some(answer);
            found
        });
        assert!(found.await, "{id} did not become {status}: {last:?}");
        last.unwrap().body
    }

    pub(crate) async fn credential(&self, id: &str) -> Answer {
        self.read(&format!("/v1/installations/{id}/credential")).await
    }

    /// As the superuser: tests look at what the services may not.
    pub(crate) async fn connection(&self) -> PgConnection {
        PgConnection::connect(&self.postgres.url(Role::Superuser, "mooring")).await.unwrap()
    }

    /// As the user that operators have.
    pub(crate) async fn jetstream(&self) -> jetstream::Context {
        self.jetstream_as("admin", &self.nats.credentials().admin).await
    }

    pub(crate) async fn jetstream_as(&self, user: &str, password: &str) -> jetstream::Context {
        let options = async_nats::ConnectOptions::new()
            .user_and_password(user.to_owned(), password.to_owned())
            .custom_inbox_prefix(format!("_INBOX_{user}"));
        let urls: Vec<String> =
            [&self.nats].into_iter().chain(&self.peers).map(NatsServer::url).collect();
        jetstream::new(options.connect(urls).await.unwrap())
    }

    /// Makes a log of its own kind, and the streams of data keys as they are.
    pub(crate) async fn create_streams(&self, log: Config) {
        let jetstream = self.jetstream().await;
        jetstream.create_stream(log).await.unwrap();
        let settings = Default::default();
        for keys in [topology::keys_config(&settings), topology::new_keys_config(&settings)] {
            jetstream.create_stream(keys).await.unwrap();
        }
    }

    /// The log, once a leader answers for it.
    pub(crate) async fn stream(&self) -> Stream {
        let jetstream = self.jetstream().await;
        let mut found = None;
        let answered = eventually(async || {
            found = jetstream.get_stream(eventlog::message::STREAM).await.ok();
            found.is_some()
        });
        assert!(answered.await, "nobody answers for the stream");
        found.unwrap()
    }

    /// How many callbacks are in the log, copies included and notes about
    /// their answers left out.
    pub(crate) async fn callbacks_in_log(&self) -> usize {
        let kinds = self.log().await.into_iter().map(|(_, kind)| kind);
        kinds.filter(|kind| !kind.contains(".ack_")).count()
    }

    /// Message ID and type of every event in the log.
    async fn log(&self) -> Vec<(String, String)> {
        let stream = self.stream().await;
        let mut found = Vec::new();
        for sequence in 1..=stream.cached_info().state.last_sequence {
            // As the leader has it: a replica may be behind.
            let message = stream.get_raw_message(sequence).await.unwrap();
            let header = |name: &str| message.headers.get(name).unwrap().to_string();
            found.push((header("Nats-Msg-Id"), header("ce-type")));
        }
        found
    }

    /// Waits until every event of the log is applied and acknowledged.
    pub(crate) async fn wait_applied(&self) {
        let stream = self.stream().await;
        let done = eventually(async || {
            let consumer = stream.consumer_info(eventlog::consume::CONSUMER).await;
            consumer.is_ok_and(|found| found.num_pending == 0 && found.num_ack_pending == 0)
        });
        assert!(done.await, "the log was not applied; the worker says:\n{}", self.worker_log());
    }

    pub(crate) fn worker_log(&self) -> String {
        self.workers.iter().map(|worker| worker.log().unwrap()).collect()
    }

    pub(crate) fn ingest_log(&self) -> String {
        self.ingests.iter().map(|ingest| ingest.log().unwrap()).collect()
    }

    /// The journal, in log order.
    pub(crate) async fn journal(&self) -> Vec<Recorded> {
        let sql = "SELECT stream_sequence, event::text FROM mooring.journal ORDER BY 1";
        let rows = sqlx::query(sql).fetch_all(&mut self.connection().await).await.unwrap();
        let recorded = |row: sqlx::postgres::PgRow| Recorded {
            sequence: StreamSequence(u64::try_from(row.get::<i64, _>(0)).unwrap()),
            event: Event::decode(row.get::<String, _>(1).as_bytes()).unwrap(),
        };
        rows.into_iter().map(recorded).collect()
    }

    /// How many callbacks are in the journal.
    pub(crate) async fn callbacks_in_journal(&self) -> usize {
        self.journal().await.iter().filter(|recorded| is_callback(&recorded.event)).count()
    }

    pub(crate) async fn projection(&self) -> Vec<ProjectionRow> {
        let sql = "SELECT source, place, installation_id, status, generation, credential_sealed, \
                   last_event_sequence FROM projection.installations ORDER BY 1, 2, 3";
        let rows = sqlx::query(sql).fetch_all(&mut self.connection().await).await.unwrap();
        let row = |row: sqlx::postgres::PgRow| ProjectionRow {
            source: row.get(0),
            place: row.get(1),
            installation_id: row.get(2),
            status: row.get(3),
            generation: row.get(4),
            credential_sealed: row.get(5),
            last_event_sequence: row.get(6),
        };
        rows.into_iter().map(row).collect()
    }

    /// Every acknowledged key is in the journal once, nothing is a dead letter,
    /// and the projection is the fold of the journal.
    pub(crate) async fn assert_exactly_once(&self, acknowledged: &[String]) {
        self.wait_applied().await;
        // A consumer whose leader has changed may say too early that nothing is left.
        let is_there = async || {
            let journal = self.journal().await;
            let keys: BTreeSet<&str> =
                journal.iter().map(|it| it.event.idempotency_key.as_str()).collect();
            acknowledged.iter().all(|key| keys.contains(key.as_str()))
        };
        eventually(is_there).await; // or it is missing, as is said below
        let journal = self.journal().await;
        let mut times: BTreeMap<&str, usize> = BTreeMap::new();
        for event in journal.iter().map(|recorded| &recorded.event).filter(|it| is_callback(it)) {
            *times.entry(event.idempotency_key.as_str()).or_default() += 1;
        }
        let in_log = self.log().await;
        for key in acknowledged {
            let found = in_log.iter().filter(|(id, _)| id.contains(&format!(":{key}#"))).count();
            let times = times.get(key.as_str()).copied().unwrap_or_default();
            assert_eq!(times, 1, "{key} was acknowledged; it is {found} times in the log");
        }
        let distinct: BTreeSet<String> = in_log.into_iter().map(|(id, _)| id).collect();
        // The notes about answers are not asked for above.
        eventually(async || self.journal().await.len() == distinct.len()).await;
        let journal = self.journal().await;
        assert_eq!(journal.len(), distinct.len());
        self.assert_folded(&journal).await;
    }

    /// Nothing is a dead letter, and the projection is the fold of the journal.
    pub(crate) async fn assert_folded(&self, journal: &[Recorded]) {
        let dead: i64 = sqlx::query_scalar("SELECT count(*) FROM mooring.dead_letters")
            .fetch_one(&mut self.connection().await)
            .await
            .unwrap();
        assert_eq!(dead, 0, "dead letters; the worker says:\n{}", self.worker_log());
        assert_eq!(self.projection().await, folded(journal));
    }
}

/// Whether it came from a platform, and is not our note about an answer.
pub(crate) fn is_callback(event: &Event) -> bool {
    !matches!(event.fact, Fact::AckMissed { .. } | Fact::AckDelivered { .. })
}

fn nodes(setup: &Setup, ports: &Ports, secrets: &Secrets, folder: &TempDir) -> Vec<NatsOptions> {
    let port = || free_port().unwrap();
    let routes: Vec<u16> = (0..setup.nodes).map(|_| port()).collect();
    let node = |index: usize| {
        let name = format!("nats-{index}");
        NatsOptions {
            dir: folder.path().join(&name),
            port: if index == 0 { ports.nats } else { port() },
            monitor_port: if index == 0 { ports.nats_monitor } else { port() },
            credentials: secrets.nats().unwrap(),
            sync_always: true,
            staging: Staging::Memory,
            cluster: (setup.nodes > 1).then(|| ClusterNode {
                name,
                port: routes[index],
                routes: routes.clone(),
            }),
        }
    };
    (0..setup.nodes).map(node).collect()
}

/// What is compared of a row.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ProjectionRow {
    pub(crate) source: String,
    pub(crate) place: String,
    pub(crate) installation_id: String,
    pub(crate) status: String,
    pub(crate) generation: i32,
    pub(crate) credential_sealed: Option<String>,
    pub(crate) last_event_sequence: i64,
}

/// The projection that the journal should give.
fn folded(journal: &[Recorded]) -> Vec<ProjectionRow> {
    let mut places: BTreeMap<_, Vec<Recorded>> = Default::default();
    for recorded in journal {
        let Some(identity) = recorded.event.fact.identity() else { continue };
        let unit = (recorded.event.source.to_string(), identity.place.as_str().to_owned());
        places.entry(unit).or_default().push(recorded.clone());
    }
    let mut rows = Vec::new();
    for ((source, place), events) in places {
        for found in fold(&events, Retention::Remove) {
            rows.push(ProjectionRow {
                source: source.clone(),
                place: place.clone(),
                installation_id: found.identity.installation_id.to_string(),
                status: found.status.name().to_owned(),
                generation: i32::try_from(found.generation).unwrap(),
                credential_sealed: found
                    .credential
                    .map(|credential| credential.sealed.sealed.as_str().to_owned()),
                last_event_sequence: i64::try_from(found.last_event.sequence.0).unwrap(),
            });
        }
    }
    rows.sort();
    rows
}

/// Sends a callback. An error is what a platform sees of a server that died.
pub(crate) async fn post(
    http: &reqwest::Client,
    url: &str,
    callback: &Value,
) -> Result<Answer, reqwest::Error> {
    Answer::of(http.post(url).json(callback).send().await?).await
}

/// Asks again until it is so; false at the deadline.
pub(crate) async fn eventually(mut condition: impl AsyncFnMut() -> bool) -> bool {
    let started = Instant::now();
    while !condition().await {
        if started.elapsed() > DEADLINE {
            return false;
        }
        tokio::time::sleep(POLL).await;
    }
    true
}
