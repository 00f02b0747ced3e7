//! Where the key or token comes from, read again at every poll.
//!
//! Invariant: a secret that changed in its file is used from the next poll on, and a file that is gone for a
//! moment is an error of that poll alone. A file system that hangs, as a network can, blocks few threads however long
//! it hangs, and no read of it keeps a later one from finding a good file. It must not know what the secret signs.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, timeout};

use crate::config::{CredentialSource, SecretSource};
use crate::profile::{self, ProfileError};
use crate::secret::{Credential, LONGEST_READ, Secret, SecretFileError};

/// How long a read may hang before another is started beside it; twice as long for each one more. A system call that
/// hangs cannot be cancelled, so the threads that wait grow with the logarithm of the time: 10 in 17 hours.
const FIRST_PATIENCE: Duration = Duration::from_mins(1);

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
    read: Arc<dyn Fn(&CredentialSource) -> Outcome + Send + Sync>,
    reads: FileReads<Outcome>,
}

type Outcome = Result<Credential, CredentialError>;

/// Reads files off the async threads, few at a time however long they hang.
pub(crate) struct FileReads<T> {
    under_way: Mutex<Option<Attempt<T>>>,
}

/// A read that did not end in time, and still goes on or has ended since.
struct Attempt<T> {
    result: JoinHandle<T>,
    started: Instant,
    /// How long to wait for it.
    patience: Duration,
}

impl Reader {
    /// A reader that has read nothing yet.
    pub(crate) fn new(source: CredentialSource) -> Self {
        Self::with(source, read)
    }

    fn with(source: CredentialSource, read: impl Fn(&CredentialSource) -> Outcome + Send + Sync + 'static) -> Self {
        Self { source, read: Arc::new(read), reads: FileReads::default() }
    }

    /// Reads the credential from its source.
    ///
    /// # Errors
    /// When its file does not hold it, or cannot be read within [`LONGEST_READ`] or `limit`.
    pub(crate) async fn read(&self, limit: Duration) -> Outcome {
        let Some(path) = file(&self.source) else { return read(&self.source) };
        let limit = limit.min(LONGEST_READ);
        let hangs = || SecretFileError::Hangs { path: path.to_owned(), limit };
        let (read, source) = (Arc::clone(&self.read), self.source.clone());
        timeout(limit, self.reads.run(move || read(&source))).await.unwrap_or_else(|_| Err(hangs().into()))
    }
}

impl<T: Send + 'static> FileReads<T> {
    /// Waits for the read that is under way, if there is one, rather than start this one. May be cancelled.
    pub(crate) async fn run(&self, read: impl FnOnce() -> T + Send + 'static) -> T {
        let mut under_way = self.under_way.lock().await;
        let attempt = match under_way.take() {
            None => Attempt::start(read, FIRST_PATIENCE),
            // What it hangs on may have been replaced, which only another read can tell.
            Some(hung) if hung.is_overdue() => Attempt::start(read, hung.patience * 2),
            Some(attempt) => attempt,
        };
        let attempt = under_way.insert(attempt);
        let result = (&mut attempt.result).await.expect("reading a file does not panic");
        *under_way = None;
        result
    }
}

impl<T> Default for FileReads<T> {
    fn default() -> Self {
        Self { under_way: Mutex::default() }
    }
}

impl<T: Send + 'static> Attempt<T> {
    fn start(read: impl FnOnce() -> T + Send + 'static, patience: Duration) -> Self {
        Self { result: spawn_blocking(read), started: Instant::now(), patience }
    }

    fn is_overdue(&self) -> bool {
        !self.result.is_finished() && self.started.elapsed() >= self.patience
    }
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex as SyncMutex;
    use std::sync::mpsc::{Sender, channel};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(1);
    const PATIENCE: Duration = Duration::from_secs(20);

    /// Holds up every read until it is dropped; `None` where the file can be read.
    type HungReads = Arc<SyncMutex<Option<Vec<Sender<()>>>>>;

    fn hung() -> (Reader, HungReads) {
        let hung: HungReads = Arc::new(SyncMutex::new(Some(Vec::new())));
        let (source, reads) = (CredentialSource::Token(SecretSource::File("/mnt/token".into())), Arc::clone(&hung));
        let reader = Reader::with(source, move |_| {
            let (hold, end) = channel();
            let is_hung = reads.lock().unwrap().as_mut().map(|reads| reads.push(hold)).is_some();
            if is_hung {
                end.recv().unwrap_err();
            }
            Ok(Credential::Token(Secret::new("token")))
        });
        (reader, hung)
    }

    /// Waits for that many reads to hang and returns what holds them up. Later ones find a file that can be read.
    fn take(hung: &HungReads, count: usize) -> Vec<Sender<()>> {
        let deadline = std::time::Instant::now() + PATIENCE;
        while hung.lock().unwrap().as_ref().unwrap().len() < count && std::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
        let reads = hung.lock().unwrap().take().unwrap();
        assert_eq!(reads.len(), count);
        reads
    }

    /// The clock stands still while a thread is blocked, so it is moved by hand.
    async fn read_in_vain(reader: &Reader) {
        let (outcome, ()) = tokio::join!(reader.read(LIMIT), tokio::time::advance(LIMIT));
        let says = "/mnt/token cannot be read within 1s: check the file system that it is on";
        assert_eq!(outcome.unwrap_err().to_string(), says);
    }

    /// Reads what can be read. The clock does not move by itself, so another one bounds this.
    async fn read_at_last(reader: &Reader) {
        let (end, ended) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            std::thread::sleep(PATIENCE);
            let _ = end.send(());
        });
        tokio::select! {
            outcome = reader.read(LIMIT) => assert!(outcome.is_ok()),
            _ = ended => panic!("no read ends"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_that_hangs_is_waited_for_and_its_result_is_used() {
        let (reader, hung) = hung();
        for _ in 0..5 {
            read_in_vain(&reader).await;
        }
        drop(take(&hung, 1));
        read_at_last(&reader).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_good_file_is_read_although_what_was_in_its_place_hangs_for_ever() {
        let (reader, hung) = hung();
        read_in_vain(&reader).await;
        let _hung = take(&hung, 1);
        tokio::time::advance(FIRST_PATIENCE).await;
        for _ in 0..3 {
            read_at_last(&reader).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_hangs_for_a_day_blocks_eleven_threads() {
        let (reader, hung) = hung();
        for _ in 0..24 * 60 {
            read_in_vain(&reader).await;
            tokio::time::advance(Duration::from_secs(59)).await;
        }
        // One after each of 0, 1, 3, 7, 15 … 1023 minutes.
        take(&hung, 11);
    }
}
