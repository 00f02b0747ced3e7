//! What a scrape costs and what it may not mix: nothing is rendered or compressed twice, and no answer is of two polls.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

mod common;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Debug, Write as _};
use std::io::{Read, Write as _};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use bytes::Bytes;
use common::{Exporter, Metrics, config, held, request};
use flate2::read::GzDecoder;
use futures_util::future::join_all;
use hyper::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use zenlayer_exporter::model::Service;
use zenlayer_exporter::simulator::{Knobs, Simulator};

const GZIP: [(&str, &str); 1] = [("accept-encoding", "gzip")];

async fn simulator(instances: usize) -> Simulator {
    Simulator::start(Knobs::still(Service::Vm, instances)).await.unwrap()
}

thread_local! {
    /// How often the log said what; all tasks of a test run on its own thread.
    static SAID: RefCell<BTreeMap<String, usize>> = RefCell::default();
}

/// Counts what the log says.
struct Count;

impl<S: Subscriber> Layer<S> for Count {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut message = Message::default();
        event.record(&mut message);
        SAID.with_borrow_mut(|said| *said.entry(message.0).or_default() += 1);
    }
}

/// One for all tests: interest in an event is remembered for the whole process.
fn count_from_now_on() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| tracing_subscriber::registry().with(Count).init());
}

/// How often instance series were rendered, and how often compressed.
fn work() -> (usize, usize) {
    let count = |what| SAID.with_borrow(|said| said.get(what).copied().unwrap_or_default());
    (count("instance series rendered"), count("instance series compressed"))
}

#[derive(Default)]
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            write!(self.0, "{value:?}").unwrap();
        }
    }
}

async fn zipped(exporter: &Exporter) -> Bytes {
    let reply = request(exporter.address, Method::GET, "/metrics", &GZIP).await;
    assert_eq!((reply.status, reply.header("content-encoding")), (200, Some("gzip")));
    reply.body
}

fn unzipped(body: &[u8]) -> String {
    let mut text = String::new();
    GzDecoder::new(body).read_to_string(&mut text).unwrap();
    text
}

#[tokio::test]
async fn a_poll_that_changed_nothing_renders_and_compresses_nothing() {
    count_from_now_on();
    let simulator = simulator(1000).await;
    let exporter = Exporter::ready(config(&simulator, &[])).await;
    zipped(&exporter).await;
    assert_eq!(work(), (1, 1));
    let last =
        |metrics: &Metrics| metrics.value("zenlayer_exporter_last_successful_poll_timestamp_seconds", &[]).unwrap();
    let before = last(&exporter.metrics().await);
    let after = last(&exporter.polls(5).await);
    assert!(after > before, "the old bytes have a new time");
    zipped(&exporter).await;
    assert_eq!(work(), (1, 1));
    simulator.with_fleet(|fleet| fleet.machines[0].status = Some("IMAGING".to_owned()));
    exporter.polls(2).await;
    let text = unzipped(&zipped(&exporter).await);
    assert_eq!(Metrics::parse(&text).instances(), held(&simulator));
    assert_eq!(work(), (2, 2));
}

#[tokio::test]
async fn sixty_four_scrapers_share_one_compression() {
    count_from_now_on();
    let simulator = simulator(1000).await;
    let exporter = Exporter::ready(config(&simulator, &[])).await;
    assert_eq!(work(), (1, 0), "nobody wanted it compressed yet");
    let bodies = join_all((0..64).map(|_| zipped(&exporter))).await;
    for body in bodies {
        assert_eq!(Metrics::parse(&unzipped(&body)).instances(), held(&simulator));
    }
    assert_eq!(work(), (1, 1));
}

#[tokio::test]
async fn a_compression_whose_client_is_gone_is_finished_and_kept() {
    count_from_now_on();
    let simulator = simulator(12_000).await;
    let mut config = config(&simulator, &["--metrics.status-series=all"]);
    config.poll.interval = Duration::from_mins(1);
    let exporter = Exporter::ready(config).await;
    let mut client = TcpStream::connect(exporter.address).await.unwrap();
    client.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\naccept-encoding: gzip\r\n\r\n").await.unwrap();
    tokio::time::sleep(Duration::from_millis(5)).await;
    drop(client);
    assert_eq!(work(), (1, 0), "it is over too soon to show anything");
    let deadline = tokio::time::Instant::now() + common::PATIENCE;
    while work() != (1, 1) {
        assert!(tokio::time::Instant::now() < deadline, "it is thrown away");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    zipped(&exporter).await;
    assert_eq!(work(), (1, 1));
}

/// Puts every instance into that status at once.
fn turn_all(simulator: &Simulator, status: &str) {
    simulator.with_fleet(|fleet| {
        for machine in &mut fleet.machines {
            machine.status = Some(status.to_owned());
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrape_during_a_swap_is_all_old_or_all_new() {
    // One page, so that a poll itself sees all instances in one status.
    let simulator = Arc::new(simulator(500).await);
    turn_all(&simulator, "RUNNING");
    let mut config = config(&simulator, &[]);
    config.poll.interval = Duration::from_millis(5);
    let exporter = Exporter::ready(config).await;
    let turned = Arc::clone(&simulator);
    let turning = tokio::spawn(async move {
        for status in ["RUNNING", "STOPPED", "IMAGING"].iter().cycle() {
            turn_all(&turned, status);
            tokio::time::sleep(Duration::from_millis(7)).await;
        }
    });
    let seen = Mutex::new(BTreeSet::new());
    let scrapes = AtomicUsize::new(0);
    let scrape = async |is_zipped: bool| {
        // Until each status was seen by someone: then swaps happened while scrapes were under way.
        while scrapes.fetch_add(1, Ordering::Relaxed) < 200 || seen.lock().unwrap().len() < 3 {
            let text = if is_zipped {
                unzipped(&zipped(&exporter).await)
            } else {
                exporter.get("/metrics").await.text().to_owned()
            };
            let metrics = Metrics::parse(&text);
            let statuses: BTreeSet<_> = metrics.instances().into_iter().map(|(_, status)| status).collect();
            assert_eq!(statuses.len(), 1, "of two polls: {statuses:?}");
            let status = statuses.first().unwrap();
            assert_eq!(metrics.value("zenlayer_instances", &[("status", status)]), Some(500.0));
            seen.lock().unwrap().extend(statuses);
        }
    };
    tokio::join!(scrape(false), scrape(true), scrape(false), scrape(true));
    turning.abort();
}

#[tokio::test]
async fn a_scrape_that_began_before_a_swap_ends_as_it_began() {
    // Longer than the sockets' buffers.
    let simulator = simulator(12_000).await;
    let mut config = config(&simulator, &["--metrics.status-series=all"]);
    config.poll.interval = Duration::from_millis(300);
    let exporter = Exporter::start(config).await;
    while exporter.get("/readyz").await.status != 200 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let before = held(&simulator);
    let mut scrape = TcpStream::connect(exporter.address).await.unwrap();
    scrape.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await.unwrap();
    scrape.peek(&mut [0]).await.unwrap();
    turn_all(&simulator, "RELEASING");
    // Scraping until polls have ended would take longer than an answer may stall.
    let (pages, polls) = (12, 3);
    let asked = simulator.tally().answered;
    while simulator.tally().answered < asked + pages * polls {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut answer = Vec::new();
    scrape.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let (_, text) = answer.split_once("\r\n\r\n").unwrap();
    assert_eq!(Metrics::parse(text).instances(), before);
    assert_eq!(exporter.metrics().await.instances(), held(&simulator));
}

#[tokio::test]
async fn head_has_the_head_of_get_and_no_body() {
    let simulator = simulator(100).await;
    let mut config = config(&simulator, &[]);
    config.poll.interval = Duration::from_mins(1);
    let exporter = Exporter::ready(config).await;
    for coding in ["identity", "gzip"] {
        let mut stream = TcpStream::connect(exporter.address).await.unwrap();
        // The second request's answer comes right after the first's head, or there was a body.
        let head = format!("HEAD /metrics HTTP/1.1\r\nhost: localhost\r\naccept-encoding: {coding}\r\n\r\n");
        let get = "GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        stream.write_all(format!("{head}{get}").as_bytes()).await.unwrap();
        let mut answers = String::new();
        stream.read_to_string(&mut answers).await.unwrap();
        let (head, rest) = answers.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        assert!(length.parse::<usize>().unwrap() > 1000, "{head}");
        assert_eq!(head.contains("\r\ncontent-encoding: gzip"), coding == "gzip");
        assert!(rest.starts_with("HTTP/1.1 200 OK\r\n") && rest.ends_with("\r\n\r\nok\n"), "{rest}");
    }
}

#[tokio::test]
#[ignore = "needs curl, gzip and requests for Python: tests/run.sh"]
async fn readers_of_gzip_that_others_wrote_read_it() {
    let simulator = simulator(20_000).await;
    let mut config = config(&simulator, &[]);
    config.poll.interval = Duration::from_mins(1);
    let exporter = Exporter::ready(config).await;
    let url = format!("http://{}/metrics", exporter.address);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("metrics.gz");
    std::fs::File::create(&file).unwrap().write_all(&zipped(&exporter).await).unwrap();
    let file = file.to_str().unwrap();
    let python = std::env::var("ZENLAYER_EXPORTER_TEST_PYTHON").expect("tests/run.sh sets it");
    let read_file = "import gzip, sys; sys.stdout.write(gzip.open(sys.argv[1], 'rt').read())";
    let read_url = "import requests, sys; answer = requests.get(sys.argv[1]); \
                    assert answer.headers['Content-Encoding'] == 'gzip'; sys.stdout.write(answer.text)";
    assert_eq!(output_of("gzip", &["--test", "--verbose", file]).await, "");
    for (program, arguments) in [
        ("gzip", vec!["--decompress", "--stdout", file]),
        ("curl", vec!["--silent", "--show-error", "--fail", "--compressed", &url]),
        (&python, vec!["-c", read_file, file]),
        (&python, vec!["-c", read_url, &url]),
    ] {
        let text = output_of(program, &arguments).await;
        assert_eq!(Metrics::parse(&text).instances(), held(&simulator), "{program} {arguments:?}");
    }
}

/// What a program prints, which must end well.
async fn output_of(program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(arguments).env("NO_PROXY", "127.0.0.1");
    let Output { status, stdout, stderr } =
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}
