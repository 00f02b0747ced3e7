//! `--web.config.file`: the exporter-toolkit's YAML and the files it names → settings that work.
//!
//! Follows exporter-toolkit's docs/web-configuration.md. Invariant: each key is used or refused by name, and no mistake
//! quotes a secret. It must not know how a connection is served.

pub(crate) mod certificates;
mod check;
mod client;
pub(crate) mod san;
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
pub(crate) use self::users::{Hash, LONGEST_PASSWORD, Users};
use crate::secret::{LONGEST_READ, read_in_time};

/// No configuration, certificate or key is as long.
const MOST_BYTES: u64 = 1 << 20;

/// What the file asks for; as checked, all of it works.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// `None` is plain HTTP.
    pub(crate) tls: Option<Tls>,
    /// Set on every answer that does not set them itself.
    pub(crate) headers: HeaderMap,
    /// Nobody is asked for a password where there are none.
    pub(crate) users: Users,
    /// `None` means no limit.
    pub(crate) rate_limit: Option<RateLimit>,
    /// What is used in another way than as written.
    pub(crate) warnings: Vec<String>,
}

/// How connections are encrypted.
#[derive(Debug, Clone)]
pub(crate) struct Tls {
    pub(crate) server: Arc<ServerConfig>,
    /// Whether a client without a certificate is turned away.
    pub(crate) needs_client: bool,
    /// Whether a certificate that a client shows has to be of a known authority.
    pub(crate) verifies_client: bool,
    /// Whether that is one of `client_ca_file`, not any that the system knows.
    pub(crate) has_own_authority: bool,
    /// Whether it has to have one of the allowed names.
    pub(crate) names_clients: bool,
    /// Whether TLS 1.3 is the only version.
    pub(crate) needs_tls13: bool,
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

    /// Logs what is used in another way than as written.
    pub fn log_warnings(&self) {
        for warning in &self.warnings {
            tracing::warn!("web config: {warning}");
        }
    }

    /// What of the protection `self` gives `next` would take away, or whether the address would change: a half-written
    /// file must not open the door, and scrapers know one scheme.
    pub(crate) fn lost_in(&self, next: &Self) -> Option<&'static str> {
        let asks = |of: fn(&Tls) -> bool| {
            let (now, then) = (self.tls.as_ref().is_some_and(of), next.tls.as_ref().is_some_and(of));
            now && !then
        };
        match () {
            () if self.has_tls() && !next.has_tls() => Some("turns TLS off"),
            () if !self.has_tls() && next.has_tls() => Some("turns TLS on"),
            () if self.has_users() && !next.has_users() => Some("turns passwords off"),
            () if asks(|tls| tls.needs_client) => Some("no longer requires client certificates"),
            () if asks(|tls| tls.verifies_client) => Some("no longer verifies client certificates"),
            () if asks(|tls| tls.has_own_authority) => Some("takes clients of any authority that the system knows"),
            () if asks(|tls| tls.names_clients) => Some("takes clients of any name"),
            () if asks(|tls| tls.needs_tls13) => Some("takes TLS 1.2 again"),
            () if self.rate_limit.is_some() && next.rate_limit.is_none() => Some("turns the rate limit off"),
            () if self.headers.keys().any(|name| !next.headers.contains_key(name)) => Some("leaves out a header"),
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
    let root = yaml::read(text).map_err(|mistake| vec![printable(&mistake)])?;
    let mut check = Check { mistakes: Vec::new(), warnings: Vec::new(), read };
    let mut settings = check.settings(root);
    if check.mistakes.is_empty() {
        settings.warnings.iter_mut().for_each(|warning| *warning = printable(warning));
        return Ok(settings);
    }
    Err(check.mistakes.iter().map(|mistake| printable(mistake)).collect())
}

/// A mistake may quote a key or a file's name, and has one line of the log.
fn printable(mistake: &str) -> String {
    mistake.replace(char::is_control, "\u{fffd}")
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
    /// Every mistake, where one does not hide the others, or that the files cannot be read in time.
    pub fn read(path: &Path) -> Result<Self, Vec<String>> {
        let reading = read_in_time(path, Reading::of).map_err(|_| vec![hung(path)])?;
        let Reading { files, settings } = reading;
        Ok(Self { settings: settings?, files })
    }
}

/// What was read, and how to tell whether it is still there.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    /// The file itself, then what it names.
    pub(crate) paths: Vec<PathBuf>,
    /// Those that hold a private key or the hash of a password.
    pub(crate) secret: Vec<PathBuf>,
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
        let mut secret = Vec::new();
        let folder = path.parent().unwrap_or(Path::new(""));
        let settings = match hasher.read(path) {
            Ok(bytes) => {
                let mut read = |name: &str| {
                    let file = folder.join(name);
                    let bytes = hasher.read(&file).map_err(|error| unreadable(&file, &error));
                    if bytes.as_ref().is_ok_and(|bytes| holds_key(bytes)) {
                        secret.push(file.clone());
                    }
                    paths.push(file);
                    bytes
                };
                let settings = parse(&bytes, &mut read);
                if holds_key(&bytes) || settings.as_ref().is_ok_and(Settings::has_users) {
                    secret.push(path.to_owned());
                }
                settings.map_err(|mistakes| {
                    mistakes.iter().map(|mistake| format!("{}: {mistake}", path.display())).collect()
                })
            }
            Err(error) => Err(vec![unreadable(path, &error)]),
        };
        Self { files: Files { paths, secret, fingerprint: hasher.finish() }, settings }
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

/// Whether a private key in PEM is among the bytes.
fn holds_key(bytes: &[u8]) -> bool {
    const MARK: &[u8] = b"PRIVATE KEY-----";
    bytes.windows(MARK.len()).any(|window| window == MARK)
}

/// Reads a file of settings, certificates or keys.
pub(crate) fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    // Reading a pipe would block.
    if !path.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(io::Error::other("larger than 1 MiB"));
    }
    Ok(bytes)
}

/// What to say of a web config that cannot be read in time.
pub(crate) fn hung(path: &Path) -> String {
    let (path, limit) = (path.display(), humantime::format_duration(LONGEST_READ));
    format!("{path}, or a file that it names, cannot be read within {limit}: check the file system that it is on")
}

/// What to say of a file that cannot be read. Where its content was given instead of its path, that may be a key.
pub(crate) fn unreadable(path: &Path, error: &io::Error) -> String {
    /// `PATH_MAX` of Linux.
    const LONGEST: usize = 4096;
    let shown = path.display().to_string();
    if shown.contains('\n') || shown.len() > LONGEST {
        return "expected the path of a file, not its content".to_owned();
    }
    format!("{shown} cannot be read: {error}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    const TLS: &str = "tls_server_config: {cert_file: cert, key_file: key";
    const HASH: &str = "$2y$10$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG";

    /// Files by name: a certificate with its key, and another's key.
    fn files() -> BTreeMap<&'static str, String> {
        let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let certificate = CertificateParams::new(["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
        BTreeMap::from([
            ("cert", certificate.pem()),
            ("key", key.serialize_pem()),
            ("other.key", other.serialize_pem()),
            ("text", "no PEM\n".to_owned()),
        ])
    }

    fn read(text: &str) -> Result<Settings, Vec<String>> {
        let files = files();
        parse(text.as_bytes(), &mut |name| {
            files.get(name).map(|text| text.clone().into_bytes()).ok_or_else(|| format!("{name} cannot be read: gone"))
        })
    }

    fn mistakes(text: &str) -> Vec<String> {
        read(text).unwrap_err()
    }

    #[test]
    fn a_file_may_say_nothing() {
        for text in
            ["", "# nothing\n", "tls_server_config:\nbasic_auth_users:\n", "tls_server_config: {cert_file: ~}\n"]
        {
            let settings = read(text).unwrap();
            assert!(!settings.has_tls() && !settings.has_users() && settings.rate_limit.is_none(), "{text:?}");
        }
    }

    #[test]
    fn all_that_the_toolkit_documents_is_read() {
        let files = files();
        let inline = |name: &str| files[name].replace('\n', "\n    ");
        let (certificate, key) = (inline("cert"), inline("key"));
        let text = format!(
            "tls_server_config:\n  cert: |\n    {certificate}\n  key: |\n    {key}\n  client_ca: |\n    {certificate}\n\
             \x20 client_auth_type: RequireAndVerifyClientCert\n  client_allowed_sans: [a.example]\n\
             \x20 min_version: TLS12\n  max_version: TLS13\n\
             \x20 cipher_suites: [TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, TLS_AES_128_GCM_SHA256]\n\
             \x20 prefer_server_cipher_suites: false\n  curve_preferences: [CurveP256, X25519]\n\
             http_server_config:\n  http2: false\n  headers:\n    Content-Security-Policy: default-src 'self'\n\
             \x20   X-Frame-Options: sameorigin\n    X-Content-Type-Options: nosniff\n    X-XSS-Protection: 0\n\
             \x20   Strict-Transport-Security: ''\n\
             basic_auth_users:\n  alice: {HASH}\n\
             rate_limit: {{interval: 100ms, burst: 20}}\n"
        );
        let settings = read(&text).unwrap();
        let Tls { server, needs_client, has_own_authority, .. } = settings.tls.unwrap();
        assert!(needs_client && has_own_authority && !server.ignore_client_order);
        assert_eq!(server.alpn_protocols, [b"http/1.1"]);
        let provider = server.crypto_provider();
        let suites: Vec<_> = provider.cipher_suites.iter().map(|suite| suite.suite().as_str().unwrap()).collect();
        assert_eq!(suites, ["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "TLS13_AES_128_GCM_SHA256"]);
        let groups: Vec<_> = provider.kx_groups.iter().map(|group| group.name()).collect();
        assert_eq!(groups, [rustls::NamedGroup::secp256r1, rustls::NamedGroup::X25519]);
        assert_eq!(settings.headers.len(), 4, "blank is unset: {:?}", settings.headers);
        assert_eq!(settings.headers["x-xss-protection"], "0");
        assert_eq!(settings.users.keys().collect::<Vec<_>>(), ["alice"]);
        assert_eq!(settings.rate_limit, Some(RateLimit { interval: Duration::from_millis(100), burst: 20 }));
        assert!(settings.warnings.is_empty(), "{:?}", settings.warnings);
    }

    #[test]
    fn the_defaults_are_the_toolkit_s() {
        let tls = read(&format!("{TLS}}}\n")).unwrap().tls.unwrap();
        assert!(tls.server.ignore_client_order && !tls.needs_client);
        assert_eq!(tls.server.alpn_protocols, [&b"h2"[..], b"http/1.1"]);
        assert_eq!(tls.server.crypto_provider().cipher_suites, rustls::crypto::ring::ALL_CIPHER_SUITES);
    }

    #[test]
    fn every_mistake_is_named_with_its_line() {
        let text = "\
tls_server_config:
  cert_file: gone
  key_file: text
  client_auth_type: Always
  min_version: TLS09
  max_version: TLS14
  cipher_suites: [TLS_RSA_WITH_RC4_128_SHA, TLS_AES_128_GCM_SHA256]
  curve_preferences: [CurveP257]
  prefer_server_cipher_suites: perhaps
  cert_flie: x
http_server_config:
  http2: 2
  headers:
    X-Frame-Options: allow
    Server: me
basic_auth_users:
  alice: password
  'b:b': $2y$10$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG
rate_limit:
  interval: often
  burst: -1
web: {}
";
        let expected = [
            "line 22: web: unknown key: expected one of tls_server_config, http_server_config, basic_auth_users, rate_limit",
            "line 12: http_server_config.http2: must be true or false, not \"2\"",
            "line 15: http_server_config.headers.Server: unknown key: expected one of Content-Security-Policy, X-Frame-Options, \
             X-Content-Type-Options, X-XSS-Protection, Strict-Transport-Security",
            "line 14: http_server_config.headers.X-Frame-Options: must be deny or sameorigin, not \"allow\"",
            "line 10: tls_server_config.cert_flie: unknown key: expected one of cert, key, client_ca, cert_file, key_file, \
             client_auth_type, client_ca_file, client_allowed_sans, min_version, max_version, cipher_suites, \
             prefer_server_cipher_suites, curve_preferences",
            "line 2: tls_server_config.cert_file: gone cannot be read: gone",
            "line 3: tls_server_config.key_file: has no private key: give PEM that is not encrypted",
            "line 7: tls_server_config.cipher_suites: \"TLS_RSA_WITH_RC4_128_SHA\" is not supported: expected any of \
             TLS_AES_256_GCM_SHA384, TLS_AES_128_GCM_SHA256, TLS_CHACHA20_POLY1305_SHA256, \
             TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, \
             TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, \
             TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
            "line 8: tls_server_config.curve_preferences: \"CurveP257\" is not supported: expected any of X25519, \
             CurveP256, CurveP384",
            "line 5: tls_server_config.min_version: must be TLS12 or TLS13, not \"TLS09\"",
            "line 6: tls_server_config.max_version: must be TLS12 or TLS13, not \"TLS14\"",
            "line 9: tls_server_config.prefer_server_cipher_suites: must be true or false, not \"perhaps\"",
            "line 4: tls_server_config.client_auth_type: must be one of NoClientCert, RequestClientCert, \
             RequireAnyClientCert, RequireClientCert, VerifyClientCertIfGiven, RequireAndVerifyClientCert, not \"Always\"",
            "line 17: basic_auth_users.alice: is not a bcrypt hash: make one with htpasswd -nBC 10 \"\" | tr -d ':\\n'",
            "line 18: basic_auth_users.b:b: has a colon or a control character",
            "line 20: rate_limit.interval: must be a duration such as 100ms, not \"often\"",
            "line 21: rate_limit.burst: must be a non-negative integer, not \"-1\"",
        ];
        assert_eq!(mistakes(text), expected);
    }

    #[test]
    fn what_would_not_do_what_it_says_is_refused() {
        let cases = [
            (
                "tls_server_config: {cert_file: cert}".to_owned(),
                "tls_server_config: key_file is missing: without a key there is no TLS",
            ),
            (
                "tls_server_config: {key_file: key}".to_owned(),
                "tls_server_config: cert_file is missing: without a certificate there is no TLS",
            ),
            (
                "tls_server_config: {cert_file: cert, key_file: other.key}".to_owned(),
                "tls_server_config: the certificate and the key do not belong together",
            ),
            (
                format!("{TLS}, min_version: TLS13, max_version: TLS12}}"),
                "tls_server_config.max_version: is lower than min_version",
            ),
            (
                format!("{TLS}, max_version: TLS12, cipher_suites: [TLS_AES_128_GCM_SHA256]}}"),
                "tls_server_config: cipher_suites has none for min_version to max_version",
            ),
            (
                format!("{TLS}, max_version: TLS11}}"),
                "tls_server_config.max_version: TLS11 is not secure and not supported: set TLS12 or TLS13",
            ),
            (
                format!("{TLS}, max_version: TLS12, cipher_suites: [TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA]}}"),
                "tls_server_config: cipher_suites has none for min_version to max_version",
            ),
            (
                format!("{TLS}, cipher_suites: [TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384]}}"),
                "tls_server_config: cipher_suites has none that HTTP/2 requires: add \
                 TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 or TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, or set http2: false",
            ),
            (
                format!("{TLS}, client_ca_file: cert}}"),
                "tls_server_config.client_ca_file: verifies nobody without a client_auth_type: set \
                 RequireAndVerifyClientCert, or leave it out",
            ),
            (
                format!("{TLS}, client_ca_file: text, client_auth_type: VerifyClientCertIfGiven}}"),
                "tls_server_config.client_ca_file: has no certificate: expected PEM with -----BEGIN CERTIFICATE-----",
            ),
            (
                format!("{TLS}, client_allowed_sans: [a]}}"),
                "tls_server_config.client_allowed_sans: needs client_auth_type RequireAndVerifyClientCert or \
                 RequireAnyClientCert",
            ),
            (
                format!("{TLS}, client_auth_type: RequireAnyClientCert, client_allowed_sans: []}}"),
                "tls_server_config.client_allowed_sans: is empty, so nobody could connect: add the allowed names, or leave it out",
            ),
            ("basic_auth_users: [alice]".to_owned(), "basic_auth_users: must be a mapping of names to bcrypt hashes"),
            (
                "http_server_config: {headers: {X-XSS-Protection: \"a\\nb\"}}".to_owned(),
                "http_server_config.headers.X-XSS-Protection: has characters that are not allowed in a header",
            ),
            ("- tls_server_config".to_owned(), "the file: must be a mapping of keys to values"),
        ];
        for (text, expected) in cases {
            assert_eq!(mistakes(&text), [format!("line 1: {expected}")], "{text}");
        }
        assert_eq!(parse(b"\xff", &mut |_| Ok(Vec::new())).unwrap_err(), ["is not UTF-8"]);
    }

    #[test]
    fn each_certificate_of_a_file_is_used_or_the_file_is_refused() {
        let (files, second) = (files(), self::files()["cert"].clone());
        let read = |client_ca: &str| {
            let text = format!("{TLS}, client_ca_file: ca, client_auth_type: RequireAndVerifyClientCert}}");
            let mut read = |name: &str| Ok(if name == "ca" { client_ca } else { &files[name] }.as_bytes().to_vec());
            parse(text.as_bytes(), &mut read)
        };
        let first = &files["cert"];
        assert!(read(&format!("\u{feff}{first}{second}")).is_ok());
        let broken = second.replacen('M', "*", 1);
        let trusted = second.replace("CERTIFICATE", "TRUSTED CERTIFICATE");
        let inline = second.replace("-----BEGIN", "x -----BEGIN");
        for (second, wrong) in [
            (broken, "has a broken certificate, number 2 of 2: replace it"),
            (trusted, "has a -----BEGIN TRUSTED CERTIFICATE-----: convert it with: openssl x509 -in FILE -out ca.pem"),
            (
                inline,
                "has 2 certificates, of which only 1 can be read: expected each -----BEGIN CERTIFICATE----- on a line of its own",
            ),
        ] {
            let expected = format!("line 1: tls_server_config.client_ca_file: {wrong}");
            assert_eq!(read(&format!("{first}{second}")).unwrap_err(), [expected]);
        }
    }

    #[test]
    fn a_key_that_cannot_be_used_is_refused_with_those_that_can() {
        let expected = "line 1: tls_server_config.key_file: has a private key that cannot be used here: give ECDSA with \
                        P-256 or P-384, RSA with 2048 to 4096 bits, or Ed25519";
        let keys = [
            include_str!("../tests/keys/p521.pem"),
            include_str!("../tests/keys/rsa1024.pem"),
            include_str!("../tests/keys/secp256k1.pem"),
        ];
        for key in keys {
            let mut read = |name: &str| Ok(if name == "key" { key.into() } else { files()[name].clone().into_bytes() });
            assert_eq!(parse(format!("{TLS}}}").as_bytes(), &mut read).unwrap_err(), [expected]);
        }
    }

    #[test]
    fn what_is_used_in_another_way_than_written_draws_a_warning() {
        let cases = [
            (format!("{TLS}, key: x}}"), "tls_server_config.key: is not used, because key_file is given too"),
            (
                format!("{TLS}, min_version: TLS10}}"),
                "tls_server_config.min_version: TLS10 is not secure and not supported: TLS12 is used",
            ),
            (
                format!("{TLS}, cipher_suites: [TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA]}}"),
                "tls_server_config.cipher_suites: TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA is not supported and left out",
            ),
            (
                format!("{TLS}, curve_preferences: [CurveP521, CurveP256]}}"),
                "tls_server_config.curve_preferences: CurveP521 is not supported and left out",
            ),
            (
                format!("{TLS}, client_auth_type: RequireAndVerifyClientCert}}"),
                "tls_server_config: client_ca_file is missing: a client certificate of any authority that the system \
                 knows is valid",
            ),
            (
                format!("{TLS}, client_auth_type: RequireAnyClientCert, client_ca_file: cert}}"),
                "tls_server_config.client_ca_file: verifies nobody with this client_auth_type: set \
                 RequireAndVerifyClientCert, or leave it out",
            ),
            (
                format!("{TLS}, client_auth_type: RequireAnyClientCert, client_allowed_sans: [a]}}"),
                "tls_server_config.client_allowed_sans: any client can make a certificate with these names, because \
                 this client_auth_type verifies nobody: set RequireAndVerifyClientCert",
            ),
            ("rate_limit: {interval: 1s}".to_owned(), "rate_limit.burst: is missing or 0: every request is refused"),
        ];
        for (text, expected) in cases {
            assert_eq!(read(&text).unwrap().warnings, [format!("line 1: {expected}")], "{text}");
        }
        let warnings =
            read(&format!("basic_auth_users: {{a: {HASH}, b: {}}}", HASH.replace("$10$", "$18$"))).unwrap().warnings;
        assert!(warnings[0].starts_with("line 1: basic_auth_users.b: one check takes about "), "{warnings:?}");
        assert!(warnings[0].ends_with("s on this machine (bcrypt cost 18): use cost 10 to 12"), "{warnings:?}");
    }

    #[test]
    fn a_curve_list_with_nothing_that_is_supported_is_not_used() {
        let settings = read(&format!("{TLS}, curve_preferences: [CurveP521]}}")).unwrap();
        let expected = [
            "line 1: tls_server_config.curve_preferences: CurveP521 is not supported and left out",
            "line 1: tls_server_config.curve_preferences: has no other: X25519, CurveP256, CurveP384 are used",
        ];
        assert_eq!(settings.warnings, expected);
        assert_eq!(settings.tls.unwrap().server.crypto_provider().kx_groups.len(), 3);
    }

    #[test]
    fn an_interval_may_be_nanoseconds_as_in_go() {
        let interval = |text| read(&format!("rate_limit: {{interval: {text}, burst: 1}}")).unwrap().rate_limit;
        for text in ["1500000000", "1s500ms", "1500ms"] {
            assert_eq!(interval(text).unwrap().interval, Duration::from_millis(1500), "{text}");
        }
        assert_eq!(interval("0"), None);
    }

    #[test]
    fn a_change_that_takes_protection_away_is_seen() {
        let client = format!("{TLS}, client_auth_type: RequireAndVerifyClientCert, client_ca_file: cert}}");
        let anyone = read(&format!("{TLS}, client_auth_type: RequireAnyClientCert}}")).unwrap();
        let named = client.replace("client_ca_file: cert", "client_ca_file: cert, client_allowed_sans: [prometheus]");
        let named = read(&named).unwrap();
        let (plain, tls, client) = (read("").unwrap(), read(&format!("{TLS}}}")).unwrap(), read(&client).unwrap());
        assert_eq!(client.lost_in(&anyone), Some("no longer verifies client certificates"));
        assert_eq!(named.lost_in(&client), Some("takes clients of any name"));
        let system = read(&format!("{TLS}, client_auth_type: RequireAndVerifyClientCert}}")).unwrap();
        assert_eq!(client.lost_in(&system), Some("takes clients of any authority that the system knows"));
        let users = read(&format!("basic_auth_users: {{a: {HASH}}}")).unwrap();
        let new = read(&format!("{TLS}, min_version: TLS13}}")).unwrap();
        assert_eq!(new.lost_in(&tls), Some("takes TLS 1.2 again"));
        let limit = read("rate_limit: {interval: 1s, burst: 1}").unwrap();
        assert_eq!(limit.lost_in(&plain), Some("turns the rate limit off"));
        assert_eq!(limit.lost_in(&read("rate_limit: {interval: 1s, burst: 2}").unwrap()), None);
        let headers = read("http_server_config: {headers: {X-Frame-Options: deny, X-XSS-Protection: 0}}").unwrap();
        let fewer = read("http_server_config: {headers: {X-Frame-Options: sameorigin}}").unwrap();
        assert_eq!(headers.lost_in(&fewer), Some("leaves out a header"));
        assert_eq!(tls.lost_in(&plain), Some("turns TLS off"));
        assert_eq!(plain.lost_in(&tls), Some("turns TLS on"));
        assert_eq!(users.lost_in(&plain), Some("turns passwords off"));
        assert_eq!(client.lost_in(&tls), Some("no longer requires client certificates"));
        for (from, to) in
            [(&plain, &users), (&tls, &client), (&tls, &tls), (&tls, &new), (&plain, &limit), (&fewer, &headers)]
        {
            assert_eq!(from.lost_in(to), None);
        }
    }

    #[test]
    fn names_are_relative_to_the_file_and_what_is_no_file_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.yml");
        std::fs::write(&path, format!("{TLS}}}\n")).unwrap();
        std::fs::create_dir(folder.path().join("key")).unwrap();
        std::fs::write(folder.path().join("cert"), &files()["cert"]).unwrap();
        let (web, key) = (path.display(), folder.path().join("key"));
        let expected = [format!(
            "{web}: line 1: tls_server_config.key_file: {} cannot be read: not a regular file",
            key.display()
        )];
        assert_eq!(WebConfig::read(&path).unwrap_err(), expected);
        std::fs::remove_dir(&key).unwrap();
        std::fs::write(&key, "x".repeat((1 << 20) + 1)).unwrap();
        let expected =
            [format!("{web}: line 1: tls_server_config.key_file: {} cannot be read: larger than 1 MiB", key.display())];
        assert_eq!(WebConfig::read(&path).unwrap_err(), expected);
        let gone = folder.path().join("gone.yml");
        let expected = [format!("{} cannot be read: No such file or directory (os error 2)", gone.display())];
        assert_eq!(WebConfig::read(&gone).unwrap_err(), expected);
    }

    #[test]
    fn no_secret_is_printed() {
        let settings = read(&format!("{TLS}}}\nbasic_auth_users: {{alice: {HASH}}}\n")).unwrap();
        let printed = format!("{settings:?}");
        assert!(printed.contains("alice") && !printed.contains("X0h1gDsPsz"), "{printed}");
        let key = files()["key"].lines().nth(1).unwrap().to_owned();
        for text in [format!("tls_server_config: {{key: [{key}]}}"), format!("tls_server_config: {{key: \"{key}")] {
            let said = mistakes(&text).join("\n");
            assert!(!said.contains(&key), "{said}");
        }
    }
}
