//! When the headers of a request must have arrived: counted from its first
//! byte, so that a connection may be idle for longer.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::Instant;

/// What a connection is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Between two requests.
    Idle,
    /// Until then the headers must have arrived.
    Head(Instant),
    /// A request is read on, or answered.
    Answering,
}

/// The deadline of one connection. A clone is the same deadline.
#[derive(Debug, Clone)]
pub(super) struct HeadDeadline {
    phase: Arc<watch::Sender<Phase>>,
    timeout: Duration,
}

impl HeadDeadline {
    /// Of a new connection, which has to send its first request now.
    pub(super) fn new(timeout: Duration) -> Self {
        let phase = Arc::new(watch::Sender::new(Phase::Head(Instant::now() + timeout)));
        Self { phase, timeout }
    }

    pub(super) fn head_is_complete(&self) {
        self.phase.send_replace(Phase::Answering);
    }

    pub(super) fn is_idle(&self) {
        self.phase.send_replace(Phase::Idle);
    }

    fn bytes_arrived(&self) {
        let deadline = Instant::now() + self.timeout;
        self.phase.send_if_modified(|phase| {
            let begins = *phase == Phase::Idle;
            if begins {
                *phase = Phase::Head(deadline);
            }
            begins
        });
    }

    /// Returns when headers are late.
    pub(super) async fn passed(&self) {
        let mut phase = self.phase.subscribe();
        loop {
            let now = *phase.borrow_and_update();
            match now {
                Phase::Head(deadline) => tokio::select! {
                    () = tokio::time::sleep_until(deadline) => return,
                    changed = phase.changed() => if changed.is_err() { return },
                },
                Phase::Idle | Phase::Answering => {
                    if phase.changed().await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

/// A stream that tells the deadline when bytes arrive.
pub(super) struct Watched<S> {
    stream: S,
    deadline: HeadDeadline,
}

impl<S> Watched<S> {
    pub(super) fn new(stream: S, deadline: HeadDeadline) -> Self {
        Self { stream, deadline }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.deadline.bytes_arrived();
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
