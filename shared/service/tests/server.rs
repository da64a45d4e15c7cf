//! The server's limits, over real connections.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::get;
use service::server::{self, Limits};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const HEAD_TIMEOUT: Duration = Duration::from_millis(300);
const IDLE_TIMEOUT: Duration = Duration::from_secs(2);
/// Between the two: an idle connection is still open, late headers are not awaited.
const BETWEEN: Duration = Duration::from_secs(1);
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: test\r\n\r\n";

async fn start() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().route("/", get(|| async { "ok" }));
    let limits = Limits {
        connections_max: 8,
        head_timeout: HEAD_TIMEOUT,
        idle_timeout: IDLE_TIMEOUT,
        shutdown_timeout: Duration::from_secs(1),
    };
    tokio::spawn(async move {
        let (in_flight, shutdown) = (TaskTracker::new(), CancellationToken::new());
        server::serve(listener, router, limits, &in_flight, shutdown).await;
    });
    address
}

/// Sends a request and reads until the end of its answer.
async fn ask(connection: &mut TcpStream) -> String {
    connection.write_all(REQUEST).await.unwrap();
    let (mut answer, mut buffer) = (String::new(), [0; 1_024]);
    while !answer.ends_with("ok") {
        let count = connection.read(&mut buffer).await.unwrap();
        assert_ne!(count, 0, "closed after {answer:?}");
        answer.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
    }
    answer
}

/// How long it takes until the server closes the connection.
async fn closed_after(connection: &mut TcpStream) -> Duration {
    let started = Instant::now();
    let mut rest = Vec::new();
    let read = connection.read_to_end(&mut rest);
    tokio::time::timeout(4 * IDLE_TIMEOUT, read).await.expect("it stays open").ok();
    started.elapsed()
}

#[tokio::test]
async fn an_idle_connection_is_reused_after_longer_than_headers_may_take() {
    let mut connection = TcpStream::connect(start().await).await.unwrap();
    for _ in 0..3 {
        assert!(ask(&mut connection).await.starts_with("HTTP/1.1 200"));
        tokio::time::sleep(BETWEEN).await;
    }
}

#[tokio::test]
async fn an_idle_connection_is_closed_at_its_own_timeout() {
    let mut connection = TcpStream::connect(start().await).await.unwrap();
    ask(&mut connection).await;
    assert!(closed_after(&mut connection).await > BETWEEN);
}

#[tokio::test]
async fn headers_that_trickle_in_close_the_connection_also_after_a_request() {
    let address = start().await;
    for requests_before in [0, 1] {
        let mut connection = TcpStream::connect(address).await.unwrap();
        for _ in 0..requests_before {
            ask(&mut connection).await;
            tokio::time::sleep(BETWEEN).await;
        }
        connection.write_all(b"GET / HTTP/1.1\r\nho").await.unwrap();
        assert!(closed_after(&mut connection).await < BETWEEN, "after {requests_before} requests");
    }
}

#[tokio::test]
async fn a_new_connection_that_says_nothing_is_closed_like_late_headers() {
    let mut connection = TcpStream::connect(start().await).await.unwrap();
    assert!(closed_after(&mut connection).await < BETWEEN);
}
