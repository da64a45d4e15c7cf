//! What follows the configuration while a service runs.

use std::path::Path;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Config;

/// So soon a change is seen.
pub const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Reads the configuration again and again until `shutdown`, and hands it to `apply`,
/// which says what is wrong with it. Of what is not usable, `kept` says what stays.
pub async fn watch(
    path: &Path,
    kept: &str,
    shutdown: &CancellationToken,
    mut apply: impl FnMut(&Config) -> Vec<String>,
) {
    let mut last = Vec::new();
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = shutdown.cancelled() => return,
        }
        let problems = match Config::load(path) {
            Ok(config) => apply(&config),
            Err(error) => error.problems,
        };
        if problems != last {
            for problem in &problems {
                tracing::error!(problem, "the configuration is not usable: {kept}");
            }
            last = problems;
        }
    }
}
