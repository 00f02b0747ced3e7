//! The source of a connection: clients are told apart by their address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

/// A client by its IPv4 address, or by the /64 of its IPv6 address: one IPv6 host usually has a whole /64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Source(IpAddr);

impl From<IpAddr> for Source {
    fn from(peer: IpAddr) -> Self {
        Self(match peer.to_canonical() {
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
            address @ IpAddr::V4(_) => address,
        })
    }
}

/// How often each source occurs.
pub(super) fn counts(sources: impl Iterator<Item = Source>) -> HashMap<Source, usize> {
    let mut counts = HashMap::new();
    for source in sources {
        *counts.entry(source).or_default() += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_source_is_its_network() {
        let source = |text: &str| Source::from(text.parse::<IpAddr>().unwrap()).0.to_string();
        assert_eq!(source("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(source("::ffff:192.0.2.1"), "192.0.2.1");
    }
}
