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
    serving(&certificate, &key)
}

fn serving(certificate: &rcgen::Certificate, key: &KeyPair) -> rustls::ServerConfig {
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
    assert_eq!(metrics.sum("zenlayer_exporter_api_retries_total"), 0.0, "a certificate does not fix itself");
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

/// Polls a server with that certificate, which the CA file has too. Returns the outcome of a poll and what is said.
async fn poll_pinned(params: CertificateParams, signer: Option<&Authority>) -> (bool, String) {
    let simulator = Simulator::start(Knobs::still(Service::Vm, 5)).await.unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = match signer {
        Some(signer) => params.signed_by(&key, signer),
        None => params.self_signed(&key),
    };
    let certificate = certificate.unwrap();
    let port = tls_front(&simulator, serving(&certificate, &key)).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    // Another certificate before it, and what an editor on Windows makes of both.
    let text = format!("\u{feff}# old\r\n{}\n{}", authority().pem(), certificate.pem()).replace('\n', "\r\n");
    std::fs::write(&file, text).unwrap();
    let exporter = exporter(port, Some(file.path())).await;
    let outcome = |metrics: &common::Metrics| {
        ["success", "tls"]
            .map(|outcome| metrics.value("zenlayer_exporter_polls_total", &[("outcome", outcome)]) >= Some(1.0))
    };
    let metrics = exporter.until(|metrics| outcome(metrics).contains(&true)).await;
    (outcome(&metrics)[0], exporter.get("/readyz").await.text().to_owned())
}

fn for_localhost(is_ca: IsCa) -> CertificateParams {
    let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    params.is_ca = is_ca;
    params
}

#[tokio::test]
async fn a_server_certificate_that_is_named_itself_is_trusted() {
    use rcgen::ExtendedKeyUsagePurpose::{ClientAuth, CodeSigning, ServerAuth};

    let ca = || IsCa::Ca(BasicConstraints::Unconstrained);
    for is_ca in [ca(), IsCa::ExplicitNoCa, IsCa::NoCa] {
        let (succeeded, said) = poll_pinned(for_localhost(is_ca), None).await;
        assert!(succeeded, "self-signed, {is_ca:?}: {said}");
    }
    let unknown = authority();
    let (succeeded, said) = poll_pinned(for_localhost(IsCa::NoCa), Some(&unknown)).await;
    assert!(succeeded, "signed by an authority that is not named: {said}");

    for is_ca in [ca(), IsCa::NoCa] {
        let mut expired = for_localhost(is_ca);
        expired.not_before = rcgen::date_time_ymd(2020, 1, 1);
        expired.not_after = rcgen::date_time_ymd(2021, 1, 1);
        let (succeeded, said) = poll_pinned(expired, None).await;
        assert!(!succeeded && said.contains("does not verify: it expired on 2021-01-01T00:00:00Z"), "{said}");
        let mut elsewhere = CertificateParams::new(["elsewhere.example".to_owned()]).unwrap();
        elsewhere.is_ca = is_ca;
        let (succeeded, said) = poll_pinned(elsewhere, None).await;
        assert!(!succeeded && said.contains("localhost is not among its subject alternative names"), "{said}");

        for (purposes, is_right) in [
            (vec![ClientAuth], false),
            (vec![CodeSigning, ClientAuth], false),
            (vec![ServerAuth], true),
            (vec![ClientAuth, ServerAuth], true),
        ] {
            let mut params = for_localhost(is_ca);
            params.extended_key_usages = purposes;
            let (succeeded, said) = poll_pinned(params.clone(), None).await;
            assert_eq!(succeeded, is_right, "{is_ca:?}, {:?}: {said}", params.extended_key_usages);
            assert!(is_right || said.contains("does not verify: it is not for servers"), "{said}");
        }
    }
}

#[tokio::test]
async fn a_named_server_certificate_vouches_for_no_other() {
    let simulator = Simulator::start(Knobs::still(Service::Vm, 5)).await.unwrap();
    for (is_ca, expired) in [(IsCa::ExplicitNoCa, false), (IsCa::NoCa, false), (IsCa::NoCa, true)] {
        let mut params = CertificateParams::new(["intranet.example".to_owned()]).unwrap();
        params.is_ca = is_ca;
        if expired {
            params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        }
        assert_signs_for_none(&simulator, params).await;
    }
}

#[tokio::test]
async fn an_authority_that_is_not_for_servers_signs_for_none() {
    let simulator = Simulator::start(Knobs::still(Service::Vm, 5)).await.unwrap();
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    assert_signs_for_none(&simulator, params).await;
}

/// Asserts that a certificate which the operator names does not vouch for the server's, which it has signed.
async fn assert_signs_for_none(simulator: &Simulator, params: CertificateParams) {
    let named = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let port = tls_front(simulator, server_config(&named, "localhost")).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, named.pem()).unwrap();
    let said = refusal(&exporter(port, Some(file.path())).await).await;
    assert!(said.contains("does not verify: no trusted authority issued it"), "{said}");
}

/// A server that shows `certificate` without having its key.
fn impostor(
    certificate: &rcgen::Certificate,
    version: &'static rustls::SupportedProtocolVersion,
) -> rustls::ServerConfig {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(KeyPair::generate().unwrap().serialize_der()));
    let key = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
    let shown = rustls::sign::CertifiedKey::new(vec![certificate.der().clone()], key);
    rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(shown)))
}

#[tokio::test]
async fn a_certificate_is_worth_nothing_without_its_key() {
    let simulator = Simulator::start(Knobs::still(Service::Vm, 5)).await.unwrap();
    let authority = authority();
    let key = KeyPair::generate().unwrap();
    let pinned = for_localhost(IsCa::NoCa).self_signed(&key).unwrap();
    let issued = for_localhost(IsCa::NoCa).signed_by(&key, &authority).unwrap();
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        for (certificate, trusted) in [(&pinned, pinned.pem()), (&issued, authority.pem())] {
            let port = tls_front(&simulator, impostor(certificate, version)).await;
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(&file, trusted).unwrap();
            let said = refusal(&exporter(port, Some(file.path())).await).await;
            assert!(said.contains("its signature, or one of its chain, is wrong"), "{said}");
        }
    }
}

#[tokio::test]
async fn a_self_signed_certificate_that_is_not_named_is_refused_in_words() {
    let simulator = Simulator::start(Knobs::still(Service::Vm, 5)).await.unwrap();
    for is_ca in [IsCa::Ca(BasicConstraints::Unconstrained), IsCa::NoCa] {
        let key = KeyPair::generate().unwrap();
        let certificate = for_localhost(is_ca).self_signed(&key).unwrap();
        let port = tls_front(&simulator, serving(&certificate, &key)).await;
        let said = refusal(&exporter(port, None).await).await;
        let reasons =
            ["it is self-signed or an authority's, and not one that is trusted", "no trusted authority issued it"];
        assert!(reasons.iter().any(|reason| said.contains(&format!("does not verify: {reason}"))), "{said}");
    }
}

#[test]
fn every_certificate_of_the_ca_file_is_checked_at_the_start() {
    let (first, second, third) = (authority().pem(), authority().pem(), authority().pem());
    let key = KeyPair::generate().unwrap().serialize_pem();
    let garbage = "-----BEGIN CERTIFICATE-----\naGVsbG8gd29ybGQ=\n-----END CERTIFICATE-----\n";
    let lines: Vec<_> = second.lines().collect();
    let shortened = [&lines[..2], &lines[lines.len() - 1..]].concat().join("\n");
    let no_end = lines[..lines.len() - 1].join("\n");
    let no_base64 = second.replacen('M', "*", 1);
    let indented = second.replace("-----BEGIN", "x -----BEGIN");
    let trusted = second.replace("CERTIFICATE", "TRUSTED CERTIFICATE");
    let der = rcgen::CertificateParams::new([]).unwrap().self_signed(&KeyPair::generate().unwrap()).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let broken = "has a broken certificate, number 2 of 3: replace it";
    let in_the_middle = |text: &str| format!("{first}{text}\n{third}").into_bytes();
    let only = "has 3 certificates, of which only 2 can be read: expected each -----BEGIN CERTIFICATE----- on a line of its own";
    for (bytes, wrong) in [
        (in_the_middle(garbage), broken),
        (in_the_middle(&shortened), broken),
        (in_the_middle(&no_base64), broken),
        (in_the_middle(&no_end), broken),
        (in_the_middle(&indented), only),
        (
            in_the_middle(&trusted),
            "has a -----BEGIN TRUSTED CERTIFICATE-----: convert it with: openssl x509 -in FILE -out ca.pem",
        ),
        (key.into_bytes(), "has a private key and no certificate: expected PEM with -----BEGIN CERTIFICATE-----"),
        (b"\n".to_vec(), "has no certificate: expected PEM with -----BEGIN CERTIFICATE-----"),
        (
            der.der().to_vec(),
            "is not PEM: if it is DER, convert it with: openssl x509 -inform der -in FILE -out ca.pem",
        ),
        (b"\xff\xfe-\0".to_vec(), "is UTF-16: save it as UTF-8"),
        (b"\xff\xfe\0\0-\0\0\0".to_vec(), "is UTF-32: save it as UTF-8"),
    ] {
        std::fs::write(&file, bytes).unwrap();
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_zenlayer-exporter"))
            .args(["--demo", "--once", &format!("--zenlayer.ca-file={}", file.path().display())])
            .env_clear()
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(64));
        let expected = format!("--zenlayer.ca-file cannot be used: {} {wrong}", file.path().display());
        assert_eq!(String::from_utf8(output.stderr).unwrap().lines().nth(1), Some(&*expected));
    }
}
