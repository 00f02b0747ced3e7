//! `--zenlayer.ca-file` → the certificates in it.
//!
//! Invariant: every certificate of the file is used, or the file is refused.

use std::path::Path;

use rustls::pki_types::CertificateDer;

use super::Flags;
use super::check::Check;
use crate::secret::read_in_time;
use crate::web_config::certificates::authorities;
use crate::web_config::{read_file, unreadable};

impl Check<'_> {
    pub(super) fn authorities(&mut self, flags: &Flags) -> Option<Vec<CertificateDer<'static>>> {
        let Some(file) = &flags.zenlayer_ca_file else {
            return Some(Vec::new());
        };
        let path = Path::new(file);
        let certificates = match read_in_time(path, read_file) {
            Ok(Ok(bytes)) => authorities(&bytes).map_err(|wrong| format!("{} {wrong}", path.display())),
            Ok(Err(error)) => Err(unreadable(path, &error)),
            Err(hangs) => Err(hangs.to_string()),
        };
        certificates.map_err(|wrong| self.wrong::<()>("--zenlayer.ca-file", &format!("cannot be used: {wrong}"))).ok()
    }
}
