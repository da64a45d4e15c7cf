//! The HTTP server: bounded connections, bounded waiting, graceful end.
//!
//! `axum::serve` has neither a limit on connections nor a timeout for headers,
//! so the accept loop is here. hyper's own timeout for headers counts while a
//! connection is idle, too. A load balancer keeps idle connections for a minute
//! and reuses them; if we closed one meanwhile, it would answer the platform
//! with 502. So idle connections have a timeout of their own.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinError;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

mod head_deadline;

use head_deadline::{HeadDeadline, Watched};

/// Out of file descriptors is the usual reason why accepting fails.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// What a server allows.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub connections_max: usize,
    /// From the first byte of a request, or of a new connection, to the end of
    /// its headers.
    pub head_timeout: Duration,
    /// Between two requests of a connection.
    pub idle_timeout: Duration,
    /// For open connections to get their answers at the end.
    pub shutdown_timeout: Duration,
}

/// Serves until `shutdown`, then waits, for a bounded time, until every open
/// connection has had its answer.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    in_flight: &TaskTracker,
    shutdown: CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(limits.connections_max));
    let graceful = GracefulShutdown::new();
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(limits.idle_timeout);
    loop {
        // A client that finds no slot waits in the kernel's queue.
        let accepted = async {
            let slot = Arc::clone(&slots).acquire_owned().await.ok();
            (accept(&listener).await, slot)
        };
        let ((stream, client), slot) = tokio::select! {
            accepted = accepted => accepted,
            () = shutdown.cancelled() => break,
        };
        let deadline = HeadDeadline::new(limits.head_timeout);
        let routes = TowerToHyperService::new(router.clone());
        let service = outliving(routes, in_flight.clone(), deadline.clone(), client);
        let io = TokioIo::new(Watched::new(stream, deadline.clone()));
        let connection = graceful.watch(builder.serve_connection(io, service));
        // Ends with its connection, or after the answer in flight at shutdown.
        tokio::spawn(async move {
            tokio::select! {
                ended = connection => if let Err(error) = ended {
                    tracing::debug!(%error, "connection ended early");
                },
                () = deadline.passed() => tracing::debug!("headers did not arrive in time"),
            }
            drop(slot);
        });
    }
    drop(listener);
    if tokio::time::timeout(limits.shutdown_timeout, graceful.shutdown()).await.is_err() {
        tracing::warn!("connections were still open at the end of shutdown_timeout_ms");
    }
}

/// In the extensions of each request: cancelled when its client hangs up before
/// there is an answer.
#[derive(Debug, Clone)]
pub struct ClientGone(pub CancellationToken);

/// In the extensions of each request: where it comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientAddress(pub IpAddr);

type Routes = TowerToHyperService<Router>;
type Answer = Response<axum::body::Body>;

/// Each request is answered in a task of its own, so that it goes on when its
/// client hangs up and the connection is dropped. Reading the body is part of
/// it: what the client had sent before it hung up still arrives.
fn outliving(
    routes: Routes,
    in_flight: TaskTracker,
    deadline: HeadDeadline,
    client_address: ClientAddress,
) -> impl Service<
    Request<Incoming>,
    Response = Answer,
    Error = JoinError,
    Future: Future<Output = Result<Answer, JoinError>> + Send,
> {
    service_fn(move |mut request: Request<Incoming>| {
        deadline.head_is_complete();
        let client = CancellationToken::new();
        request.extensions_mut().insert(ClientGone(client.clone()));
        request.extensions_mut().insert(client_address);
        let answering = in_flight.spawn(routes.call(request));
        let deadline = deadline.clone();
        async move {
            // Dropped with the connection, unless there is an answer before.
            let connected = client.drop_guard();
            let answer = answering.await.map(|Ok(answer)| answer);
            connected.disarm();
            deadline.is_idle();
            answer
        }
    })
}

async fn accept(listener: &TcpListener) -> (TcpStream, ClientAddress) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                // Answers are small and must not wait for more to send.
                stream.set_nodelay(true).ok();
                return (stream, ClientAddress(peer.ip()));
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a connection");
                tokio::time::sleep(ACCEPT_AGAIN_AFTER).await;
            }
        }
    }
}
