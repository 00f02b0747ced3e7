//! The web config against those who know the format or the protocol: Prometheus, promtool, curl and openssl.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;
use zenlayer_exporter::web_config::WebConfig;

use super::common::web::{Authority, hash};
use super::common::{Exporter, config_of};
use super::{PATIENCE, Prometheus, finish};

const WITH_TLS: &str = "tls_server_config: {cert_file: cert.pem, key_file: key.pem";
const PASSWORD: &str = "correct horse, battery: staple";

/// Starts an exporter with that web config, in a folder that has an authority's files.
async fn exporter(web_config: &str) -> (Exporter, TempDir, Authority) {
    let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    authority.write(folder.path());
    let file = folder.path().join("web.yml");
    fs::write(&file, web_config).unwrap();
    let flag = format!("--web.config.file={}", file.display());
    (Exporter::start(config_of(&["--demo=40", &flag], &[])).await, folder, authority)
}

/// Waits until Prometheus has scraped all of it.
async fn until_scraped(prometheus: &Prometheus) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while prometheus.values("sum(zenlayer_instances)").await != ["40"] {
        assert!(tokio::time::Instant::now() < deadline, "up is {:?}", prometheus.values("up").await);
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert_eq!(prometheus.values("up").await, ["1"]);
    assert_eq!(prometheus.values("zenlayer_exporter_web_config_reload_success").await, ["1"]);
}

#[tokio::test]
#[ignore = "needs prometheus and promtool: tests/run.sh"]
async fn prometheus_scrapes_over_tls_with_a_password() {
    let users = format!("{WITH_TLS}}}\nbasic_auth_users: {{prometheus: {}}}\n", hash(PASSWORD, 1));
    let (exporter, folder, _) = exporter(&users).await;
    fs::write(folder.path().join("password"), PASSWORD).unwrap();
    let how = "scheme: https, tls_config: {ca_file: ca.pem, server_name: localhost}, \
               basic_auth: {username: prometheus, password_file: password},";
    until_scraped(&Prometheus::running(folder, exporter.address, how).await).await;
}

#[tokio::test]
#[ignore = "needs prometheus and promtool: tests/run.sh"]
async fn prometheus_scrapes_with_a_client_certificate() {
    let client = "client_auth_type: RequireAndVerifyClientCert, client_ca_file: ca.pem, client_allowed_sans: [scraper]";
    let (exporter, folder, authority) = exporter(&format!("{WITH_TLS}, {client}}}\n")).await;
    let identity = authority.identity("scraper");
    fs::write(folder.path().join("client.pem"), identity.certificate).unwrap();
    fs::write(folder.path().join("client.key"), identity.key).unwrap();
    let how = "scheme: https, tls_config: {ca_file: ca.pem, server_name: localhost, cert_file: client.pem, \
               key_file: client.key},";
    until_scraped(&Prometheus::running(folder, exporter.address, how).await).await;
}

#[tokio::test]
#[ignore = "needs prometheus and promtool: tests/run.sh"]
async fn promtool_and_the_exporter_agree_on_web_configs() {
    let folder = tempfile::tempdir().unwrap();
    Authority::new().write(folder.path());
    fs::copy(folder.path().join("cert.pem"), folder.path().join("tls.crt")).unwrap();
    fs::copy(folder.path().join("key.pem"), folder.path().join("tls.key")).unwrap();
    let user = hash("p", 1);
    let right = [
        include_str!("../../deploy/prometheus/web-config.example.yaml").to_owned(),
        String::new(),
        "tls_server_config:\nbasic_auth_users:\n".to_owned(),
        format!("{WITH_TLS}, min_version: TLS12, max_version: TLS13, curve_preferences: [CurveP256, X25519]}}\n"),
        format!("{WITH_TLS}, cipher_suites: [TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, TLS_AES_128_GCM_SHA256]}}\n"),
        format!("{WITH_TLS}, client_auth_type: RequireAnyClientCert, prefer_server_cipher_suites: off}}\n"),
        format!("{WITH_TLS}, client_auth_type: VerifyClientCertIfGiven, client_ca_file: ca.pem}}\n"),
        "http_server_config: {http2: no, headers: {X-XSS-Protection: 0, X-Frame-Options: deny}}\n".to_owned(),
        format!("basic_auth_users: {{a: '{user}', 'b c': \"{}\"}}\n", user.replace("$2y", "$2a")),
    ];
    let wrong = [
        format!("{WITH_TLS}, cert_flie: x}}\n"),
        "tls_server_config: {cert_file: cert.pem}\n".to_owned(),
        "tls_server_config: {cert_file: gone.pem, key_file: key.pem}\n".to_owned(),
        "tls_server_config: {cert_file: ca.pem, key_file: key.pem}\n".to_owned(),
        format!("{WITH_TLS}, client_ca_file: ca.pem}}\n"),
        format!("{WITH_TLS}, client_auth_type: Always}}\n"),
        format!("{WITH_TLS}, min_version: TLS14}}\n"),
        format!("{WITH_TLS}, cipher_suites: [NONE]}}\n"),
        "http_server_config: {headers: {Server: me}}\n".to_owned(),
        "http_server_config: {headers: {X-Frame-Options: allow}}\n".to_owned(),
        "basic_auth_users: {a: password}\n".to_owned(),
        "basic_auth_users: {a: 1, a: 2}\n".to_owned(),
        "web: {}\n".to_owned(),
        "tls_server_config: [\n".to_owned(),
    ];
    for (texts, expected) in [(&right[..], true), (&wrong[..], false)] {
        for text in texts {
            let file = folder.path().join("web.yml");
            fs::write(&file, text).unwrap();
            let read = WebConfig::read(&file);
            assert_eq!(read.is_ok(), expected, "the exporter on {text}: {read:?}");
            assert_eq!(promtool_accepts(&file).await, expected, "promtool on {text}");
        }
    }
}

async fn promtool_accepts(file: &Path) -> bool {
    let mut command = Command::new("promtool");
    command.args(["check", "web-config"]).arg(file);
    finish(command).await.status.success()
}

#[tokio::test]
#[ignore = "needs curl and openssl: tests/run.sh"]
async fn curl_and_openssl_get_the_versions_that_are_allowed() {
    let cases = [("", [true, true]), ("min_version: TLS13", [false, true]), ("max_version: TLS12", [true, false])];
    for (setting, expected) in cases {
        let (exporter, folder, _) = exporter(&format!("{WITH_TLS}, {setting}}}\n")).await;
        let ca = folder.path().join("ca.pem");
        let versions = [("1.2", "-tls1_2"), ("1.3", "-tls1_3")].into_iter().zip(expected);
        for ((version, openssl_flag), expected) in versions {
            let mut curl = Command::new("curl");
            curl.args(["--silent", "--show-error", "--fail", "--output", "/dev/null", "--noproxy", "*", "--cacert"]);
            curl.arg(&ca).args([&format!("--tlsv{version}"), "--tls-max", version, "--write-out", "%{http_version}"]);
            curl.args(["--resolve", &format!("localhost:{}:127.0.0.1", exporter.address.port())]);
            curl.arg(format!("https://localhost:{}/metrics", exporter.address.port()));
            let output = finish(curl).await;
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.success(), expected, "curl {version}, {setting:?}: {said}");
            assert!(!expected || output.stdout == b"2", "curl knows HTTP/2");
            let mut openssl = Command::new("openssl");
            openssl.args(["s_client", "-connect", &exporter.address.to_string(), openssl_flag, "-CAfile"]).arg(&ca);
            openssl.args(["-verify_return_error", "-servername", "localhost"]).stdin(Stdio::null());
            let output = finish(openssl).await;
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.success(), expected, "openssl {version}, {setting:?}: {said}");
        }
    }
}
