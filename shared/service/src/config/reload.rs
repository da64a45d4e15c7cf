//! A key ring that follows its configuration: a new key is picked up without a
//! restart.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use eventlog::keys::CurrentRing;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Config, ConfigError, Resolver};
use domain::id::KeyId;
use domain::seal::KeyRing;

const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Starts the task that reads the configuration again, until `shutdown`. A
/// configuration that is not usable changes nothing.
pub fn follow(path: PathBuf, first: KeyRing, shutdown: CancellationToken) -> CurrentRing {
    let (sender, ring) = CurrentRing::new(first);
    tokio::spawn(async move {
        let mut last_problem = String::new();
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = shutdown.cancelled() => return,
            }
            match read(&path) {
                Ok(ring) => {
                    last_problem.clear();
                    replace(&sender, ring);
                }
                Err(error) => {
                    let problem = error.to_string();
                    if problem != last_problem {
                        tracing::error!(problem, "the key ring stays as it was");
                        last_problem = problem;
                    }
                }
            }
        }
    });
    ring
}

fn read(path: &std::path::Path) -> Result<KeyRing, ConfigError> {
    let config = Config::load(path)?;
    let env = |name: &str| std::env::var(name).ok();
    let mut resolver = Resolver::new(&env);
    let ring = resolver.key_ring(&config.sealing);
    resolver.finish(path, ring)
}

/// The keys are known by their ids: one whose bytes change under the same id is
/// a mistake, and is left for the next start to find.
fn replace(sender: &watch::Sender<Arc<KeyRing>>, ring: KeyRing) {
    let ids = |ring: &KeyRing| ring.key_ids().cloned().collect::<Vec<KeyId>>();
    let last = Arc::clone(&sender.borrow());
    if last.active() != ring.active() || ids(&last) != ids(&ring) {
        let (active, keys) = (ring.active().as_str(), ring.key_ids().count());
        tracing::info!(active, keys, "the key ring has changed");
        sender.send_replace(Arc::new(ring));
    }
}
