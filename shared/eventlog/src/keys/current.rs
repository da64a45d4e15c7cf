//! What is configured about keys, as it is now: it may be replaced while a service
//! runs.

use std::sync::Arc;

use tokio::sync::watch;

/// A clone follows the same.
#[derive(Debug)]
pub struct Current<T>(watch::Receiver<Arc<T>>);

impl<T> Clone for Current<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Current<T> {
    /// With what replaces it.
    pub fn new(first: T) -> (watch::Sender<Arc<T>>, Self) {
        let (sender, receiver) = watch::channel(Arc::new(first));
        (sender, Self(receiver))
    }

    pub fn get(&self) -> Arc<T> {
        Arc::clone(&self.0.borrow())
    }
}
