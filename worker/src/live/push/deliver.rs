//! One delivery: a POST as Standard Webhooks says
//! (<https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, StatusCode, header};
use domain::webhook;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use serde_json::json;
use service::{clock, http_client};

use crate::error_chain::chain;
use crate::live::relay;
use crate::settings::PushEndpoint as Endpoint;
use crate::store::changes::ChangeView;

const TIMEOUT: Duration = Duration::from_secs(15);
/// A longer `Retry-After` is a mistake.
const SLOW_DOWN_MAX: Duration = Duration::from_secs(3_600);

/// What came of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Delivered,
    Failed(Failure),
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) why: String,
    /// Nobody is there any more.
    pub(super) is_gone: bool,
    /// It has too much to do, for so long if it says so.
    pub(super) slow_down: Option<Option<Duration>>,
}

/// Follows no redirect, and speaks to no private network unless it may.
pub(super) struct Client(Result<reqwest::Client, String>);

impl Client {
    pub(super) fn new(endpoint: &Endpoint) -> Self {
        if let Some(address) = literal(endpoint)
            && is_private(address)
            && !endpoint.allow_private
        {
            return Self(Err(private(address)));
        }
        let builder = http_client::builder_for(endpoint.url.as_str()).timeout(TIMEOUT);
        let builder = match endpoint.allow_private {
            true => builder,
            false => builder.no_proxy().dns_resolver(Arc::new(PublicOnly)),
        };
        Self(builder.build().map_err(|error| format!("setting up TLS: {}", chain(&error))))
    }

    pub(super) async fn deliver(
        &self,
        endpoint: &Endpoint,
        feed: &str,
        change: &ChangeView,
    ) -> Outcome {
        let client = match &self.0 {
            Ok(client) => client,
            Err(why) => return failed(why.clone()),
        };
        let id = relay::id(feed, change.position);
        let now = clock::now().as_second().to_string();
        let payload =
            json!({ "type": change.r#type, "timestamp": change.recorded_at, "data": change });
        let body = payload.to_string();
        let request = client
            .post(endpoint.url.clone())
            .header(header::CONTENT_TYPE, "application/json")
            .header("webhook-signature", webhook::sign(&endpoint.keys, &id, &now, body.as_bytes()))
            .header("webhook-id", id)
            .header("webhook-timestamp", now);
        match request.body(body).send().await {
            Ok(answer) => outcome(answer.status(), answer.headers()),
            // The URL may hold a secret.
            Err(error) => failed(chain(&error.without_url())),
        }
    }
}

fn outcome(status: StatusCode, headers: &HeaderMap) -> Outcome {
    if status.is_success() {
        return Outcome::Delivered;
    }
    let is_slow = matches!(status.as_u16(), 429 | 502 | 503 | 504);
    let asked = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
    let asked = asked.and_then(|seconds| seconds.trim().parse().ok());
    let asked = asked.map(|seconds| Duration::from_secs(seconds).min(SLOW_DOWN_MAX));
    Outcome::Failed(Failure {
        why: format!("answered {}", status.as_u16()),
        is_gone: status == StatusCode::GONE,
        slow_down: is_slow.then_some(asked),
    })
}

fn failed(why: String) -> Outcome {
    Outcome::Failed(Failure { why, is_gone: false, slow_down: None })
}

/// The address that a URL has in place of a name.
fn literal(endpoint: &Endpoint) -> Option<IpAddr> {
    endpoint.url.host_str()?.trim_matches(['[', ']']).parse().ok()
}

fn private(address: IpAddr) -> String {
    format!("{address} is not a public address; set allow_private if it is meant")
}

fn is_private(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let [first, second, ..] = v4.octets();
            v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_broadcast()
                || first == 0
                || (first == 100 && (64..128).contains(&second)) // RFC 6598
        }
        IpAddr::V6(v6) => {
            v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_multicast()
                || v6.is_unique_local()
                || v6.is_unicast_link_local()
        }
    }
}

/// Names are looked up at each connect, so that none can lead elsewhere later.
struct PublicOnly;

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let (private_ones, public): (Vec<SocketAddr>, Vec<SocketAddr>) =
                found.partition(|address| is_private(address.ip()));
            match (public.is_empty(), private_ones.first()) {
                (true, Some(address)) => Err(private(address.ip()).into()),
                _ => Ok(Box::new(public.into_iter()) as Addrs),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_public_is_known() {
        for address in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "0.0.0.0",
            "100.64.0.1",
            "224.0.0.1",
            "::1",
            "::",
            "fc00::1",
            "fe80::1",
            "::ffff:10.0.0.1",
        ] {
            assert!(is_private(address.parse().unwrap()), "{address}");
        }
        for address in ["8.8.8.8", "100.128.0.1", "172.32.0.1", "2606:4700::1111"] {
            assert!(!is_private(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn an_endpoint_that_has_too_much_to_do_is_left_alone_for_a_while() {
        let told = |seconds: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, seconds.parse().unwrap());
            match outcome(StatusCode::TOO_MANY_REQUESTS, &headers) {
                Outcome::Failed(failure) => failure.slow_down.unwrap(),
                Outcome::Delivered => panic!(),
            }
        };
        assert_eq!(told("7"), Some(Duration::from_secs(7)));
        assert_eq!(told("86400"), Some(SLOW_DOWN_MAX));
        assert_eq!(told("soon"), None);
        let of = |status: u16| outcome(StatusCode::from_u16(status).unwrap(), &HeaderMap::new());
        assert_eq!(of(204), Outcome::Delivered);
        let failed = |status, is_gone| {
            let why = format!("answered {status}");
            Outcome::Failed(Failure { why, is_gone, slow_down: None })
        };
        assert_eq!((of(410), of(302)), (failed(410, true), failed(302, false)));
    }
}
