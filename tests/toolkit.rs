//! Web configurations as the exporter-toolkit tests itself with: each starts here if it starts there, and serves whom it
//! serves there.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

mod common;

use std::fs;

use common::web::{Authority, Client, Identity, hash};
use common::{Exporter, config_of, request};
use hyper::Method;
use zenlayer_exporter::web_config::WebConfig;

/// What comes of a file.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Outcome {
    /// The settings are refused, for a reason with these words.
    Refused(&'static str),
    /// Requests without a certificate get this status.
    Status(u16),
    /// No client gets through the handshake without a certificate, and the one for `test3` does.
    Named,
    /// No client gets through the handshake, whatever its certificate.
    Nobody,
}
use Outcome::{Named, Nobody, Refused, Status};

const CERT: &str = "cert_file: cert.pem, key_file: key.pem";
const IF_GIVEN: &str = "cert_file: cert.pem, key_file: key.pem, client_auth_type: VerifyClientCertIfGiven";
const CLIENT: &str = "cert_file: cert.pem, key_file: key.pem, client_auth_type: RequireAndVerifyClientCert";
const ALL_SUITES: &str = "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, \
    TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, \
    TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256, \
    TLS_AES_128_GCM_SHA256, TLS_AES_256_GCM_SHA384, TLS_CHACHA20_POLY1305_SHA256, \
    TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA, TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA, \
    TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA, TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA";

/// Users with hashes of these costs.
fn users() -> String {
    let line = |cost: u8| format!("  cost{cost}: {}\n", hash("a", cost).replacen("$04$", &format!("${cost}$"), 1));
    format!("basic_auth_users:\n{}", [12, 18, 10].map(line).concat())
}

fn tls(keys: &str) -> String {
    format!("tls_server_config: {{{keys}}}\n")
}

/// Name, text and outcome. The suites that a case needs are those of an ECDSA key, since that is what it has.
fn cases() -> Vec<(&'static str, String, Outcome)> {
    let headers = |text: &str| format!("http_server_config: {{headers: {{{text}}}}}\n");
    let only_old = "cipher_suites: [TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384], max_version: TLS12";
    let two = "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384";
    let old = "min_version: TLS12, max_version: TLS12";
    vec![
        ("empty", String::new(), Status(200)),
        ("junk", "hWkNKCp3fvIx3jKnsaBI\nTuEjdwNS8A2vYdFbiKqr\n".into(), Refused("must be a mapping")),
        ("unknown key", tls("cert_filse: cert.pem"), Refused("cert_filse: unknown key")),
        ("certificate path empty", tls("cert_file: '', key_file: key.pem"), Refused("cert_file is missing")),
        ("certificate empty", tls("cert: '', key_file: key.pem"), Refused("cert_file is missing")),
        ("key path empty", tls("cert_file: cert.pem, key_file: ''"), Refused("key_file is missing")),
        ("key empty", tls("cert_file: cert.pem, key: ''"), Refused("key_file is missing")),
        ("both empty", tls("cert_file: '', key_file: '', client_auth_type: x"), Refused("cert_file is missing")),
        ("certificate path wrong", tls("cert_file: gone, key_file: key.pem"), Refused("cert_file: ")),
        ("key path wrong", tls("cert_file: cert.pem, key_file: gone"), Refused("key_file: ")),
        ("both paths wrong", tls("cert_file: gone, key_file: gone"), Refused("cert_file: ")),
        ("authority without a policy", tls(&format!("{CERT}, client_ca_file: /dev/null")), Refused("client_ca_file: ")),
        ("authority's path wrong", tls(&format!("{CERT}, client_ca_file: gone")), Refused("client_ca_file: ")),
        ("no hash", tls(CERT) + "basic_auth_users: {john: doe}\n", Refused("john: is not a bcrypt hash")),
        ("no suite", tls(&format!("{IF_GIVEN}, cipher_suites: [TLS_GCM_SHA2048]")), Refused("cipher_suites: ")),
        ("no curve", tls(&format!("{IF_GIVEN}, curve_preferences: [CurveP257]")), Refused("curve_preferences: ")),
        ("no version", tls(&format!("{IF_GIVEN}, min_version: TLS111")), Refused("min_version: ")),
        ("verified if given", tls(IF_GIVEN), Status(200)),
        ("verified by the system's authorities", tls(CLIENT), Nobody),
        ("all suites", tls(&format!("{IF_GIVEN}, cipher_suites: [{ALL_SUITES}]")), Status(200)),
        ("some suites", tls(&format!("{IF_GIVEN}, cipher_suites: [{two}], {old}")), Status(200)),
        (
            "some suites in the client's order",
            tls(&format!("{IF_GIVEN}, cipher_suites: [{two}], {old}, prefer_server_cipher_suites: false")),
            Status(200),
        ),
        (
            "all curves",
            tls(&format!("{IF_GIVEN}, curve_preferences: [CurveP256, CurveP384, CurveP521, X25519]")),
            Status(200),
        ),
        ("some curves", tls(&format!("{IF_GIVEN}, min_version: TLS13, curve_preferences: [CurveP521]")), Status(200)),
        (
            "no suite of HTTP/2, without HTTP/2",
            tls(&format!("{IF_GIVEN}, {only_old}")) + "http_server_config: {http2: false}\n",
            Status(200),
        ),
        ("no suite of HTTP/2", tls(&format!("{IF_GIVEN}, {only_old}")), Refused("none that HTTP/2 requires")),
        (
            "headers",
            headers(
                "X-Frame-Options: deny, Strict-Transport-Security: max-age=31536000; includeSubDomains, \
                 X-Content-Type-Options: nosniff, X-XSS-Protection: 1, \
                 Content-Security-Policy: \"default-src 'self' *.test.example.net\"",
            ),
            Status(200),
        ),
        ("content type options", headers("X-Content-Type-Options: sniff"), Refused("X-Content-Type-Options: ")),
        ("frame options", headers("X-Frame-Options: foo"), Refused("X-Frame-Options: ")),
        ("another header", headers("Content-Type: foo"), Refused("Content-Type: unknown key")),
        ("any client certificate", tls(&format!("{CERT}, client_auth_type: RequireAnyClientCert")), Named),
        ("a verified client certificate", tls(&format!("{CLIENT}, client_ca_file: ca.pem")), Named),
        (
            "an allowed name",
            tls(&format!("{CLIENT}, client_ca_file: ca.pem, client_allowed_sans: [one, test3, two]")),
            Named,
        ),
        ("another name", tls(&format!("{CLIENT}, client_ca_file: ca.pem, client_allowed_sans: [bad]")), Nobody),
        ("users", tls(CERT) + &users(), Status(401)),
        ("users without TLS", users(), Status(401)),
        ("no rate limit", "rate_limit: {interval: 0, burst: 0}\n".into(), Status(200)),
        ("a rate limit without a burst", "rate_limit: {interval: 1s, burst: 0}\n".into(), Status(429)),
    ]
}

#[tokio::test]
async fn each_web_config_of_the_toolkit_does_here_what_it_does_there() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    authority.write(folder.path());
    let file = folder.path().join("web.yml");
    for (name, text, expected) in cases() {
        fs::write(&file, &text).unwrap();
        let settings = match WebConfig::read(&file) {
            Ok(web_config) => web_config.settings,
            Err(mistakes) => {
                let Refused(why) = expected else { panic!("{name}: {mistakes:?}") };
                assert!(mistakes.iter().any(|mistake| mistake.contains(why)), "{name}: {mistakes:?}");
                continue;
            }
        };
        let flag = format!("--web.config.file={}", file.display());
        let exporter = Exporter::start(config_of(&["--demo=2", &flag], &[])).await;
        if !settings.has_tls() {
            assert_eq!(Status(request(exporter.address, Method::GET, "/", &[]).await.status), expected, "{name}");
            continue;
        }
        let status = async |identity: Option<Identity>| {
            let client = Client { identity, ..Client::trusting(&[&authority]) };
            client.get(exporter.address, "/", &[]).await.map(|(reply, _)| reply.status).ok()
        };
        let outcome = match (status(None).await, status(Some(authority.identity("test3"))).await) {
            (Some(status), _) => Status(status),
            (None, Some(200)) => Named,
            (None, _) => Nobody,
        };
        assert_eq!(outcome, expected, "{name}");
    }
}
