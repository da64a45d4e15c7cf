//! The key ring as it is now: it may be replaced while a service runs.

use std::sync::Arc;

use domain::seal::KeyRing;
use tokio::sync::watch;

/// The ring as it is now. A clone follows the same ring.
#[derive(Debug, Clone)]
pub struct CurrentRing(watch::Receiver<Arc<KeyRing>>);

impl CurrentRing {
    /// With what replaces it.
    pub fn new(first: KeyRing) -> (watch::Sender<Arc<KeyRing>>, Self) {
        let (sender, receiver) = watch::channel(Arc::new(first));
        (sender, Self(receiver))
    }

    pub fn get(&self) -> Arc<KeyRing> {
        Arc::clone(&self.0.borrow())
    }
}
