//! HTTP clients, with TLS by rustls and ring.

use reqwest::ClientBuilder;
use reqwest::redirect::Policy;

/// A client that follows no redirect: what it is given may be secret.
pub fn builder() -> ClientBuilder {
    use_ring();
    ClientBuilder::new().redirect(Policy::none())
}

/// For every TLS client of this process, the exporters' included.
pub fn use_ring() {
    // A second time it is refused, and right already.
    rustls::crypto::ring::default_provider().install_default().ok();
}
