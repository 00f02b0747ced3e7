//! A string that never prints itself, the file it may be kept in, and what it proves who asks with.
//!
//! Invariant: the text leaves only through [`Secret::expose`], so a search for that word finds every use.
//! It must not know what the secret is for.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use zeroize::Zeroizing;

/// No secret is as long; what is, is not a secret.
const LONGEST_FILE: usize = 64 << 10;
/// How long a file may take: a file system can hang as a network can.
pub(crate) const LONGEST_READ: Duration = Duration::from_secs(5);

/// An access key password or a token. Printed it is `[redacted]`; dropped it is overwritten with zeros.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Wraps `text`, less the white space around it: files end in a newline, pasted keys in a space.
    pub fn new(text: &str) -> Self {
        Self(Zeroizing::new(text.trim().to_owned()))
    }

    /// Reads a secret from its file.
    ///
    /// # Errors
    /// When there is none in it; the text says so without showing any of it.
    pub fn read(path: &Path) -> Result<Self, SecretFileError> {
        let bytes = contents(path)?;
        let secret =
            std::str::from_utf8(&bytes).map(Secret::new).map_err(|_| SecretFileError::NotText(path.to_owned()))?;
        if secret.is_empty() {
            return Err(SecretFileError::Empty(path.to_owned()));
        }
        if !is_header_text(secret.expose()) {
            return Err(SecretFileError::NotText(path.to_owned()));
        }
        Ok(secret)
    }

    /// The text itself, for the one place that signs or sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

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

/// Reads a file that holds secrets.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn contents(path: &Path) -> Result<Zeroizing<Vec<u8>>, SecretFileError> {
    // All the room at once: a buffer that grows leaves its bytes behind, and those would not be overwritten.
    let mut bytes = Zeroizing::new(Vec::with_capacity(LONGEST_FILE));
    let longest = LONGEST_FILE as u64;
    let read = File::open(path).and_then(|file| file.take(longest).read_to_end(&mut bytes));
    read.map(|_| bytes).map_err(|source| SecretFileError::Unreadable { path: path.to_owned(), source })
}

/// Reads the file on a thread of its own, which is left behind where the file system hangs.
///
/// # Errors
/// When it takes longer than [`LONGEST_READ`].
pub(crate) fn read_in_time<T: Send + 'static>(
    path: &Path,
    read: impl FnOnce(&Path) -> T + Send + 'static,
) -> Result<T, SecretFileError> {
    let (result, taken) = mpsc::channel();
    let file = path.to_owned();
    std::thread::spawn(move || result.send(read(&file)));
    taken.recv_timeout(LONGEST_READ).map_err(|_| SecretFileError::Hangs { path: path.to_owned(), limit: LONGEST_READ })
}

/// Why a file does not hold a secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretFileError {
    /// It cannot be read.
    #[error("{} cannot be read: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file system that it is on does not answer.
    #[error(
        "{} cannot be read within {}: check the file system that it is on",
        path.display(),
        humantime::format_duration(*limit)
    )]
    Hangs {
        /// The file.
        path: PathBuf,
        /// How long it had.
        limit: Duration,
    },
    /// It is there, and empty.
    #[error("{} is empty: it should hold nothing but the secret", .0.display())]
    Empty(PathBuf),
    /// It holds what no HTTP header can.
    #[error("{} holds more than one line of plain text: it should hold nothing but the secret", .0.display())]
    NotText(PathBuf),
}

/// Whether a header can hold the text: one word of plain characters.
pub(crate) fn is_header_text(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic())
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

#[cfg(test)]
mod tests {
    use super::{Secret, contents};

    #[test]
    fn is_redacted_however_it_is_printed() {
        let secret = Secret::new("Gu5t9xGARNpq86cd98joQYCN3");
        let printed = format!("{secret} {secret:?} {secret:#?} {:?}", Some(&secret));
        assert_eq!(printed, "[redacted] [redacted] [redacted] Some([redacted])");
    }

    #[test]
    fn is_overwritten_when_dropped_and_so_is_what_was_read_of_its_file() {
        fn is_overwritten(_: &impl zeroize::ZeroizeOnDrop) {}
        let file = tempfile::NamedTempFile::new().unwrap();
        is_overwritten(&contents(file.path()).unwrap());
        is_overwritten(&Secret::new("key").0);
    }

    #[test]
    fn loses_the_newline_of_its_file() {
        assert_eq!(Secret::new("key\r\n").expose(), "key");
        assert!(Secret::new(" \n").is_empty());
    }
}
