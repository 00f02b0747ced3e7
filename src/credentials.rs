//! Where the key or token comes from, read again at every poll.
//!
//! Invariant: a secret that changed in its file is used from the next poll on, and a file that is gone for a
//! moment is an error of that poll alone. It must not know what the secret signs.

use std::path::Path;

use crate::config::{CredentialSource, SecretSource};
use crate::exposure;
use crate::profile::{self, ProfileError};
use crate::secret::{Credential, Secret, SecretFileError};

/// Why there is no credential.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CredentialError {
    /// The secret's own file.
    #[error(transparent)]
    Secret(#[from] SecretFileError),
    /// The vendor's file.
    #[error(transparent)]
    Profile(#[from] ProfileError),
}

/// Reads the credential from its source.
///
/// # Errors
/// When its file does not hold it.
pub(crate) fn read(source: &CredentialSource) -> Result<Credential, CredentialError> {
    let secret = |source: &SecretSource| match source {
        SecretSource::Given(secret) => Ok(secret.clone()),
        SecretSource::File(path) => Secret::read(path),
    };
    Ok(match source {
        CredentialSource::KeyPair { id, password } => {
            Credential::KeyPair { id: id.clone(), password: secret(password)? }
        }
        CredentialSource::Token(token) => Credential::Token(secret(token)?),
        CredentialSource::Profile { path, name } => profile::read(path, name)?,
    })
}

/// Says so where everybody on this machine can read the file that the credential is in.
pub(crate) fn warn_of_exposure(source: &CredentialSource) {
    let Some(file) = file(source).filter(|file| exposure::is_open_to_all(file)) else {
        return;
    };
    tracing::warn!(
        file = %file.display(),
        fix = format!("chmod o-r {}", file.display()),
        "every user of this machine can read the file with the secret"
    );
}

fn file(source: &CredentialSource) -> Option<&Path> {
    match source {
        CredentialSource::KeyPair { password: SecretSource::File(path), .. }
        | CredentialSource::Token(SecretSource::File(path))
        | CredentialSource::Profile { path, .. } => Some(path),
        CredentialSource::KeyPair { .. } | CredentialSource::Token(_) => None,
    }
}
