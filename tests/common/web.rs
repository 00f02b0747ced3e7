//! The exporter's own side over TLS: authorities, certificates and a client, each made for the test.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ProtocolVersion, RootCertStore, SupportedProtocolVersion};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::Reply;

/// Signs certificates.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate with its key, in PEM.
pub(crate) struct Identity {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // By the name they share otherwise, OpenSSL takes what it signs for signed by itself.
        params.distinguished_name.push(DnType::CommonName, "authority of the test");
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for that name, or address.
    pub(crate) fn identity(&self, name: &str) -> Identity {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &self.0).unwrap();
        Identity { certificate: certificate.pem(), key: key.serialize_pem() }
    }

    /// Writes `cert.pem` and `key.pem` for localhost, and `ca.pem`.
    pub(crate) fn write(&self, folder: &Path) {
        let Identity { certificate, key } = self.identity("localhost");
        fs::write(folder.join("cert.pem"), certificate).unwrap();
        fs::write(folder.join("key.pem"), key).unwrap();
        fs::write(folder.join("ca.pem"), self.pem()).unwrap();
    }
}

/// What a test wants of a connection.
pub(crate) struct Client {
    pub(crate) roots: RootCertStore,
    pub(crate) identity: Option<Identity>,
    pub(crate) versions: Vec<&'static SupportedProtocolVersion>,
    pub(crate) alpn: Vec<&'static [u8]>,
}

impl Client {
    pub(crate) fn trusting(authorities: &[&Authority]) -> Self {
        let mut roots = RootCertStore::empty();
        for authority in authorities {
            roots.add(authority.0.der().clone()).unwrap();
        }
        let versions = vec![&rustls::version::TLS12, &rustls::version::TLS13];
        Self { roots, identity: None, versions, alpn: Vec::new() }
    }

    pub(crate) async fn connect(&self, address: SocketAddr) -> std::io::Result<TlsStream<TcpStream>> {
        connect(&self.connector(), address).await
    }

    /// For many connections: each that shares it costs less.
    pub(crate) fn connector(&self) -> TlsConnector {
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&self.versions)
            .unwrap()
            .with_root_certificates(self.roots.clone());
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some(Identity { certificate, key }) => {
                let chain = CertificateDer::pem_slice_iter(certificate.as_bytes()).map(Result::unwrap).collect();
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                let key = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
                // Unlike `with_client_auth_cert`, this accepts the key of another certificate.
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, key))))
            }
        };
        config.alpn_protocols = self.alpn.iter().map(|protocol| protocol.to_vec()).collect();
        TlsConnector::from(Arc::new(config))
    }

    /// One request on a connection of its own, or why there was no answer.
    pub(crate) async fn get(
        &self,
        address: SocketAddr,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<(Reply, Session), String> {
        let stream = self.connect(address).await.map_err(|error| error.to_string())?;
        let session = Session::of(&stream);
        let mut request = Request::get(format!("https://localhost{path}"));
        if session.alpn.as_deref() != Some(b"h2") {
            request = Request::get(path).header("host", "localhost");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        let response = if session.alpn.as_deref() == Some(b"h2") {
            let io = TokioIo::new(stream);
            let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await;
            let (mut sender, connection) = handshake.map_err(|error| format!("{error:?}"))?;
            tokio::spawn(connection);
            sender.send_request(request).await
        } else {
            let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
            let (mut sender, connection) = handshake.map_err(|error| format!("{error:?}"))?;
            tokio::spawn(connection);
            sender.send_request(request).await
        };
        let (head, body) = response.map_err(|error| format!("{error:?}"))?.into_parts();
        let body = body.collect().await.map_err(|error| format!("{error:?}"))?.to_bytes();
        Ok((Reply { status: head.status.as_u16(), headers: head.headers, body }, session))
    }
}

pub(crate) async fn connect(connector: &TlsConnector, address: SocketAddr) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    connector.connect(ServerName::try_from("localhost").unwrap(), stream).await
}

/// What the handshake came to.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Session {
    pub(crate) version: Option<ProtocolVersion>,
    pub(crate) suite: String,
    pub(crate) alpn: Option<Vec<u8>>,
    /// The server's.
    pub(crate) certificate: CertificateDer<'static>,
}

impl Session {
    fn of(stream: &TlsStream<TcpStream>) -> Self {
        let tls = stream.get_ref().1;
        Self {
            version: tls.protocol_version(),
            suite: tls.negotiated_cipher_suite().unwrap().suite().as_str().unwrap().to_owned(),
            alpn: tls.alpn_protocol().map(<[u8]>::to_vec),
            certificate: tls.peer_certificates().unwrap()[0].clone().into_owned(),
        }
    }
}

/// `Authorization` for that user and password.
pub(crate) fn basic(user: &str, password: &str) -> String {
    use base64::Engine;
    format!("Basic {}", base64::prelude::BASE64_STANDARD.encode(format!("{user}:{password}")))
}

/// The bcrypt hash of a password, at the lowest cost.
pub(crate) fn hash(password: &str, salt: u8) -> String {
    hash_at(4, password, salt)
}

/// The bcrypt hash of a password at that cost.
pub(crate) fn hash_at(cost: u32, password: &str, salt: u8) -> String {
    use base64::Engine;
    let salt = [salt; 16];
    let key = [password.as_bytes(), b"\0"].concat();
    let digest = bcrypt::bcrypt(cost, salt, &key[..key.len().min(72)]);
    let (salt, digest) = (bcrypt::BASE_64.encode(salt), bcrypt::BASE_64.encode(&digest[..23]));
    format!("$2y${cost:02}${salt}{digest}")
}
