//! What a stranger can do at the HTTP doors, and what stays open all the same.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::operate::Done;
use crate::world::{Setup, World};

const PATIENCE: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread")]
async fn a_full_public_port_does_not_fail_liveness() {
    let setup = Setup::default().env("MOORING__INGEST__CONNECTIONS_MAX", 2);
    let setup = setup.env("MOORING__INGEST__CONNECTIONS_PER_CLIENT_MAX", 2);
    let world = World::start(setup.env("MOORING__WORKER__CONNECTIONS_MAX", 2)).await;
    let fresh = || service::http_client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
    for name in ["ingest", "worker"] {
        let public = |path: &str| match name {
            "ingest" => world.ingest_url(0, path),
            _ => world.worker_url(0, path),
        };
        // Those of the harness go idle first; a worker lets one client have one of two.
        let mut held = Vec::new();
        let address = public("").trim_start_matches("http://").to_owned();
        while held.len() < 2 && fresh().get(public("/livez")).send().await.is_ok() {
            let mut connection = TcpStream::connect(&address).await.unwrap();
            connection.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
            let mut answer = [0; 64];
            if connection.read(&mut answer).await.is_ok_and(|count| count > 0) {
                held.push(connection);
            }
        }
        let crowded = fresh().get(public("/livez")).send().await;
        assert!(crowded.is_err(), "{name}: {crowded:?}");
        let alive = fresh().get(world.admin_url(name, 0, "/livez")).send().await.unwrap();
        assert_eq!(alive.status(), 200, "{name}");
        let ready = fresh().get(world.admin_url(name, 0, "/readyz")).send().await.unwrap();
        let ready: serde_json::Value = ready.json().await.unwrap();
        assert_eq!((&ready["ready"], &ready["nats"]).0, &json!(true), "{ready}");
    }
}

/// What a service says of a configuration with this override.
fn check(world: &World, service: &str, name: &str, value: &str) -> Done {
    let mut command = dev::services::command(&dev::services::binary(service).unwrap());
    command.args(["run", "--check-config", "--config", &world.config()]).env(name, value);
    command.output().unwrap().into()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_setting_out_of_range_is_refused_by_name_and_not_by_a_panic() {
    const EXIT_CONFIG: i32 = 78;
    let world = World::servers(Setup { ingests: 0, workers: 0, ..Setup::default() });
    let huge = u64::MAX.to_string();
    let cases = [
        ("ingest", "MOORING__SOURCES__BLNK__CALLBACKS_MAX", "sources.blnk.callbacks_max"),
        ("ingest", "MOORING__INGEST__CONNECTIONS_MAX", "ingest.connections_max"),
        ("ingest", "MOORING__INGEST__READ_TIMEOUT_MS", "ingest.read_timeout_ms"),
        ("ingest", "MOORING__INGEST__IDLE_TIMEOUT_MS", "ingest.idle_timeout_ms"),
        ("ingest", "MOORING__INGEST__WRITE_TIMEOUT_MS", "ingest.write_timeout_ms"),
        ("ingest", "MOORING__INGEST__SHUTDOWN_TIMEOUT_MS", "ingest.shutdown_timeout_ms"),
        ("ingest", "MOORING__SOURCES__BLNK__ACK__DEADLINE_MS", "sources.blnk.ack"),
        ("worker", "MOORING__WORKER__CONNECTIONS_MAX", "worker.connections_max"),
        ("worker", "MOORING__WORKER__BATCH_EVENTS_MAX", "worker.batch_events_max"),
        ("worker", "MOORING__WORKER__ACK_WAIT_MS", "worker.ack_wait_ms"),
    ];
    for (service, variable, setting) in cases {
        for value in ["0", &huge] {
            let done = check(&world, service, variable, value);
            assert_eq!(done.code, EXIT_CONFIG, "{variable}={value}: {done:?}");
            assert!(done.stderr.contains(setting), "{variable}={value}: {done:?}");
            assert!(!done.stderr.contains("panicked"), "{done:?}");
        }
    }
}
