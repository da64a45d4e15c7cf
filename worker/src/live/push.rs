//! Pushes what became of installations to endpoints, in order for each installation.
//!
//! One worker at a time pushes; it holds a lock of a session, and another one takes
//! over when that ends. Changes are taken over from the feed, and each stands in
//! `mooring.push_waiting` until its endpoint has answered 2xx. Of one installation
//! only the first is tried, so that one that fails holds back only itself. An
//! endpoint that is gone, or has failed for days, is paused: nothing is lost by that.
//! A delivery may come twice, and then late: its position tells.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt as _};
use jiff::Timestamp;
use opentelemetry::KeyValue;
use rand::RngExt as _;
use service::clock;
use service::telemetry::names::attribute;
use sqlx::{Connection as _, PgConnection, PgPool};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::deliver::{Client, Outcome};
use crate::error_chain::chain;
use crate::metrics::METRICS;
use crate::settings::PushEndpoint as Endpoint;
use crate::store::database;
use crate::store::push::{self, EndpointView, Waiting};

mod deliver;

/// How soon an endpoint hears of a change.
const LOOK_EVERY: Duration = Duration::from_millis(200);
const AFTER_ERROR: Duration = Duration::from_secs(2);
/// To see that the lock is still ours, and to measure.
const LEASE_EVERY: Duration = Duration::from_secs(5);
const EXPIRE_EVERY: Duration = Duration::from_secs(60);
/// In flight to one endpoint.
const AT_ONCE: usize = 16;
const IN_ROUND: i64 = 256;
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
    let endpoints: Vec<Arc<Endpoint>> = endpoints.into_iter().map(Arc::new).collect();
    while !shutdown.is_cancelled() {
        match lease(&pool).await {
            Ok(Some(lease)) => push_all(&pool, &endpoints, lease, &shutdown).await,
            Ok(None) => {}
            Err(error) => tracing::debug!(error = chain(&error), "changes are not pushed"),
        }
        tokio::select! {
            () = tokio::time::sleep(LEASE_EVERY) => {}
            () = shutdown.cancelled() => {}
        }
    }
}

/// `None` if another worker pushes.
async fn lease(pool: &PgPool) -> Result<Option<PgConnection>, sqlx::Error> {
    let mut connection = database::connect_alone(pool).await?;
    Ok(push::try_lock(&mut connection).await?.then_some(connection))
}

/// As long as the lease is held.
async fn push_all(
    pool: &PgPool,
    endpoints: &[Arc<Endpoint>],
    mut lease: PgConnection,
    shutdown: &CancellationToken,
) {
    tracing::info!(endpoints = endpoints.len(), "changes are pushed by this worker");
    let over = shutdown.child_token();
    let pushing = endpoints.iter().map(|endpoint| {
        let pusher = Pusher {
            pool: pool.clone(),
            client: Client::new(endpoint),
            endpoint: Arc::clone(endpoint),
            not_before: Instant::now(),
            expire_at: Instant::now(),
            feed: String::new(),
        };
        pusher.run(over.clone())
    });
    let holding = async {
        while !over.is_cancelled() {
            if let Err(error) = measure(&mut lease).await {
                tracing::warn!(error = chain(&error), "another worker may push changes now");
                over.cancel();
            }
            tokio::select! {
                () = tokio::time::sleep(LEASE_EVERY) => {}
                () = over.cancelled() => {}
            }
        }
    };
    tokio::join!(join_all(pushing), holding);
    // What this worker has told is another one's to tell now.
    for endpoint in endpoints {
        let of = [KeyValue::new(attribute::ENDPOINT, endpoint.name.clone())];
        METRICS.push_oldest_age.record(0.0, &of);
        METRICS.push_paused.record(0.0, &of);
    }
    lease.close().await.ok();
}

/// It also shows that the lease's session lives.
async fn measure(lease: &mut PgConnection) -> Result<(), sqlx::Error> {
    let now = clock::now();
    for EndpointView { name, oldest_at, paused_at, .. } in push::all(lease).await? {
        let of = [KeyValue::new(attribute::ENDPOINT, name)];
        let age = |at: Timestamp| now.duration_since(at).as_secs_f64().max(0.0);
        METRICS.push_oldest_age.record(oldest_at.map_or(0.0, age), &of);
        METRICS.push_paused.record(if paused_at.is_some() { 1.0 } else { 0.0 }, &of);
    }
    Ok(())
}

/// What pushes to one endpoint.
struct Pusher {
    pool: PgPool,
    client: Client,
    endpoint: Arc<Endpoint>,
    /// It asked for a pause.
    not_before: Instant,
    expire_at: Instant,
    /// Which feed positions are of; a delivery's id holds it.
    feed: String,
}

impl Pusher {
    async fn run(mut self, over: CancellationToken) {
        let mut is_new = true;
        while !over.is_cancelled() {
            let done = if is_new { self.enrol().await } else { self.round().await };
            let wait = match done {
                Ok(true) => {
                    is_new = false;
                    Duration::ZERO
                }
                Ok(false) => LOOK_EVERY,
                Err(error) => {
                    let endpoint = &self.endpoint.name;
                    tracing::warn!(endpoint, error = chain(&error), "changes are not pushed");
                    AFTER_ERROR
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = over.cancelled() => {}
            }
        }
    }

    async fn enrol(&mut self) -> Result<bool, sqlx::Error> {
        let mut connection = database::acquire(&self.pool).await?;
        push::enrol(&mut connection, &self.endpoint.name).await?;
        self.feed = push::feed(&mut connection).await?;
        Ok(true)
    }

    /// Whether there may be more to do at once.
    async fn round(&mut self) -> Result<bool, sqlx::Error> {
        if Instant::now() < self.not_before {
            return Ok(false);
        }
        let mut connection = database::acquire(&self.pool).await?;
        if Instant::now() >= self.expire_at {
            self.expire(&mut connection).await?;
            self.expire_at = Instant::now() + EXPIRE_EVERY;
        }
        let taken = push::take_over(&mut connection, &self.endpoint).await?;
        let due = push::due(&mut connection, &self.endpoint.name, IN_ROUND).await?;
        drop(connection);
        let is_busy = taken > 0 || !due.is_empty();
        let Self { client, endpoint, feed, .. } = &*self;
        let deliveries = due.into_iter().map(|waiting| async move {
            let outcome = client.deliver(endpoint, feed, &waiting.change).await;
            (waiting, outcome)
        });
        let outcomes: Vec<(Waiting, Outcome)> =
            stream::iter(deliveries).buffer_unordered(AT_ONCE).collect().await;
        self.record(outcomes).await?;
        Ok(is_busy)
    }

    /// What left the feed before it was delivered is lost to the endpoint, and it is told so.
    async fn expire(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let name = &self.endpoint.name;
        let Some(position) = push::expire(connection, name).await? else { return Ok(()) };
        let why = format!(
            "changes up to position {position} left the feed before they were delivered: list the \
             installations, then resume"
        );
        self.pause(connection, &why).await
    }

    async fn pause(&self, connection: &mut PgConnection, why: &str) -> Result<(), sqlx::Error> {
        let endpoint = &self.endpoint.name;
        tracing::error!(endpoint, why, "an endpoint is paused");
        push::pause(connection, endpoint, why).await?;
        Ok(())
    }

    async fn record(&mut self, outcomes: Vec<(Waiting, Outcome)>) -> Result<(), sqlx::Error> {
        if outcomes.is_empty() {
            return Ok(());
        }
        let name = self.endpoint.name.clone();
        let mut connection = database::acquire(&self.pool).await?;
        let mut delivered = Vec::new();
        for (Waiting { attempts, change }, outcome) in outcomes {
            self.count(&outcome);
            let Outcome::Failed { why, is_gone, slow_down } = outcome else {
                delivered.push(i64::try_from(change.position).unwrap_or(i64::MAX));
                continue;
            };
            if let Some(asked) = slow_down {
                let until = Instant::now() + asked.unwrap_or(SLOW_DOWN_FOR);
                self.not_before = self.not_before.max(until);
            }
            let attempts = usize::try_from(attempts).unwrap_or(usize::MAX);
            let again_in = AGAIN_AFTER_S.get(attempts).map(|seconds| jittered(*seconds));
            let later = again_in.unwrap_or_default();
            push::failed(&mut connection, &name, change.position, later, &why).await?;
            if is_gone || again_in.is_none() {
                let why = format!("position {}: {why}", change.position);
                self.pause(&mut connection, &why).await?;
            }
        }
        push::delivered(&mut connection, &name, &delivered).await
    }

    fn count(&self, outcome: &Outcome) {
        let result = match outcome {
            Outcome::Delivered => "delivered",
            Outcome::Failed { .. } => "failed",
        };
        let endpoint = KeyValue::new(attribute::ENDPOINT, self.endpoint.name.clone());
        METRICS.push_attempts.add(1, &[endpoint, KeyValue::new(attribute::RESULT, result)]);
    }
}

/// Many that failed together do not come back together.
fn jittered(seconds: u64) -> Duration {
    Duration::from_secs(seconds).mul_f64(rand::rng().random_range(0.8..1.2))
}
