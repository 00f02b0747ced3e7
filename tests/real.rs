//! The exporter and the simulator against tools that this project did not write: the vendor's SDK, a Prometheus
//! server and promtool. `tests/run.sh` installs and runs them; a plain `cargo test` lists these tests as ignored.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

mod common;
#[path = "real/web.rs"]
mod web;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Seek, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Output};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::Method;
use reqwest::Url;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::time::Instant;
use zenlayer_exporter::api::Action;
use zenlayer_exporter::model::Service;
use zenlayer_exporter::simulator::{Fault, KEY_ID, Knobs, PASSWORD, Simulator, TOKEN};

use crate::common::{Exporter, config, held, request};

/// A server reads its targets every few seconds, so its first scrape takes longer than anything else here.
const PATIENCE: Duration = Duration::from_mins(1);

/// Each escaped in another way by the text format, JSON and PromQL.
const HOSTILE: [&str; 6] =
    ["quote\"d", "back\\slash", "new\nline", "no new line: \\n", "}, {a=\"b\"} 1", "Größe 云 🦀"];

/// Instance metadata too.
const INFO_ON: [&str; 2] = ["--collector.instance-info", "--collector.instance-info.tags=env"];

/// Id and status of every instance.
type Held = BTreeSet<(String, String)>;

/// Where thousands are compared, only these are worth reading.
#[derive(Debug, Default, PartialEq)]
struct Differences {
    missing: Held,
    stale_or_wrong: Held,
}

#[tokio::test]
#[ignore = "needs the vendor's Python SDK: tests/run.sh"]
async fn the_sdk_lists_every_instance_with_a_key_pair() {
    lists_every_instance(&[("ZENLAYER_ACCESS_KEY_ID", KEY_ID), ("ZENLAYER_ACCESS_KEY_SECRET", PASSWORD)]).await;
}

#[tokio::test]
#[ignore = "needs the vendor's Python SDK: tests/run.sh"]
async fn the_sdk_lists_every_instance_with_a_token() {
    lists_every_instance(&[("ZENLAYER_TOKEN", TOKEN)]).await;
}

#[tokio::test]
#[ignore = "needs the vendor's Python SDK: tests/run.sh"]
async fn the_sdk_is_told_what_the_exporter_shows() {
    let credentials = [("ZENLAYER_TOKEN", TOKEN)];
    for service in [Service::Vm, Service::Zec] {
        let simulator = Simulator::start(Knobs::still(service, 1234)).await.unwrap();
        give_hostile_names(&simulator);
        let action = Action::DescribeInstances;
        let told = ask_with_sdk(&simulator, service, service.newest_version(), &credentials, action).await.unwrap();
        let service = format!("--zenlayer.service={}", service.name());
        let exporter = Exporter::ready(config(&simulator, &[&service, INFO_ON[0], INFO_ON[1]])).await;
        let metrics = exporter.until(|metrics| metrics.count("zenlayer_instance_info") == 1234).await;
        assert_eq!(told.len(), 1234);
        for instance in &told {
            let fields =
                ["instanceName", "zoneId", "instanceType", "imageName", "instanceChargeType", "resourceGroupName"];
            // One service tells no charge type, and then neither does a label.
            let optional = service.ends_with("zec").then_some("instanceChargeType");
            let of_field = |field| match instance[field].as_str() {
                Some(text) => (field, text),
                None if optional == Some(field) => (field, ""),
                None => panic!("no {field}: {instance}"),
            };
            let id = ("instanceId", instance["id"].as_str().unwrap());
            let tag = ("tag_env", instance["tags"]["env"].as_str().expect("the SDK has tags"));
            let labels: Vec<_> = [id].into_iter().chain(fields.map(of_field)).chain([tag]).collect();
            assert_eq!(metrics.value("zenlayer_instance_info", &labels), Some(1.0), "{instance}");
            let expires = instance["expiredTime"].as_str().map(|time| {
                let time = humantime::parse_rfc3339(time).unwrap();
                time.duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
            });
            assert_eq!(metrics.value("zenlayer_instance_expiry_timestamp_seconds", &[id]), expires, "{instance}");
        }
    }
}

#[tokio::test]
#[ignore = "needs the vendor's Python SDK: tests/run.sh"]
async fn the_sdk_is_refused_with_wrong_credentials() {
    let cases = [
        (vec![("ZENLAYER_ACCESS_KEY_ID", KEY_ID), ("ZENLAYER_ACCESS_KEY_SECRET", "wrong")], "INVALID_SIGNATURE"),
        (vec![("ZENLAYER_ACCESS_KEY_ID", "WRONG"), ("ZENLAYER_ACCESS_KEY_SECRET", PASSWORD)], "INVALID_SIGNATURE"),
        (vec![("ZENLAYER_TOKEN", "wrong")], "INVALID_TOKEN"),
    ];
    let simulator = Simulator::start(Knobs::still(Service::Vm, 3)).await.unwrap();
    for (credentials, code) in cases {
        let error = list_with_sdk(&simulator, Service::Vm, "2026-04-01", &credentials).await.unwrap_err();
        assert_eq!(error["code"], code, "{error}");
        assert!(error["requestId"].as_str().unwrap().starts_with('T'), "{error}");
    }
    assert_eq!(simulator.tally().answered, 0);
}

#[tokio::test]
#[ignore = "needs prometheus and promtool: tests/run.sh"]
async fn prometheus_shows_each_instance_in_the_status_it_is_in_and_no_other() {
    let simulator = Simulator::start(Knobs::still(Service::Vm, 300)).await.unwrap();
    give_hostile_names(&simulator);
    let exporter = Exporter::ready(config(&simulator, &[])).await;
    let prometheus = Prometheus::scraping(exporter.address).await;
    prometheus.until_it_shows(&held(&simulator)).await;
    assert_eq!(prometheus.values("up").await, ["1"]);
    assert_eq!(prometheus.values("zenlayer_up").await, ["1"]);
    assert_eq!(prometheus.values("sum(zenlayer_instances)").await, ["300"]);

    let (id, old) = change_last(&simulator, "IMAGING");
    let changed_at = unix_time();
    prometheus.until_it_shows(&held(&simulator)).await;
    let found_new = prometheus.scrapes(&status_series(&id, "IMAGING")).await;
    let found_old = prometheus.scrapes(&status_series(&id, &old)).await;
    assert!(found_old.last() < found_new.first(), "both at once: {found_old:?} {found_new:?}");
    let scrapes = prometheus.scrapes("up").await;
    let too_early = scrapes.iter().filter(|&&at| changed_at < at && at < found_new[0]).count();
    assert!(too_early < 2, "changed at {changed_at}, found at {}, scrapes at {scrapes:?}", found_new[0]);

    let removed = simulator.with_fleet(|fleet| fleet.machines.pop()).unwrap().id;
    assert_eq!(removed, id);
    prometheus.until_it_shows(&held(&simulator)).await;
    assert_eq!(prometheus.query(&format!("{{instanceId=\"{id}\"}}")).await, Vec::<Value>::new());
    assert_eq!(prometheus.values("sum(zenlayer_instances)").await, ["299"]);
}

#[tokio::test]
#[ignore = "needs prometheus and promtool: tests/run.sh"]
async fn prometheus_answers_every_query_of_the_docs_and_the_recipes() {
    let simulator = Simulator::start(Knobs::still(Service::Vm, 50)).await.unwrap();
    give_hostile_names(&simulator);
    // Of the made up subscriptions, few or none end that soon.
    let soon = SystemTime::now() + Duration::from_hours(10 * 24);
    let details = json!({
        "instanceName": format!("web {}", HOSTILE.concat()),
        "expiredTime": humantime::format_rfc3339_seconds(soon).to_string(),
    });
    simulator
        .with_fleet(|fleet| fleet.machines.last_mut().unwrap().details = details.as_object().cloned().map(Box::new));
    let exporter = Exporter::ready(config(&simulator, &INFO_ON)).await;
    let prometheus = Prometheus::scraping(exporter.address).await;
    prometheus.until_it_shows(&held(&simulator)).await;
    change_last(&simulator, "STOPPING");
    prometheus.until_it_shows(&held(&simulator)).await;
    let recipes = include_str!("../deploy/prometheus/RECIPES.md");
    let (_, on_names) = recipes.split_once("\n## Instance metadata\n").unwrap();
    let on_names = on_names.split("\n## ").next().unwrap();
    for text in [include_str!("../docs/metrics.md"), include_str!("../docs/sharding.md"), on_names] {
        assert!(queries(text).len() > 2, "no queries");
        for query in queries(text) {
            assert_ne!(prometheus.query(query).await, Vec::<Value>::new(), "nothing comes of {query}");
        }
    }
    // The others ask for what this server has not seen yet: tests/rules/check.py has one that has.
    for query in queries(recipes) {
        prometheus.query(query).await;
    }
    let named = prometheus.query(queries(on_names)[0]).await;
    let others = held(&simulator).into_iter().filter(|(_, status)| status != "RUNNING").count();
    assert_eq!(named.len(), others, "a join must not lose an instance");
    assert!(named.iter().any(|series| text(&series["metric"]["instanceName"]) == text(&details["instanceName"])));
}

fn queries(text: &str) -> Vec<&str> {
    text.split("```promql\n").skip(1).map(|block| block.split("```").next().unwrap()).collect()
}

#[tokio::test]
#[ignore = "needs prometheus and promtool: tests/run.sh"]
async fn promtool_objects_to_the_api_s_own_label_names_alone() {
    for (service, series) in [(Service::Vm, "current"), (Service::Vm, "all"), (Service::Zec, "all")] {
        let simulator = Simulator::start(Knobs::still(service, 100)).await.unwrap();
        give_hostile_names(&simulator);
        let series = format!("--metrics.status-series={series}");
        let service = format!("--zenlayer.service={}", service.name());
        let exporter = Exporter::ready(config(&simulator, &[&series, &service, INFO_ON[0], INFO_ON[1]])).await;
        exporter.until(|metrics| metrics.count("zenlayer_instance_info") == 100).await;
        live_through_everything(&simulator, &exporter).await;
        let metrics = exporter.metrics().await;
        assert_eq!(differences(&metrics.instances(), &held(&simulator)), Differences::default());
        let checked = check_metrics(metrics.text).await;
        // It says so once for each series.
        let said: BTreeSet<_> = std::str::from_utf8(&checked.stderr).unwrap().lines().collect();
        let of_the_api = ["status", "info", "expiry_timestamp_seconds"];
        let allowed = of_the_api.map(|name| {
            format!("zenlayer_instance_{name} label names should be written in 'snake_case' not 'camelCase'")
        });
        assert_eq!(said, allowed.iter().map(String::as_str).collect());
        assert_eq!(String::from_utf8_lossy(&checked.stdout), "");
        assert_eq!(checked.status.code(), Some(3), "promtool's code for lint");
    }
}

#[tokio::test]
#[ignore = "needs prometheus_client for Python: tests/run.sh"]
async fn the_strict_parser_of_open_metrics_reads_what_the_text_says() {
    let simulator = Simulator::start(Knobs::still(Service::Vm, 100)).await.unwrap();
    give_hostile_names(&simulator);
    let exporter = Exporter::ready(config(&simulator, &INFO_ON)).await;
    exporter.until(|metrics| metrics.count("zenlayer_instance_info") == 100).await;
    live_through_everything(&simulator, &exporter).await;
    let accept = [("accept", "application/openmetrics-text;version=1.0.0")];
    let open = request(exporter.address, Method::GET, "/metrics", &accept).await;
    assert_eq!(open.header("content-type"), Some("application/openmetrics-text; version=1.0.0; charset=utf-8"));
    let mut input = tempfile::tempfile().unwrap();
    input.write_all(&open.body).unwrap();
    input.rewind().unwrap();
    let mut command = Command::new(test_python());
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk/read_open_metrics.py")).stdin(input);
    let output = finish(command).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let shown: Vec<(String, String)> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(differences(&each_once(shown.into_iter()), &held(&simulator)), Differences::default());
}

async fn lists_every_instance(credentials: &[(&str, &str)]) {
    let versions = [
        (Service::Vm, "2023-03-13"),
        (Service::Vm, Service::Vm.newest_version()),
        (Service::Zec, "2024-04-01"),
        (Service::Zec, Service::Zec.newest_version()),
    ];
    for (service, version) in versions {
        let simulator = Simulator::start(Knobs::still(service, 2345)).await.unwrap();
        give_hostile_names(&simulator);
        let listed = list_with_sdk(&simulator, service, version, credentials).await.unwrap();
        assert_eq!(differences(&listed, &held(&simulator)), Differences::default(), "{service:?} {version}");
        assert_eq!(simulator.tally().answered, 3, "pages of {service:?} {version}");
    }
}

/// Every instance that the vendor's SDK sees, or what it throws.
async fn list_with_sdk(
    simulator: &Simulator,
    service: Service,
    version: &str,
    credentials: &[(&str, &str)],
) -> Result<Held, Value> {
    let listed = ask_with_sdk(simulator, service, version, credentials, Action::DescribeInstancesStatus).await?;
    Ok(each_once(listed.iter().map(|line| (text(&line["id"]), text(&line["status"])))))
}

/// What the vendor's SDK makes of every entry, or what it throws.
async fn ask_with_sdk(
    simulator: &Simulator,
    service: Service,
    version: &str,
    credentials: &[(&str, &str)],
    action: Action,
) -> Result<Vec<Value>, Value> {
    let mut command = Command::new(test_python());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk/list_instances.py");
    command.args([script, simulator.endpoint().as_str(), service.name(), version, "1000", &action.to_string()]);
    // Neither a proxy nor a key of this machine's owner has a place here.
    command.env_clear().envs(credentials.iter().copied());
    let output = finish(command).await;
    let lines: Vec<Value> =
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    match output.status.code() {
        Some(0) => Ok(lines),
        Some(1) if lines.len() == 1 => Err(lines[0].clone()),
        _ => panic!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr)),
    }
}

/// The Python that has what the tests need.
fn test_python() -> String {
    std::env::var("ZENLAYER_EXPORTER_TEST_PYTHON")
        .expect("ZENLAYER_EXPORTER_TEST_PYTHON names no Python with the vendor's SDK: run tests/run.sh, which sets it")
}

/// A Prometheus server that scrapes one target every second; it is killed when dropped.
struct Prometheus {
    server: Child,
    address: SocketAddr,
    home: TempDir,
}

impl Prometheus {
    async fn scraping(target: SocketAddr) -> Self {
        Self::running(tempfile::tempdir().unwrap(), target, "").await
    }

    /// `how` is what the job has besides its target; `home` holds the files it names.
    async fn running(home: TempDir, target: SocketAddr, how: &str) -> Self {
        let settings = format!(
            "global: {{scrape_interval: 1s}}\n\
             scrape_configs: [{{job_name: zenlayer, {how} static_configs: [{{targets: ['{target}']}}]}}]\n"
        );
        fs::write(home.path().join("prometheus.yml"), settings).unwrap();
        let address = free_address();
        let log = File::create(home.path().join("log")).unwrap();
        let server = Command::new("prometheus")
            .current_dir(home.path())
            .args(["--config.file=prometheus.yml", "--storage.tsdb.path=data"])
            .arg(format!("--web.listen-address={address}"))
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("prometheus does not start: {error}: run tests/run.sh, which installs it"));
        let mut prometheus = Self { server, address, home };
        prometheus.until_ready().await;
        prometheus
    }

    async fn until_ready(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.is_ready().await {
            assert_eq!(self.server.try_wait().unwrap(), None, "prometheus ended");
            assert!(Instant::now() < deadline, "prometheus is not ready");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn is_ready(&self) -> bool {
        TcpStream::connect(self.address).await.is_ok()
            && request(self.address, Method::GET, "/-/ready", &[]).await.status == 200
    }

    /// Waits until an instant query returns exactly these instances.
    async fn until_it_shows(&self, expected: &Held) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = self.query("zenlayer_instance_status == 1").await;
            let label = |series: &Value, name: &str| text(&series["metric"][name]);
            let shown = each_once(found.iter().map(|series| (label(series, "instanceId"), label(series, "status"))));
            let differences = differences(&shown, expected);
            if differences == Differences::default() {
                return;
            }
            assert!(Instant::now() < deadline, "{differences:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// The value of every series that an instant query returns.
    async fn values(&self, promql: &str) -> Vec<String> {
        self.query(promql).await.iter().map(|series| text(&series["value"][1])).collect()
    }

    /// When, in Unix time, each scrape began that found this one series.
    async fn scrapes(&self, series: &str) -> Vec<f64> {
        let found = self.query(&format!("{series}[5m]")).await;
        let [found] = &found[..] else { panic!("not one series {series}: {found:?}") };
        found["values"].as_array().unwrap().iter().map(|sample| sample[0].as_f64().unwrap()).collect()
    }

    async fn query(&self, promql: &str) -> Vec<Value> {
        let url = Url::parse_with_params("http://localhost/api/v1/query", [("query", promql)]).unwrap();
        let path = format!("{}?{}", url.path(), url.query().unwrap());
        let reply = request(self.address, Method::GET, &path, &[]).await;
        let answer: Value = serde_json::from_slice(&reply.body).unwrap();
        assert_eq!(answer["status"], "success", "{promql}: {answer}");
        answer["data"]["result"].as_array().unwrap().clone()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        if std::thread::panicking() {
            eprintln!("prometheus said:\n{}", fs::read_to_string(self.home.path().join("log")).unwrap_or_default());
        }
    }
}

/// Renames the first instances and gives the first a status to match.
fn give_hostile_names(simulator: &Simulator) {
    simulator.with_fleet(|fleet| {
        for (machine, name) in fleet.machines.iter_mut().zip(HOSTILE) {
            name.clone_into(&mut machine.id);
        }
        fleet.machines[0].status = Some(HOSTILE.concat());
    });
}

/// Moves the last instance to another status. Returns its id and the status it was in.
fn change_last(simulator: &Simulator, status: &str) -> (String, String) {
    simulator.with_fleet(|fleet| {
        let machine = fleet.machines.last_mut().unwrap();
        (machine.id.clone(), machine.status.replace(status.to_owned()).unwrap())
    })
}

fn status_series(id: &str, status: &str) -> String {
    format!("zenlayer_instance_status{{instanceId=\"{id}\",status=\"{status}\"}}")
}

/// So that a scrape has every series there is: failures, retries, transitions, unknown paths.
async fn live_through_everything(simulator: &Simulator, exporter: &Exporter) {
    simulator.set(|knobs| knobs.fault = Some(Fault::answer(500, "broken")));
    exporter.until(|metrics| metrics.value("zenlayer_up", &[]) == Some(0.0)).await;
    simulator.set(|knobs| knobs.fault = None);
    change_last(simulator, "IMAGING");
    exporter.get("/unknown").await;
    exporter.until(|metrics| metrics.sum("zenlayer_instance_status_transitions_total") > 0.0).await;
}

async fn check_metrics(text: String) -> Output {
    let mut input = tempfile::tempfile().unwrap();
    input.write_all(text.as_bytes()).unwrap();
    input.rewind().unwrap();
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(input);
    finish(command).await
}

/// Runs a program to its end while the simulator goes on.
async fn finish(mut command: Command) -> Output {
    let run = move || {
        let program = command.get_program().to_owned();
        command.output().unwrap_or_else(|error| {
            panic!("{} does not start: {error}: run tests/run.sh, which installs it", program.display())
        })
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

/// An address that was free a moment ago.
fn free_address() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn differences(found: &Held, expected: &Held) -> Differences {
    Differences { missing: expected - found, stale_or_wrong: found - expected }
}

fn each_once(listed: impl Iterator<Item = (String, String)>) -> Held {
    let mut held = Held::new();
    for entry in listed {
        assert!(held.insert(entry.clone()), "twice: {entry:?}");
    }
    held
}

/// A label that is empty is left out of the answers.
fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn unix_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}
