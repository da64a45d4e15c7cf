//! An app that changes are pushed to: how long after it was written each change arrives.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use jiff::Timestamp;
use serde::Deserialize;
use tokio::net::TcpListener;

use crate::results::Figures;

const DEADLINE: Duration = Duration::from_secs(120);
/// As Standard Webhooks says. Nothing here verifies by it.
const SECRET: &str = "whsec_bW9vcmluZyBiZW5jaCBtb29yaW5nIGJlbmNo";

/// In milliseconds.
type Delays = Arc<Mutex<Vec<f64>>>;

#[derive(Deserialize)]
struct Push {
    data: Change,
}

#[derive(Deserialize)]
struct Change {
    recorded_at: Timestamp,
}

pub(crate) struct Endpoint {
    delays: Delays,
    port: u16,
}

impl Endpoint {
    pub(crate) async fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let (delays, port) = (Delays::default(), listener.local_addr()?.port());
        let router = Router::new().route("/", post(receive)).with_state(Arc::clone(&delays));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self { delays, port })
    }

    /// What the configuration says of it.
    pub(crate) fn section(&self, secret_file: &std::path::Path) -> Result<String> {
        std::fs::write(secret_file, SECRET)?;
        Ok(format!(
            "\n[worker.push.bench]\nurl = \"http://127.0.0.1:{}/\"\nallow_private = true\n\
             secrets = [{{ file = \"{}\" }}]\n",
            self.port,
            secret_file.display()
        ))
    }

    fn delays(&self) -> Vec<f64> {
        self.delays.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until so many changes have arrived.
    pub(crate) async fn figures(&self, changes: u64) -> Result<Figures> {
        let (start, changes) = (Instant::now(), usize::try_from(changes)?);
        while self.delays().len() < changes {
            if start.elapsed() > DEADLINE {
                bail!("only {} of {changes} changes were pushed", self.delays().len());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let mut delays = self.delays();
        delays.sort_by(f64::total_cmp);
        let at = |percent: usize| delays.get((delays.len() - 1) * percent / 100).copied();
        let figure = |percent| at(percent).unwrap_or(f64::NAN);
        Ok(BTreeMap::from([
            ("pushed p50, ms", figure(50)),
            ("pushed p99, ms", figure(99)),
            ("last push, ms", figure(100)),
        ]))
    }
}

async fn receive(State(delays): State<Delays>, Json(push): Json<Push>) -> StatusCode {
    let delay = Timestamp::now().duration_since(push.data.recorded_at).as_secs_f64() * 1000.0;
    delays.lock().unwrap_or_else(PoisonError::into_inner).push(delay);
    StatusCode::NO_CONTENT
}
