//! The HTTP server: bounded connections, bounded waiting, graceful end.
//!
//! `axum::serve` has neither a limit on connections nor a timeout for headers,
//! so the accept loop is here.

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

use crate::settings::Http;

/// Out of file descriptors is the usual reason why accepting fails.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// Serves until `shutdown`, then waits, for a bounded time, until every open
/// connection has had its answer.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    http: &Http,
    in_flight: &TaskTracker,
    shutdown: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(http.connections_max));
    let graceful = GracefulShutdown::new();
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(http.read_timeout);
    loop {
        // A client that finds no place waits in the kernel's queue.
        let accepted = async {
            let place = Arc::clone(&places).acquire_owned().await.ok();
            (accept(&listener).await, place)
        };
        let (stream, place) = tokio::select! {
            accepted = accepted => accepted,
            () = shutdown.cancelled() => break,
        };
        let service = outliving(TowerToHyperService::new(router.clone()), in_flight.clone());
        let connection = graceful.watch(builder.serve_connection(TokioIo::new(stream), service));
        // Ends with its connection, or after the answer in flight at shutdown.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection ended early");
            }
            drop(place);
        });
    }
    drop(listener);
    if tokio::time::timeout(http.shutdown_timeout, graceful.shutdown()).await.is_err() {
        tracing::warn!("connections were still open at the end of ingest.shutdown_timeout_ms");
    }
}

/// In the extensions of each request: cancelled when its client hangs up before
/// there is an answer.
#[derive(Debug, Clone)]
pub(crate) struct ClientGone(pub(crate) CancellationToken);

type Routes = TowerToHyperService<Router>;
type Answer = Response<axum::body::Body>;

/// Each request is answered in a task of its own, so that it goes on when its
/// client hangs up and the connection is dropped. Reading the body is part of
/// it: what the client had sent before it hung up still arrives.
fn outliving(
    routes: Routes,
    in_flight: TaskTracker,
) -> impl Service<
    Request<Incoming>,
    Response = Answer,
    Error = JoinError,
    Future: Future<Output = Result<Answer, JoinError>> + Send,
> {
    service_fn(move |mut request: Request<Incoming>| {
        let client = CancellationToken::new();
        request.extensions_mut().insert(ClientGone(client.clone()));
        let answering = in_flight.spawn(routes.call(request));
        async move {
            // Dropped with the connection, unless there is an answer before.
            let connected = client.drop_guard();
            let answer = answering.await.map(|Ok(answer)| answer);
            connected.disarm();
            answer
        }
    })
}

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Answers are small and must not wait for more to send.
                stream.set_nodelay(true).ok();
                return stream;
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a connection");
                tokio::time::sleep(ACCEPT_AGAIN_AFTER).await;
            }
        }
    }
}
