//! The `Host` header of a request (RFC 9112, section 3.2).

use std::net::Ipv6Addr;

use hyper::Version;
use hyper::header::{self, HeaderMap};
use hyper::http::uri::Authority;

/// Whether the request names its host as its version demands: exactly once in HTTP/1.1, at most once in HTTP/1.0 and in
/// HTTP/2, whose `:authority` stands in for it.
pub(super) fn is_valid(version: Version, headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) => version != Version::HTTP_11,
        (Some(host), None) => host.to_str().is_ok_and(is_host),
        (Some(_), Some(_)) => false,
    }
}

/// `host[:port]`, or nothing, which is what a client sends if its URL has no host.
fn is_host(text: &str) -> bool {
    let Ok(authority) = text.parse::<Authority>() else { return text.is_empty() };
    let host = authority.host();
    let Some(port) = text.strip_prefix(host) else { return false };
    let is_address = |inside: &str| inside.strip_suffix(']').is_some_and(|inside| inside.parse::<Ipv6Addr>().is_ok());
    !host.is_empty()
        && host.strip_prefix('[').is_none_or(is_address)
        && port.strip_prefix(':').unwrap_or(port).bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    #[test]
    fn a_host_is_a_name_or_an_address_with_or_without_a_port() {
        for text in ["", "a", "a.example:10980", "192.0.2.1", "[::1]", "[2001:db8::1]:80", "a:", "a_b", "xn--bcher-kva"]
        {
            assert!(is_host(text), "{text:?}");
        }
        for text in [
            "a b", "a/b", "user@a", "a:b", "a:80:80", "http://a", "a?b", "a#b", "[::1", "::1", "[::1]x", "[a]", "a, b",
            "é", ":80",
        ] {
            assert!(!is_host(text), "{text:?}");
        }
    }

    #[test]
    fn how_often_it_is_sent_depends_on_the_version() {
        let versions = [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2];
        for (hosts, expected) in [(0, [true, false, true]), (1, [true; 3]), (2, [false; 3])] {
            let mut headers = HeaderMap::new();
            for _ in 0..hosts {
                headers.append(header::HOST, HeaderValue::from_static("a"));
            }
            assert_eq!(versions.map(|version| is_valid(version, &headers)), expected);
        }
    }
}
