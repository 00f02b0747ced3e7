//! New certificates, keys and users while requests go on, and files that break on the way.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use common::web::{Authority, Client, basic, hash};
use common::{Exporter, Metrics, PATIENCE, config_of};
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper_util::rt::TokioIo;
use tokio::task::JoinSet;
use tokio::time::Instant;

const METRIC: &str = "zenlayer_exporter_web_config_reload_success";

fn write(folder: &Path, authority: &Authority, users: &[(&str, String)]) {
    authority.write(folder);
    let users = users.iter().fold(String::new(), |text, (user, hash)| format!("{text}  {user}: {hash}\n"));
    let text = format!("tls_server_config: {{cert_file: cert.pem, key_file: key.pem}}\nbasic_auth_users:\n{users}");
    fs::write(folder.join("web.yml"), text).unwrap();
}

/// A folder swapped as a kubelet swaps one: a link to a link, the inner one replaced at once.
struct Mount {
    home: tempfile::TempDir,
    generation: usize,
}

impl Mount {
    fn new(fill: impl Fn(&Path)) -> Self {
        let mut mount = Self { home: tempfile::tempdir().unwrap(), generation: 0 };
        mount.swap(fill);
        for file in ["web.yml", "cert.pem", "key.pem"] {
            std::os::unix::fs::symlink(Path::new("..data").join(file), mount.home.path().join(file)).unwrap();
        }
        mount
    }

    fn swap(&mut self, fill: impl Fn(&Path)) {
        self.generation += 1;
        let name = format!("..{}", self.generation);
        let folder = self.home.path().join(&name);
        fs::create_dir(&folder).unwrap();
        fill(&folder);
        let link = self.home.path().join("..data_tmp");
        std::os::unix::fs::symlink(&name, &link).unwrap();
        fs::rename(link, self.home.path().join("..data")).unwrap();
    }
}

async fn start(folder: &Path) -> Exporter {
    let flag = format!("--web.config.file={}", folder.join("web.yml").display());
    Exporter::start(config_of(&["--demo=5", &flag], &[])).await
}

/// Scrapes until the metric has that value.
async fn until_metric_is(exporter: &Exporter, client: &Client, authorization: &str, value: f64) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let headers = [("authorization", authorization)];
        let (reply, _) = client.get(exporter.address, "/metrics", &headers).await.unwrap();
        assert_eq!(reply.status, 200);
        if Metrics::parse(reply.text()).value(METRIC, &[]) == Some(value) {
            return;
        }
        assert!(Instant::now() < deadline, "{METRIC} is never {value}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_and_users_change_under_load_without_one_failed_request() {
    let (first, second) = (Authority::new(), Authority::new());
    let scraper = ("scraper", hash("always the same", 1));
    let mut mount = Mount::new(|folder| write(folder, &first, &[scraper.clone(), ("old", hash("o", 2))]));
    let exporter = start(mount.home.path()).await;
    let client = Arc::new(Client::trusting(&[&first, &second]));
    let address = exporter.address;
    let right = basic("scraper", "always the same");

    let stop = Arc::new(AtomicBool::new(false));
    let mut load = JoinSet::new();
    for _ in 0..4 {
        let (client, right, stop) = (Arc::clone(&client), right.clone(), Arc::clone(&stop));
        load.spawn(async move {
            let (mut certificates, mut answered) = (BTreeSet::new(), 0_usize);
            while !stop.load(Ordering::Relaxed) {
                let headers = [("authorization", &*right)];
                let (reply, session) = client.get(address, "/metrics", &headers).await.unwrap();
                assert_eq!(reply.status, 200);
                certificates.insert(session.certificate.to_vec());
                answered += 1;
            }
            (certificates, answered)
        });
    }
    let kept = TokioIo::new(client.connect(address).await.unwrap());
    let (mut kept, connection) = hyper::client::conn::http1::handshake(kept).await.unwrap();
    tokio::spawn(connection);
    let mut ask = async || {
        let request = Request::get("/healthz").header("host", "localhost").header("authorization", &right);
        let response = kept.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
        let status = response.status().as_u16();
        response.into_body().collect().await.unwrap();
        status
    };

    for generation in 3..8 {
        let authority = if generation % 2 == 1 { &second } else { &first };
        mount.swap(|folder| write(folder, authority, &[scraper.clone(), ("new", hash("n", generation))]));
        let only = Client::trusting(&[authority]);
        let deadline = Instant::now() + PATIENCE;
        // Its own connection is taken as soon as the certificate is the new one.
        while only.get(address, "/", &[("authorization", &basic("new", "n"))]).await.is_err() {
            assert!(Instant::now() < deadline, "the certificate of generation {generation} is never used");
            assert_eq!(ask().await, 200, "on a connection from before");
        }
        let status = async |user, password| {
            let (reply, _) = only.get(address, "/", &[("authorization", &basic(user, password))]).await.unwrap();
            reply.status
        };
        assert_eq!((status("new", "n").await, status("old", "o").await), (200, 401));
    }
    assert_eq!(ask().await, 200, "on a connection from before all of it");
    stop.store(true, Ordering::Relaxed);
    for (certificates, answered) in load.join_all().await {
        assert!(answered >= 6 && certificates.len() >= 2, "{answered} answers, {} certificates", certificates.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_change_leaves_the_old_one_in_use_until_it_is_fixed() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let folder = folder.path();
    let users = [("scraper", hash("s", 1))];
    write(folder, &authority, &users);
    let exporter = start(folder).await;
    let (client, right) = (Client::trusting(&[&authority]), basic("scraper", "s"));
    until_metric_is(&exporter, &client, &right, 1.0).await;

    let other = authority.identity("localhost");
    let web_config = fs::read_to_string(folder.join("web.yml")).unwrap();
    let without_users = web_config.split("basic_auth_users").next().unwrap();
    let breaks: [(&str, &str, &str); 6] = [
        ("key.pem", &other.key, "of another certificate"),
        ("cert.pem", "", "an empty file"),
        ("web.yml", "tls_server_config: [", "no YAML"),
        ("web.yml", "", "all of it gone, as while it is written"),
        ("web.yml", without_users, "passwords off"),
        ("web.yml", &web_config.replace("tls_server", "tls_sewer"), "an unknown key"),
    ];
    for (file, content, why) in breaks {
        let good = fs::read(folder.join(file)).unwrap();
        fs::write(folder.join(file), content).unwrap();
        until_metric_is(&exporter, &client, &right, 0.0).await;
        assert_eq!(client.get(exporter.address, "/", &[]).await.unwrap().0.status, 401, "{why}");
        fs::write(folder.join(file), good).unwrap();
        until_metric_is(&exporter, &client, &right, 1.0).await;
    }
    fs::remove_file(folder.join("cert.pem")).unwrap();
    until_metric_is(&exporter, &client, &right, 0.0).await;
    write(folder, &authority, &users);
    until_metric_is(&exporter, &client, &right, 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_who_signs_clients_is_used() {
    let (folder, authority, other) = (tempfile::tempdir().unwrap(), Authority::new(), Authority::new());
    let folder = folder.path();
    authority.write(folder);
    let text = "tls_server_config: {cert_file: cert.pem, key_file: key.pem, client_ca_file: ca.pem, \
                client_auth_type: RequireAndVerifyClientCert}\n";
    fs::write(folder.join("web.yml"), text).unwrap();
    let exporter = start(folder).await;
    let with =
        |signer: &Authority| Client { identity: Some(signer.identity("scraper")), ..Client::trusting(&[&authority]) };
    let (before, after) = (with(&authority), with(&other));
    assert!(before.get(exporter.address, "/", &[]).await.is_ok());
    assert!(after.get(exporter.address, "/", &[]).await.is_err());
    fs::write(folder.join("ca.pem"), other.pem()).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while after.get(exporter.address, "/", &[]).await.is_err() {
        assert!(Instant::now() < deadline, "the new authority is never used");
    }
    assert!(before.get(exporter.address, "/", &[]).await.is_err());

    fs::write(
        folder.join("web.yml"),
        text.replace("RequireAndVerify", "Request").replace("client_ca_file: ca.pem, ", ""),
    )
    .unwrap();
    until_metric_is(&exporter, &after, "", 0.0).await;
    assert!(before.get(exporter.address, "/", &[]).await.is_err(), "what protects is not taken away without a restart");
}
