//! `--zenlayer.ca-file` → the certificates in it.
//!
//! Invariant: every certificate of the file is used, or the file is refused.

use std::path::Path;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::Flags;
use super::check::Check;
use crate::plural::counted;
use crate::secret::marked_encoding;
use crate::web_config;

const BEGIN: &str = "-----BEGIN ";
const CERTIFICATE: &str = "CERTIFICATE-----";
/// A certificate without PEM around it begins with the tag of a sequence.
const DER: u8 = 0x30;
const CONVERT: &str = "openssl x509 -inform der -in FILE -out ca.pem";

impl Check<'_> {
    pub(super) fn authorities(&mut self, flags: &Flags) -> Option<Vec<CertificateDer<'static>>> {
        let Some(file) = &flags.zenlayer_ca_file else {
            return Some(Vec::new());
        };
        let path = Path::new(file);
        let read = web_config::read_file(path).map_err(|error| web_config::unreadable(path, &error));
        let certificates =
            read.and_then(|bytes| certificates(&bytes).map_err(|wrong| format!("{} {wrong}", path.display())));
        certificates.map_err(|wrong| self.wrong::<()>("--zenlayer.ca-file", &format!("cannot be used: {wrong}"))).ok()
    }
}

/// The certificates of a PEM file.
///
/// # Errors
/// What is wrong with the file or with one of them.
fn certificates(bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
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
            Some(&DER) => return Err(format!("is not PEM: if it is DER, convert it with: {CONVERT}")),
            _ if text.contains("PRIVATE KEY-----") => "a private key and no certificate",
            _ => "no certificate",
        };
        return Err(format!("has {what}: expected PEM with -----BEGIN CERTIFICATE-----"));
    }
    let is_margin = |c: char| c.is_whitespace() || c == '\u{feff}';
    let lines: Vec<_> = text.lines().map(|line| line.trim_matches(is_margin)).collect();
    let clean = lines.join("\n");
    let parsed = CertificateDer::pem_slice_iter(clean.as_bytes());
    let mut roots = RootCertStore::empty();
    let mut certificates = Vec::new();
    for (place, certificate) in (1..).zip(parsed) {
        let broken = || format!("has a broken certificate, number {place} of {}: replace it", labels.len());
        let certificate = certificate.map_err(|_| broken())?;
        roots.add(certificate.clone()).map_err(|_| broken())?;
        certificates.push(certificate);
    }
    if certificates.len() < labels.len() {
        let (read, total) = (certificates.len(), labels.len());
        return Err(format!(
            "has {}, of which only {read} can be read: expected each -----BEGIN CERTIFICATE----- on a line of its own",
            counted(total, "certificate")
        ));
    }
    Ok(certificates)
}
