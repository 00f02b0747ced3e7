//! `--healthcheck`: asks the exporter that runs here, for containers without a shell.
//!
//! Invariant: an answer that says it is not healthy, or none, is an error with a reason. It must not know the process
//! it asks, nor its passwords and keys: an answer that wants one is a sign of life.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use http_body_util::{BodyExt, Empty};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, ResolvesClientCert};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, Error, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use crate::config::ListenAddress;

/// How long a health check may take.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Why the exporter does not count as healthy.
#[derive(Debug, thiserror::Error)]
pub enum HealthcheckError {
    /// The host name of the listen address has no address.
    #[error("cannot look up {0}: {1}: check --web.listen-address")]
    Lookup(ListenAddress, io::Error),
    /// None of its addresses is healthy.
    #[error("{}", listed(.0))]
    Unhealthy(Vec<(SocketAddr, ProbeError)>),
}

fn listed(failed: &[(SocketAddr, ProbeError)]) -> String {
    let failed: Vec<_> = failed.iter().map(|(address, error)| format!("{address}: {error}")).collect();
    failed.join("; ")
}

/// Why one address does not count as healthy.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// It takes too long.
    #[error("no answer within {TIMEOUT:?}")]
    Timeout,
    /// Nothing listens there.
    #[error("cannot connect: {0}: is the exporter running, with the same --web.listen-address?")]
    Connect(io::Error),
    /// The TLS handshake failed.
    #[error("TLS handshake failed: {0}: is it the exporter that listens there?")]
    Tls(io::Error),
    /// What listens there does not speak HTTP.
    #[error("no HTTP answer: {0}: is it the exporter that listens there?")]
    Http(#[from] hyper::Error),
    /// It answered that it is not.
    #[error("HTTP {0}: {1}")]
    Unhealthy(u16, String),
}

/// Probes the exporter that listens on `address`. One healthy answer is enough where that stands for several addresses:
/// the exporter, too, listens on those that this machine has.
///
/// # Errors
/// When no answer is healthy.
pub async fn healthcheck(address: &ListenAddress) -> Result<(), HealthcheckError> {
    let deadline = Instant::now() + TIMEOUT;
    let found = timeout_at(deadline, look_up(address)).await.unwrap_or_else(|elapsed| Err(elapsed.into()));
    let addresses = found.map_err(|error| HealthcheckError::Lookup(address.clone(), error))?;
    // All at once: one that does not answer must not use up the time of the others.
    let mut probes: FuturesUnordered<_> = addresses
        .into_iter()
        .map(async |address| match timeout_at(deadline, probe(address)).await {
            Ok(result) => result.map_err(|error| (address, error)),
            Err(_) => Err((address, ProbeError::Timeout)),
        })
        .collect();
    let mut failed = Vec::new();
    while let Some(result) = probes.next().await {
        match result {
            Ok(()) => return Ok(()),
            Err(failure) => failed.push(failure),
        }
    }
    failed.sort_by_key(|(address, _)| *address);
    Err(HealthcheckError::Unhealthy(failed))
}

async fn look_up(address: &ListenAddress) -> io::Result<BTreeSet<SocketAddr>> {
    let (hosts, port) = address.from_here();
    let mut addresses = BTreeSet::new();
    for host in hosts {
        addresses.extend(lookup_host((host, port)).await?);
    }
    Ok(addresses)
}

/// Asks `/healthz` of whatever listens there, over TLS where it speaks that.
///
/// # Errors
/// When the answer is neither 200 nor that a password, a certificate or patience is needed.
async fn probe(address: SocketAddr) -> Result<(), ProbeError> {
    // Found out by trying: no flag of this process tells what the other one was started with, and its file may have
    // changed in a way that it cannot use.
    let no_http = match ask(connect(address).await?).await {
        Err(ProbeError::Http(error)) => error,
        other => return other,
    };
    let asked = Arc::new(Asked::default());
    match probe_tls(address, &asked).await {
        Err(ProbeError::Tls(error)) if is_plain(&error) => Err(no_http.into()),
        // Having no certificate to show, this learns no more than that the process asks for one.
        Err(ProbeError::Tls(_) | ProbeError::Http(_)) if asked.0.load(Ordering::Relaxed) => Ok(()),
        other => other,
    }
}

async fn connect(address: SocketAddr) -> Result<TcpStream, ProbeError> {
    TcpStream::connect(address).await.map_err(ProbeError::Connect)
}

async fn probe_tls(address: SocketAddr, asked: &Arc<Asked>) -> Result<(), ProbeError> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has the cipher suites of TLS 1.2 and 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone))
        .with_no_client_auth();
    config.client_auth_cert_resolver = Arc::clone(asked) as Arc<dyn ResolvesClientCert>;
    let stream = connect(address).await?;
    let name = ServerName::try_from("localhost").expect("localhost is a name");
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(ProbeError::Tls)?;
    ask(stream).await
}

/// Whether the other side answered with something that is not TLS.
fn is_plain(error: &io::Error) -> bool {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
    matches!(cause, Some(Error::InvalidMessage(_)))
}

async fn ask<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S) -> Result<(), ProbeError> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::get("/healthz")
        .header(hyper::header::HOST, "localhost")
        .body(Empty::<Bytes>::new())
        .expect("a fixed request is valid");
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    match status {
        StatusCode::OK | StatusCode::UNAUTHORIZED | StatusCode::TOO_MANY_REQUESTS => Ok(()),
        _ => Err(ProbeError::Unhealthy(status.as_u16(), first_line(&body))),
    }
}

/// What another server may answer with is a page for people.
fn first_line(body: &[u8]) -> String {
    const LONGEST: usize = 200;
    let text = String::from_utf8_lossy(&body[..body.len().min(LONGEST)]).into_owned();
    text.lines().next().unwrap_or_default().trim_end().to_owned()
}

/// Takes any certificate. The probe asks a process of its own machine, by an address the certificate need not name, and
/// tells it nothing: whoever could stand in between could as well stop the process.
#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Has no certificate to show, and remembers whether one was asked for.
#[derive(Debug, Default)]
struct Asked(AtomicBool);

impl ResolvesClientCert for Asked {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.store(true, Ordering::Relaxed);
        None
    }

    fn has_certs(&self) -> bool {
        // Nothing is asked of a resolver that has none.
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_wildcard_stands_for_both_loopback_addresses_and_an_address_for_itself() {
        for (listen, expected) in [
            (":1", &["127.0.0.1:1", "[::1]:1"][..]),
            ("[::]:1", &["127.0.0.1:1", "[::1]:1"]),
            ("0.0.0.0:1", &["127.0.0.1:1"]),
            ("127.0.0.1:1", &["127.0.0.1:1"]),
            ("[::1]:1", &["[::1]:1"]),
            ("192.0.2.1:1", &["192.0.2.1:1"]),
        ] {
            let found = look_up(&listen.parse().unwrap()).await.unwrap();
            assert_eq!(found, expected.iter().map(|address| address.parse().unwrap()).collect(), "{listen}");
        }
    }

    #[tokio::test]
    async fn a_host_name_stands_for_each_of_its_addresses() {
        let found = look_up(&"localhost:1".parse().unwrap()).await.unwrap();
        assert_eq!(found, lookup_host("localhost:1").await.unwrap().collect());
    }
}
