//! TLS of a server. Certificate and key come from files, which are read again when
//! they change, so that a renewed certificate needs no restart.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::{Error as PemError, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::http_client;

const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Where TLS finds what it needs, in PEM.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TlsSettings {
    /// The file with the certificate, and those between it and the root.
    pub certificate: PathBuf,
    /// The file with its private key.
    pub key: PathBuf,
    /// The file with the certificates of who issues those of clients. If it is given, each client
    /// must have one.
    pub client_ca: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("the file {path} cannot be read: {why}")]
    File { path: PathBuf, why: io::Error },
    #[error("the file {path} does not hold {expected} in PEM: {why}")]
    Pem { path: PathBuf, expected: &'static str, why: PemError },
    #[error("the file {path} holds no certificate")]
    NoCertificate { path: PathBuf },
    #[error("{path}: {why}")]
    Unusable { path: PathBuf, why: rustls::Error },
    #[error("{path}: {why}")]
    ClientCa { path: PathBuf, why: VerifierBuilderError },
}

/// The files as they were read.
#[derive(PartialEq, Eq)]
struct Content {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

impl TlsSettings {
    fn read(&self) -> Result<Content, TlsError> {
        let read = |path: &PathBuf| {
            std::fs::read(path).map_err(|why| TlsError::File { path: path.clone(), why })
        };
        Ok(Content {
            certificate: read(&self.certificate)?,
            key: read(&self.key)?,
            client_ca: self.client_ca.as_ref().map(read).transpose()?,
        })
    }

    fn config(&self, content: &Content) -> Result<Arc<ServerConfig>, TlsError> {
        http_client::use_ring();
        let chain = certificates(&self.certificate, &content.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&content.key).map_err(|why| TlsError::Pem {
            path: self.key.clone(),
            expected: "a private key",
            why,
        })?;
        let builder = match self.client_ca.as_ref().zip(content.client_ca.as_ref()) {
            None => ServerConfig::builder().with_no_client_auth(),
            Some((path, text)) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(path, text)? {
                    roots
                        .add(certificate)
                        .map_err(|why| TlsError::Unusable { path: path.clone(), why })?;
                }
                let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build();
                let verifier =
                    verifier.map_err(|why| TlsError::ClientCa { path: path.clone(), why })?;
                ServerConfig::builder().with_client_cert_verifier(verifier)
            }
        };
        let unusable = |why| TlsError::Unusable { path: self.certificate.clone(), why };
        let mut config = builder.with_single_cert(chain, key).map_err(unusable)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

fn certificates(path: &Path, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    let expected = "certificates";
    let all = all.map_err(|why| TlsError::Pem { path: path.to_owned(), expected, why })?;
    if all.is_empty() {
        return Err(TlsError::NoCertificate { path: path.to_owned() });
    }
    Ok(all)
}

/// What connections are encrypted with, as it is now.
#[derive(Clone)]
pub struct Tls(watch::Receiver<Arc<ServerConfig>>);

/// Files that were read and are usable.
pub struct Loaded {
    settings: TlsSettings,
    content: Content,
    config: Arc<ServerConfig>,
}

impl Loaded {
    pub fn read(settings: &TlsSettings) -> Result<Self, TlsError> {
        let content = settings.read()?;
        let config = settings.config(&content)?;
        Ok(Self { settings: settings.clone(), content, config })
    }

    /// Starts the task that reads the files again, until `shutdown`. Files that are not
    /// usable change nothing.
    pub fn follow(self, shutdown: CancellationToken) -> Tls {
        let Self { settings, mut content, config } = self;
        let (sender, receiver) = watch::channel(config);
        tokio::spawn(async move {
            let mut last_problem = String::new();
            loop {
                tokio::select! {
                    () = tokio::time::sleep(LOOK_EVERY) => {}
                    () = shutdown.cancelled() => return,
                }
                let read = settings.read().and_then(|read| {
                    let changed =
                        if read == content { None } else { Some(settings.config(&read)?) };
                    Ok((read, changed))
                });
                match read {
                    Ok((read, Some(config))) => {
                        content = read;
                        last_problem.clear();
                        tracing::info!("the TLS certificate has changed");
                        sender.send_replace(config);
                    }
                    Ok((_, None)) => last_problem.clear(),
                    Err(error) => {
                        let problem = error.to_string();
                        if problem != last_problem {
                            tracing::error!(problem, "the TLS certificate stays as it was");
                            last_problem = problem;
                        }
                    }
                }
            }
        });
        Tls(receiver)
    }
}

impl Tls {
    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let config = Arc::clone(&self.0.borrow());
        TlsAcceptor::from(config).accept(stream).await
    }
}
