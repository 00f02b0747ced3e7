//! The page at `/` in a real browser, driven over WebDriver. `tests/run.sh page` installs what it needs.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use common::{Exporter, PATIENCE, config};
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use zenlayer_exporter::model::Service;
use zenlayer_exporter::simulator::{Fault, Knobs, Simulator};

/// A browser with one page; it is closed when dropped.
struct Browser {
    driver: Child,
    address: SocketAddr,
    session: String,
    profile: TempDir,
}

impl Browser {
    async fn open(page: &str) -> Self {
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let driver = Command::new("chromedriver")
            .arg(format!("--port={}", address.port()))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("chromedriver does not start: {error}: run tests/run.sh page"));
        let profile = tempfile::tempdir().unwrap();
        let mut browser = Self { driver, address, session: String::new(), profile };
        browser.start().await;
        browser.command("url", json!({"url": page})).await;
        browser
    }

    async fn start(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(self.address).await.is_err() {
            assert!(Instant::now() < deadline, "chromedriver does not listen");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let profile = format!("--user-data-dir={}", self.profile.path().display());
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            &profile,
        ];
        let capabilities = json!({"alwaysMatch": {"goog:chromeOptions": {"args": arguments}}});
        let started = send(self.address, "/session", json!({"capabilities": capabilities})).await;
        started["sessionId"].as_str().unwrap_or_else(|| panic!("no session: {started}")).clone_into(&mut self.session);
    }

    async fn command(&self, name: &str, body: Value) -> Value {
        send(self.address, &format!("/session/{}/{name}", self.session), body).await
    }

    /// The value of a JavaScript expression.
    async fn evaluate(&self, expression: &str) -> Value {
        self.command("execute/sync", json!({"script": format!("return {expression}"), "args": []})).await
    }

    async fn emulate(&self, name: &str, parameters: Value) {
        self.command("goog/cdp/execute", json!({"cmd": format!("Emulation.{name}"), "params": parameters})).await;
    }

    async fn until(&self, expression: &str) {
        let deadline = Instant::now() + PATIENCE;
        while self.evaluate(expression).await != json!(true) {
            assert!(Instant::now() < deadline, "never true: {expression}\n{}", self.text().await);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn text(&self) -> String {
        self.evaluate("document.body.innerText").await.as_str().unwrap().to_owned()
    }

    /// Keeps a picture of what the window shows as test output.
    async fn picture(&self, name: &str) {
        let shot = self.command("goog/cdp/execute", json!({"cmd": "Page.captureScreenshot", "params": {}})).await;
        let output = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/output");
        fs::create_dir_all(&output).unwrap();
        let png = BASE64_STANDARD.decode(shot["data"].as_str().unwrap()).unwrap();
        fs::write(output.join(name), png).unwrap();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Ended with the driver alone, its browser would live on.
        let end =
            format!("DELETE /session/{} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", self.session, self.address);
        let ended = std::net::TcpStream::connect(self.address).and_then(|mut stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(end.as_bytes())?;
            stream.read(&mut [0; 1024])
        });
        let _ = self.driver.kill();
        let _ = self.driver.wait();
        assert!(ended.is_ok() || std::thread::panicking(), "the browser was not told to end: {ended:?}");
    }
}

/// One WebDriver command. Returns its value.
async fn send(address: SocketAddr, path: &str, body: Value) -> Value {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::builder()
        .method(Method::POST)
        .uri(path)
        .header("host", address.to_string())
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body.to_string())))
        .unwrap();
    let answer = sender.send_request(request).await.unwrap().into_body().collect().await.unwrap().to_bytes();
    let mut answer: Value = serde_json::from_slice(&answer).unwrap();
    assert!(answer["value"]["error"].is_null(), "{path}: {answer}");
    answer["value"].take()
}

const HOSTILE: &str = "<script>alert(1)</script>";

async fn exporter(simulator: &Simulator) -> Exporter {
    let mut config = config(simulator, &[]);
    config.poll.interval = Duration::from_secs(1);
    Exporter::ready(config).await
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run.sh"]
async fn the_page_shows_what_the_metrics_say() {
    let simulator = Simulator::start(Knobs::still(Service::Vm, 500)).await.unwrap();
    simulator.with_fleet(|fleet| HOSTILE.clone_into(&mut fleet.machines[0].id));
    simulator.with_fleet(|fleet| fleet.machines[0].status = Some("STOPPED".to_owned()));
    let exporter = exporter(&simulator).await;
    let browser = Browser::open(&format!("http://{}/", exporter.address)).await;
    let rows =
        "[...document.querySelectorAll('#counts tr')].map(row => [row.cells[0].innerText, row.cells[1].innerText])";
    let shown: BTreeMap<String, String> =
        serde_json::from_value::<Vec<_>>(browser.evaluate(rows).await).unwrap().into_iter().collect();
    let metrics = exporter.metrics().await;
    let counted: BTreeMap<_, _> = Service::Vm
        .documented_statuses()
        .iter()
        .map(|status| {
            let count = metrics.value("zenlayer_instances", &[("status", status)]).unwrap();
            ((*status).to_owned(), count.to_string())
        })
        .collect();
    assert_eq!(shown, counted);

    let ids = "[...document.querySelectorAll('#others tr')].map(row => row.cells[0].innerText)";
    let listed: Vec<String> = serde_json::from_value(browser.evaluate(ids).await).unwrap();
    assert!(listed.contains(&HOSTILE.to_owned()), "{listed:?}");
    assert_eq!(browser.evaluate("document.scripts.length").await, json!(1), "the hostile id became a script");

    let mut colours = BTreeSet::new();
    for (scheme, name) in [("light", "page-light.png"), ("dark", "page-dark.png")] {
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        browser.emulate("setEmulatedMedia", json!({"features": features})).await;
        let colour = browser.evaluate("getComputedStyle(document.querySelector('.state')).color").await;
        colours.insert(colour.to_string());
        browser.picture(name).await;
    }
    assert_eq!(colours.len(), 2, "both schemes look alike: {colours:?}");
    let phone = json!({"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": true});
    browser.emulate("setDeviceMetricsOverride", phone).await;
    let fits = "document.documentElement.scrollWidth <= innerWidth && innerWidth === 390";
    browser.until(fits).await;
    browser.picture("page-phone.png").await;
}

/// Stands where the exporter was, as a proxy does that has lost it.
async fn answer_503(address: SocketAddr) -> JoinHandle<()> {
    let listener = TcpListener::bind(address).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\nconnection: close\r\n\r\ngone";
            // The browser may have gone already.
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(answer).await;
        }
    })
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run.sh"]
async fn the_page_updates_itself_and_asks_nobody_else() {
    let simulator = Simulator::start(Knobs::still(Service::Vm, 50)).await.unwrap();
    simulator.with_fleet(|fleet| {
        for machine in &mut fleet.machines {
            machine.status = Some("RUNNING".to_owned());
        }
    });
    let exporter = exporter(&simulator).await;
    let origin = format!("http://{}/", exporter.address);
    let browser = Browser::open(&origin).await;
    assert!(browser.text().await.contains("Every instance is RUNNING"));
    browser.evaluate("(window.loadedOnce = true)").await;

    simulator.with_fleet(|fleet| fleet.machines[7].status = Some("IMAGING".to_owned()));
    browser.until("document.body.innerText.includes('1 not RUNNING')").await;
    simulator.set(|knobs| knobs.fault = Some(Fault::answer(451, "")));
    browser.until("document.body.innerText.includes('The last poll failed.')").await;
    let address = exporter.address;
    exporter.stop().await.unwrap();
    browser.until("!document.querySelector('#lost').hidden").await;
    browser.until("/unreachable. The data below is from .*\\d/.test(document.querySelector('#lost').innerText)").await;
    let proxy = answer_503(address).await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(browser.evaluate("document.querySelector('#lost').hidden").await, json!(false), "a 503 passes for news");
    proxy.abort();
    browser.picture("page-lost.png").await;

    assert_eq!(browser.evaluate("window.loadedOnce").await, json!(true), "it was loaded again");
    let asked: Vec<String> = serde_json::from_value(
        browser.evaluate("performance.getEntriesByType('resource').map(entry => entry.name)").await,
    )
    .unwrap();
    assert!(!asked.is_empty(), "it never asked for news");
    assert!(asked.iter().all(|url| url.starts_with(&origin)), "{asked:?}");
}
