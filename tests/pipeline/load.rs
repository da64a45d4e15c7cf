//! Many callbacks at a time, sent as a platform does: again when there was no
//! 2xx.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokio::task::JoinHandle;

use crate::payload::{install_in, uninstall_in};
use crate::world::{World, post};

const SENDERS: usize = 8;
/// Several installations share an instance, so that they supersede each other.
const INSTANCES: usize = 20;
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// Senders at work. [`Load::stop`] says what was acknowledged.
pub(crate) struct Load {
    stopping: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
    senders: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    /// Sends installs, and uninstalls of every third, until it is stopped.
    pub(crate) fn start(world: &World) -> Self {
        let stopping = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicUsize::new(0));
        let next = Arc::new(AtomicUsize::new(0));
        let urls: Vec<String> =
            (0..world.ingests.len()).map(|index| world.callback_url(index)).collect();
        let senders = (0..SENDERS).map(|sender| {
            let sender = Sender {
                http: world.http.clone(),
                url: urls[sender % urls.len()].clone(),
                stopping: Arc::clone(&stopping),
                counted: Arc::clone(&acknowledged),
                acknowledged: Vec::new(),
            };
            tokio::spawn(sender.run(Arc::clone(&next)))
        });
        let senders = senders.collect();
        Self { stopping, acknowledged, senders }
    }

    /// How many were acknowledged so far.
    pub(crate) fn acknowledged(&self) -> usize {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// The keys that were acknowledged. Each was sent at least once.
    pub(crate) async fn stop(self) -> Vec<String> {
        self.stopping.store(true, Ordering::Relaxed);
        let mut keys = Vec::new();
        for sender in self.senders {
            keys.extend(sender.await.unwrap());
        }
        assert!(!keys.is_empty(), "nothing was acknowledged");
        keys
    }
}

struct Sender {
    http: reqwest::Client,
    url: String,
    stopping: Arc<AtomicBool>,
    counted: Arc<AtomicUsize>,
    acknowledged: Vec<String>,
}

impl Sender {
    async fn run(mut self, next: Arc<AtomicUsize>) -> Vec<String> {
        while !self.is_stopping() {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let (id, instance) = (format!("load_{number}"), format!("inst_{}", number % INSTANCES));
            self.send(&install_in(&id, &instance)).await;
            if number.is_multiple_of(3) {
                self.send(&uninstall_in(&id, &instance)).await;
            }
        }
        self.acknowledged
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    async fn send(&mut self, callback: &Value) {
        loop {
            match post(&self.http, &self.url, callback).await {
                Ok(answer) if answer.status == 200 => {
                    let key = callback["idempotency_key"].as_str().unwrap();
                    self.acknowledged.push(key.to_owned());
                    self.counted.fetch_add(1, Ordering::Relaxed);
                    return;
                }
                // Only our own faults may be seen here.
                Ok(answer) => assert_eq!(answer.status, 503, "{answer:?}"),
                Err(_) => {} // the process or its connection died
            }
            if self.is_stopping() {
                return;
            }
            tokio::time::sleep(RETRY_AFTER).await;
        }
    }
}
