//! The load: keep-alive connections of HTTP/1.1, as light as can be, because
//! what it uses the servers lack.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use futures_util::future::try_join_all;
use hdrhistogram::Histogram;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::callback;

/// How callbacks are sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Shape {
    /// Each connection sends the next when it has its answer.
    Closed { connections: usize, duration: Duration, duplicates_percent: u64 },
    /// All at once over so many connections.
    Burst { callbacks: u64, connections: usize },
    /// At a rate; latency counts from when each was due.
    Open { per_second: u64, duration: Duration },
    /// As `Closed`, while servers are killed: what fails is sent anew.
    Faults { connections: usize, duration: Duration },
    /// Not over HTTP: atomic batches of so many events; see `raw`.
    Batches { events: usize, duration: Duration },
}

/// What came of it.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    /// Numbers of the callbacks that were answered 2xx.
    pub(crate) acknowledged: Vec<u64>,
    pub(crate) count: u64,
    pub(crate) failed: u64,
    /// From the first request to the last answer.
    pub(crate) elapsed: Duration,
    pub(crate) latency_us: Histogram<u64>,
}

impl Outcome {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            acknowledged: Vec::new(),
            count: 0,
            failed: 0,
            elapsed: Duration::ZERO,
            latency_us: Histogram::new_with_bounds(1, 60_000_000, 3)?,
        })
    }

    pub(crate) fn answered(&mut self, after: Duration) {
        let latency = u64::try_from(after.as_micros()).unwrap_or(u64::MAX);
        self.latency_us.saturating_record(latency);
    }

    pub(crate) fn count(&mut self, count: u64, elapsed: Duration) {
        (self.count, self.elapsed) = (count, elapsed);
    }

    fn add(&mut self, other: &Self) -> Result<()> {
        self.acknowledged.extend(&other.acknowledged);
        self.count += other.count;
        self.failed += other.failed;
        self.elapsed = self.elapsed.max(other.elapsed);
        self.latency_us.add(&other.latency_us)?;
        Ok(())
    }

    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    pub(crate) fn per_second(&self) -> f64 {
        self.count as f64 / self.elapsed.as_secs_f64()
    }

    #[expect(clippy::cast_precision_loss, reason = "microseconds are far below 2^52")]
    pub(crate) fn percentile_ms(&self, percentile: f64) -> f64 {
        self.latency_us.value_at_percentile(percentile) as f64 / 1000.0
    }
}

/// Where callbacks go, and the number of the next one.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) host: String,
    pub(crate) path: String,
    pub(crate) next: Arc<AtomicU64>,
}

pub(crate) async fn send(target: &Target, shape: Shape) -> Result<Outcome> {
    let connections = match shape {
        Shape::Closed { connections, .. }
        | Shape::Burst { connections, .. }
        | Shape::Faults { connections, .. } => connections,
        // Enough that a due callback finds one, and none idles until it is closed.
        Shape::Batches { .. } => bail!("batches are not sent over HTTP"),
        Shape::Open { per_second, .. } => usize::try_from(per_second / 4)?.clamp(8, 256),
    };
    let opened = (0..connections).map(|_| Connection::open(target.clone()));
    let opened = try_join_all(opened).await.context("connecting")?;
    let start = Instant::now();
    let taken = Arc::new(AtomicU64::new(0));
    let tasks = opened.into_iter().map(|connection| {
        let taken = Arc::clone(&taken);
        tokio::spawn(connection.work(shape, start, taken))
    });
    let mut total = Outcome::new()?;
    for task in tasks.collect::<Vec<_>>() {
        total.add(&task.await??)?;
    }
    Ok(total)
}

struct Connection {
    target: Target,
    sender: SendRequest<Full<Bytes>>,
}

impl Connection {
    async fn open(target: Target) -> Result<Self> {
        let stream = TcpStream::connect(&target.host).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // Ends when the sender is dropped.
        tokio::spawn(connection);
        Ok(Self { target, sender })
    }

    /// Until there is a server again.
    async fn open_again(&mut self) {
        loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
            if let Ok(opened) = Self::open(self.target.clone()).await {
                *self = opened;
                return;
            }
        }
    }

    async fn work(
        mut self,
        shape: Shape,
        start: Instant,
        taken: Arc<AtomicU64>,
    ) -> Result<Outcome> {
        let mut outcome = Outcome::new()?;
        let mut sent = 0_u64;
        loop {
            let turn = taken.fetch_add(1, Ordering::Relaxed);
            let due = match shape {
                Shape::Closed { duration, .. } | Shape::Faults { duration, .. }
                    if start.elapsed() >= duration =>
                {
                    break;
                }
                Shape::Burst { callbacks, .. } if turn >= callbacks => break,
                Shape::Closed { .. }
                | Shape::Burst { .. }
                | Shape::Faults { .. }
                | Shape::Batches { .. } => Instant::now(),
                Shape::Open { per_second, duration } => {
                    let after = Duration::from_micros(turn * 1_000_000 / per_second);
                    if after >= duration {
                        break;
                    }
                    tokio::time::sleep_until((start + after).into()).await;
                    start + after
                }
            };
            let again = match shape {
                Shape::Closed { duplicates_percent, .. } => {
                    sent * duplicates_percent / 100 != (sent + 1) * duplicates_percent / 100
                }
                _ => false,
            };
            let repeated = outcome.acknowledged.last().copied().filter(|_| again);
            let number =
                repeated.unwrap_or_else(|| self.target.next.fetch_add(1, Ordering::Relaxed));
            sent += 1;
            match self.post(number).await {
                Ok(true) => outcome.acknowledged.push(number),
                Ok(false) => outcome.failed += 1,
                Err(_) if matches!(shape, Shape::Faults { .. }) => {
                    outcome.failed += 1;
                    self.open_again().await;
                }
                Err(error) => return Err(error),
            }
            outcome.answered(due.elapsed());
        }
        outcome.count(outcome.acknowledged.len() as u64, start.elapsed());
        Ok(outcome)
    }

    /// Whether it was acknowledged.
    async fn post(&mut self, number: u64) -> Result<bool> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(&self.target.path)
            .header("host", &self.target.host)
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(callback::install(number))))?;
        self.sender.ready().await?;
        let answer = self.sender.send_request(request).await.context("sending a callback")?;
        let status = answer.status();
        answer.into_body().collect().await?;
        if status.is_client_error() {
            bail!("the target refused a callback: {status}");
        }
        Ok(status.is_success())
    }
}
