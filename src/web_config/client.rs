//! What a client has to show of itself during the handshake.
//!
//! Invariant: whoever shows a certificate has its key, whatever else is asked of it. It must not know the settings'
//! names.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use super::san;

/// Verifies as told, and holds the certificate's names against those that are allowed.
#[derive(Debug)]
pub(super) struct Client {
    /// Verifies the chain; `None` takes any certificate.
    pub(super) chain: Option<Arc<dyn ClientCertVerifier>>,
    /// Whether `chain` knows the authorities of the settings alone, and none of the system's.
    pub(super) has_own_authority: bool,
    pub(super) mandatory: bool,
    /// `None` takes any name.
    pub(super) names: Option<Vec<String>>,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

impl Client {
    fn is_allowed(&self, certificate: &CertificateDer<'_>) -> bool {
        let Some(allowed) = &self.names else { return true };
        san::names(certificate).is_some_and(|names| names.iter().any(|name| allowed.contains(name)))
    }
}

impl ClientCertVerifier for Client {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.as_ref().map_or(&[], |chain| chain.root_hint_subjects())
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if let Some(chain) = &self.chain {
            chain.verify_client_cert(certificate, intermediates, now)?;
        }
        if !self.is_allowed(certificate) {
            return Err(CertificateError::ApplicationVerificationFailure.into());
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
