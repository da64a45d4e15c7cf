//! Pushes what became of installations to endpoints, in order for each installation.
//!
//! One worker at a time pushes; it holds a lock of a session, and another one takes
//! over when that ends. Changes are taken over from the feed, and each stands in
//! `mooring.push_waiting` until its endpoint has answered 2xx. Of one installation
//! only the first is tried, so that one that fails holds back only itself. An
//! endpoint that is gone, or has failed for days, is paused: nothing is lost by that.
//! A delivery may come twice, and then late: its position tells.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt as _, join_all};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use jiff::Timestamp;
use opentelemetry::KeyValue;
use rand::RngExt as _;
use service::clock;
use service::telemetry::names::attribute;
use sqlx::{PgConnection, PgPool};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::deliver::{Client, Failure, Outcome};
use crate::error_chain::chain;
use crate::live::lease::{self, Alone};
use crate::metrics::METRICS;
use crate::settings::PushEndpoint as Endpoint;
use crate::store::database::{self, PUSH_LOCK};
use crate::store::push::{self, EndpointView, Waiting};

mod deliver;

/// How soon an endpoint hears of a change.
const LOOK_EVERY: Duration = Duration::from_millis(200);
const AFTER_ERROR: Duration = Duration::from_secs(2);
const EXPIRE_EVERY: Duration = Duration::from_secs(60);
/// In flight to one endpoint.
const AT_ONCE: usize = 16;
/// Looked for at once: more than are in flight, and not so many that a pause comes late.
const DUE_MAX: i64 = 64;
/// After the first failure, the second, …: about three days.
const AGAIN_AFTER_S: [u64; 11] =
    [5, 30, 120, 600, 1_800, 3_600, 10_800, 21_600, 43_200, 86_400, 86_400];
/// Where an endpoint says that it has too much to do, and not for how long.
const SLOW_DOWN_FOR: Duration = Duration::from_secs(5);

/// Until `shutdown`, and what has been sent then.
pub(crate) async fn run(pool: PgPool, endpoints: Vec<Endpoint>, shutdown: CancellationToken) {
    if endpoints.is_empty() {
        return;
    }
    let endpoints = endpoints.into_iter().map(Arc::new).collect();
    let push = Push { pool, endpoints };
    lease::work_alone(&push, &push.pool, &shutdown).await;
}

struct Push {
    pool: PgPool,
    endpoints: Vec<Arc<Endpoint>>,
}

impl Alone for Push {
    const LOCK: i32 = PUSH_LOCK;

    async fn work(&self, over: CancellationToken) {
        tracing::info!(endpoints = self.endpoints.len(), "changes are pushed by this worker");
        let pushers = self.endpoints.iter().map(|it| Pusher::new(&self.pool, it));
        join_all(pushers.map(|pusher| pusher.run(over.clone()))).await;
        // What this worker has told is another one's to tell now.
        for endpoint in &self.endpoints {
            let of = [KeyValue::new(attribute::ENDPOINT, endpoint.name.clone())];
            METRICS.push_oldest_age.record(0.0, &of);
            METRICS.push_paused.record(0.0, &of);
        }
    }

    /// Measures how the endpoints are doing.
    async fn check(&self, session: &mut PgConnection) -> Result<(), sqlx::Error> {
        let now = clock::now();
        let all = push::all(session).await?.into_iter();
        // One that is no longer configured is nobody's to mend.
        let configured = all.filter(|found| self.endpoints.iter().any(|it| it.name == found.name));
        for EndpointView { name, oldest_at, paused_at, .. } in configured {
            let of = [KeyValue::new(attribute::ENDPOINT, name)];
            let age = |at: Timestamp| now.duration_since(at).as_secs_f64().max(0.0);
            METRICS.push_oldest_age.record(oldest_at.map_or(0.0, age), &of);
            METRICS.push_paused.record(if paused_at.is_some() { 1.0 } else { 0.0 }, &of);
        }
        Ok(())
    }
}

/// What pushes to one endpoint.
struct Pusher {
    pool: PgPool,
    client: Arc<Client>,
    endpoint: Arc<Endpoint>,
    /// Which feed positions are of; a delivery's id holds it.
    feed: String,
    /// Due, and not begun.
    queue: VecDeque<Waiting>,
    /// Positions that are on their way.
    begun: BTreeSet<u64>,
    look_at: Instant,
    expire_at: Instant,
    /// The endpoint asked for a pause.
    not_before: Instant,
}

type Delivery = BoxFuture<'static, (Waiting, Outcome)>;

impl Pusher {
    fn new(pool: &PgPool, endpoint: &Arc<Endpoint>) -> Self {
        let now = Instant::now();
        Self {
            pool: pool.clone(),
            client: Arc::new(Client::new(endpoint)),
            endpoint: Arc::clone(endpoint),
            feed: String::new(),
            queue: VecDeque::new(),
            begun: BTreeSet::new(),
            look_at: now,
            expire_at: now,
            not_before: now,
        }
    }

    /// What is on its way when it is over may be delivered again.
    async fn run(mut self, over: CancellationToken) {
        let mut on_their_way = FuturesUnordered::<Delivery>::new();
        while !over.is_cancelled() {
            if let Err(error) = self.look().await {
                let endpoint = &self.endpoint.name;
                tracing::warn!(endpoint, error = chain(&error), "changes are not pushed");
                self.look_at = Instant::now() + AFTER_ERROR;
            }
            while on_their_way.len() < AT_ONCE
                && let Some(waiting) = self.queue.pop_front()
            {
                on_their_way.push(self.begin(waiting));
            }
            let first = tokio::select! {
                Some(first) = on_their_way.next() => first,
                () = tokio::time::sleep_until(self.look_at.max(self.not_before)),
                    if self.queue.is_empty() => continue,
                () = over.cancelled() => return,
            };
            let mut done = vec![first];
            while let Some(Some(next)) = on_their_way.next().now_or_never() {
                done.push(next);
            }
            if let Err(error) = self.record(done).await {
                let endpoint = &self.endpoint.name;
                tracing::warn!(endpoint, error = chain(&error), "a delivery is made again");
            }
        }
    }

    /// For what is due, unless there is enough to do.
    async fn look(&mut self) -> Result<(), sqlx::Error> {
        let now = Instant::now();
        if !self.queue.is_empty() || now < self.look_at.max(self.not_before) {
            return Ok(());
        }
        let mut connection = database::acquire(&self.pool).await?;
        if self.feed.is_empty() {
            push::enrol(&mut connection, &self.endpoint.name).await?;
        }
        // It is another one when a standby has taken over, which gives positions anew.
        self.feed = push::feed(&mut connection).await?;
        if now >= self.expire_at {
            self.expire(&mut connection).await?;
            self.expire_at = now + EXPIRE_EVERY;
        }
        let taken = push::take_over(&mut connection, &self.endpoint).await?;
        let due = push::due(&mut connection, &self.endpoint.name, DUE_MAX).await?;
        self.queue.extend(due.into_iter().filter(|it| !self.begun.contains(&it.change.position)));
        let is_busy = taken > 0 || !self.queue.is_empty();
        self.look_at = if is_busy { now } else { now + LOOK_EVERY };
        Ok(())
    }

    fn begin(&mut self, waiting: Waiting) -> Delivery {
        self.begun.insert(waiting.change.position);
        let (client, endpoint) = (Arc::clone(&self.client), Arc::clone(&self.endpoint));
        let feed = self.feed.clone();
        Box::pin(async move {
            let outcome = client.deliver(&endpoint, &feed, &waiting.change).await;
            (waiting, outcome)
        })
    }

    /// What left the feed before it was delivered is lost to the endpoint, and it is told so.
    async fn expire(&mut self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let expired = push::expire(connection, &self.endpoint.name).await?;
        let Some(position) = expired else { return Ok(()) };
        let why = format!(
            "changes up to position {position} left the feed before they were delivered: list the \
             installations, then resume"
        );
        self.pause(connection, &why).await
    }

    async fn pause(&mut self, connection: &mut PgConnection, why: &str) -> Result<(), sqlx::Error> {
        self.queue.clear();
        let endpoint = &self.endpoint.name;
        tracing::error!(endpoint, why, "an endpoint is paused");
        push::pause(connection, endpoint, why).await?;
        Ok(())
    }

    async fn record(&mut self, done: Vec<(Waiting, Outcome)>) -> Result<(), sqlx::Error> {
        for (Waiting { change, .. }, outcome) in &done {
            self.begun.remove(&change.position);
            self.count(outcome);
        }
        let mut connection = database::acquire(&self.pool).await?;
        let mut delivered = Vec::new();
        for (waiting, outcome) in done {
            match outcome {
                Outcome::Delivered => delivered.push(waiting.change.position),
                Outcome::Failed(failure) => {
                    self.failed(&mut connection, &waiting, failure).await?;
                }
            }
        }
        push::delivered(&mut connection, &self.endpoint.name, &delivered).await
    }

    async fn failed(
        &mut self,
        connection: &mut PgConnection,
        waiting: &Waiting,
        Failure { why, is_gone, slow_down }: Failure,
    ) -> Result<(), sqlx::Error> {
        if let Some(asked) = slow_down {
            let until = Instant::now() + asked.unwrap_or(SLOW_DOWN_FOR);
            self.not_before = self.not_before.max(until);
            self.queue.clear(); // it is found again
        }
        let attempts = usize::try_from(waiting.attempts).unwrap_or(usize::MAX);
        let again_in = AGAIN_AFTER_S.get(attempts).map(|seconds| jittered(*seconds));
        let (name, position) = (&self.endpoint.name, waiting.change.position);
        push::failed(connection, name, position, again_in.unwrap_or_default(), &why).await?;
        if is_gone || again_in.is_none() {
            self.pause(connection, &format!("position {position}: {why}")).await?;
        }
        Ok(())
    }

    fn count(&self, outcome: &Outcome) {
        let result = match outcome {
            Outcome::Delivered => "delivered",
            Outcome::Failed(_) => "failed",
        };
        let endpoint = KeyValue::new(attribute::ENDPOINT, self.endpoint.name.clone());
        METRICS.push_attempts.add(1, &[endpoint, KeyValue::new(attribute::RESULT, result)]);
    }
}

/// Many that failed together do not come back together.
fn jittered(seconds: u64) -> Duration {
    Duration::from_secs(seconds).mul_f64(rand::rng().random_range(0.8..1.2))
}
