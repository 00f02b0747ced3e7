//! The proxy variables → the proxy that requests to one endpoint go through.
//!
//! Invariant: the client gets the proxy that is decided on here and reads no variable itself, and a proxy's user name and
//! password are never printed. It must not know who sends the requests.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use percent_encoding::percent_decode_str;
use reqwest::Url;
use zeroize::Zeroizing;

use super::check::Check;
use super::values::{has_host, whole_number};
use super::{is_loopback, quoted};

/// The proxy that every request goes through.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    url: Url,
}

impl Proxy {
    /// Reads it as the variables have it: a URL, or `HOST:PORT`.
    ///
    /// # Errors
    /// What is wrong with it, in words that quote none of it but the scheme.
    fn parse(text: &str) -> Result<Self, String> {
        // The parser of URLs drops some of these.
        if text.contains(|c: char| c.is_whitespace() || c.is_control()) || text.contains(":///") {
            return Err("has a space, a control character or three slashes in it".to_owned());
        }
        let with_scheme = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let url = Url::parse(&with_scheme).map_err(|_| "is not a URL".to_owned())?;
        if !["http", "https"].contains(&url.scheme()) {
            return Err(format!("has the scheme {:?}, which is not supported", url.scheme()));
        }
        if !has_host(&url) || url.port() == Some(0) {
            return Err("has no usable host and port".to_owned());
        }
        if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
            return Err("has more than scheme, user, password, host and port".to_owned());
        }
        Ok(Self { url })
    }

    /// User name and password, as the client sends them; `None` where the proxy asks for neither.
    pub(crate) fn user_and_password(&self) -> Option<Zeroizing<String>> {
        let decoded = |text| percent_decode_str(text).decode_utf8_lossy();
        let (user, password) = (self.url.username(), self.url.password().unwrap_or_default());
        let is_given = !user.is_empty() || !password.is_empty();
        is_given.then(|| Zeroizing::new(format!("{}:{}", decoded(user), decoded(password))))
    }

    /// With user name and password, for the client.
    pub(crate) fn url(&self) -> &Url {
        &self.url
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.url.host_str().unwrap_or_default();
        write!(f, "{}://{host}:{}", self.url.scheme(), self.url.port_or_known_default().unwrap_or_default())
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Check<'_> {
    /// The proxy for the endpoint. Only variables that bear on it are checked: of a broken one for the other scheme, no
    /// request would know.
    pub(super) fn proxy(&mut self, endpoint: &Url) -> Option<Proxy> {
        let of_scheme = match endpoint.scheme() {
            "https" => ["HTTPS_PROXY", "https_proxy"],
            _ => ["HTTP_PROXY", "http_proxy"],
        };
        let (name, text) = self.variable(&of_scheme).or_else(|| self.variable(&["ALL_PROXY", "all_proxy"]))?;
        // A proxy would look for a loopback address on its own machine.
        let exception =
            if is_loopback(endpoint) { Some("the endpoint is on loopback") } else { self.exception(endpoint) };
        if let Some(reason) = exception {
            self.notes.push(format!("requests to the API do not use {name}: {reason}"));
            return None;
        }
        Proxy::parse(&text)
            .map_err(|wrong| {
                self.mistakes.push(format!(
                    "{name} {wrong}: expected an http or https proxy such as http://proxy.example.com:3128"
                ));
            })
            .ok()
    }

    /// Why `NO_PROXY` has the endpoint reached directly, if it does.
    fn exception(&mut self, endpoint: &Url) -> Option<&'static str> {
        let (name, text) = self.variable(&["NO_PROXY", "no_proxy"])?;
        let entries = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|entry| !entry.is_empty());
        let mut bypasses = false;
        for entry in entries {
            match Exception::parse(entry) {
                Some(exception) => bypasses |= exception.covers(endpoint),
                None => self.mistakes.push(format!(
                    "invalid entry {} in {name}: expected a domain, *.DOMAIN, an IP address, a network such as \
                     10.0.0.0/8, one of these with a port, or *",
                    quoted(entry)
                )),
            }
        }
        bypasses.then_some("NO_PROXY covers the endpoint")
    }
}

/// An entry of `NO_PROXY`.
#[derive(Debug, PartialEq)]
enum Exception {
    Everything,
    Network(IpNet),
    Host(Host, Option<u16>),
}

#[derive(Debug, PartialEq)]
enum Host {
    Ip(IpAddr),
    /// The domain, and what is below it.
    Domain(String),
    /// What is below the domain.
    Subdomains(String),
}

impl Exception {
    fn parse(entry: &str) -> Option<Self> {
        if entry == "*" {
            return Some(Self::Everything);
        }
        if let Ok(network) = entry.parse() {
            return Some(Self::Network(network));
        }
        // An IPv6 address needs no brackets where it has no port.
        if let Ok(ip) = entry.parse() {
            return Some(Self::Host(Host::Ip(ip), None));
        }
        let (host, port) = match entry.rsplit_once(':') {
            Some((host, port)) if !entry.ends_with(']') => {
                (host, Some(whole_number(port).filter(|port: &u16| *port > 0)?))
            }
            _ => (entry, None),
        };
        Host::parse(host).map(|host| Self::Host(host, port))
    }

    fn covers(&self, endpoint: &Url) -> bool {
        let host = endpoint.host_str().unwrap_or_default().trim_end_matches('.');
        let ip: Option<IpAddr> = host.trim_matches(['[', ']']).parse().ok();
        match self {
            Self::Everything => true,
            Self::Network(network) => ip.is_some_and(|ip| network.contains(&ip)),
            Self::Host(of, port) => {
                let is_host = match of {
                    Host::Ip(own) => ip == Some(*own),
                    Host::Domain(domain) => host == domain || is_below(host, domain),
                    Host::Subdomains(domain) => is_below(host, domain),
                };
                is_host && port.is_none_or(|port| endpoint.port_or_known_default() == Some(port))
            }
        }
    }
}

impl Host {
    fn parse(text: &str) -> Option<Self> {
        if let Some(ip) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
            return ip.parse().ok().map(|ip| Self::Ip(IpAddr::V6(ip)));
        }
        if let Ok(ip) = text.parse() {
            return Some(Self::Ip(IpAddr::V4(ip)));
        }
        match text.strip_prefix("*.") {
            Some(domain) => normalized(domain).map(Self::Subdomains),
            None => normalized(text.strip_prefix('.').unwrap_or(text)).map(Self::Domain),
        }
    }
}

fn is_below(host: &str, domain: &str) -> bool {
    host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'))
}

/// The domain as a URL has it: lower case, in Punycode, without a dot at its end. `None` where it is none; a URL would
/// take `10.1` for an address.
fn normalized(domain: &str) -> Option<String> {
    let domain = domain.strip_suffix('.').unwrap_or(domain);
    let is_label = |label: &str| !label.is_empty() && label.chars().all(|c| c.is_alphanumeric() || "-_".contains(c));
    let is_numeric = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
    if !domain.split('.').all(is_label) || domain.split('.').next_back().is_some_and(is_numeric) {
        return None;
    }
    Url::parse(&format!("http://{domain}")).ok()?.host_str().map(str::to_owned)
}
