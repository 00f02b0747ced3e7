//! What a certificate says of itself: the names of its subject, and whether it is for servers.
//!
//! Invariant: any bytes give an answer, since a client may send what it likes; bytes that are not a certificate have no
//! names and no purpose. It must not know who is allowed.

use std::net::{IpAddr, Ipv6Addr};

use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Its DNS names, e-mail addresses, URIs and IP addresses as text, which are the kinds that the exporter-toolkit
/// compares; `None` where it is not a certificate, or a name cannot be read.
pub(super) fn names(certificate: &[u8]) -> Option<Vec<String>> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let Some(extension) = certificate.subject_alternative_name().ok()? else { return Some(Vec::new()) };
    let mut names = Vec::new();
    for name in &extension.value.general_names {
        match *name {
            GeneralName::RFC822Name(name) | GeneralName::DNSName(name) | GeneralName::URI(name) => {
                names.push(name.to_owned());
            }
            GeneralName::IPAddress(bytes) => names.push(address(bytes)?.to_string()),
            GeneralName::Invalid(..) => return None,
            _ => {}
        }
    }
    Some(names)
}

/// Whether it may be a server's: it names that purpose, or none at all (RFC 5280, section 4.2.1.12).
pub(crate) fn is_for_servers(certificate: &[u8]) -> bool {
    X509Certificate::from_der(certificate).is_ok_and(|(_, certificate)| match certificate.extended_key_usage() {
        Ok(Some(usage)) => usage.value.server_auth,
        Ok(None) => true,
        Err(_) => false,
    })
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match <[u8; 4]>::try_from(bytes) {
        Ok(bytes) => Some(bytes.into()),
        Err(_) => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).to_canonical()),
    }
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
