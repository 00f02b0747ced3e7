//! The API's side over real TLS: whose certificate is trusted, and what is said of one that is not.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

mod common;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use common::{Exporter, QUICK, config_of, held};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use zenlayer_exporter::model::Service;
use zenlayer_exporter::simulator::{KEY_ID, Knobs, PASSWORD, Simulator};

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A server configuration for `name`, signed by `authority`.
fn server_config(authority: &Authority, name: &str) -> rustls::ServerConfig {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, authority).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap()
}

/// TLS in front of a simulator. Returns its port.
async fn tls_front(simulator: &Simulator, config: rustls::ServerConfig) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let upstream: SocketAddr = simulator.endpoint().socket_addrs(|| None).unwrap()[0];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                // A client that refuses the certificate goes away here.
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut upstream = TcpStream::connect(upstream).await.unwrap();
                let _ = copy_bidirectional(&mut stream, &mut upstream).await;
            });
        }
    });
    port
}

/// Polls `https://localhost:PORT`, trusting the authorities in `ca_file`.
async fn exporter(port: u16, ca_file: Option<&Path>) -> Exporter {
    let endpoint = format!("--zenlayer.endpoint=https://localhost:{port}");
    let ca_file = ca_file.map(|file| format!("--zenlayer.ca-file={}", file.display()));
    let flags: Vec<_> = [&*endpoint].into_iter().chain(ca_file.as_deref()).collect();
    let variables = [("ZENLAYER_ACCESS_KEY_ID", KEY_ID), ("ZENLAYER_ACCESS_KEY_SECRET", PASSWORD)];
    Exporter::start_with(config_of(&flags, &variables), QUICK).await
}

/// Waits for a poll that fails for its certificate, and gives what is said of it.
async fn refusal(exporter: &Exporter) -> String {
    let tls = [("outcome", "tls")];
    let metrics = exporter.until(|metrics| metrics.value("zenlayer_exporter_polls_total", &tls) >= Some(1.0)).await;
    assert_eq!(metrics.sum("zenlayer_exporter_api_retries_total"), 0.0, "a certificate does not mend itself");
    exporter.get("/readyz").await.text().to_owned()
}

#[tokio::test]
async fn an_authority_of_ones_own_is_trusted_where_it_is_named() {
    let simulator = Simulator::start(Knobs::still(Service::Vm, 1500)).await.unwrap();
    let authority = authority();
    let port = tls_front(&simulator, server_config(&authority, "localhost")).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ca.pem");
    std::fs::write(&file, authority.pem()).unwrap();

    let trusting = exporter(port, Some(&file)).await;
    let metrics = trusting.until(|metrics| metrics.value("zenlayer_up", &[]) == Some(1.0)).await;
    assert_eq!(metrics.instances(), held(&simulator));

    let said = refusal(&exporter(port, None).await).await;
    let expected = format!(
        "no poll has succeeded yet: DescribeInstancesStatus, page 1: localhost:{port} has a certificate that does \
         not verify: no trusted authority issued it: check --zenlayer.endpoint; behind an inspecting proxy, name \
         its certificate authority with --zenlayer.ca-file\n"
    );
    assert_eq!(said, expected);
}

#[tokio::test]
async fn a_server_without_tls_is_told_so() {
    let simulator = Simulator::start(Knobs::still(Service::Vm, 5)).await.unwrap();
    let said = refusal(&exporter(simulator.endpoint().port().unwrap(), None).await).await;
    assert!(said.contains(" does not speak TLS: check --zenlayer.endpoint"), "{said}");
}

#[tokio::test]
async fn a_certificate_for_another_host_is_refused() {
    let simulator = Simulator::start(Knobs::still(Service::Vm, 5)).await.unwrap();
    let authority = authority();
    let port = tls_front(&simulator, server_config(&authority, "elsewhere.example")).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ca.pem");
    std::fs::write(&file, authority.pem()).unwrap();
    let said = refusal(&exporter(port, Some(&file)).await).await;
    assert!(said.contains("does not verify: localhost is not among its subject alternative names"), "{said}");
}
