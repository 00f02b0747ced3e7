//! A string that never prints itself, the file it may be kept in, and the credential made of it.
//!
//! Invariant: the text leaves only through [`Secret::expose`], so a search for that word finds every use.
//! It must not know what the secret is for.

use std::fmt;
use std::fs::{self, File};
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
        Self(Zeroizing::new(trimmed(text).to_owned()))
    }

    /// Wraps what is in a file or variable.
    ///
    /// # Errors
    /// When it cannot be a secret.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Flaw> {
        let text = trimmed(decode(bytes)?);
        match text.lines().count() {
            0 => return Err(Flaw::Empty),
            1 => {}
            lines => return Err(Flaw::Lines(lines)),
        }
        if text.contains('\0') {
            return Err(Flaw::Nul);
        }
        if !is_header_text(text) {
            return Err(Flaw::Character);
        }
        Ok(Self::new(text))
    }

    /// Reads a secret from its file.
    ///
    /// # Errors
    /// When there is none in it; the text says so without showing any of it.
    pub fn read(path: &Path) -> Result<Self, SecretFileError> {
        Self::parse(&contents(path)?).map_err(|flaw| SecretFileError::Flawed { path: path.to_owned(), flaw })
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

/// What the requests of one poll are authenticated with.
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

/// The text without the white space and the byte order mark around it, which editors leave.
pub(crate) fn trimmed(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || c == '\u{feff}')
}

/// The encoding other than UTF-8 that a byte order mark names.
pub(crate) fn marked_encoding(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => Some("UTF-32"),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some("UTF-16"),
        _ => None,
    }
}

/// The text that the bytes are, without a byte order mark.
///
/// # Errors
/// When they are another encoding's.
pub(crate) fn decode(bytes: &[u8]) -> Result<&str, Flaw> {
    if let Some(encoding) = marked_encoding(bytes) {
        return Err(Flaw::Encoding(encoding));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| Flaw::NotUtf8)?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

/// Reads a file that holds secrets.
///
/// # Errors
/// When it cannot be read, or is too long to hold any.
pub(crate) fn contents(path: &Path) -> Result<Zeroizing<Vec<u8>>, SecretFileError> {
    // Opening a named pipe waits for somebody to write to it.
    let is_file = fs::metadata(path).map(|found| found.is_file());
    if is_file.is_ok_and(|is_file| !is_file) {
        return Err(SecretFileError::NotAFile(path.to_owned()));
    }
    // All the room at once: a buffer that grows leaves its bytes behind, and those would not be overwritten.
    let mut bytes = Zeroizing::new(Vec::with_capacity(LONGEST_FILE + 1));
    let enough = LONGEST_FILE as u64 + 1;
    match File::open(path).and_then(|file| file.take(enough).read_to_end(&mut bytes)) {
        Ok(length) if length > LONGEST_FILE => Err(SecretFileError::TooLong(path.to_owned())),
        Ok(_) => Ok(bytes),
        Err(source) => Err(SecretFileError::Unreadable { path: path.to_owned(), source }),
    }
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
    /// There is no such file, so that what was given as its path may be the secret itself.
    #[error("expected the path of a file, not the secret itself; {}: {source}", in_words(existing.as_deref()))]
    Missing {
        /// The directory up to which the path exists, if any: no secret has that.
        existing: Option<PathBuf>,
        /// Why it cannot be read.
        source: std::io::Error,
    },
    /// It is a directory, a named pipe or a device.
    #[error("{} is not a regular file: name the file that holds the secret", .0.display())]
    NotAFile(PathBuf),
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
    /// It holds something else.
    #[error("{} is longer than 64 KiB: name the file that holds the secret", .0.display())]
    TooLong(PathBuf),
    /// What it holds cannot be a secret.
    #[error("{} {flaw}", path.display())]
    Flawed {
        /// The file.
        path: PathBuf,
        /// Why not.
        flaw: Flaw,
    },
}

impl SecretFileError {
    /// Leaves out of the path what may be the secret itself: whatever does not exist.
    pub(crate) fn hide_secret(self) -> Self {
        match self {
            Self::Unreadable { path, source } if path.symlink_metadata().is_err() => {
                let existing = path.ancestors().find(|directory| directory.exists()).map(Path::to_owned);
                Self::Missing { existing, source }
            }
            error => error,
        }
    }
}

fn in_words(existing: Option<&Path>) -> String {
    match existing {
        Some(directory) => format!("the path exists only as far as {}", directory.display()),
        None => "there is no such file or directory below the working directory".to_owned(),
    }
}

/// Why a text cannot be a secret. None of it is quoted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// There is nothing in it.
    #[error("is empty: expected the secret")]
    Empty,
    /// As some editors and shells of Windows write it.
    #[error("is {0}: save it as UTF-8")]
    Encoding(&'static str),
    /// Another encoding, or no text at all.
    #[error("is not valid UTF-8: save it as UTF-8")]
    NotUtf8,
    /// It has that many.
    #[error("holds {0} lines: expected the secret on one line, and nothing else")]
    Lines(usize),
    /// As in binary data, or in UTF-16 without a mark.
    #[error("holds a NUL character: expected the secret in plain ASCII")]
    Nul,
    /// It holds what no HTTP header can.
    #[error("holds a space or a character that is not plain ASCII: expected the secret, and nothing else")]
    Character,
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
    use super::{Flaw, LONGEST_FILE, Secret, contents};

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
    fn loses_what_editors_add() {
        for text in ["key\r\n", "\u{feff}key\n", " key\t", "\u{feff} key \n\n"] {
            assert_eq!(Secret::parse(text.as_bytes()).unwrap().expose(), "key", "{text:?}");
        }
        assert!(Secret::new(" \n").is_empty());
    }

    #[test]
    fn what_cannot_be_a_secret_says_why() {
        for (bytes, flaw) in [
            (&b""[..], Flaw::Empty),
            (b"\xef\xbb\xbf\r\n", Flaw::Empty),
            (b"\xff\xfek\0e\0y\0", Flaw::Encoding("UTF-16")),
            (b"\xfe\xff\0k\0e\0y", Flaw::Encoding("UTF-16")),
            (b"\xff\xfe\0\0k\0\0\0", Flaw::Encoding("UTF-32")),
            (b"\0\0\xfe\xff\0\0\0k", Flaw::Encoding("UTF-32")),
            (b"k\0e\0y\0", Flaw::Nul),
            (b"k\xe9y", Flaw::NotUtf8),
            (b"key\nother\r\nthird\n", Flaw::Lines(3)),
            (b"a key", Flaw::Character),
            ("kéy".as_bytes(), Flaw::Character),
            (b"k\x1by", Flaw::Character),
        ] {
            assert_eq!(Secret::parse(bytes).unwrap_err(), flaw, "{bytes:?}");
        }
    }

    #[test]
    fn a_long_file_is_not_cut() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "k".repeat(LONGEST_FILE)).unwrap();
        assert_eq!(Secret::read(file.path()).unwrap().expose().len(), LONGEST_FILE);
        std::fs::write(&file, "k".repeat(LONGEST_FILE + 1)).unwrap();
        let said = Secret::read(file.path()).unwrap_err().to_string();
        assert!(said.ends_with(" is longer than 64 KiB: name the file that holds the secret"), "{said}");
    }
}
