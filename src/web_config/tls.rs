//! `tls_server_config` → how rustls is to talk.
//!
//! Invariant: what rustls does not have is left out of a list with a warning, and what would protect less than is written
//! is refused by name. It must not know how a handshake is run.

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, SupportedKxGroup, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{
    CipherSuite, Error, InconsistentKeys, ProtocolVersion, RootCertStore, ServerConfig, SupportedCipherSuite,
    SupportedProtocolVersion, version,
};

use super::check::{Check, Fields, Noted};
use super::client::Client;
use super::yaml::Node;
use super::{Tls, certificates};

const PATH: &str = "tls_server_config";
const KEYS: [&str; 13] = [
    "cert",
    "key",
    "client_ca",
    "cert_file",
    "key_file",
    "client_auth_type",
    "client_ca_file",
    "client_allowed_sans",
    "min_version",
    "max_version",
    "cipher_suites",
    "prefer_server_cipher_suites",
    "curve_preferences",
];

/// Go's names of the groups that ring has.
static CURVES: [(&str, &dyn SupportedKxGroup); 3] = [
    ("X25519", ring::kx_group::X25519),
    ("CurveP256", ring::kx_group::SECP256R1),
    ("CurveP384", ring::kx_group::SECP384R1),
];

/// Go has these groups too.
const OTHER_CURVES: [&str; 1] = ["CurveP521"];

/// Go has or had these suites too: with CBC, or without forward secrecy.
const OTHER_SUITES: [&str; 8] = [
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
];

/// HTTP/2 requires one of these, by the kind of the key, over TLS 1.2 (RFC 9113, section 9.2.2).
const HTTP2_SUITES: [CipherSuite; 2] =
    [CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256];

/// `client_auth_type`, by Go's names.
#[derive(Debug, Clone, Copy, PartialEq)]
enum ClientAuth {
    None,
    Request,
    RequireAny,
    VerifyIfGiven,
    RequireAndVerify,
}

type Certificates = Vec<CertificateDer<'static>>;

/// PEM and what it is called in a mistake.
struct Pem {
    line: usize,
    name: String,
    bytes: Vec<u8>,
}

impl Check<'_> {
    pub(super) fn tls(&mut self, node: Node, http2: bool) -> Option<Tls> {
        let line = node.line;
        let mut fields = self.fields(PATH, node, &KEYS)?;
        if fields.is_empty() {
            return None;
        }
        // Each is checked before any is missed: all mistakes are reported.
        let chain = self.certificate(&mut fields, line);
        let key = self.key(&mut fields, line);
        let provider = self.provider(&mut fields);
        let versions = self.versions(&mut fields);
        let server_order = self.switch(&mut fields, "prefer_server_cipher_suites", true);
        let client = self.client(&mut fields);
        let (chain, key, server_order, client) = (chain?, key?, server_order?, client.ok()?);
        let (provider, versions) = (Arc::new(provider?), versions?);
        if http2 && versions.contains(&&version::TLS12) && !serves_http2(&provider.cipher_suites) {
            let what = "cipher_suites has none that HTTP/2 requires: add \
                        TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 or TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, or set http2: false";
            return self.wrong(line, PATH, what);
        }
        let is = |what: fn(&Client) -> bool| client.as_ref().is_some_and(what);
        let needs_client = is(|client| client.mandatory);
        let (verifies_client, names_clients) =
            (is(|client| client.chain.is_some()), is(|client| client.names.is_some()));
        let has_own_authority = is(|client| client.has_own_authority);
        let Ok(builder) = ServerConfig::builder_with_provider(provider).with_protocol_versions(&versions) else {
            return self.wrong(line, PATH, "cipher_suites has none for min_version to max_version");
        };
        let builder = match client {
            Some(client) => builder.with_client_cert_verifier(Arc::new(client)),
            None => builder.with_no_client_auth(),
        };
        let mut config = match builder.with_single_cert(chain, key) {
            Ok(config) => config,
            Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
                return self.wrong(line, PATH, "the certificate and the key do not belong together");
            }
            Err(error) => return self.wrong(line, PATH, &format!("certificate and key cannot be used: {error}")),
        };
        config.ignore_client_order = server_order;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        if http2 {
            config.alpn_protocols.insert(0, b"h2".to_vec());
        }
        Some(Tls {
            server: Arc::new(config),
            needs_client,
            verifies_client,
            has_own_authority,
            names_clients,
            needs_tls13: !versions.contains(&&version::TLS12),
        })
    }

    /// The text of `key` or the content of the file that `key_file` names; `None` where neither is given.
    fn pem(&mut self, fields: &mut Fields, key: &str) -> Result<Option<Pem>, Noted> {
        let file_key = format!("{key}_file");
        let (text, file) = (self.text(fields, key), self.text(fields, &file_key));
        if let (Some((line, _)), Some(_)) = (&text, &file) {
            self.warn(*line, &format!("{PATH}.{key}"), &format!("is not used, because {file_key} is given too"));
        }
        match (text, file) {
            (_, Some((line, file))) => {
                let name = format!("{PATH}.{file_key}");
                match (self.read)(&file) {
                    Ok(bytes) => Some(Some(Pem { line, name, bytes })),
                    Err(error) => self.wrong(line, &name, &error),
                }
            }
            (Some((line, text)), None) => {
                Some(Some(Pem { line, name: format!("{PATH}.{key}"), bytes: text.into_bytes() }))
            }
            (None, None) => Some(None),
        }
        .ok_or(Noted)
    }

    fn read_pem(&mut self, pem: &Pem, read: fn(&[u8]) -> Result<Certificates, String>) -> Option<Certificates> {
        read(&pem.bytes).map_err(|wrong| self.wrong::<()>(pem.line, &pem.name, &wrong)).ok()
    }

    fn certificate(&mut self, fields: &mut Fields, line: usize) -> Option<Certificates> {
        match self.pem(fields, "cert").ok()? {
            Some(pem) => self.read_pem(&pem, certificates::read),
            None => self.wrong(line, PATH, "cert_file is missing: without a certificate there is no TLS"),
        }
    }

    fn key(&mut self, fields: &mut Fields, line: usize) -> Option<PrivateKeyDer<'static>> {
        let Some(pem) = self.pem(fields, "key").ok()? else {
            return self.wrong(line, PATH, "key_file is missing: without a key there is no TLS");
        };
        let bytes = zeroize::Zeroizing::new(pem.bytes);
        let Ok(key) = PrivateKeyDer::from_pem_slice(&bytes) else {
            return self.wrong(pem.line, &pem.name, "has no private key: give PEM that is not encrypted");
        };
        if ring::sign::any_supported_type(&key).is_err() {
            let what = "has a private key that cannot be used here: give ECDSA with P-256 or P-384, RSA with 2048 to 4096 \
                        bits, or Ed25519";
            return self.wrong(pem.line, &pem.name, what);
        }
        Some(key)
    }

    fn provider(&mut self, fields: &mut Fields) -> Option<CryptoProvider> {
        let suites = self.suites(fields);
        let curves = self.curves(fields);
        Some(CryptoProvider { cipher_suites: suites?, kx_groups: curves?, ..ring::default_provider() })
    }

    /// In the order in which they are preferred.
    fn suites(&mut self, fields: &mut Fields) -> Option<Vec<SupportedCipherSuite>> {
        let all = ring::default_provider().cipher_suites;
        let known: Vec<_> = all.iter().map(|suite| (go_name(*suite), *suite)).collect();
        let Some(chosen) = self.chosen(fields, "cipher_suites", &known, &OTHER_SUITES)? else { return Some(all) };
        // As in Go, a list that names none of TLS 1.3 leaves these as they are.
        let names_tls13 = chosen.iter().any(is_tls13);
        let kept = all.into_iter().filter(|suite| is_tls13(suite) && !names_tls13);
        Some(kept.chain(chosen.iter().copied()).collect())
    }

    fn curves(&mut self, fields: &mut Fields) -> Option<Vec<&'static dyn SupportedKxGroup>> {
        const KEY: &str = "curve_preferences";
        let known = CURVES.map(|(name, curve)| (name.to_owned(), curve));
        let all = ring::default_provider().kx_groups;
        let Some(chosen) = self.chosen(fields, KEY, &known, &OTHER_CURVES)? else { return Some(all) };
        if chosen.is_empty() {
            let names = CURVES.map(|(name, _)| name).join(", ");
            self.warn(fields.line(), &format!("{PATH}.{KEY}"), &format!("has no other: {names} are used"));
            return Some(all);
        }
        Some(chosen)
    }

    /// What the names of a list stand for, without those that only Go has; `None` inside where there is no list.
    #[allow(clippy::option_option, reason = "a list with a mistake is not a list that is missing")]
    fn chosen<T: Copy>(
        &mut self,
        fields: &mut Fields,
        key: &str,
        known: &[(String, T)],
        other: &[&str],
    ) -> Option<Option<Vec<T>>> {
        let names = self.texts(fields, key).unwrap_or_default();
        if names.is_empty() {
            return Some(None);
        }
        let path = format!("{PATH}.{key}");
        let (mut chosen, mut all_known) = (Vec::new(), true);
        for (line, name) in names {
            if let Some((_, found)) = known.iter().find(|(known, _)| *known == name) {
                chosen.push(*found);
            } else if other.contains(&&*name) {
                self.warn(line, &path, &format!("{name} is not supported and left out"));
            } else {
                all_known = false;
                let known: Vec<_> = known.iter().map(|(known, _)| &**known).collect();
                let what = format!("{name:?} is not supported: expected any of {}", known.join(", "));
                self.wrong::<()>(line, &path, &what);
            }
        }
        all_known.then_some(Some(chosen))
    }

    fn versions(&mut self, fields: &mut Fields) -> Option<Vec<&'static SupportedProtocolVersion>> {
        let min = self.version(fields, "min_version", 12);
        let max = self.version(fields, "max_version", 13);
        let (min, max) = (min?, max?);
        let versions: Vec<_> = [(12, &version::TLS12), (13, &version::TLS13)]
            .into_iter()
            .filter_map(|(number, version)| (min..=max).contains(&number).then_some(version))
            .collect();
        if versions.is_empty() {
            return self.wrong(fields.line(), &format!("{PATH}.max_version"), "is lower than min_version");
        }
        Some(versions)
    }

    fn version(&mut self, fields: &mut Fields, key: &str, default: u8) -> Option<u8> {
        let Some((line, text)) = self.text(fields, key) else { return Some(default) };
        match &*text {
            "TLS12" => Some(12),
            "TLS13" => Some(13),
            "TLS10" | "TLS11" if key == "min_version" => {
                self.warn(
                    line,
                    &format!("{PATH}.{key}"),
                    &format!("{text} is not secure and not supported: TLS12 is used"),
                );
                Some(12)
            }
            "TLS10" | "TLS11" => self.wrong(
                line,
                &format!("{PATH}.{key}"),
                &format!("{text} is not secure and not supported: set TLS12 or TLS13"),
            ),
            _ => self.wrong(line, &format!("{PATH}.{key}"), &format!("must be TLS12 or TLS13, not {text:?}")),
        }
    }

    fn client_auth(&mut self, fields: &mut Fields) -> Option<ClientAuth> {
        let types = [
            ("NoClientCert", ClientAuth::None),
            ("RequestClientCert", ClientAuth::Request),
            ("RequireAnyClientCert", ClientAuth::RequireAny),
            // The toolkit's older word for it.
            ("RequireClientCert", ClientAuth::RequireAny),
            ("VerifyClientCertIfGiven", ClientAuth::VerifyIfGiven),
            ("RequireAndVerifyClientCert", ClientAuth::RequireAndVerify),
        ];
        let Some((line, text)) = self.text(fields, "client_auth_type") else { return Some(ClientAuth::None) };
        types.iter().find(|(name, _)| *name == text).map(|(_, kind)| *kind).or_else(|| {
            let names = types.map(|(name, _)| name).join(", ");
            self.wrong(line, &format!("{PATH}.client_auth_type"), &format!("must be one of {names}, not {text:?}"))
        })
    }

    /// What a client has to show; `None` where it is not asked for anything.
    fn client(&mut self, fields: &mut Fields) -> Result<Option<Client>, Noted> {
        let kind = self.client_auth(fields);
        let authorities = self.pem(fields, "client_ca");
        let names = self.allowed_names(fields, kind);
        let (kind, authorities, names) = (kind.ok_or(Noted)?, authorities?, names?);
        let has_own_authority = authorities.is_some();
        let chain = match (kind, authorities) {
            (ClientAuth::VerifyIfGiven | ClientAuth::RequireAndVerify, Some(pem)) => {
                Some(self.chain(&pem).ok_or(Noted)?)
            }
            (ClientAuth::VerifyIfGiven | ClientAuth::RequireAndVerify, None) => {
                let what =
                    "client_ca_file is missing: a client certificate of any authority that the system knows is valid";
                self.warn(fields.line(), PATH, what);
                Some(system_chain())
            }
            (ClientAuth::None, Some(pem)) => {
                let wrong =
                    "verifies nobody without a client_auth_type: set RequireAndVerifyClientCert, or leave it out";
                return self.wrong(pem.line, &pem.name, wrong).ok_or(Noted);
            }
            (ClientAuth::Request | ClientAuth::RequireAny, Some(pem)) => {
                let what =
                    "verifies nobody with this client_auth_type: set RequireAndVerifyClientCert, or leave it out";
                self.warn(pem.line, &pem.name, what);
                None
            }
            (ClientAuth::None, None) => return Ok(None),
            (ClientAuth::Request | ClientAuth::RequireAny, None) => None,
        };
        let has_own_authority = has_own_authority && chain.is_some();
        let mandatory = matches!(kind, ClientAuth::RequireAny | ClientAuth::RequireAndVerify);
        let algorithms = ring::default_provider().signature_verification_algorithms;
        Ok(Some(Client { chain, has_own_authority, mandatory, names, algorithms }))
    }

    /// Verifies that one of these authorities signed.
    fn chain(&mut self, pem: &Pem) -> Option<Arc<dyn ClientCertVerifier>> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(self.read_pem(pem, certificates::authorities)?);
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(ring::default_provider())).build();
        Some(verifier.expect("there are roots, and no revocation lists to be wrong"))
    }

    /// `None` where any name will do.
    fn allowed_names(&mut self, fields: &mut Fields, kind: Option<ClientAuth>) -> Result<Option<Vec<String>>, Noted> {
        let name = format!("{PATH}.client_allowed_sans");
        let Some(allowed) = self.texts(fields, "client_allowed_sans") else { return Ok(None) };
        if allowed.is_empty() {
            let wrong = "is empty, so nobody could connect: add the allowed names, or leave it out";
            return self.wrong(fields.line(), &name, wrong).ok_or(Noted);
        }
        if matches!(kind, Some(ClientAuth::None | ClientAuth::Request | ClientAuth::VerifyIfGiven)) {
            let wrong = "needs client_auth_type RequireAndVerifyClientCert or RequireAnyClientCert";
            return self.wrong(allowed[0].0, &name, wrong).ok_or(Noted);
        }
        if kind == Some(ClientAuth::RequireAny) {
            let what = "any client can make a certificate with these names, because this client_auth_type verifies \
                        nobody: set RequireAndVerifyClientCert";
            self.warn(allowed[0].0, &name, what);
        }
        Ok(Some(allowed.into_iter().map(|(_, name)| name).collect()))
    }
}

/// Verifies that an authority signed that the system knows, or Mozilla where the system has none.
fn system_chain() -> Arc<dyn ClientCertVerifier> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(ring::default_provider()))
        // Their names are more than a handshake should carry.
        .clear_root_hint_subjects()
        .build()
        .expect("there are roots, and no revocation lists to be wrong")
}

/// Whether HTTP/2 has what it requires of TLS 1.2, if a suite of that version is offered at all.
fn serves_http2(suites: &[SupportedCipherSuite]) -> bool {
    let mut old = suites.iter().filter(|suite| !is_tls13(suite)).peekable();
    old.peek().is_none() || old.any(|suite| HTTP2_SUITES.contains(&suite.suite()))
}

fn is_tls13(suite: &SupportedCipherSuite) -> bool {
    suite.version().version == ProtocolVersion::TLSv1_3
}

/// What Go calls a cipher suite.
fn go_name(suite: SupportedCipherSuite) -> String {
    let name = suite.suite().as_str().unwrap_or_default();
    match name.strip_prefix("TLS13_") {
        Some(rest) => format!("TLS_{rest}"),
        None => name.to_owned(),
    }
}
