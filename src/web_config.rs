//! `--web.config.file`: the exporter-toolkit's YAML and the files it names → settings that work.
//!
//! Follows exporter-toolkit's docs/web-configuration.md. Invariant: each key is used or refused by name, and no mistake
//! quotes a secret. It must not know how a connection is served.

mod check;
mod client;
mod san;
mod tls;
mod users;
mod yaml;

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper::HeaderMap;
use ring::digest::{Context, SHA256};
use rustls::ServerConfig;

use self::check::Check;
pub(crate) use self::users::{Hash, Users};

/// No configuration, certificate or key is as long.
const MOST_BYTES: u64 = 1 << 20;

/// What the file asks for; as checked, all of it works.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// `None` is plain HTTP.
    pub(crate) tls: Option<Tls>,
    /// Set on every answer.
    pub(crate) headers: HeaderMap,
    /// Nobody is asked for a password where there are none.
    pub(crate) users: Users,
    /// `None` is no limit.
    pub(crate) rate_limit: Option<RateLimit>,
}

/// How connections are encrypted.
#[derive(Debug, Clone)]
pub(crate) struct Tls {
    /// Offers what `http2` says.
    pub(crate) offered: Arc<ServerConfig>,
    /// The same with HTTP/1.1 alone, for a connection that has to close after one answer.
    pub(crate) http1: Arc<ServerConfig>,
    /// Whether a client without a certificate is turned away.
    pub(crate) needs_client: bool,
}

/// A bucket of `burst` requests, and how long one takes to come back.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct RateLimit {
    pub(crate) interval: Duration,
    pub(crate) burst: u32,
}

impl Settings {
    /// Whether connections are encrypted.
    pub fn has_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Whether requests need a password.
    pub fn has_users(&self) -> bool {
        !self.users.is_empty()
    }

    /// What of the protection `self` gives `next` would take away, or whether the address would change: a half-written
    /// file must not open the door, and scrapers know one scheme.
    pub(crate) fn lost_in(&self, next: &Self) -> Option<&'static str> {
        let needs_client = |settings: &Self| settings.tls.as_ref().is_some_and(|tls| tls.needs_client);
        match () {
            () if self.has_tls() && !next.has_tls() => Some("turns TLS off"),
            () if !self.has_tls() && next.has_tls() => Some("turns TLS on"),
            () if self.has_users() && !next.has_users() => Some("turns passwords off"),
            () if needs_client(self) && !needs_client(next) => Some("no longer requires client certificates"),
            () => None,
        }
    }
}

/// Checks the file's bytes. `read` gets a file by its name as written, or says why it cannot.
///
/// # Errors
/// Every mistake, where one does not hide the others.
pub fn parse(bytes: &[u8], read: &mut dyn FnMut(&str) -> Result<Vec<u8>, String>) -> Result<Settings, Vec<String>> {
    let text = std::str::from_utf8(bytes).map_err(|_| vec!["is not UTF-8".to_owned()])?;
    let root = yaml::read(text).map_err(|mistake| vec![mistake])?;
    let mut check = Check { mistakes: Vec::new(), read };
    let settings = check.settings(root);
    if check.mistakes.is_empty() { Ok(settings) } else { Err(check.mistakes) }
}

/// The file and those it names, as they were when all of it worked.
#[derive(Debug, Clone)]
pub struct WebConfig {
    /// What they ask for.
    pub settings: Settings,
    pub(crate) files: Files,
}

impl WebConfig {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// Every mistake, where one does not hide the others.
    pub fn read(path: &Path) -> Result<Self, Vec<String>> {
        let Reading { files, settings } = Reading::of(path);
        Ok(Self { settings: settings?, files })
    }
}

/// What was read, and how to tell whether it is still there.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    /// The file itself, then what it names.
    pub(crate) paths: Vec<PathBuf>,
    pub(crate) fingerprint: Fingerprint,
}

/// One reading of the file and of those it names, whatever came of it.
pub(crate) struct Reading {
    pub(crate) files: Files,
    pub(crate) settings: Result<Settings, Vec<String>>,
}

impl Reading {
    /// Reads and checks. Names in the file are relative to the folder it is in.
    pub(crate) fn of(path: &Path) -> Self {
        let mut hasher = Hasher::default();
        let mut paths = vec![path.to_owned()];
        let folder = path.parent().unwrap_or(Path::new(""));
        let settings = match hasher.read(path) {
            Ok(bytes) => {
                let mut read = |name: &str| {
                    let file = folder.join(name);
                    let bytes =
                        hasher.read(&file).map_err(|error| format!("{} cannot be read: {error}", file.display()));
                    paths.push(file);
                    bytes
                };
                parse(&bytes, &mut read).map_err(|mistakes| {
                    mistakes.iter().map(|mistake| format!("{}: {mistake}", path.display())).collect()
                })
            }
            Err(error) => Err(vec![format!("{} cannot be read: {error}", path.display())]),
        };
        Self { files: Files { paths, fingerprint: hasher.finish() }, settings }
    }
}

/// Tells one content of some files from another. Kubernetes swaps symbolic links, so times and inodes say nothing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// What those files hold now.
    pub(crate) fn of(paths: &[PathBuf]) -> Self {
        let mut hasher = Hasher::default();
        for path in paths {
            // What cannot be read is part of it too.
            let _ = hasher.read(path);
        }
        hasher.finish()
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Of a file with little in it but a secret, it would tell something.
        f.write_str("Fingerprint")
    }
}

struct Hasher(Context);

impl Default for Hasher {
    fn default() -> Self {
        Self(Context::new(&SHA256))
    }
}

impl Hasher {
    fn read(&mut self, path: &Path) -> io::Result<Vec<u8>> {
        let content = read_file(path);
        let (mark, bytes) = match &content {
            Ok(bytes) => (b'+', bytes.clone()),
            Err(error) => (b'-', error.to_string().into_bytes()),
        };
        self.0.update(&[mark]);
        self.0.update(&bytes.len().to_be_bytes());
        self.0.update(&bytes);
        content
    }

    fn finish(self) -> Fingerprint {
        Fingerprint(self.0.finish().as_ref().try_into().expect("SHA-256 gives 32 bytes"))
    }
}

fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    // A pipe would hold up whoever reads it.
    if !path.metadata()?.is_file() {
        return Err(io::Error::other("is no file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(io::Error::other("is larger than 1 MiB"));
    }
    Ok(bytes)
}
