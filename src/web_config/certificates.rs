//! PEM → certificates, for the web config and for `--zenlayer.ca-file`.
//!
//! Invariant: every certificate of the text is returned, or the text is refused.

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::plural::counted;
use crate::secret::marked_encoding;

const BEGIN: &str = "-----BEGIN ";
const CERTIFICATE: &str = "CERTIFICATE-----";
/// What OpenSSL writes with rules of its own behind the certificate.
const TRUSTED: &str = "TRUSTED CERTIFICATE-----";
/// A certificate without PEM around it begins with the tag of a sequence.
const DER: u8 = 0x30;

/// The certificates of authorities.
///
/// # Errors
/// What is wrong with the text or with one of them.
pub(crate) fn authorities(bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut roots = RootCertStore::empty();
    read_usable(bytes, |certificate| roots.add(certificate.clone()).is_ok())
}

/// All certificates, at least one.
///
/// # Errors
/// What is wrong with the text or with the PEM of one of them.
pub(super) fn read(bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    read_usable(bytes, |_| true)
}

fn read_usable(
    bytes: &[u8],
    mut is_usable: impl FnMut(&CertificateDer<'static>) -> bool,
) -> Result<Vec<CertificateDer<'static>>, String> {
    if let Some(encoding) = marked_encoding(bytes) {
        return Err(format!("is {encoding}: save it as UTF-8"));
    }
    // Comments may be in any encoding. The parser of PEM skips what does not begin a line, as after a byte order mark or
    // in an indented file.
    let text = String::from_utf8_lossy(bytes);
    let begins = text.split(BEGIN).skip(1).map(|rest| rest.lines().next().unwrap_or_default().trim_end());
    let labels: Vec<_> = begins.filter(|label| label.ends_with(CERTIFICATE)).collect();
    if labels.is_empty() {
        let what = match bytes.first() {
            Some(&DER) => {
                let convert = "openssl x509 -inform der -in FILE -out ca.pem";
                return Err(format!("is not PEM: if it is DER, convert it with: {convert}"));
            }
            _ if text.contains("PRIVATE KEY-----") => "a private key and no certificate",
            _ => "no certificate",
        };
        return Err(format!("has {what}: expected PEM with -----BEGIN CERTIFICATE-----"));
    }
    if labels.contains(&TRUSTED) {
        let convert = "openssl x509 -in FILE -out ca.pem";
        return Err(format!("has a -----BEGIN TRUSTED CERTIFICATE-----: convert it with: {convert}"));
    }
    let is_margin = |c: char| c.is_whitespace() || c == '\u{feff}';
    let lines: Vec<_> = text.lines().map(|line| line.trim_matches(is_margin)).collect();
    let clean = lines.join("\n");
    let parsed = CertificateDer::pem_slice_iter(clean.as_bytes());
    let certificates = (1..).zip(parsed).map(|(place, certificate)| {
        let broken = || format!("has a broken certificate, number {place} of {}: replace it", labels.len());
        certificate.ok().filter(|certificate| is_usable(certificate)).ok_or_else(broken)
    });
    let certificates = certificates.collect::<Result<Vec<_>, _>>()?;
    if certificates.len() < labels.len() {
        let (read, total) = (certificates.len(), labels.len());
        return Err(format!(
            "has {}, of which only {read} can be read: expected each -----BEGIN CERTIFICATE----- on a line of its own",
            counted(total, "certificate")
        ));
    }
    Ok(certificates)
}
