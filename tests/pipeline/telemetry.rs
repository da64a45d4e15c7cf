//! One callback can be followed from its request to its row.

use std::time::Duration;

use opentelemetry_proto::tonic::trace::v1::Span;
use serde_json::json;

use crate::otlp::{Receiver, attribute};
use crate::payload::{install, with};
use crate::world::{Answer, Setup, World, eventually};

const CALLER: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// Sends an install with the trace context of a caller.
async fn send_traced(world: &World) {
    let request = world.http.post(world.callback_url(0)).json(&install("a"));
    let request = request.header("traceparent", format!("00-{CALLER}-00f067aa0ba902b7-01"));
    let answer = Answer::of(request.send().await.unwrap()).await.unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callback_is_one_trace_from_request_to_row() {
    let (otlp, setup) = Receiver::start(Setup::default()).await;
    one_trace(otlp, setup).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_trace_arrives_over_grpc() {
    let (otlp, setup) = Receiver::start_grpc(Setup::default()).await;
    one_trace(otlp, setup).await;
}

async fn one_trace(otlp: Receiver, setup: Setup) {
    let world = World::start(setup).await;
    send_traced(&world).await;
    world.wait_applied().await;
    let arrived = async || {
        !otlp.spans("process INSTALLATIONS").is_empty()
            && !otlp.spans("send INSTALLATIONS").is_empty()
    };
    assert!(eventually(arrived).await, "no spans");
    let name = "POST /callbacks/{source}/{token}";
    assert!(eventually(async || !otlp.spans(name).is_empty()).await, "no request span");

    let request = &otlp.spans(name)[0];
    assert!(request.parent_span_id.is_empty(), "the caller is not trusted as a parent");
    let linked = hex(&request.links[0].trace_id);
    assert_eq!(linked, CALLER, "the caller is linked");
    assert_ne!(hex(&request.trace_id), CALLER);
    assert_eq!(attribute(&request.attributes, "http.response.status_code").unwrap(), "200");
    assert_eq!(attribute(&request.attributes, "mooring.source").unwrap(), "blnk");

    let publish = &otlp.spans("send INSTALLATIONS")[0];
    assert_eq!(publish.trace_id, request.trace_id);
    assert_eq!(publish.parent_span_id, request.span_id);

    let batch = &otlp.spans("process INSTALLATIONS")[0];
    let links: Vec<_> = batch.links.iter().map(|it| (&it.trace_id, &it.span_id)).collect();
    assert_eq!(links, [(&publish.trace_id, &publish.span_id)]);
    let statements = ["INSERT mooring.journal", "INSERT projection.installations", "COMMIT"];
    for name in statements {
        let found = otlp.spans(name);
        assert_eq!(found[0].parent_span_id, batch.span_id, "{name}");
        assert_eq!(attribute(&found[0].attributes, "db.system.name").unwrap(), "postgresql");
    }
    // A log line has the trace of its callback.
    assert_eq!(world.send(&json!([])).await.status, 400);
    assert!(eventually(async || !otlp.logs("not acknowledged").is_empty()).await);
    let line = otlp.logs("not acknowledged").remove(0);
    let of = |span: &Span| span.trace_id == line.trace_id && span.span_id == line.span_id;
    assert!(eventually(async || otlp.spans(name).iter().any(of)).await, "{line:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_method_that_somebody_invents_names_no_span() {
    let (otlp, setup) = Receiver::start(Setup { workers: 0, ..Setup::default() }).await;
    let world = World::start(setup).await;
    let invented = reqwest::Method::from_bytes(b"INVENTED-7F3A").unwrap();
    let answer = world.http.request(invented, world.callback_url(0)).send().await.unwrap();
    assert_eq!(answer.status(), 405);
    let name = "HTTP /callbacks/{source}/{token}";
    assert!(eventually(async || !otlp.spans(name).is_empty()).await);
    let span = otlp.spans(name).remove(0);
    assert_eq!(attribute(&span.attributes, "http.request.method").unwrap(), "_OTHER");
    assert!(!String::from_utf8_lossy(&otlp.bytes()).contains("INVENTED-7F3A"));
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_tell_what_was_sent() {
    let (otlp, setup) = Receiver::start(Setup::default()).await;
    all_metrics(otlp, setup).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_metrics_arrive_over_grpc() {
    let (otlp, setup) = Receiver::start_grpc(Setup::default()).await;
    all_metrics(otlp, setup).await;
}

async fn all_metrics(otlp: Receiver, setup: Setup) {
    let world = World::start(setup).await;
    for id in ["a", "b", "c"] {
        world.acknowledged(&install(id)).await;
    }
    world.acknowledged(&install("a")).await;
    let refused = world.send(&with(install("d"), "api_key", json!(1))).await;
    assert_eq!(refused.status, 422);
    let unknown = world.ingest_url(0, "/callbacks/nobody");
    assert_eq!(world.http.post(unknown).send().await.unwrap().status(), 404);
    world.wait_applied().await;

    let blnk = ("mooring.source", "blnk");
    let ack = |result| [blnk, ("mooring.result", result)];
    let installed = [blnk, ("mooring.event.type", "installed"), ("mooring.result", "appended")];
    let refusal = |source, reason| [("mooring.source", source), ("mooring.reason", reason)];
    let expected = vec![
        ("mooring.callback.ack.duration", installed.to_vec(), 3.0),
        ("mooring.callback.ack.duration", ack("duplicate").to_vec(), 1.0),
        ("mooring.callback.ack.duration", ack("refused").to_vec(), 1.0),
        ("mooring.callback.ack.deadline.used.ratio", installed.to_vec(), 3.0),
        ("mooring.callback.refusals", refusal("blnk", "invalid-field").to_vec(), 1.0),
        ("mooring.callback.refusals", refusal("", "unknown-source").to_vec(), 1.0),
        ("mooring.callback.acks.missed", vec![blnk], 0.0),
        // That of the duplicate, too.
        ("mooring.secrets.sealed", vec![("mooring.key.id", "p1")], 4.0),
        ("mooring.projection.events", installed.to_vec(), 3.0),
        ("mooring.projection.lag.events", vec![], 0.0),
        ("mooring.projection.lag.age", vec![], 0.0),
        ("mooring.projection.source.lag.age", vec![blnk], 0.0),
        ("mooring.log.events", vec![], 3.0),
        ("mooring.log.contract.met", vec![], 1.0),
        ("mooring.dead_letters.unresolved", vec![], 0.0),
        ("mooring.nats.connected", vec![], 1.0),
        ("mooring.postgres.up", vec![], 1.0),
        ("http.server.request.duration", vec![("http.response.status_code", "422")], 1.0),
    ];
    for (name, attributes, value) in expected {
        let arrived = async || otlp.metric(name, &attributes) == Some(value);
        let found = otlp.metric(name, &attributes);
        assert!(eventually(arrived).await, "{name} {attributes:?}: {found:?}, not {value}");
    }
    assert_eq!(otlp.instances(), 2, "each process is told from the others");
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_can_scrape_what_is_exported() {
    let port = dev::ports::free_port().unwrap();
    let setup = Setup { workers: 0, ..Setup::default() };
    let setup = setup.env("OTEL_METRICS_EXPORTER", "prometheus");
    let world = World::start(setup.env("OTEL_EXPORTER_PROMETHEUS_PORT", port)).await;
    world.acknowledged(&install("a")).await;
    let url = format!("http://127.0.0.1:{port}/metrics");
    let text = world.http.get(&url).send().await.unwrap().text().await.unwrap();
    let series = [
        "mooring_callback_ack_duration_seconds_count{",
        "mooring_callback_ack_deadline_used_ratio_bucket{",
        "mooring_log_contract_met 1",
        "mooring_secrets_sealed_total{",
        "target_info{",
    ];
    for series in series {
        assert!(text.contains(series), "{series} is missing in:\n{text}");
    }
    let labels =
        r#"mooring_event_type="installed",mooring_result="appended",mooring_source="blnk""#;
    assert!(text.contains(labels), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exporter_that_is_away_delays_neither_acks_nor_shutdown() {
    // Nobody listens there.
    let nowhere = format!("http://127.0.0.1:{}", dev::ports::free_port().unwrap());
    let setup = Setup::default().env("OTEL_EXPORTER_OTLP_ENDPOINT", nowhere);
    let mut world = World::start(setup).await;
    world.acknowledged(&install("a")).await;
    world.wait_for_status("a", "active").await;
    let stopped = world.ingests[0].stop(Duration::from_secs(20)).unwrap();
    assert!(
        matches!(stopped, Some(dev::Stopped::Cleanly(status)) if status.success()),
        "{stopped:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_still_held_is_sent_at_shutdown() {
    let (otlp, setup) = Receiver::start(Setup::default()).await;
    // Never by itself.
    let setup = setup.env("OTEL_BSP_SCHEDULE_DELAY", 600_000);
    let mut world = World::start(setup).await;
    world.acknowledged(&install("a")).await;
    assert!(otlp.spans("send INSTALLATIONS").is_empty());
    world.ingests[0].stop(Duration::from_secs(20)).unwrap();
    assert_eq!(otlp.spans("send INSTALLATIONS").len(), 1);
}
