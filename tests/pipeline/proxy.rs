//! A network between services and a server that can be broken: nothing comes through, with
//! connections that stay open; everything is late; or connections are cut.

use std::future::pending;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Network {
    Whole,
    /// Nothing comes through on every connection, or on every second one.
    Silent {
        half: bool,
    },
    Slow(Duration),
}

/// In front of one server.
#[derive(Clone)]
pub(crate) struct Proxy {
    pub(crate) port: u16,
    network: watch::Sender<Network>,
    cuts: watch::Sender<u64>,
    count: Arc<AtomicUsize>,
    /// Connections with a lower number are dead.
    forgotten: watch::Sender<usize>,
}

impl Proxy {
    pub(crate) async fn start(to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let proxy = Self {
            port,
            network: watch::Sender::new(Network::Whole),
            cuts: watch::Sender::new(0),
            count: Arc::default(),
            forgotten: watch::Sender::new(0),
        };
        let accepting = proxy.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let number = accepting.count.fetch_add(1, Ordering::Relaxed);
                let (network, mut cut) =
                    (accepting.network.subscribe(), accepting.cuts.subscribe());
                let mut forgotten = accepting.forgotten.subscribe();
                tokio::spawn(async move {
                    let Ok(server) = TcpStream::connect(("127.0.0.1", to)).await else { return };
                    client.set_nodelay(true).ok();
                    server.set_nodelay(true).ok();
                    let (from_client, to_client) = client.into_split();
                    let (from_server, to_server) = server.into_split();
                    let mut there = pin!(carry(from_client, to_server, network.clone(), number));
                    let mut back = pin!(carry(from_server, to_client, network, number));
                    let is_forgotten = async {
                        forgotten.wait_for(|below| number < *below).await.ok();
                    };
                    tokio::select! {
                        () = &mut there => {}
                        () = &mut back => {}
                        _ = cut.changed() => {}
                        // Both ends stay open.
                        () = is_forgotten => pending().await,
                    }
                });
            }
        });
        proxy
    }

    pub(crate) fn set(&self, network: Network) {
        self.network.send_replace(network);
    }

    /// Of every connection that is open now nothing comes through any more, and neither side is
    /// told. New ones are whole.
    pub(crate) fn forget(&self) {
        let open = self.count.load(Ordering::Relaxed);
        self.forgotten.send_replace(open);
    }

    /// Ends every connection.
    pub(crate) fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }
}

async fn carry(
    mut from: impl tokio::io::AsyncRead + Unpin,
    mut to: impl tokio::io::AsyncWrite + Unpin,
    mut network: watch::Receiver<Network>,
    number: usize,
) {
    let is_silent = |network: Network| match network {
        Network::Silent { half } => !half || number.is_multiple_of(2),
        Network::Whole | Network::Slow(_) => false,
    };
    let mut buffer = vec![0; 64 * 1_024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        // What was read goes on when the network is whole again, as TCP would send it again.
        if network.wait_for(|network| !is_silent(*network)).await.is_err() {
            return;
        }
        let late = match *network.borrow() {
            Network::Slow(late) => late,
            Network::Whole | Network::Silent { .. } => Duration::ZERO,
        };
        tokio::time::sleep(late).await;
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
