//! Keys that follow their configuration: a new one is picked up without a
//! restart.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use domain::id::KeyId;
use domain::key_ring::{KeyRing, SealingKey};
use eventlog::keys::Current;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Config, ConfigError, Resolver, SealingSettings};

const LOOK_EVERY: Duration = Duration::from_secs(5);

/// What follows `[sealing]`.
pub trait Followed: Sized + Send + Sync + 'static {
    fn resolve(resolver: &mut Resolver<'_>, sealing: &SealingSettings) -> Option<Self>;

    /// The active key, and all keys. They are known by their ids: one whose bytes
    /// change under the same id is a mistake, and is left for the next start to
    /// find.
    fn ids(&self) -> (KeyId, Vec<KeyId>);
}

impl Followed for KeyRing {
    fn resolve(resolver: &mut Resolver<'_>, sealing: &SealingSettings) -> Option<Self> {
        resolver.key_ring(sealing)
    }

    fn ids(&self) -> (KeyId, Vec<KeyId>) {
        (self.active().clone(), self.key_ids().cloned().collect())
    }
}

impl Followed for SealingKey {
    fn resolve(resolver: &mut Resolver<'_>, sealing: &SealingSettings) -> Option<Self> {
        resolver.sealing_key(sealing)
    }

    fn ids(&self) -> (KeyId, Vec<KeyId>) {
        (self.id().clone(), Vec::new())
    }
}

/// Starts the task that reads the configuration again, until `shutdown`. A
/// configuration that is not usable changes nothing.
pub fn follow<T: Followed>(path: PathBuf, first: T, shutdown: CancellationToken) -> Current<T> {
    let (sender, current) = Current::new(first);
    let path: Arc<Path> = path.into();
    tokio::spawn(async move {
        let (mut last_problem, mut settings) = (String::new(), None);
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = shutdown.cancelled() => return,
            }
            let (path, before) = (Arc::clone(&path), settings.clone());
            // A secret may come from a command, which takes its time.
            let read = tokio::task::spawn_blocking(move || read(&path, before.as_ref()));
            match read.await {
                Ok(Ok(None)) => {}
                Ok(Ok(Some((now, keys)))) => {
                    last_problem.clear();
                    settings = Some(now);
                    replace(&sender, keys);
                }
                Ok(Err(error)) => {
                    let problem = error.to_string();
                    if problem != last_problem {
                        tracing::error!(problem, "the key ring stays as it was");
                        last_problem = problem;
                    }
                }
                Err(_) => return, // the runtime ends
            }
        }
    });
    current
}

/// `None` if the settings are as they were: then no secret is read again.
fn read<T: Followed>(
    path: &Path,
    before: Option<&SealingSettings>,
) -> Result<Option<(SealingSettings, T)>, ConfigError> {
    let config = Config::load(path)?;
    if before == Some(&config.sealing) {
        return Ok(None);
    }
    let env = |name: &str| std::env::var(name).ok();
    let mut resolver = Resolver::new(&env);
    let keys = T::resolve(&mut resolver, &config.sealing);
    Ok(Some((config.sealing, resolver.finish(path, keys)?)))
}

fn replace<T: Followed>(sender: &watch::Sender<Arc<T>>, keys: T) {
    let last = sender.borrow().ids();
    let now = keys.ids();
    if last != now {
        tracing::info!(active = now.0.as_str(), keys = now.1.len(), "the key ring has changed");
        sender.send_replace(Arc::new(keys));
    }
}
