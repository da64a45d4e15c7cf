//! A campaign of faults. Under load, and by a schedule that a seed decides, processes are killed
//! and stopped, networks fall silent, and operators rebuild and replay. In the end everything
//! that was answered 2xx must be there, once, and every state must be the one that a model
//! expects. The model is written from docs/ordering.md and knows nothing of the fold.
//!
//! `cargo dev chaos` runs it for longer, and repeats a seed.

use std::collections::BTreeMap;
use std::fmt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dev::services::Service;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::payload::{install_in, uninstall_in, with_key};
use crate::proxy::{Network, Proxy};
use crate::world::{DEADLINE, Setup, World, is_callback};

const SEED: u64 = 1;
const ACTORS: usize = 24;
/// A customer moves to another instance then. One with hundreds of installs costs the workers
/// more than a debug build can do, and no customer has one.
const INSTALLS_OF_INSTANCE: usize = 20;
const ACK_WAIT_MS: u64 = 2_000;
const RETRY_AFTER: Duration = Duration::from_millis(40);

/// One customer after the other in one instance: it sends what a platform would, one callback
/// at a time, each until it is answered 2xx.
struct Actor {
    number: usize,
    rng: StdRng,
    urls: Vec<String>,
    http: reqwest::Client,
    shared: Arc<Shared>,
    done: Vec<Installed>,
    acknowledged: Vec<Value>,
}

/// What the actors and the campaign tell each other.
#[derive(Default)]
struct Shared {
    stopping: AtomicBool,
    attempts: AtomicU64,
    acknowledged: AtomicU64,
    hung_up: AtomicU64,
    last_ack: Mutex<Option<Instant>>,
}

/// An installation as the model knows it.
#[derive(Debug, Clone)]
struct Installed {
    id: String,
    instance: String,
    api_key: String,
    has_ended: bool,
    /// Whether an attempt at its last change was left without an answer.
    was_missed: bool,
}

impl Actor {
    async fn run(mut self) -> Self {
        while !self.shared.stopping.load(Ordering::Relaxed) {
            self.act().await;
            let pause = self.rng.random_range(0..20);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        self
    }

    async fn act(&mut self) {
        let current = self.done.last().is_some_and(|last| !last.has_ended);
        match (current, self.rng.random_range(0..10)) {
            (false, _) | (true, 0..3) => self.install().await,
            (true, 3..5) => self.replace_key().await,
            (true, 5..7) => self.uninstall().await,
            (true, _) => self.send_again().await,
        }
    }

    async fn install(&mut self) {
        let id = format!("c{}_{}", self.number, self.done.len());
        let instance = format!("chaos_{}_{}", self.number, self.done.len() / INSTALLS_OF_INSTANCE);
        let callback = install_in(&id, &instance);
        let api_key = callback["api_key"].as_str().unwrap().to_owned();
        let was_missed = self.send(callback).await;
        self.done.push(Installed { id, instance, api_key, has_ended: false, was_missed });
    }

    async fn replace_key(&mut self) {
        let Some(last) = self.done.last().cloned() else { return };
        let api_key = format!("blnk_{}_{:016x}", last.id, self.rng.random::<u64>());
        let callback = with_key(install_in(&last.id, &last.instance), &api_key);
        let was_missed = self.send(callback).await;
        if let Some(last) = self.done.last_mut() {
            (last.api_key, last.was_missed) = (api_key, was_missed);
        }
    }

    async fn uninstall(&mut self) {
        let open: Vec<usize> =
            (0..self.done.len()).filter(|index| !self.done[*index].has_ended).collect();
        // Mostly the one that lives.
        let one_of_all = open.choose(&mut self.rng).copied();
        let chosen = if self.rng.random_bool(0.8) { open.last().copied() } else { one_of_all };
        let Some(index) = chosen else { return };
        let Installed { id, instance, .. } = &self.done[index];
        let was_missed = self.send(uninstall_in(id, instance)).await;
        (self.done[index].has_ended, self.done[index].was_missed) = (true, was_missed);
    }

    /// What was acknowledged once is acknowledged again, and changes nothing.
    async fn send_again(&mut self) {
        let Some(callback) = self.acknowledged.choose(&mut self.rng).cloned() else { return };
        while !self.attempt(&callback, None).await {
            tokio::time::sleep(RETRY_AFTER).await;
        }
    }

    /// Until it is answered 2xx. Says whether an answer was missed.
    async fn send(&mut self, callback: Value) -> bool {
        let mut was_missed = false;
        loop {
            let impatient = self.rng.random_bool(0.1);
            let within = impatient.then(|| Duration::from_millis(self.rng.random_range(1..30)));
            if self.attempt(&callback, within).await {
                self.acknowledged.push(callback);
                return was_missed;
            }
            was_missed = true;
            tokio::time::sleep(RETRY_AFTER).await;
        }
    }

    async fn attempt(&mut self, callback: &Value, within: Option<Duration>) -> bool {
        let url = self.urls.choose(&mut self.rng).unwrap().clone();
        self.shared.attempts.fetch_add(1, Ordering::Relaxed);
        // Blnk waits so long.
        let within = within.unwrap_or(Duration::from_secs(10));
        let sent = tokio::time::timeout(within, self.http.post(url).json(callback).send()).await;
        match sent {
            Ok(Ok(answer)) if answer.status() == 200 => {
                self.shared.acknowledged.fetch_add(1, Ordering::Relaxed);
                *self.shared.last_ack.lock().unwrap() = Some(Instant::now());
                true
            }
            // Only our own faults may be seen.
            Ok(Ok(answer)) => {
                assert_eq!(answer.status(), 503);
                false
            }
            Ok(Err(_)) => false,
            Err(_elapsed) => {
                self.shared.hung_up.fetch_add(1, Ordering::Relaxed);
                false
            }
        }
    }
}

/// What a fault does, and how often it was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    KillIngest,
    KillWorker,
    KillNats,
    KillPostgres,
    StopIngest,
    StopWorker,
    StopNats,
    StopPostgres,
    NatsSilent,
    NatsCut,
    NatsSlow,
    PostgresSilent,
    PostgresCut,
    Rebuild,
    Replay,
}

/// Each, and twice as often a death.
const FAULTS: [Fault; 19] = [
    Fault::KillIngest,
    Fault::KillWorker,
    Fault::KillNats,
    Fault::KillPostgres,
    Fault::KillIngest,
    Fault::KillWorker,
    Fault::KillNats,
    Fault::KillPostgres,
    Fault::StopIngest,
    Fault::StopWorker,
    Fault::StopNats,
    Fault::StopPostgres,
    Fault::NatsSilent,
    Fault::NatsCut,
    Fault::NatsSlow,
    Fault::PostgresSilent,
    Fault::PostgresCut,
    Fault::Rebuild,
    Fault::Replay,
];

struct Campaign {
    seed: u64,
    world: World,
    rng: StdRng,
    nats: Proxy,
    postgres: Proxy,
    shared: Arc<Shared>,
    actors: Vec<JoinHandle<Actor>>,
    faults: BTreeMap<Fault, u32>,
    /// The longest time from the end of a fault to the next 2xx.
    slowest: Duration,
}

fn signal(pid: Option<u32>, name: &str) {
    if let Some(pid) = pid {
        Command::new("kill").args([name, &pid.to_string()]).status().unwrap();
    }
}

impl Campaign {
    async fn start(seed: u64, nodes: usize) -> Self {
        let setup = Setup { ingests: 2, workers: 2, nodes, ..Setup::default() };
        let setup = setup.env("MOORING__WORKER__ACK_WAIT_MS", ACK_WAIT_MS);
        let world = World::servers(setup);
        let nats = Proxy::start(world.ports.nats).await;
        let postgres = Proxy::start(world.ports.postgres).await;
        // The other nodes of a cluster are reached as they say themselves.
        let behind = |port: u16| format!("127.0.0.1:{port}");
        world.replace_in_config(
            &format!("nats://{}", behind(world.ports.nats)),
            &format!("nats://{}", behind(nats.port)),
        );
        world.replace_in_config(
            &format!("mooring_worker@{}", behind(world.ports.postgres)),
            &format!("mooring_worker@{}", behind(postgres.port)),
        );
        let world = world.with_services().await;
        let mut rng = StdRng::seed_from_u64(seed);
        let shared = Arc::new(Shared::default());
        let actors = (0..ACTORS).map(|number| {
            let actor = Actor {
                number,
                rng: StdRng::seed_from_u64(rng.random()),
                urls: (0..2).map(|index| world.callback_url(index)).collect(),
                http: world.http.clone(),
                shared: Arc::clone(&shared),
                done: Vec::new(),
                acknowledged: Vec::new(),
            };
            tokio::spawn(actor.run())
        });
        let actors = actors.collect();
        let (faults, slowest) = (BTreeMap::new(), Duration::ZERO);
        Self { seed, world, rng, nats, postgres, shared, actors, faults, slowest }
    }

    async fn run(&mut self, seconds: u64, faults: &[Fault]) {
        let until = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < until {
            self.pause(50, 400).await;
            let Some(fault) = faults.choose(&mut self.rng).copied() else { continue };
            *self.faults.entry(fault).or_default() += 1;
            self.strike(fault).await;
            self.acks_resume().await;
        }
    }

    async fn pause(&mut self, from_ms: u64, to_ms: u64) {
        let pause = self.rng.random_range(from_ms..to_ms);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }

    async fn strike(&mut self, fault: Fault) {
        let index = self.rng.random_range(0..2);
        match fault {
            Fault::KillIngest => self.kill(index, |world| &mut world.ingests).await,
            Fault::KillWorker => self.kill(index, |world| &mut world.workers).await,
            Fault::KillNats => self.kill_nats().await,
            Fault::KillPostgres => {
                self.world.postgres.kill().unwrap();
                self.pause(10, 800).await;
                self.world.postgres.start_again().unwrap();
            }
            Fault::StopIngest => self.stop(self.world.ingests[index].pid()).await,
            Fault::StopWorker => self.stop(self.world.workers[index].pid()).await,
            Fault::StopNats => self.stop(self.world.nats.pid()).await,
            Fault::StopPostgres => self.stop(self.world.postgres.pid()).await,
            Fault::NatsSilent => self.fall_silent(self.nats.clone()).await,
            Fault::PostgresSilent => self.fall_silent(self.postgres.clone()).await,
            Fault::NatsCut => self.nats.cut(),
            Fault::PostgresCut => self.postgres.cut(),
            Fault::NatsSlow => {
                let late = Duration::from_millis(self.rng.random_range(5..150));
                self.nats.set(Network::Slow(late));
                self.pause(300, 2_000).await;
                self.nats.set(Network::Whole);
            }
            // With a fault in between they may fail; what they leave must be right.
            Fault::Rebuild => drop(self.world.operate(&["rebuild"]).await),
            Fault::Replay => drop(self.world.operate(&["replay", "--apply"]).await),
        }
    }

    async fn kill(&mut self, index: usize, of: fn(&mut World) -> &mut Vec<Service>) {
        of(&mut self.world)[index].kill().unwrap();
        self.pause(1, 600).await;
        of(&mut self.world)[index].start_again().unwrap();
    }

    async fn kill_nats(&mut self) {
        let peers = self.world.peers.len();
        // Of a cluster one at a time: the others are a majority.
        match self.rng.random_range(0..=peers) {
            0 => {
                self.world.nats.kill().unwrap();
                self.pause(1, 900).await;
                self.world.nats.start_again().unwrap();
            }
            peer => {
                self.world.peers[peer - 1].kill().unwrap();
                self.pause(1, 900).await;
                self.world.peers[peer - 1].start_again().unwrap();
            }
        }
    }

    async fn stop(&mut self, pid: Option<u32>) {
        signal(pid, "-STOP");
        self.pause(100, 2_500).await;
        signal(pid, "-CONT");
    }

    async fn fall_silent(&mut self, proxy: Proxy) {
        proxy.set(Network::Silent { half: self.rng.random_bool(0.5) });
        self.pause(200, 4_000).await;
        proxy.set(Network::Whole);
    }

    /// Waits for the next 2xx, and notes how long it took.
    async fn acks_resume(&mut self) {
        let healed = Instant::now();
        loop {
            let last = *self.shared.last_ack.lock().unwrap();
            if last.is_some_and(|last| last > healed) {
                self.slowest = self.slowest.max(healed.elapsed());
                return;
            }
            assert!(healed.elapsed() < DEADLINE, "seed {}: no acks; {self}", self.seed);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Lets every actor finish what it has begun.
    async fn end(&mut self) -> Vec<Actor> {
        self.shared.stopping.store(true, Ordering::Relaxed);
        let mut ended = Vec::new();
        for actor in self.actors.drain(..) {
            ended.push(actor.await.unwrap());
        }
        for index in 0..2 {
            self.world.wait_ingest_ready(index);
            self.world.wait_worker_ready(index);
        }
        self.world.wait_applied().await;
        ended
    }
}

impl fmt::Display for Campaign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let Shared { attempts, acknowledged, hung_up, .. } = &*self.shared;
        write!(
            f,
            "seed {}, {} NATS: {} attempts, {} acknowledged, {} hung up; acks resumed within {} ms; \
             faults {:?}",
            self.seed,
            self.world.peers.len() + 1,
            of(attempts),
            of(acknowledged),
            of(hung_up),
            self.slowest.as_millis(),
            self.faults
        )
    }
}

/// Everything that was acknowledged is in the journal, once, and nothing else is.
async fn check_journal(world: &World, actors: &[Actor]) -> Result<(), String> {
    let mut sent: BTreeMap<&str, std::collections::BTreeSet<String>> = BTreeMap::new();
    for callback in actors.iter().flat_map(|actor| &actor.acknowledged) {
        let key = callback["idempotency_key"].as_str().unwrap();
        sent.entry(key).or_default().insert(callback.to_string());
    }
    let journal = world.journal().await;
    let mut found: BTreeMap<&str, usize> = BTreeMap::new();
    for event in journal.iter().map(|recorded| &recorded.event).filter(|event| is_callback(event)) {
        *found.entry(event.idempotency_key.as_str()).or_default() += 1;
    }
    for (key, contents) in &sent {
        let times = found.remove(key).unwrap_or_default();
        if times != contents.len() {
            return Err(format!("{key} is {times} times in the journal, not {}", contents.len()));
        }
    }
    match found.first_key_value() {
        Some((key, _)) => Err(format!("{key} was never acknowledged")),
        None => Ok(()),
    }
}

/// The status of each installation.
async fn listed(world: &World) -> BTreeMap<String, String> {
    let (mut cursor, mut statuses) = (String::new(), BTreeMap::new());
    loop {
        let page = world.read(&format!("/v1/installations?limit=200{cursor}")).await.body;
        for installation in page["installations"].as_array().unwrap() {
            let text = |name: &str| installation[name].as_str().unwrap().to_owned();
            statuses.insert(text("installation_id"), text("status"));
        }
        let Some(next) = page["next_cursor"].as_str() else { return statuses };
        cursor = format!("&cursor={next}");
    }
}

/// Each installation has the state that the model expects, and the last credential opens.
async fn check_states(
    world: &World,
    actors: &[Actor],
    statuses: &BTreeMap<String, String>,
) -> Result<u32, String> {
    let mut unconfirmed = 0;
    for actor in actors {
        for (index, installed) in actor.done.iter().enumerate() {
            let Installed { id, instance, api_key, has_ended, was_missed } = installed;
            let status = statuses.get(id).map_or("missing", String::as_str);
            let next = actor.done.get(index + 1);
            let is_last = next.is_none_or(|next| next.instance != *instance);
            let expected = match (has_ended, is_last) {
                (true, _) => "inactive",
                (false, false) => "superseded",
                (false, true) => "active",
            };
            // A platform that hung up is answered when it comes again, and the doubt is settled.
            // It stays if ingest dies before it has noted that answer, or if the attempt that was
            // given up arrives behind the one that was answered.
            let may_doubt = *was_missed && status == "unconfirmed";
            unconfirmed += u32::from(may_doubt);
            if status != expected && !may_doubt {
                return Err(format!("{id} is {status}, not {expected}: {:?}", actor.done));
            }
            if status == "active" {
                let opened = world.credential(id).await;
                if opened.body["credential"] != api_key.as_str() {
                    return Err(format!("{id} does not open to its last key: {opened:?}"));
                }
            }
        }
    }
    Ok(unconfirmed)
}

/// The feed has every position once, and ends with the state of each installation.
async fn check_feed(world: &World, statuses: &BTreeMap<String, String>) -> Result<(), String> {
    let (mut after, mut position, mut states) = (String::new(), 0, BTreeMap::new());
    loop {
        let page = world.read(&format!("/v1/changes?limit=1000{after}")).await.body;
        let changes = page["changes"].as_array().unwrap();
        for change in changes {
            let next = change["position"].as_u64().unwrap();
            if next != position + 1 {
                return Err(format!("position {next} comes after {position}"));
            }
            position = next;
            let id = change["installation_id"].as_str().unwrap().to_owned();
            let status = change["installation"]["status"].as_str().unwrap();
            states.insert(id, status.to_owned());
        }
        if changes.is_empty() {
            break;
        }
        after = format!("&after={}", page["cursor"].as_str().unwrap());
    }
    let differs = |(id, status): &(&String, &String)| states.get(*id) != Some(*status);
    match statuses.iter().find(differs) {
        Some((id, status)) => Err(format!("{id}: {status} in the list, not in the feed")),
        None => Ok(()),
    }
}

async fn check(campaign: &Campaign, actors: &[Actor]) -> Result<u32, String> {
    let world = &campaign.world;
    check_journal(world, actors).await?;
    let statuses = listed(world).await;
    let unconfirmed = check_states(world, actors, &statuses).await?;
    check_feed(world, &statuses).await?;
    world.assert_folded(&world.journal().await).await;
    let verified = world.operate(&["verify"]).await;
    match verified.code {
        0 => Ok(unconfirmed),
        _ => Err(format!("{verified:?}")),
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

async fn campaign(seed: u64, nodes: usize, seconds: u64, faults: &[Fault]) {
    let mut campaign = Campaign::start(seed, nodes).await;
    campaign.run(seconds, faults).await;
    let actors = campaign.end().await;
    let checked = check(&campaign, &actors).await;
    eprintln!("{campaign}; {checked:?} unconfirmed");
    if let Err(why) = checked {
        panic!("{why}\n{campaign}\nagain: cargo dev chaos --seed {seed} --seconds {seconds}");
    }
}

/// How long a campaign strikes. None is part of `cargo dev test`: with few cores and much else to
/// do, what it waits for may take too long.
fn seconds() -> Option<u64> {
    let seconds = std::env::var("MOORING_CHAOS_SECONDS").ok();
    if seconds.is_none() {
        eprintln!("not run: `cargo dev chaos` runs it");
    }
    seconds.map(|text| text.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_was_acknowledged_is_lost_whatever_fails() {
    let Some(seconds) = seconds() else { return };
    campaign(number("MOORING_CHAOS_SEED", SEED), 1, seconds, &FAULTS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_replicas_lose_nothing_that_was_acknowledged_whatever_fails() {
    let Some(seconds) = seconds() else { return };
    campaign(number("MOORING_CHAOS_SEED", SEED), 3, seconds, &FAULTS).await;
}

/// A check that cannot fail is none.
#[tokio::test(flavor = "multi_thread")]
async fn a_campaign_sees_what_is_lost_or_wrong() {
    let mut campaign = Campaign::start(SEED, 1).await;
    campaign.run(2, &[]).await;
    let mut actors = campaign.end().await;
    check(&campaign, &actors).await.unwrap();

    let some = actors.iter().position(|actor| actor.done.len() > 1).unwrap();
    let first = actors[some].done[0].clone();
    actors[some].done[0].has_ended ^= true;
    let statuses = listed(&campaign.world).await;
    let why = check_states(&campaign.world, &actors, &statuses).await.unwrap_err();
    assert!(why.contains(&first.id), "{why}");
    actors[some].done[0] = first.clone();

    let mut connection = campaign.world.connection().await;
    let lose = "DELETE FROM mooring.changes WHERE position = 2";
    sqlx::query(lose).execute(&mut connection).await.unwrap();
    assert!(check_feed(&campaign.world, &statuses).await.is_err());
    let lose = "DELETE FROM mooring.journal WHERE event ->> 'idempotency_key' = $1";
    let key = format!("install:{}", first.id);
    let lost = sqlx::query(lose).bind(key).execute(&mut connection).await.unwrap();
    assert!(lost.rows_affected() > 0, "it and the notes about it");
    let why = check_journal(&campaign.world, &actors).await.unwrap_err();
    assert!(why.contains(&first.id), "{why}");
}
