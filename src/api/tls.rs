//! What the API's certificate is checked against.
//!
//! The system's roots come first, Mozilla's stand in where there are none (an image without files), and what the
//! operator names is added. It must not know what is sent over the connection.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme};

use crate::web_config::san;

/// Certificate files of the system that are reported one by one.
const MOST_REPORTED: usize = 3;

/// A client configuration that trusts the system's, Mozilla's and the given authorities, and the given certificates
/// themselves.
pub(super) fn client_config(authorities: &[CertificateDer<'static>]) -> ClientConfig {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    // What the system has and cannot be parsed is no reason not to start: the rest still verifies.
    let system = rustls_native_certs::load_native_certs();
    for error in system.errors.iter().take(MOST_REPORTED) {
        tracing::warn!(%error, "a certificate file of the system cannot be read: check SSL_CERT_FILE and SSL_CERT_DIR");
    }
    roots.add_parsable_certificates(system.certs);
    // A server's own certificate must not vouch for others: its key could sign a certificate for any name.
    roots.add_parsable_certificates(authorities.iter().filter(|certificate| may_sign(certificate)).cloned());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let chain = chain.build().expect("there are roots, and no revocation lists to be wrong");
    let verifier = Verifier { chain, pinned: authorities.to_vec(), provider: Arc::clone(&provider) };
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has the cipher suites of TLS 1.2 and 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth()
}

/// Verifies a chain as rustls does, but takes a certificate that the operator named for a server's own, whoever signed
/// it. Its name, dates and purpose must be right all the same.
#[derive(Debug)]
struct Verifier {
    chain: Arc<WebPkiServerVerifier>,
    pinned: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn verify_pinned(
        &self,
        certificate: &CertificateDer<'_>,
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let is_for_servers = san::is_for_servers(certificate);
        let certificate = ParsedCertificate::try_from(certificate)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        // With nobody to trust, only the issuer can be wrong with a certificate that is right.
        let alone = RootCertStore::empty();
        match verify_server_cert_signed_by_trust_anchor(&certificate, &alone, &[], now, algorithms) {
            Err(rustls::Error::InvalidCertificate(CertificateError::Other(error))) if is_own_authority(&error) => {
                // The purpose would have been checked after that.
                if !is_for_servers {
                    return Err(CertificateError::InvalidPurpose.into());
                }
            }
            Ok(()) | Err(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {}
            Err(error) => return Err(error),
        }
        verify_server_name(&certificate, name).map(|()| ServerCertVerified::assertion())
    }
}

/// Whether the certificate is an authority's by its own account, now or at a time when it is valid, and for servers.
fn may_sign(authority: &CertificateDer<'_>) -> bool {
    // Version 1 has no such account, and is what the root store makes of it.
    let Ok(certificate) = ParsedCertificate::try_from(authority) else { return true };
    let provider = rustls::crypto::ring::default_provider();
    let algorithms = provider.signature_verification_algorithms.all;
    let alone = RootCertStore::empty();
    let verify = |time| verify_server_cert_signed_by_trust_anchor(&certificate, &alone, &[], time, algorithms);
    let result = match verify(UnixTime::now()) {
        Err(rustls::Error::InvalidCertificate(
            CertificateError::ExpiredContext { not_after: valid, .. }
            | CertificateError::NotValidYetContext { not_before: valid, .. },
        )) => verify(valid),
        result => result,
    };
    matches!(result, Err(rustls::Error::InvalidCertificate(CertificateError::Other(error))) if is_own_authority(&error))
        // The chain is not verified for this up to its root.
        && san::is_for_servers(authority)
}

/// Whether a certificate is refused for being an authority's: `openssl req -x509` makes self-signed ones so. Dates are
/// checked before that.
fn is_own_authority(error: &OtherError) -> bool {
    matches!(error.0.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity))
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.pinned.contains(certificate) {
            return self.verify_pinned(certificate, name, now);
        }
        self.chain.verify_server_cert(certificate, intermediates, name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// What is wrong with the other side's TLS, where `error` stems from that and no retry can fix it.
pub(super) fn refusal(error: &(dyn Error + 'static)) -> Option<String> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        match error.downcast_ref() {
            Some(rustls::Error::InvalidCertificate(error)) => {
                return Some(format!("has a certificate that does not verify: {}", reason(error)));
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

/// What is wrong with a certificate, in words: rustls has its own names for most of it.
fn reason(error: &CertificateError) -> String {
    use CertificateError as Wrong;

    let date = |time: &UnixTime| humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(time.as_secs()));
    match error {
        Wrong::UnknownIssuer => "no trusted authority issued it".to_owned(),
        Wrong::ExpiredContext { not_after, .. } => format!("it expired on {}", date(not_after)),
        Wrong::Expired => "it has expired".to_owned(),
        Wrong::NotValidYetContext { not_before, .. } => format!("it is not valid before {}", date(not_before)),
        Wrong::NotValidYet => "it is not valid yet".to_owned(),
        Wrong::NotValidForName => "it is for another name".to_owned(),
        // The names it has come in rustls' own notation.
        Wrong::NotValidForNameContext { expected, .. } => {
            format!("{} is not among its subject alternative names", expected.to_str())
        }
        Wrong::BadEncoding => "it cannot be parsed".to_owned(),
        Wrong::BadSignature => "its signature, or one of its chain, is wrong".to_owned(),
        Wrong::Revoked => "it is revoked".to_owned(),
        Wrong::InvalidPurpose | Wrong::InvalidPurposeContext { .. } => "it is not for servers".to_owned(),
        Wrong::UnsupportedSignatureAlgorithmContext { .. }
        | Wrong::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            "it is signed with an algorithm that is not supported".to_owned()
        }
        Wrong::Other(error) if is_own_authority(error) => {
            "it is self-signed or an authority's, and not one that is trusted".to_owned()
        }
        _ => "it breaks a rule for certificates (RFC 5280)".to_owned(),
    }
}
