//! The server's limits, over real connections.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::get;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use service::http_client;
use service::server::tls::{Loaded, TlsSettings};
use service::server::{self, Limits, Listener, TrustedProxies};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const HEAD_TIMEOUT: Duration = Duration::from_millis(300);
const IDLE_TIMEOUT: Duration = Duration::from_secs(2);
const WRITE_TIMEOUT: Duration = Duration::from_millis(500);
/// Between the two: an idle connection is still open, late headers are not awaited.
const BETWEEN: Duration = Duration::from_secs(1);
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: test\r\n\r\n";
/// More than the kernel buffers for a connection.
const LARGE: usize = 32 << 20;

fn limits() -> Limits {
    Limits {
        connections_max: 8,
        connections_per_client_max: 8,
        trusted_proxies: TrustedProxies::default(),
        head_timeout: HEAD_TIMEOUT,
        idle_timeout: IDLE_TIMEOUT,
        write_timeout: WRITE_TIMEOUT,
        shutdown_timeout: Duration::from_secs(1),
    }
}

async fn start() -> SocketAddr {
    start_with(limits()).await
}

async fn start_with(limits: Limits) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    serve(listener, limits, Router::new())
}

/// Beside what a test needs, it answers at once at `/`, and much at `/large`.
fn serve(listener: TcpListener, limits: Limits, more: Router) -> SocketAddr {
    let address = listener.local_addr().unwrap();
    tokio::spawn(server_of(listener.into(), limits, more));
    address
}

async fn server_of(listener: Listener, limits: Limits, more: Router) {
    let router = more
        .route("/", get(|| async { "ok" }))
        .route("/large", get(|| async { vec![b'x'; LARGE] }));
    let (in_flight, shutdown) = (TaskTracker::new(), CancellationToken::new());
    server::serve(listener, router, limits, &in_flight, shutdown).await;
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

/// A connection from another address of this machine.
async fn connect_from(client: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((IpAddr::from(client), 0))).unwrap();
    socket.connect(to).await.unwrap()
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

#[tokio::test]
async fn one_client_takes_its_share_of_the_connections_and_no_more() {
    let address = start_with(Limits { connections_per_client_max: 2, ..limits() }).await;
    let stranger = [127, 0, 0, 2];
    let mut held = [connect_from(stranger, address).await, connect_from(stranger, address).await];
    for connection in &mut held {
        ask(connection).await;
    }
    let mut third = connect_from(stranger, address).await;
    assert!(closed_after(&mut third).await < BETWEEN);
    assert!(ask(&mut connect_from([127, 0, 0, 3], address).await).await.contains("200"));
    // What it gives back, it may have again.
    drop(held);
    let mut again = false;
    for _ in 0..50 {
        let mut connection = connect_from(stranger, address).await;
        connection.write_all(REQUEST).await.ok();
        let mut first = [0; 12];
        again = connection.read_exact(&mut first).await.is_ok();
        if again {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(again);
}

#[tokio::test]
async fn behind_a_trusted_proxy_each_client_has_its_share_of_the_requests() {
    let networks = vec!["127.0.0.1/32".parse().unwrap()];
    let trusted_proxies = TrustedProxies { networks, ..TrustedProxies::default() };
    let limits = Limits { connections_per_client_max: 2, trusted_proxies, ..limits() };
    let released = Arc::new(Notify::new());
    let wait = Arc::clone(&released);
    let slow = get(move || async move {
        wait.notified().await;
        "slow"
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = serve(listener, limits, Router::new().route("/slow", slow));
    let by_proxy = async |path: &str, client: &str, from: [u8; 4]| {
        let mut connection = connect_from(from, address).await;
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: test\r\nx-forwarded-for: {client}\r\n\r\n");
        connection.write_all(request.as_bytes()).await.unwrap();
        connection
    };
    let status = async |mut connection: TcpStream| {
        let mut line = [0; 12];
        connection.read_exact(&mut line).await.unwrap();
        String::from_utf8_lossy(&line[9..]).into_owned()
    };
    let proxy = [127, 0, 0, 1];
    // It invents an address in front of its own.
    let held = [
        by_proxy("/slow", "198.51.100.1", proxy).await,
        by_proxy("/slow", "203.0.113.5, 198.51.100.1", proxy).await,
    ];
    let refused =
        async || status(by_proxy("/", "203.0.113.77, 198.51.100.1", proxy).await).await == "429";
    let mut is_refused = false;
    for _ in 0..50 {
        is_refused = refused().await;
        if is_refused {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(is_refused);
    assert_eq!(status(by_proxy("/", "198.51.100.2", proxy).await).await, "200");
    // Who is no proxy of ours speaks for itself.
    assert_eq!(status(by_proxy("/", "198.51.100.1", [127, 0, 0, 9]).await).await, "200");
    released.notify_waiters();
    for connection in held {
        assert_eq!(status(connection).await, "200");
    }
    assert_eq!(status(by_proxy("/", "198.51.100.1", proxy).await).await, "200");
}

#[tokio::test]
async fn who_takes_nothing_of_an_answer_does_not_hold_the_connection() {
    let address = start_with(Limits { connections_max: 1, ..limits() }).await;
    let mut slow = TcpStream::connect(address).await.unwrap();
    slow.write_all(b"GET /large HTTP/1.1\r\nhost: test\r\n\r\n").await.unwrap();
    let started = Instant::now();
    let mut next = TcpStream::connect(address).await.unwrap();
    assert!(ask(&mut next).await.contains("200"));
    assert!(started.elapsed() < 4 * WRITE_TIMEOUT, "{:?}", started.elapsed());
    drop(slow);
}

#[tokio::test]
async fn headers_of_more_than_16_kib_are_refused() {
    let address = start().await;
    let with_header = async |bytes: usize| {
        let mut connection = TcpStream::connect(address).await.unwrap();
        let header = "x".repeat(bytes);
        let request = format!("GET / HTTP/1.1\r\nhost: test\r\nx-long: {header}\r\n\r\n");
        connection.write_all(request.as_bytes()).await.unwrap();
        let mut line = [0; 12];
        connection.read_exact(&mut line).await.unwrap();
        String::from_utf8_lossy(&line[9..]).into_owned()
    };
    assert_eq!(with_header(12 * 1_024).await, "200");
    assert_eq!(with_header(20 * 1_024).await, "431");
}

/// Who issues certificates.
fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A certificate and its key in PEM.
fn issue(by: &CertifiedIssuer<'static, KeyPair>, name: &str) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    (params.signed_by(&key, by).unwrap().pem(), key.serialize_pem())
}

fn write(folder: &Path, (certificate, key): &(String, String)) {
    std::fs::write(folder.join("certificate.pem"), certificate).unwrap();
    std::fs::write(folder.join("key.pem"), key).unwrap();
}

async fn start_tls(folder: &Path, client_ca: Option<&str>) -> SocketAddr {
    let settings = TlsSettings {
        certificate: folder.join("certificate.pem"),
        key: folder.join("key.pem"),
        client_ca: client_ca.map(|name| folder.join(name)),
    };
    let tls = Loaded::read(&settings).unwrap().follow(CancellationToken::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(server_of(Listener::new(listener, Some(tls)), limits(), Router::new()));
    address
}

/// What one answers who trusts this authority only, and shows this identity.
async fn ask_by_tls(
    address: SocketAddr,
    trusted: &CertifiedIssuer<'static, KeyPair>,
    identity: Option<&(String, String)>,
) -> Option<String> {
    let root = reqwest::Certificate::from_pem(trusted.pem().as_bytes()).unwrap();
    let mut client = http_client::builder().no_proxy().tls_certs_only([root]);
    if let Some((certificate, key)) = identity {
        let pem = format!("{certificate}{key}");
        client = client.identity(reqwest::Identity::from_pem(pem.as_bytes()).unwrap());
    }
    let client = client.resolve("server.test", address).build().unwrap();
    let url = format!("https://server.test:{}/", address.port());
    client.get(url).send().await.ok()?.text().await.ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_is_used_without_a_restart_and_a_broken_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let (before, after) = (authority("before"), authority("after"));
    write(folder.path(), &issue(&before, "server.test"));
    let address = start_tls(folder.path(), None).await;
    assert_eq!(ask_by_tls(address, &before, None).await.as_deref(), Some("ok"));
    assert_eq!(ask_by_tls(address, &after, None).await, None);
    // Plain HTTP is no way in.
    let mut plain = TcpStream::connect(address).await.unwrap();
    plain.write_all(REQUEST).await.unwrap();
    let mut answer = Vec::new();
    plain.read_to_end(&mut answer).await.ok();
    assert!(!String::from_utf8_lossy(&answer).contains("200 OK"));

    std::fs::write(folder.path().join("certificate.pem"), "broken").unwrap();
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(ask_by_tls(address, &before, None).await.as_deref(), Some("ok"));
    write(folder.path(), &issue(&after, "server.test"));
    let started = Instant::now();
    while ask_by_tls(address, &after, None).await.is_none() {
        assert!(started.elapsed() < Duration::from_secs(30), "it is not read again");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_client_ca_only_its_clients_come_in() {
    let folder = tempfile::tempdir().unwrap();
    let (ours, other) = (authority("ours"), authority("other"));
    write(folder.path(), &issue(&ours, "server.test"));
    std::fs::write(folder.path().join("clients.pem"), ours.pem()).unwrap();
    let address = start_tls(folder.path(), Some("clients.pem")).await;
    let (known, stranger) = (issue(&ours, "client"), issue(&other, "client"));
    assert_eq!(ask_by_tls(address, &ours, Some(&known)).await.as_deref(), Some("ok"));
    assert_eq!(ask_by_tls(address, &ours, Some(&stranger)).await, None);
    assert_eq!(ask_by_tls(address, &ours, None).await, None);
}

#[test]
fn files_that_are_no_certificate_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let settings = TlsSettings {
        certificate: folder.path().join("certificate.pem"),
        key: folder.path().join("key.pem"),
        client_ca: None,
    };
    let why = || Loaded::read(&settings).err().unwrap().to_string();
    assert!(why().contains("certificate.pem cannot be read"), "{}", why());
    let ours = authority("ours");
    let (certificate, _) = issue(&ours, "server.test");
    let (_, other_key) = issue(&ours, "server.test");
    write(folder.path(), &(String::new(), other_key.clone()));
    assert!(why().contains("holds no certificate"), "{}", why());
    write(folder.path(), &(certificate.clone(), String::new()));
    assert!(why().contains("key.pem does not hold a private key"), "{}", why());
    write(folder.path(), &(certificate, other_key));
    assert!(why().contains("certificate.pem"), "{}", why());
}
