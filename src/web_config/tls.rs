//! `tls_server_config` → how rustls is to talk.
//!
//! Invariant: what rustls does not have, or would not do as written, is refused by name. It must not know how a
//! handshake is run.

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, SupportedKxGroup, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{
    Error, InconsistentKeys, ProtocolVersion, RootCertStore, ServerConfig, SupportedCipherSuite,
    SupportedProtocolVersion, version,
};

use super::Tls;
use super::check::{Check, Fields, Noted};
use super::client::Client;
use super::yaml::Node;

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

/// `client_auth_type`, by Go's names.
#[derive(Debug, Clone, Copy, PartialEq)]
enum ClientAuth {
    None,
    Request,
    RequireAny,
    VerifyIfGiven,
    RequireAndVerify,
}

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
        // Each is checked before any is missed: all mistakes are to be told.
        let chain = self.certificate(&mut fields, line);
        let key = self.key(&mut fields, line);
        let provider = self.provider(&mut fields);
        let versions = self.versions(&mut fields);
        let server_order = self.switch(&mut fields, "prefer_server_cipher_suites", true);
        let client = self.client(&mut fields);
        let (chain, key, server_order, client) = (chain?, key?, server_order?, client.ok()?);
        let (provider, versions) = (Arc::new(provider?), versions?);
        let is = |what: fn(&Client) -> bool| client.as_ref().is_some_and(what);
        let needs_client = is(|client| client.mandatory);
        let (verifies_client, names_clients) =
            (is(|client| client.chain.is_some()), is(|client| client.names.is_some()));
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
        let http1 = Arc::new(config.clone());
        if http2 {
            config.alpn_protocols.insert(0, b"h2".to_vec());
        }
        Some(Tls { offered: Arc::new(config), http1, needs_client, verifies_client, names_clients })
    }

    /// The text of `key` or the content of the file that `key_file` names; `None` where neither is given.
    fn pem(&mut self, fields: &mut Fields, key: &str) -> Result<Option<Pem>, Noted> {
        let file_key = format!("{key}_file");
        match (self.text(fields, key), self.text(fields, &file_key)) {
            (Some((line, _)), Some(_)) => {
                self.wrong(line, &format!("{PATH}.{key}"), &format!("is given beside {file_key}: leave one out"))
            }
            (Some((line, text)), None) => {
                Some(Some(Pem { line, name: format!("{PATH}.{key}"), bytes: text.into_bytes() }))
            }
            (None, Some((line, file))) => {
                let name = format!("{PATH}.{file_key}");
                match (self.read)(&file) {
                    Ok(bytes) => Some(Some(Pem { line, name, bytes })),
                    Err(error) => self.wrong(line, &name, &error),
                }
            }
            (None, None) => Some(None),
        }
        .ok_or(Noted)
    }

    fn certificates(&mut self, pem: &Pem) -> Option<Vec<CertificateDer<'static>>> {
        match CertificateDer::pem_slice_iter(&pem.bytes).collect::<Result<Vec<_>, _>>() {
            Ok(certificates) if !certificates.is_empty() => Some(certificates),
            _ => self.wrong(
                pem.line,
                &pem.name,
                "has no certificate: give PEM, or name a file with the key that ends in _file",
            ),
        }
    }

    fn certificate(&mut self, fields: &mut Fields, line: usize) -> Option<Vec<CertificateDer<'static>>> {
        match self.pem(fields, "cert").ok()? {
            Some(pem) => self.certificates(&pem),
            None => self.wrong(line, PATH, "cert_file is missing: without a certificate there is no TLS"),
        }
    }

    fn key(&mut self, fields: &mut Fields, line: usize) -> Option<PrivateKeyDer<'static>> {
        let Some(pem) = self.pem(fields, "key").ok()? else {
            return self.wrong(line, PATH, "key_file is missing: without a key there is no TLS");
        };
        let bytes = zeroize::Zeroizing::new(pem.bytes);
        let key = PrivateKeyDer::from_pem_slice(&bytes).ok();
        key.or_else(|| self.wrong(pem.line, &pem.name, "has no private key: give PEM that is not encrypted"))
    }

    fn provider(&mut self, fields: &mut Fields) -> Option<CryptoProvider> {
        let suites = self.suites(fields);
        let curves = self.curves(fields);
        Some(CryptoProvider { cipher_suites: suites?, kx_groups: curves?, ..ring::default_provider() })
    }

    /// In the order in which they are preferred.
    fn suites(&mut self, fields: &mut Fields) -> Option<Vec<SupportedCipherSuite>> {
        let all = ring::default_provider().cipher_suites;
        let names = self.texts(fields, "cipher_suites").unwrap_or_default();
        let chosen = self.chosen("cipher_suites", names, |name| {
            let found = all.iter().find(|suite| go_name(**suite) == name).copied();
            found.ok_or_else(|| all.iter().map(|suite| go_name(*suite)).collect())
        })?;
        if chosen.is_empty() {
            return Some(all);
        }
        // As in Go, a list that names none of TLS 1.3 leaves these as they are.
        let is_tls13 = |suite: &SupportedCipherSuite| suite.version().version == ProtocolVersion::TLSv1_3;
        let names_tls13 = chosen.iter().any(is_tls13);
        let kept = all.into_iter().filter(|suite| is_tls13(suite) && !names_tls13);
        Some(kept.chain(chosen.iter().copied()).collect())
    }

    fn curves(&mut self, fields: &mut Fields) -> Option<Vec<&'static dyn SupportedKxGroup>> {
        let names = self.texts(fields, "curve_preferences").unwrap_or_default();
        let chosen = self.chosen("curve_preferences", names, |name| {
            let found = CURVES.iter().find(|(known, _)| *known == name).map(|(_, curve)| *curve);
            found.ok_or_else(|| CURVES.iter().map(|(known, _)| (*known).to_owned()).collect())
        })?;
        Some(if chosen.is_empty() { ring::default_provider().kx_groups } else { chosen })
    }

    /// What each name of a list stands for; `find` gives the names there are where it finds nothing.
    fn chosen<T>(
        &mut self,
        key: &str,
        names: Vec<(usize, String)>,
        find: impl Fn(&str) -> Result<T, Vec<String>>,
    ) -> Option<Vec<T>> {
        let mut chosen = Some(Vec::new());
        for (line, name) in names {
            match (find(&name), &mut chosen) {
                (Ok(found), Some(chosen)) => chosen.push(found),
                (Ok(_), None) => {}
                (Err(known), _) => {
                    let what = format!("{name:?} is not to be had here: there are {}", known.join(", "));
                    chosen = self.wrong(line, &format!("{PATH}.{key}"), &what);
                }
            }
        }
        chosen
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
            "TLS10" | "TLS11" => self.wrong(
                line,
                &format!("{PATH}.{key}"),
                &format!("{text} is broken and not served: give TLS12 or TLS13"),
            ),
            _ => self.wrong(line, &format!("{PATH}.{key}"), &format!("{text:?} is none of TLS12, TLS13")),
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
            self.wrong(line, &format!("{PATH}.client_auth_type"), &format!("{text:?} is none of {names}"))
        })
    }

    /// What a client has to show; `None` where it is not asked for anything.
    fn client(&mut self, fields: &mut Fields) -> Result<Option<Client>, Noted> {
        let kind = self.client_auth(fields);
        let authorities = self.pem(fields, "client_ca");
        let names = self.allowed_names(fields, kind);
        let (kind, authorities, names) = (kind.ok_or(Noted)?, authorities?, names?);
        let chain = match (kind, authorities) {
            (ClientAuth::VerifyIfGiven | ClientAuth::RequireAndVerify, Some(pem)) => {
                Some(self.chain(&pem).ok_or(Noted)?)
            }
            (ClientAuth::VerifyIfGiven | ClientAuth::RequireAndVerify, None) => {
                let wrong = "client_ca_file is missing: it says who signs the clients' certificates";
                return self.wrong(fields.line(), PATH, wrong).ok_or(Noted);
            }
            (_, Some(pem)) => {
                let wrong =
                    "verifies nobody with this client_auth_type: give RequireAndVerifyClientCert, or leave it out";
                return self.wrong(pem.line, &pem.name, wrong).ok_or(Noted);
            }
            (ClientAuth::None, None) => return Ok(None),
            (ClientAuth::Request | ClientAuth::RequireAny, None) => None,
        };
        let mandatory = matches!(kind, ClientAuth::RequireAny | ClientAuth::RequireAndVerify);
        let algorithms = ring::default_provider().signature_verification_algorithms;
        Ok(Some(Client { chain, mandatory, names, algorithms }))
    }

    /// Verifies that one of these authorities signed.
    fn chain(&mut self, pem: &Pem) -> Option<Arc<dyn ClientCertVerifier>> {
        let mut roots = RootCertStore::empty();
        for certificate in self.certificates(pem)? {
            if let Err(error) = roots.add(certificate) {
                return self.wrong(pem.line, &pem.name, &format!("has a certificate that cannot be used: {error}"));
            }
        }
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(ring::default_provider())).build();
        Some(verifier.expect("there are roots, and no revocation lists to be wrong"))
    }

    /// `None` where any name will do.
    fn allowed_names(&mut self, fields: &mut Fields, kind: Option<ClientAuth>) -> Result<Option<Vec<String>>, Noted> {
        let name = format!("{PATH}.client_allowed_sans");
        let Some(allowed) = self.texts(fields, "client_allowed_sans") else { return Ok(None) };
        if allowed.is_empty() {
            let wrong = "is empty, so nobody could connect: name who may, or leave it out";
            return self.wrong(fields.line(), &name, wrong).ok_or(Noted);
        }
        if matches!(kind, Some(ClientAuth::None | ClientAuth::Request | ClientAuth::VerifyIfGiven)) {
            let wrong = "needs client_auth_type RequireAndVerifyClientCert or RequireAnyClientCert";
            return self.wrong(allowed[0].0, &name, wrong).ok_or(Noted);
        }
        Ok(Some(allowed.into_iter().map(|(_, name)| name).collect()))
    }
}

/// What Go calls a cipher suite.
fn go_name(suite: SupportedCipherSuite) -> String {
    let name = suite.suite().as_str().unwrap_or_default();
    match name.strip_prefix("TLS13_") {
        Some(rest) => format!("TLS_{rest}"),
        None => name.to_owned(),
    }
}
