//! The HTTP server: bounded connections, bounded waiting, graceful end.
//!
//! `axum::serve` has neither a limit on connections nor a timeout for headers,
//! so the accept loop is here. hyper's own timeout for headers counts while a
//! connection is idle, too. A load balancer keeps idle connections for a minute
//! and reuses them; if we closed one meanwhile, it would answer the platform
//! with 502. So idle connections have a timeout of their own.
//!
//! One client has at most its share of the connections. Behind a trusted proxy,
//! which has many clients, it is its requests that are counted.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::StatusCode;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinError;
use tokio_io_timeout::TimeoutWriter;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::problem::Problem;
use crate::telemetry::names::metric;

mod client;
mod head_deadline;
mod ports;
pub mod tls;

pub use client::{ClientAddress, ForwardedHeader, TrustedProxies};
pub use ports::{BindError, Ports};

use client::Clients;
use head_deadline::{HeadDeadline, Watched};
use tls::Tls;

/// Out of file descriptors is the usual reason why accepting fails.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(50);
/// For the head of a request. Beyond it the answer is 431.
const HEAD_BYTES_MAX: usize = 16 * 1_024;
const RETRY_AFTER_S: u32 = 2;

/// What a server allows.
#[derive(Debug, Clone)]
pub struct Limits {
    pub connections_max: usize,
    /// Connections of one client, or its requests in flight where it comes by a
    /// trusted proxy.
    pub connections_per_client_max: usize,
    pub trusted_proxies: TrustedProxies,
    /// From the first byte of a request, or of a new connection, to the end of
    /// its headers.
    pub head_timeout: Duration,
    /// Between two requests of a connection.
    pub idle_timeout: Duration,
    /// For a client to take some of an answer.
    pub write_timeout: Duration,
    /// For open connections to get their answers at the end.
    pub shutdown_timeout: Duration,
}

/// Where connections come in.
pub struct Listener {
    tcp: TcpListener,
    tls: Option<Tls>,
}

impl Listener {
    pub fn new(tcp: TcpListener, tls: Option<Tls>) -> Self {
        Self { tcp, tls }
    }
}

impl From<TcpListener> for Listener {
    fn from(tcp: TcpListener) -> Self {
        Self { tcp, tls: None }
    }
}

/// What each connection is served with.
#[derive(Clone)]
struct Door {
    router: Router,
    limits: Arc<Limits>,
    clients: Arc<Clients>,
    in_flight: TaskTracker,
}

/// Serves until `shutdown`, then waits, for a bounded time, until every open
/// connection has had its answer.
pub async fn serve(
    listener: impl Into<Listener>,
    router: Router,
    limits: Limits,
    in_flight: &TaskTracker,
    shutdown: CancellationToken,
) {
    let Listener { tcp, tls } = listener.into();
    let slots = Arc::new(Semaphore::new(limits.connections_max));
    let refused = metric::HTTP_CLIENTS_REFUSED.counter(&opentelemetry::global::meter("mooring"));
    let clients = Clients::new(limits.connections_per_client_max);
    let (limits, in_flight) = (Arc::new(limits), in_flight.clone());
    let door = Door { router, limits: Arc::clone(&limits), clients, in_flight };
    let graceful = GracefulShutdown::new();
    loop {
        // A client that finds no slot waits in the kernel's queue.
        let accepted = async {
            let slot = Arc::clone(&slots).acquire_owned().await.ok();
            (accept(&tcp).await, slot)
        };
        let ((stream, peer), slot) = tokio::select! {
            accepted = accepted => accepted,
            () = shutdown.cancelled() => break,
        };
        let presence = if limits.trusted_proxies.includes(peer) {
            None
        } else if let Some(presence) = door.clients.admit(peer) {
            Some(presence)
        } else {
            refused.add(1, &[]);
            tracing::debug!(%peer, "it has its share of the connections");
            continue;
        };
        let (door, tls, watcher) = (door.clone(), tls.clone(), graceful.watcher());
        // Ends with its connection, or after the answer in flight at shutdown.
        tokio::spawn(async move {
            let deadline = HeadDeadline::new(door.limits.head_timeout);
            let serving = Box::pin(door.serve(stream, peer, tls, deadline.clone(), watcher));
            tokio::select! {
                () = serving => {}
                () = deadline.passed() => tracing::debug!("headers did not arrive in time"),
            }
            drop((slot, presence));
        });
    }
    drop(tcp);
    if tokio::time::timeout(limits.shutdown_timeout, graceful.shutdown()).await.is_err() {
        tracing::warn!("connections were still open at the end of shutdown_timeout_ms");
    }
}

impl Door {
    async fn serve(
        self,
        stream: TcpStream,
        peer: IpAddr,
        tls: Option<Tls>,
        deadline: HeadDeadline,
        watcher: Watcher,
    ) {
        match tls {
            None => self.answer(stream, peer, deadline, watcher).await,
            // The time for the head of a request is for the handshake, too.
            Some(tls) => match tls.accept(stream).await {
                Ok(stream) => self.answer(stream, peer, deadline, watcher).await,
                Err(error) => tracing::debug!(%error, %peer, "no TLS"),
            },
        }
    }

    async fn answer<S: AsyncRead + AsyncWrite + Send + 'static>(
        self,
        stream: S,
        peer: IpAddr,
        deadline: HeadDeadline,
        watcher: Watcher,
    ) {
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.idle_timeout)
            .max_buf_size(HEAD_BYTES_MAX);
        let mut stream = TimeoutWriter::new(stream);
        stream.set_timeout(Some(self.limits.write_timeout));
        let io = TokioIo::new(Watched::new(Box::pin(stream), deadline.clone()));
        let service = self.outliving(peer, deadline);
        let ended = watcher.watch(builder.serve_connection(io, service)).await;
        if let Err(error) = ended {
            tracing::debug!(%error, "connection ended early");
        }
    }

    /// Each request is answered in a task of its own, so that it goes on when its
    /// client hangs up and the connection is dropped. Reading the body is part of
    /// it: what the client had sent before it hung up still arrives.
    fn outliving(
        self,
        peer: IpAddr,
        deadline: HeadDeadline,
    ) -> impl Service<
        Request<Incoming>,
        Response = Answer,
        Error = JoinError,
        Future: Future<Output = Result<Answer, JoinError>> + Send,
    > {
        let by_proxy = self.limits.trusted_proxies.includes(peer);
        let routes = TowerToHyperService::new(self.router.clone());
        service_fn(move |mut request: Request<Incoming>| {
            deadline.head_is_complete();
            let client = CancellationToken::new();
            let (address, admitted) = if by_proxy {
                let address = self.limits.trusted_proxies.client(peer, request.headers());
                (address, self.clients.admit(address).map(Some))
            } else {
                (peer, Some(None)) // its connection is counted
            };
            request.extensions_mut().insert(ClientGone(client.clone()));
            request.extensions_mut().insert(ClientAddress(address));
            let answering = admitted.map(|presence| {
                let answer = routes.call(request);
                self.in_flight.spawn(async move {
                    let answer = answer.await;
                    drop(presence);
                    answer
                })
            });
            let deadline = deadline.clone();
            async move {
                let Some(answering) = answering else {
                    deadline.is_idle();
                    return Ok(too_many(address));
                };
                // Dropped with the connection, unless there is an answer before.
                let connected = client.drop_guard();
                let answer = answering.await.map(|Ok(answer)| answer);
                connected.disarm();
                deadline.is_idle();
                answer
            }
        })
    }
}

/// In the extensions of each request: cancelled when its client hangs up before
/// there is an answer.
#[derive(Debug, Clone)]
pub struct ClientGone(pub CancellationToken);

type Answer = Response<Body>;

fn too_many(client: IpAddr) -> Answer {
    let refused = metric::HTTP_CLIENTS_REFUSED.counter(&opentelemetry::global::meter("mooring"));
    refused.add(1, &[]);
    tracing::debug!(%client, "it has its share of the requests");
    let detail = "too many requests of this client are in flight";
    let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "too-many-requests", detail);
    problem.retry_after(RETRY_AFTER_S).response()
}

async fn accept(listener: &TcpListener) -> (TcpStream, IpAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                // Answers are small and must not wait for more to send.
                stream.set_nodelay(true).ok();
                return (stream, peer.ip());
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a connection");
                tokio::time::sleep(ACCEPT_AGAIN_AFTER).await;
            }
        }
    }
}
