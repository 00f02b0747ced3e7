//! Where the key or token comes from, read again at every poll.
//!
//! Invariant: a secret that changed in its file is used from the next poll on, and a file that is gone for a
//! moment is an error of that poll alone. A file system that hangs, as a network can, blocks one thread, and not one
//! more per poll. It must not know what the secret signs.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

use crate::config::{CredentialSource, SecretSource};
use crate::profile::{self, ProfileError};
use crate::secret::{Credential, LONGEST_READ, Secret, SecretFileError};

/// Reads at a time, where a file that hangs was replaced, and the next one hangs too.
const MOST_READS: usize = 4;

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

/// Reads a credential again and again, whatever becomes of the file system that it is on.
pub(crate) struct Reader {
    source: CredentialSource,
    reads: Arc<Semaphore>,
    left_behind: Mutex<LeftBehind>,
}

/// What did not end in time, and still goes on or has ended since.
#[derive(Default)]
struct LeftBehind {
    read: Option<Read>,
    look: Option<JoinHandle<Option<Identity>>>,
}

/// A read under way.
struct Read {
    /// Which file it reads, once that is known.
    file: Arc<OnceLock<Identity>>,
    credential: JoinHandle<Result<Credential, CredentialError>>,
}

/// Device and inode: another file under the same path has others.
type Identity = (u64, u64);

impl Reader {
    /// A reader that has read nothing yet.
    pub(crate) fn new(source: CredentialSource) -> Self {
        Self { source, reads: Arc::new(Semaphore::new(MOST_READS)), left_behind: Mutex::default() }
    }

    /// Reads the credential from its source.
    ///
    /// # Errors
    /// When its file does not hold it, or cannot be read within [`LONGEST_READ`] or `limit`.
    pub(crate) async fn read(&self, limit: Duration) -> Result<Credential, CredentialError> {
        let Some(path) = file(&self.source) else { return read(&self.source) };
        let limit = limit.min(LONGEST_READ);
        let hangs = || SecretFileError::Hangs { path: path.to_owned(), limit };
        timeout(limit, self.read_file(path)).await.unwrap_or_else(|_| Err(hangs().into()))
    }

    /// A read that was left behind is waited for instead of starting another of the same file. May be cancelled.
    async fn read_file(&self, path: &Path) -> Result<Credential, CredentialError> {
        const NO_PANIC: &str = "reading a file does not panic";
        let LeftBehind { read, look } = &mut *self.left_behind.lock().await;
        if let Some(hung) = read.as_ref().filter(|read| !read.credential.is_finished()) {
            let path = path.to_owned();
            let there = look.get_or_insert_with(|| spawn_blocking(move || identity(&path))).await.expect(NO_PANIC);
            *look = None;
            if there.is_some() && there.as_ref() != hung.file.get() {
                *read = None;
            }
        }
        let under_way = match read {
            Some(read) => read,
            None => read.insert(self.start(path).await),
        };
        let credential = (&mut under_way.credential).await.expect(NO_PANIC);
        *read = None;
        credential
    }

    async fn start(&self, path: &Path) -> Read {
        let permit = Arc::clone(&self.reads).acquire_owned().await.expect("the semaphore is never closed");
        let (source, path, file) = (self.source.clone(), path.to_owned(), Arc::new(OnceLock::new()));
        let noted = Arc::clone(&file);
        let credential = spawn_blocking(move || {
            let _permit: OwnedSemaphorePermit = permit;
            if let Some(identity) = identity(&path) {
                noted.get_or_init(|| identity);
            }
            read(&source)
        });
        Read { file, credential }
    }
}

fn identity(path: &Path) -> Option<Identity> {
    fs::metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

/// Reads the credential from its source.
///
/// # Errors
/// When its file does not hold it.
fn read(source: &CredentialSource) -> Result<Credential, CredentialError> {
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

/// The file that the credential is in; `None` where it is in a variable.
pub(crate) fn file(source: &CredentialSource) -> Option<&Path> {
    match source {
        CredentialSource::KeyPair { password: SecretSource::File(path), .. }
        | CredentialSource::Token(SecretSource::File(path))
        | CredentialSource::Profile { path, .. } => Some(path),
        CredentialSource::KeyPair { .. } | CredentialSource::Token(_) => None,
    }
}
