//! Whose connection or request it is, and how many each may have.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use http::HeaderMap;
use http::header::{FORWARDED, HeaderName};
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::Deserialize;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// In the extensions of each request: who sent it, as far as trusted proxies tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientAddress(pub IpAddr);

/// The header in which a proxy says whom it speaks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ForwardedHeader {
    /// A list of addresses.
    #[default]
    XForwardedFor,
    /// [RFC 7239](https://www.rfc-editor.org/rfc/rfc7239).
    Forwarded,
}

/// The proxies that are believed. Whoever else says for whom it speaks is not.
#[derive(Debug, Clone, Default)]
pub struct TrustedProxies {
    pub networks: Vec<IpNet>,
    pub header: ForwardedHeader,
}

impl TrustedProxies {
    pub(super) fn includes(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.networks.iter().any(|network| network.contains(&address))
    }

    /// Each proxy appends who came to it. So the last address that is no proxy of ours
    /// is the client, and what stands before it the client may have invented.
    pub(super) fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        if !self.includes(peer) {
            return peer;
        }
        let mut nearest = peer;
        let name = match self.header {
            ForwardedHeader::XForwardedFor => X_FORWARDED_FOR,
            ForwardedHeader::Forwarded => FORWARDED,
        };
        // A header that is repeated is one list (RFC 9110, section 5.2).
        for value in headers.get_all(name).iter().rev() {
            let Ok(list) = value.to_str() else { return nearest };
            for part in list.rsplit(',') {
                let Some(address) = self.header.address(part.trim()) else { return nearest };
                nearest = address;
                if !self.includes(nearest) {
                    return nearest;
                }
            }
        }
        nearest
    }
}

impl ForwardedHeader {
    fn address(self, part: &str) -> Option<IpAddr> {
        match self {
            Self::XForwardedFor => {
                let port_left_out = || part.parse().ok().map(|it: std::net::SocketAddr| it.ip());
                part.parse().ok().or_else(port_left_out)
            }
            Self::Forwarded => {
                let node = rfc7239::parse(part).next()?.ok()?.forwarded_for?;
                node.ip().copied()
            }
        }
    }
}

/// How many connections and requests each client has.
pub(super) struct Clients {
    present: Mutex<HashMap<IpAddr, usize>>,
    each_max: usize,
}

/// One of a client's; it ends when it is dropped.
pub(super) struct Presence {
    clients: Arc<Clients>,
    client: IpAddr,
}

impl Clients {
    pub(super) fn new(each_max: usize) -> Arc<Self> {
        Arc::new(Self { present: Mutex::default(), each_max })
    }

    /// `None` if the client has its share already.
    pub(super) fn admit(self: &Arc<Self>, address: IpAddr) -> Option<Presence> {
        let client = network(address);
        let mut present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        let count = present.entry(client).or_default();
        if *count >= self.each_max {
            return None;
        }
        *count += 1;
        Some(Presence { clients: Arc::clone(self), client })
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        let mut present = self.clients.present.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = present.get_mut(&self.client) {
            *count = count.saturating_sub(1);
            // What nobody uses is forgotten: there are very many addresses.
            if *count == 0 {
                present.remove(&self.client);
            }
        }
    }
}

/// One client has one address of IPv4, and a network of 64 bits of IPv6.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => {
            let bits = address.to_bits() & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from_bits(bits))
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn client(header: ForwardedHeader, peer: &str, values: &[&str]) -> IpAddr {
        let networks = vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        let name = match header {
            ForwardedHeader::XForwardedFor => X_FORWARDED_FOR,
            ForwardedHeader::Forwarded => FORWARDED,
        };
        let values = values.iter().map(|value| HeaderValue::try_from(*value).unwrap());
        let headers = values.map(|value| (name.clone(), value)).collect();
        TrustedProxies { networks, header }.client(ip(peer), &headers)
    }

    #[test]
    fn the_client_is_the_last_address_that_is_no_proxy_of_ours() {
        use ForwardedHeader::{Forwarded, XForwardedFor};
        let cases: [(_, _, &[&str], _); 12] = [
            (XForwardedFor, "203.0.113.9", &["198.51.100.1"], "203.0.113.9"),
            (XForwardedFor, "10.0.0.1", &["198.51.100.1"], "198.51.100.1"),
            (XForwardedFor, "::ffff:10.0.0.1", &["198.51.100.1"], "198.51.100.1"),
            (XForwardedFor, "10.0.0.1", &["1.2.3.4, 198.51.100.1, 10.0.0.2"], "198.51.100.1"),
            (XForwardedFor, "10.0.0.1", &["1.2.3.4", "198.51.100.1"], "198.51.100.1"),
            (XForwardedFor, "10.0.0.1", &["198.51.100.1:4711"], "198.51.100.1"),
            (XForwardedFor, "10.0.0.1", &["1.2.3.4, nonsense, 10.0.0.2"], "10.0.0.2"),
            (XForwardedFor, "10.0.0.1", &[], "10.0.0.1"),
            (Forwarded, "10.0.0.1", &["for=1.2.3.4, for=198.51.100.1;proto=https"], "198.51.100.1"),
            (Forwarded, "10.0.0.1", &["For=\"[2001:db8::7]:4711\""], "2001:db8::7"),
            (Forwarded, "10.0.0.1", &["for=unknown"], "10.0.0.1"),
            (Forwarded, "10.0.0.1", &["proto=https"], "10.0.0.1"),
        ];
        for (header, peer, values, expected) in cases {
            assert_eq!(client(header, peer, values), ip(expected), "{header:?} {values:?}");
        }
    }

    #[test]
    fn each_client_has_its_share_and_leaves_nothing_behind() {
        let clients = Clients::new(2);
        let first = clients.admit(ip("198.51.100.1"));
        let second = clients.admit(ip("::ffff:198.51.100.1"));
        assert!(first.is_some() && second.is_some());
        assert!(clients.admit(ip("198.51.100.1")).is_none());
        assert!(clients.admit(ip("198.51.100.2")).is_some());
        drop(first);
        let again = clients.admit(ip("198.51.100.1"));
        assert!(again.is_some());
        let of_one_network = ["2001:db8::1", "2001:db8::2", "2001:db8::3"].map(ip);
        let admitted: Vec<_> = of_one_network.map(|it| clients.admit(it)).into_iter().collect();
        assert_eq!(admitted.iter().filter(|it| it.is_some()).count(), 2);
        drop((second, again, admitted));
        assert!(clients.present.lock().unwrap().is_empty());
    }
}
