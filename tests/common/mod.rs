//! What the tests share: an exporter on real sockets, a small HTTP client, and a parser of the text format that has
//! nothing in common with the code that writes it.

#![allow(dead_code, reason = "each test binary uses its own part")]

pub(crate) mod web;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{HeaderMap, Method, Request};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use zenlayer_exporter::api::Backoff;
use zenlayer_exporter::config::{Command, Config};
use zenlayer_exporter::simulator::{KEY_ID, PASSWORD, Simulator};
use zenlayer_exporter::{Options, RunError, run};

/// How long anything that should happen may take before a test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Waits an operator would not like to see in a test.
pub(crate) const QUICK: Backoff = Backoff {
    tries: 4,
    first: Duration::from_millis(5),
    longest: Duration::from_millis(20),
    pause: Duration::from_millis(20),
};

/// Settings for polling that simulator ten times a second.
pub(crate) fn config(simulator: &Simulator, flags: &[&str]) -> Config {
    let endpoint = format!("--zenlayer.endpoint={}", simulator.endpoint());
    config_of(
        &[&[&*endpoint], flags].concat(),
        &[("ZENLAYER_ACCESS_KEY_ID", KEY_ID), ("ZENLAYER_ACCESS_KEY_SECRET", PASSWORD)],
    )
}

/// Settings from flags and variables, with a quick poll.
pub(crate) fn config_of(flags: &[&str], variables: &[(&str, &str)]) -> Config {
    let mut config = match Command::read(flags.iter().map(Into::into), &variables.iter().copied().collect()) {
        Ok(Command::Serve(config)) => config,
        other => panic!("no settings to serve with: {other:?}"),
    };
    config.poll.interval = Duration::from_millis(100);
    config
}

/// A running exporter; it stops when dropped.
pub(crate) struct Exporter {
    pub(crate) address: SocketAddr,
    telemetry_path: String,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), RunError>>,
}

impl Exporter {
    pub(crate) async fn start(config: Config) -> Self {
        Self::start_with(config, QUICK).await
    }

    pub(crate) async fn start_with(config: Config, backoff: Backoff) -> Self {
        Self::start_as(config, Options { backoff, ..Options::default() }).await
    }

    pub(crate) async fn start_as(config: Config, options: Options) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async move {
            let _ = stopped.await;
        };
        let options = Options { web_config_check: Duration::from_millis(20), ..options };
        let telemetry_path = config.web.telemetry_path.clone();
        let task = tokio::spawn(run(config, options, vec![listener], shutdown));
        Self { address, telemetry_path, stop: Some(stop), task }
    }

    /// Starts an exporter and waits for its first successful poll.
    pub(crate) async fn ready(config: Config) -> Self {
        let exporter = Self::start(config).await;
        exporter.until(|metrics| metrics.value("zenlayer_up", &[]) == Some(1.0)).await;
        exporter
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        request(self.address, Method::GET, path, &[]).await
    }

    pub(crate) async fn metrics(&self) -> Metrics {
        let reply = self.get(&self.telemetry_path).await;
        assert_eq!(reply.status, 200);
        Metrics::parse(reply.text())
    }

    /// Scrapes until the metrics are as they should be; fails with what they were instead.
    pub(crate) async fn until(&self, is_so: impl Fn(&Metrics) -> bool) -> Metrics {
        until(async || self.metrics().await, is_so).await
    }

    /// Waits until that many more polls have ended.
    pub(crate) async fn polls(&self, more: usize) -> Metrics {
        let count = |metrics: &Metrics| metrics.value("zenlayer_exporter_poll_duration_seconds_count", &[]).unwrap();
        #[allow(clippy::cast_precision_loss, reason = "a test waits for a few polls")]
        let enough = count(&self.metrics().await) + more as f64;
        self.until(|metrics| count(metrics) >= enough).await
    }

    /// Asks it to stop, as a signal would, and waits for its end.
    pub(crate) async fn stop(mut self) -> Result<(), RunError> {
        self.begin_stop();
        (&mut self.task).await.unwrap()
    }

    pub(crate) fn begin_stop(&mut self) {
        let _ = self.stop.take().unwrap().send(());
    }

    pub(crate) async fn ended(&mut self) -> Result<(), RunError> {
        (&mut self.task).await.unwrap()
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Scrapes until the metrics are as they should be; fails with what they were instead.
pub(crate) async fn until(scrape: impl AsyncFn() -> Metrics, is_so: impl Fn(&Metrics) -> bool) -> Metrics {
    let deadline = Instant::now() + 3 * PATIENCE;
    loop {
        let metrics = scrape().await;
        if is_so(&metrics) {
            return metrics;
        }
        assert!(Instant::now() < deadline, "it never came to pass:\n{}", metrics.text);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// An HTTP answer.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Reply {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

pub(crate) async fn request(address: SocketAddr, method: Method, path: &str, headers: &[(&str, &str)]) -> Reply {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
    let (head, body) = response.into_parts();
    Reply { status: head.status.as_u16(), headers: head.headers, body: body.collect().await.unwrap().to_bytes() }
}

/// Every series of one scrape, by name and labels.
#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) text: String,
    series: BTreeMap<Series, f64>,
}

type Series = (String, BTreeMap<String, String>);

impl Metrics {
    /// Reads the text format strictly: each series once, after its HELP and TYPE.
    pub(crate) fn parse(text: &str) -> Self {
        let mut series = BTreeMap::new();
        let mut typed = BTreeSet::new();
        for line in text.lines() {
            if let Some(comment) = line.strip_prefix("# ") {
                let mut words = comment.splitn(3, ' ');
                let (keyword, name) = (words.next().unwrap(), words.next().unwrap());
                assert!(["HELP", "TYPE"].contains(&keyword), "{line}");
                assert!(keyword == "HELP" || typed.insert(name.to_owned()), "{name} has two types");
                continue;
            }
            let (found, value) = parse_series(line);
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| found.0.strip_suffix(suffix));
            assert!(
                typed.contains(&found.0) || family.is_some_and(|family| typed.contains(family)),
                "no type before {line}"
            );
            assert!(series.insert(found, value).is_none(), "twice: {line}");
        }
        Self { text: text.to_owned(), series }
    }

    pub(crate) fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        self.series.get(&(name.to_owned(), labels)).copied()
    }

    /// Id and status of every instance, as `zenlayer_instance_status` at 1 tells them.
    pub(crate) fn instances(&self) -> BTreeSet<(String, String)> {
        let of_instance = |((name, labels), value): (&Series, &f64)| {
            let is_current = name == "zenlayer_instance_status" && *value > 0.0;
            is_current.then(|| (labels["instanceId"].clone(), labels["status"].clone()))
        };
        self.series.iter().filter_map(of_instance).collect()
    }

    /// Every value that a label has among the series of that name.
    pub(crate) fn values_of(&self, name: &str, label: &str) -> BTreeSet<String> {
        self.series.keys().filter(|(known, _)| known == name).map(|(_, labels)| labels[label].clone()).collect()
    }

    /// How many series have that name.
    pub(crate) fn count(&self, name: &str) -> usize {
        self.series.keys().filter(|(known, _)| known == name).count()
    }

    /// The label names of a metric, less those that a histogram adds to its buckets.
    pub(crate) fn labels(&self, name: &str) -> BTreeSet<String> {
        let of_metric = |(known, _): &&Series| known.trim_end_matches("_count") == name;
        self.series.keys().filter(of_metric).flat_map(|(_, labels)| labels.keys().cloned()).collect()
    }

    /// The sum over all series of that name.
    pub(crate) fn sum(&self, name: &str) -> f64 {
        self.series.iter().filter(|((known, _), _)| known == name).map(|(_, value)| value).sum()
    }
}

/// `name{label="value",…} number`.
fn parse_series(line: &str) -> (Series, f64) {
    let name_end = line.find(['{', ' ']).unwrap_or_else(|| panic!("no value: {line}"));
    let (name, mut rest) = line.split_at(name_end);
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, quoted) = rest.split_once("=\"").unwrap_or_else(|| panic!("no label: {line}"));
            let (value, after) = parse_quoted(quoted);
            assert!(labels.insert(label.to_owned(), value).is_none(), "a label twice: {line}");
            rest = after.strip_prefix(',').unwrap_or(after);
        }
        rest = &rest[1..];
    }
    let number = rest.strip_prefix(' ').unwrap_or_else(|| panic!("no space before the value: {line}"));
    ((name.to_owned(), labels), number.parse().unwrap_or_else(|_| panic!("no number: {line}")))
}

/// Reads up to the closing quote. Returns the value and what follows.
fn parse_quoted(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((place, c)) = chars.next() {
        match c {
            '"' => return (value, &text[place + 1..]),
            '\\' => value.push(match chars.next() {
                Some((_, 'n')) => '\n',
                Some((_, c @ ('\\' | '"'))) => c,
                other => panic!("an unknown escape {other:?} in {text}"),
            }),
            c => value.push(c),
        }
    }
    panic!("no closing quote: {text}")
}

/// Id and status of every instance a simulator has.
pub(crate) fn held(simulator: &Simulator) -> BTreeSet<(String, String)> {
    simulator.with_fleet(|fleet| {
        fleet.machines.iter().map(|machine| (machine.id.clone(), machine.status.clone().unwrap_or_default())).collect()
    })
}
