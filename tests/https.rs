//! The exporter's side over real TLS: versions, suites, client certificates, HTTP/2, and the health check.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

mod common;

use std::fs;

use bytes::Bytes;
use common::web::{Authority, Client};
use common::{Exporter, config_of};
use http_body_util::{BodyExt, Empty};
use hyper::{Method, Request};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::version::{TLS12, TLS13};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;
use zenlayer_exporter::config::ListenAddress;
use zenlayer_exporter::http::probe::healthcheck;

/// An exporter that uses certificates of an authority of its own.
struct Secured {
    exporter: Exporter,
    authority: Authority,
    _folder: TempDir,
}

impl Secured {
    /// `tls` is what `tls_server_config` has beside certificate and key; `rest` follows it.
    async fn start(tls: &str, rest: &str, flags: &[&str]) -> Self {
        Self::start_with(5, tls, rest, flags).await
    }

    async fn start_with(instances: usize, tls: &str, rest: &str, flags: &[&str]) -> Self {
        let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
        authority.write(folder.path());
        let file = folder.path().join("web.yml");
        let text = format!("tls_server_config: {{cert_file: cert.pem, key_file: key.pem, {tls}}}\n{rest}");
        fs::write(&file, text).unwrap();
        let flag = format!("--web.config.file={}", file.display());
        let demo = format!("--demo={instances}");
        let exporter = Exporter::start(config_of(&[&[&*demo, &*flag], flags].concat(), &[])).await;
        Self { exporter, authority, _folder: folder }
    }

    fn client(&self) -> Client {
        Client::trusting(&[&self.authority])
    }

    async fn status(&self, client: &Client, path: &str) -> Result<u16, String> {
        client.get(self.exporter.address, path, &[]).await.map(|(reply, _)| reply.status)
    }

    async fn probe(&self) -> Result<(), String> {
        let (host, port) = (self.exporter.address.ip().to_string(), self.exporter.address.port());
        healthcheck(&ListenAddress::Host(host, port)).await.map_err(|error| error.to_string())
    }
}

#[tokio::test]
async fn each_version_of_tls_is_served_where_it_is_allowed() {
    let cases = [
        ("", true, true),
        ("min_version: TLS13", false, true),
        ("max_version: TLS12", true, false),
        ("min_version: TLS12, max_version: TLS13", true, true),
    ];
    for (setting, tls12, tls13) in cases {
        let secured = Secured::start(setting, "", &[]).await;
        for (version, served) in [(&TLS12, tls12), (&TLS13, tls13)] {
            let client = Client { versions: vec![version], ..secured.client() };
            match client.get(secured.exporter.address, "/metrics", &[]).await {
                Ok((reply, session)) => {
                    assert!(served, "{setting:?} serves {version:?}");
                    assert_eq!((reply.status, session.version), (200, Some(version.version)));
                    assert!(reply.text().contains("\nzenlayer_exporter_web_config_reload_success 1\n"));
                }
                Err(error) => {
                    assert!(!served && error.contains("ProtocolVersion"), "{setting:?}, {version:?}: {error}");
                }
            }
        }
    }
}

#[tokio::test]
async fn suites_and_curves_are_those_of_the_settings() {
    let suites =
        "cipher_suites: [TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256]";
    let secured = Secured::start(suites, "", &[]).await;
    let suite_of =
        async |client: &Client| client.get(secured.exporter.address, "/", &[]).await.map(|(_, session)| session.suite);
    let old = Client { versions: vec![&TLS12], ..secured.client() };
    assert_eq!(suite_of(&old).await.unwrap(), "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256");
    assert_eq!(suite_of(&secured.client()).await.unwrap(), "TLS13_AES_256_GCM_SHA384", "the list is for TLS 1.2");

    let only = "cipher_suites: [TLS_CHACHA20_POLY1305_SHA256], curve_preferences: [CurveP384]";
    let secured = Secured::start(only, "", &[]).await;
    let suite_of =
        async |client: &Client| client.get(secured.exporter.address, "/", &[]).await.map(|(_, session)| session.suite);
    assert_eq!(suite_of(&secured.client()).await.unwrap(), "TLS13_CHACHA20_POLY1305_SHA256");
    let old = Client { versions: vec![&TLS12], ..secured.client() };
    assert!(suite_of(&old).await.is_err(), "no suite of TLS 1.2 is left");
    let stream = secured.client().connect(secured.exporter.address).await.unwrap();
    let group = stream.get_ref().1.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, rustls::NamedGroup::secp384r1);
}

#[tokio::test]
async fn a_client_certificate_is_verified_where_it_is_required() {
    let secured = Secured::start("client_auth_type: RequireAndVerifyClientCert, client_ca_file: ca.pem", "", &[]).await;
    for versions in [vec![&TLS12], vec![&TLS13]] {
        let mut client = Client { versions, ..secured.client() };
        secured.status(&client, "/metrics").await.unwrap_err();
        client.identity = Some(Authority::new().identity("scraper"));
        secured.status(&client, "/metrics").await.unwrap_err();
        client.identity = Some(secured.authority.identity("scraper"));
        assert_eq!(secured.status(&client, "/metrics").await, Ok(200));
    }
    assert_eq!(secured.probe().await, Ok(()), "that it asks for a certificate is a sign of life");
}

#[tokio::test]
async fn a_client_certificate_without_its_key_is_refused() {
    for kind in ["RequireAnyClientCert", "RequireAndVerifyClientCert, client_ca_file: ca.pem"] {
        let secured = Secured::start(&format!("client_auth_type: {kind}"), "", &[]).await;
        for version in [&TLS12, &TLS13] {
            let mut identity = secured.authority.identity("scraper");
            identity.key = secured.authority.identity("scraper").key;
            let client = Client { versions: vec![version], identity: Some(identity), ..secured.client() };
            let error = secured.status(&client, "/metrics").await.unwrap_err();
            assert!(error.contains("DecryptError"), "{kind}, {version:?}: {error}");
        }
    }
}

#[tokio::test]
async fn a_name_that_is_not_allowed_is_refused() {
    let setting = "client_auth_type: RequireAndVerifyClientCert, client_ca_file: ca.pem, \
                   client_allowed_sans: [scraper.example, 192.0.2.7]";
    let secured = Secured::start(setting, "", &[]).await;
    for (name, allowed) in [("scraper.example", true), ("192.0.2.7", true), ("other.example", false)] {
        let client = Client { identity: Some(secured.authority.identity(name)), ..secured.client() };
        assert_eq!(secured.status(&client, "/metrics").await.is_ok(), allowed, "{name}");
    }
}

#[tokio::test]
async fn the_other_kinds_of_client_auth_let_in_whom_they_say() {
    // Nobody, whom the authority signed, whom another signed.
    let cases = [
        ("NoClientCert", "", [true, true, true]),
        ("RequestClientCert", "", [true, true, true]),
        ("RequireAnyClientCert", "", [false, true, true]),
        ("RequireClientCert", "", [false, true, true]),
        ("VerifyClientCertIfGiven", "client_ca_file: ca.pem", [true, true, false]),
    ];
    for (kind, authority, expected) in cases {
        let secured = Secured::start(&format!("client_auth_type: {kind}, {authority}"), "", &[]).await;
        let identities = [None, Some(secured.authority.identity("a")), Some(Authority::new().identity("a"))];
        for (identity, expected) in identities.into_iter().zip(expected) {
            let who = identity.is_some();
            let client = Client { identity, ..secured.client() };
            let status = secured.status(&client, "/healthz").await;
            assert_eq!(status.is_ok(), expected, "{kind}, a certificate: {who}: {status:?}");
        }
        assert_eq!(secured.probe().await, Ok(()), "{kind}");
    }
}

#[tokio::test]
async fn http2_is_agreed_on_unless_it_is_off() {
    let both: Vec<&[u8]> = vec![b"h2", b"http/1.1"];
    for (setting, agreed) in [("", "h2"), ("http_server_config: {http2: false}\n", "http/1.1")] {
        let secured = Secured::start("", setting, &[]).await;
        let client = Client { alpn: both.clone(), ..secured.client() };
        let (reply, session) = client.get(secured.exporter.address, "/metrics", &[]).await.unwrap();
        assert_eq!((reply.status, session.alpn.as_deref()), (200, Some(agreed.as_bytes())));
        assert!(reply.text().contains("zenlayer_up "));
        let client = Client { alpn: vec![b"http/1.1"], ..secured.client() };
        let (reply, session) = client.get(secured.exporter.address, "/metrics", &[]).await.unwrap();
        assert_eq!((reply.status, session.alpn.as_deref()), (200, Some(&b"http/1.1"[..])));
    }
}

#[tokio::test]
async fn a_client_that_takes_nothing_loses_its_place_over_tls() {
    let flags = ["--web.max-connections=1", "--metrics.status-series=all"];
    let secured = Secured::start_with(12_000, "", "", &flags).await;
    let client = Client { alpn: vec![b"h2", b"http/1.1"], ..secured.client() };
    let deadline = Instant::now() + common::PATIENCE;
    while secured.status(&client, "/readyz").await != Ok(200) {
        assert!(Instant::now() < deadline, "it is never ready");
    }
    // Its answer is longer than the sockets' buffers, so this is in progress for as long as it is not read.
    let mut stalled = secured.client().connect(secured.exporter.address).await.unwrap();
    stalled.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    stalled.read_u8().await.unwrap();
    assert_eq!(secured.status(&client, "/metrics").await, Ok(200));
    tokio::time::timeout(common::PATIENCE, stalled.read_to_end(&mut Vec::new())).await.expect("it is closed").ok();
}

#[tokio::test]
async fn a_handshake_loses_its_place_in_time_or_to_one_that_needs_it() {
    for others in [false, true] {
        let secured = Secured::start("", "", &["--web.max-connections=1"]).await;
        let mut silent = TcpStream::connect(secured.exporter.address).await.unwrap();
        if others {
            assert_eq!(secured.status(&secured.client(), "/metrics").await, Ok(200));
        }
        let mut byte = [0];
        let closed = tokio::time::timeout(common::PATIENCE, silent.read(&mut byte)).await.expect("it keeps its place");
        assert_eq!(closed.unwrap(), 0);
    }
}

#[tokio::test]
async fn a_shutdown_waits_for_no_handshake() {
    let (left_alone, mut stopped) = (Secured::start("", "", &[]).await, Secured::start("", "", &[]).await);
    let mut clock = TcpStream::connect(left_alone.exporter.address).await.unwrap();
    let _silent = TcpStream::connect(stopped.exporter.address).await.unwrap();
    // An answer on another connection shows that the silent one was accepted before.
    assert_eq!(stopped.status(&stopped.client(), "/healthz").await, Ok(200));
    stopped.exporter.begin_stop();
    let mut byte = [0];
    tokio::select! {
        _ = clock.read(&mut byte) => panic!("a handshake that began earlier was out of time first"),
        ended = stopped.exporter.ended() => ended.unwrap(),
    }
}

#[tokio::test]
async fn the_headers_of_the_settings_are_on_every_answer() {
    let headers = "http_server_config: {headers: {Strict-Transport-Security: max-age=60, X-Frame-Options: deny}}\n\
                   basic_auth_users: {}\n";
    let secured = Secured::start("", headers, &[]).await;
    for path in ["/", "/metrics", "/nothing"] {
        let (reply, _) = secured.client().get(secured.exporter.address, path, &[]).await.unwrap();
        assert_eq!(reply.header("strict-transport-security"), Some("max-age=60"), "{path}");
        assert_eq!(reply.header("x-frame-options"), Some("deny"), "{path}");
    }
}

#[tokio::test]
async fn the_page_keeps_its_own_content_security_policy() {
    let headers = "http_server_config: {headers: {Content-Security-Policy: default-src 'self'}}\n";
    let secured = Secured::start("", headers, &[]).await;
    let policies = async |path| {
        let (reply, _) = secured.client().get(secured.exporter.address, path, &[]).await.unwrap();
        let values = reply.headers.get_all("content-security-policy").iter();
        values.map(|value| value.to_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let page = policies("/").await;
    assert!(page.len() == 1 && page[0].starts_with("default-src 'none'; style-src 'sha256-"), "{page:?}");
    for path in ["/metrics", "/healthz", "/nothing"] {
        assert_eq!(policies(path).await, ["default-src 'self'"], "{path}");
    }
}

#[tokio::test]
async fn a_health_check_asks_over_tls_and_in_plain_alike() {
    assert_eq!(Secured::start("", "", &[]).await.probe().await, Ok(()));
    let old = Secured::start("max_version: TLS12", "", &[]).await;
    assert_eq!(old.probe().await, Ok(()));
    let plain = Exporter::start(config_of(&["--demo=5"], &[])).await;
    let address = ListenAddress::Host(plain.address.ip().to_string(), plain.address.port());
    healthcheck(&address).await.unwrap();
    assert_eq!(common::request(plain.address, Method::GET, "/healthz", &[]).await.status, 200);
}

#[tokio::test]
async fn head_over_http2_has_no_body() {
    let secured = Secured::start("", "", &[]).await;
    let client = Client { alpn: vec![b"h2"], ..secured.client() };
    let stream = client.connect(secured.exporter.address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let head = Request::head("https://localhost/metrics").body(Empty::<Bytes>::new()).unwrap();
    let (head, body) = sender.send_request(head).await.unwrap().into_parts();
    let length: usize = head.headers["content-length"].to_str().unwrap().parse().unwrap();
    assert!(length > 1000, "{length}");
    assert_eq!(body.collect().await.unwrap().to_bytes(), "");
}
