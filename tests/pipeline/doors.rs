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
        let build: serde_json::Value = alive.json().await.unwrap();
        assert_eq!(build, json!({ "version": service::build::version() }), "{name}");
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

/// Beyond this machine.
const NATS: &str = "nats://user:the-password@nats.example:4222";
const POSTGRES: &str = "postgres://mooring_worker:the-password@db.example/mooring";

#[tokio::test(flavor = "multi_thread")]
async fn what_would_leave_the_machine_in_plaintext_is_refused_unless_it_is_accepted_by_name() {
    let world = World::servers(Setup { ingests: 0, workers: 0, ..Setup::default() });
    let verified = format!("{POSTGRES}?sslmode=verify-full");
    let required = format!("{POSTGRES}?sslmode=require");
    let cases: [(&str, &str, &str, Option<&str>); 15] = [
        ("ingest", "MOORING__NATS__URL", NATS, Some("plain_nats")),
        ("ingest", "MOORING__NATS__URL", "nats.example:4222", Some("plain_nats")),
        ("ingest", "MOORING__NATS__URL", "tls://a.example, nats://b.example", Some("plain_nats")),
        ("ingest", "MOORING__NATS__URL", "tls://a.example,tls://b.example", None),
        ("ingest", "MOORING__NATS__URL", "nats://[::1]:4222", None),
        ("ingest", "MOORING__NATS__URL", "localhost:4222", None),
        ("ingest", "MOORING__POSTGRES__URL", POSTGRES, None),
        ("ingest", "MOORING__INGEST__LISTEN", "0.0.0.0:8080", None),
        ("worker", "MOORING__NATS__URL", NATS, Some("plain_nats")),
        ("worker", "MOORING__POSTGRES__URL", POSTGRES, Some("plain_postgres")),
        ("worker", "MOORING__POSTGRES__URL", &required, Some("plain_postgres")),
        ("worker", "MOORING__POSTGRES__URL", &verified, None),
        ("worker", "MOORING__POSTGRES__URL", "postgres://w@localhost/mooring", None),
        ("worker", "MOORING__WORKER__LISTEN", "0.0.0.0:8081", Some("plain_read_api")),
        ("worker", "MOORING__WORKER__LISTEN", "[::1]:8081", None),
    ];
    let verdicts = |accepted: bool| {
        for (service, variable, value, refused) in &cases {
            let done = check(&world, service, variable, value);
            let refused = refused.filter(|_| !accepted);
            assert_eq!(done.code, if refused.is_some() { 78 } else { 0 }, "{value}: {done:?}");
            assert!(done.stderr.contains(refused.unwrap_or_default()), "{value}: {done:?}");
            assert!(!done.stderr.contains("the-password"), "{done:?}");
        }
    };
    verdicts(false);
    world
        .configure("[transport]\nallow = [\"plain_nats\", \"plain_postgres\", \"plain_read_api\"]");
    verdicts(true);
    let missing = check(&world, "worker", "MOORING__WORKER__TLS__CERTIFICATE", "/nowhere.pem");
    assert_eq!(missing.code, 78, "{missing:?}");
    let missing = check(&world, "ingest", "MOORING__NATS__TLS__CA", "/nowhere.pem");
    assert!(missing.code == 78 && missing.stderr.contains("/nowhere.pem"), "{missing:?}");
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
