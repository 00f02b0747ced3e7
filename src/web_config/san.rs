//! The names a certificate has for its subject, and whether it is for servers, read from its DER.
//!
//! Invariant: any bytes give an answer or `None`, since a client may send what it likes. It must not know who is allowed.

use std::net::{IpAddr, Ipv6Addr};

const SEQUENCE: u8 = 0x30;
const OBJECT_IDENTIFIER: u8 = 0x06;
const OCTET_STRING: u8 = 0x04;
/// The `[3]` around the extensions of a certificate (RFC 5280, section 4.1).
const EXTENSIONS: u8 = 0xa3;
/// `id-ce-subjectAltName`, 2.5.29.17.
const SUBJECT_ALT_NAME: [u8; 3] = [0x55, 0x1d, 0x11];
/// Choices of a `GeneralName` (RFC 5280, section 4.2.1.6).
const EMAIL: u8 = 0x81;
const DNS: u8 = 0x82;
const URI: u8 = 0x86;
const IP: u8 = 0x87;

/// `id-ce-extKeyUsage`, 2.5.29.37, and `id-kp-serverAuth`, 1.3.6.1.5.5.7.3.1.
const EXTENDED_KEY_USAGE: [u8; 3] = [0x55, 0x1d, 0x25];
const SERVER_AUTH: [u8; 8] = [0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01];

/// Its DNS names, e-mail addresses, URIs and IP addresses as text; `None` where it is no certificate.
pub(super) fn names(certificate: &[u8]) -> Option<Vec<String>> {
    match extension(certificate, SUBJECT_ALT_NAME)? {
        Some(names) => general_names(names),
        None => Some(Vec::new()),
    }
}

/// Whether it may be a server's: it names that purpose, or none at all (RFC 5280, section 4.2.1.12).
pub(crate) fn is_for_servers(certificate: &[u8]) -> bool {
    let purposes = |value| {
        let (mut rest, _) = expect(value, SEQUENCE)?;
        let mut is_named = false;
        while !rest.is_empty() {
            let (purpose, after) = expect(rest, OBJECT_IDENTIFIER)?;
            is_named |= purpose == SERVER_AUTH;
            rest = after;
        }
        Some(is_named)
    };
    match extension(certificate, EXTENDED_KEY_USAGE) {
        Some(Some(value)) => purposes(value) == Some(true),
        Some(None) => true,
        None => false,
    }
}

/// The value of an extension, if there is one.
#[allow(clippy::option_option, reason = "bytes that are no certificate are not one without that extension")]
fn extension(certificate: &[u8], wanted: [u8; 3]) -> Option<Option<&[u8]>> {
    let (certificate, _) = expect(certificate, SEQUENCE)?;
    let (to_be_signed, _) = expect(certificate, SEQUENCE)?;
    let Some(extensions) = find(to_be_signed, EXTENSIONS)? else {
        return Some(None);
    };
    let (mut extensions, _) = expect(extensions, SEQUENCE)?;
    while !extensions.is_empty() {
        let (extension, rest) = expect(extensions, SEQUENCE)?;
        let (identifier, value) = expect(extension, OBJECT_IDENTIFIER)?;
        if identifier == wanted {
            return find(value, OCTET_STRING)?.map(Some);
        }
        extensions = rest;
    }
    Some(None)
}

fn general_names(value: &[u8]) -> Option<Vec<String>> {
    let (mut rest, _) = expect(value, SEQUENCE)?;
    let mut names = Vec::new();
    while !rest.is_empty() {
        let (tag, content, after) = element(rest)?;
        match tag {
            EMAIL | DNS | URI => names.push(String::from_utf8(content.to_vec()).ok()?),
            IP => names.push(address(content)?.to_string()),
            _ => {}
        }
        rest = after;
    }
    Some(names)
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match <[u8; 4]>::try_from(bytes) {
        Ok(bytes) => Some(bytes.into()),
        Err(_) => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).to_canonical()),
    }
}

/// The content of the first element with that tag, if there is one.
#[allow(clippy::option_option, reason = "bytes that are no DER are not an element that is missing")]
fn find(mut bytes: &[u8], wanted: u8) -> Option<Option<&[u8]>> {
    while !bytes.is_empty() {
        let (tag, content, rest) = element(bytes)?;
        if tag == wanted {
            return Some(Some(content));
        }
        bytes = rest;
    }
    Some(None)
}

/// The content of the first element, which must have that tag, and what follows it.
fn expect(bytes: &[u8], wanted: u8) -> Option<(&[u8], &[u8])> {
    let (tag, content, rest) = element(bytes)?;
    (tag == wanted).then_some((content, rest))
}

/// Tag, content and what follows. Only tags and lengths as certificates have them: one byte, definite.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, length], rest) = bytes.split_first_chunk()?;
    let (length, rest) = match length {
        0..=0x7f => (usize::from(length), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
            (digits.iter().fold(0, |length, &digit| length << 8 | usize::from(digit)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::{is_for_servers, names};

    fn certificate(sans: Vec<SanType>) -> Vec<u8> {
        let mut params = CertificateParams::new([]).unwrap();
        params.subject_alt_names = sans;
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn every_kind_of_name_is_found() {
        let sans = vec![
            SanType::DnsName("a.example".try_into().unwrap()),
            SanType::Rfc822Name("b@example".try_into().unwrap()),
            SanType::URI("spiffe://c/d".try_into().unwrap()),
            SanType::IpAddress("192.0.2.1".parse().unwrap()),
            SanType::IpAddress("2001:db8::1".parse().unwrap()),
        ];
        let expected = ["a.example", "b@example", "spiffe://c/d", "192.0.2.1", "2001:db8::1"];
        assert_eq!(names(&certificate(sans)).unwrap(), expected);
        assert_eq!(names(&certificate(Vec::new())).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn no_bytes_are_too_strange() {
        let whole = certificate(vec![SanType::DnsName("a.example".try_into().unwrap())]);
        for length in 0..whole.len() {
            assert_eq!(names(&whole[..length]), None, "cut at {length}");
            assert!(!is_for_servers(&whole[..length]), "cut at {length}");
        }
        for place in 0..whole.len() {
            for byte in [0, 0x30, 0x7f, 0x80, 0x84, 0xff] {
                let mut changed = whole.clone();
                changed[place] = byte;
                let _ = (names(&changed), is_for_servers(&changed));
            }
        }
    }
}
