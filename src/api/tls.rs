//! What the API's certificate is checked against.
//!
//! The system's roots come first, Mozilla's stand in where there are none (an image without files), and what the
//! operator names is added. It must not know what is sent over the connection.

use std::error::Error;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};

/// A client configuration that trusts the system's, Mozilla's and the given authorities.
pub(super) fn client_config(authorities: &[CertificateDer<'static>]) -> ClientConfig {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    // What the system has and cannot be parsed is no reason not to start: the rest still verifies.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots.add_parsable_certificates(authorities.iter().cloned());
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has the cipher suites of TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

/// What is wrong with the other side's TLS, where `error` stems from that and no retry can mend it.
pub(super) fn refusal(error: &(dyn Error + 'static)) -> Option<String> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        match error.downcast_ref() {
            Some(refused @ rustls::Error::InvalidCertificate(_)) => {
                return Some(format!("has a certificate that does not verify: {refused}"));
            }
            Some(rustls::Error::InvalidMessage(_)) => return Some("does not speak TLS".to_owned()),
            _ => {}
        }
        // An I/O error hides the error it wraps from `source`, which goes on to the one below.
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        cause = wrapped.map_or_else(|| error.source(), |wrapped| Some(wrapped as _));
    }
    None
}
