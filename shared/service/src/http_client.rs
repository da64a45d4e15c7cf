//! HTTP clients, with TLS by rustls and ring.

use reqwest::ClientBuilder;
use reqwest::redirect::Policy;

/// A client that follows no redirect: what it is given may be secret.
pub fn builder() -> ClientBuilder {
    use_ring();
    ClientBuilder::new().redirect(Policy::none())
}

/// The same for one address: without the system's certificates, a few megabytes, where it needs
/// none.
pub fn builder_for(url: &str) -> ClientBuilder {
    if url.starts_with("https:") { builder() } else { builder().tls_certs_only([]) }
}

/// For every TLS client of this process, the exporters' included.
pub fn use_ring() {
    // A second time it is refused, and right already.
    rustls::crypto::ring::default_provider().install_default().ok();
}
