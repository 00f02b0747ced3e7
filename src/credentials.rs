//! Where the key or token comes from, read again at every poll.
//!
//! Invariant: a secret that changed in its file is used from the next poll on, and a file that is gone for a
//! moment is an error of that poll alone. It must not know what the secret signs.

use crate::config::{CredentialSource, SecretSource};
use crate::secret::{Secret, SecretFileError};

/// What proves who asks, as it is for one poll.
#[derive(Debug)]
pub(crate) enum Credential {
    /// Signs each request.
    KeyPair {
        /// The access key id.
        id: String,
        /// The access key password.
        password: Secret,
    },
    /// Goes with each request.
    Token(Secret),
}

/// Reads the credential from its source.
///
/// # Errors
/// When its file does not hold it.
pub(crate) fn read(source: &CredentialSource) -> Result<Credential, SecretFileError> {
    let secret = |source: &SecretSource| match source {
        SecretSource::Given(secret) => Ok(secret.clone()),
        SecretSource::File(path) => Secret::read(path),
    };
    match source {
        CredentialSource::KeyPair { id, password } => {
            Ok(Credential::KeyPair { id: id.clone(), password: secret(password)? })
        }
        CredentialSource::Token(token) => Ok(Credential::Token(secret(token)?)),
    }
}
