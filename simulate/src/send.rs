//! Sending: at a rate, over so many connections, until all is sent or Ctrl-C.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures_util::StreamExt as _;
use futures_util::stream;
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::Client;
use secrecy::ExposeSecret as _;
use service::http_client;
use tokio::time::{Instant, sleep_until};

use crate::plan::Delivery;
use crate::platform::{Callback, Sender};

const TIMEOUT: Duration = Duration::from_secs(30);

pub(crate) struct Load {
    pub(crate) callback_url: String,
    pub(crate) rate: Option<f64>,
    pub(crate) connections: usize,
}

/// What was answered.
pub(crate) struct Outcome {
    /// By status, with forged callbacks apart; 0 where there was no answer.
    pub(crate) answers: BTreeMap<(bool, u16), u64>,
    pub(crate) duplicates: u64,
    pub(crate) latency_us: Histogram<u64>,
    pub(crate) elapsed: Duration,
}

/// The answers, and whether Ctrl-C came before the last one.
pub(crate) async fn send(
    sender: &Sender,
    deliveries: Vec<Delivery>,
    load: &Load,
) -> Result<(Outcome, bool)> {
    let http = http_client::builder().timeout(TIMEOUT).build().context("setting up TLS")?;
    let bar = progress(deliveries.len());
    let started = Instant::now();
    let outcome = Mutex::new(Outcome {
        answers: BTreeMap::new(),
        duplicates: 0,
        latency_us: Histogram::new_with_bounds(1, 60_000_000, 3)?,
        elapsed: Duration::ZERO,
    });
    let gap = load.rate.map_or(0.0, f64::recip);
    let due = |(index, delivery): (u32, Delivery)| async move {
        sleep_until(started + Duration::from_secs_f64(gap * f64::from(index))).await;
        delivery
    };
    let (kept, bar_now, http) = (&outcome, &bar, &http);
    let sending = stream::iter((0_u32..).zip(deliveries)).then(due).for_each_concurrent(
        load.connections,
        |delivery| async move {
            let callback = sender.callback(delivery.event, delivery.forged);
            let begun = Instant::now();
            let (status, duplicate) = match callback {
                Ok(callback) => answer(http, &load.callback_url, callback).await,
                Err(_) => (0, false),
            };
            let latency = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
            let mut outcome = kept.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            *outcome.answers.entry((delivery.forged, status)).or_default() += 1;
            outcome.duplicates += u64::from(duplicate);
            outcome.latency_us.saturating_record(latency);
            bar_now.inc(1);
        },
    );
    let interrupted = tokio::select! {
        () = sending => false,
        _ = tokio::signal::ctrl_c() => true,
    };
    bar.finish_and_clear();
    let mut outcome = outcome.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    outcome.elapsed = started.elapsed();
    Ok((outcome, interrupted))
}

/// The status, 0 without one, and whether it was known already.
async fn answer(http: &Client, callback_url: &str, callback: Callback) -> (u16, bool) {
    let url = match &callback.path_token {
        Some(token) => format!("{callback_url}/{}", token.expose_secret()),
        None => callback_url.to_owned(),
    };
    let mut request = http.post(url).header("content-type", "application/json");
    for (name, value) in callback.headers {
        request = request.header(name, value);
    }
    let Ok(response) = request.body(callback.body).send().await else { return (0, false) };
    let status = response.status().as_u16();
    let body = response.text().await.unwrap_or_default();
    (status, body.contains("\"duplicate\":true"))
}

/// Nothing where nobody looks at it.
fn progress(count: usize) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(count as u64);
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len}  {per_sec}  {eta} left");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
