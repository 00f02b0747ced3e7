//! Instance metadata beside the statuses: whose they are, when they come and go, and that neither collector waits for
//! the other.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

mod common;

use std::collections::BTreeSet;
use std::io::Read;
use std::time::Duration;

use common::{Exporter, Metrics, PATIENCE, QUICK, config, held, request};
use flate2::read::GzDecoder;
use hyper::Method;
use serde_json::{Value, json};
use zenlayer_exporter::api::{Action, Backoff};
use zenlayer_exporter::config::Config;
use zenlayer_exporter::model::Service;
use zenlayer_exporter::simulator::{Fault, Knobs, NOT_FOUND, Simulator};

const INFO: &str = "zenlayer_instance_info";
const EXPIRY: &str = "zenlayer_instance_expiry_timestamp_seconds";
const SUCCESS: (&str, [(&str, &str); 1]) = ("zenlayer_exporter_collector_success", [("collector", "instance-info")]);

/// A status poll ten times a second, and a round of infos as often as said.
fn with_info(simulator: &Simulator, flags: &[&str], interval: Duration) -> Config {
    let mut config = config(simulator, &[&["--collector.instance-info"], flags].concat());
    config.instance_info.as_mut().unwrap().interval = interval;
    config
}

const OFTEN: Duration = Duration::from_millis(50);
/// Not again within a test.
const ONCE: Duration = Duration::from_hours(1);

async fn simulator(instances: usize) -> Simulator {
    Simulator::start(Knobs::still(Service::Vm, instances)).await.unwrap()
}

/// Gives the instance at that place these fields and no others.
fn tell(simulator: &Simulator, place: usize, details: &Value) {
    let details = details.as_object().cloned().map(Box::new);
    simulator.with_fleet(|fleet| fleet.machines[place].details = details);
}

fn ids(simulator: &Simulator) -> BTreeSet<String> {
    held(simulator).into_iter().map(|(id, _)| id).collect()
}

fn requests(metrics: &Metrics) -> f64 {
    let code = |code| [("action", "DescribeInstances"), ("code", code)];
    let value = |labels: &[_]| metrics.value("zenlayer_exporter_api_requests_total", labels).unwrap_or_default();
    value(&code("200")) + value(&code("404"))
}

async fn until_all_have_info(exporter: &Exporter, simulator: &Simulator) -> Metrics {
    exporter.until(|metrics| metrics.values_of(INFO, "instanceId") == ids(simulator)).await
}

#[tokio::test]
async fn every_instance_has_its_info_whatever_their_number() {
    let (vm, zec) = (Service::Vm, Service::Zec);
    for (service, instances, flat) in [(vm, 0, false), (vm, 1, false), (vm, 2345, false), (zec, 2345, true)] {
        let simulator = Simulator::start(Knobs { flat, ..Knobs::still(service, instances) }).await.unwrap();
        let flag = format!("--zenlayer.service={}", service.name());
        let exporter = Exporter::ready(with_info(&simulator, &[&flag], ONCE)).await;
        let metrics = until_all_have_info(&exporter, &simulator).await;
        let metrics = if instances == 0 { exporter.until(succeeds).await } else { metrics };
        assert_eq!(metrics.count(INFO), instances);
        assert_eq!(metrics.instances(), held(&simulator));
        assert_eq!(requests(&metrics), [1.0, 3.0][usize::from(instances > 1000)]);
        assert_eq!(metrics.value(SUCCESS.0, &SUCCESS.1), Some(1.0));
        let (prepaid, subscribed) = (with_label(&metrics, ("instanceChargeType", "PREPAID")), metrics.count(EXPIRY));
        // The other service tells no charge type.
        assert_eq!(prepaid, if service == Service::Vm { subscribed } else { 0 });
        assert!(instances < 1000 || (100..instances - 100).contains(&subscribed), "{subscribed} of {instances}");
    }
}

fn succeeds(metrics: &Metrics) -> bool {
    metrics.value(SUCCESS.0, &SUCCESS.1) == Some(1.0)
}

fn with_label(metrics: &Metrics, (name, value): (&str, &str)) -> usize {
    metrics.text.lines().filter(|line| line.starts_with(INFO) && line.contains(&format!("{name}=\"{value}\""))).count()
}

#[tokio::test]
async fn where_it_is_off_nothing_is_asked_and_nothing_shown() {
    let simulator = simulator(5).await;
    let exporter = Exporter::ready(config(&simulator, &[])).await;
    let metrics = exporter.polls(3).await;
    assert!(!metrics.text.contains(INFO) && !metrics.text.contains(EXPIRY) && !metrics.text.contains("instance-info"));
    assert!(!metrics.text.contains("action=\"DescribeInstances\""));
}

#[tokio::test]
async fn hostile_and_missing_fields_come_out_as_texts() {
    let simulator = simulator(6).await;
    let hostile = "\"quoted\" back\\slash\nnew {a=\"b\"} 1 # Größe 雲 🦀";
    tell(
        &simulator,
        0,
        &json!({
            "instanceName": hostile, "zoneId": hostile, "instanceType": hostile, "imageName": hostile,
            "instanceChargeType": hostile, "resourceGroupName": hostile,
            "tags": {"tags": [{"key": "a b", "value": hostile}]}, "expiredTime": "2030-01-01T00:00:00Z",
        }),
    );
    tell(
        &simulator,
        1,
        &json!({"instanceName": null, "zoneId": 7, "imageName": [], "tags": null, "expiredTime": null}),
    );
    tell(&simulator, 2, &json!({"instanceName": "é".repeat(5_000), "zoneId": "a\0b", "tags": {"tags": {}}}));
    tell(&simulator, 3, &json!({}));
    tell(&simulator, 4, &json!({"instanceId": ""}));
    tell(&simulator, 5, &json!({"instanceId": [7], "instanceName": "without an id"}));
    let exporter = Exporter::ready(with_info(&simulator, &["--collector.instance-info.tags=a b"], ONCE)).await;
    let metrics = exporter.until(succeeds).await;
    let metrics = if metrics.count(INFO) == 4 { metrics } else { exporter.until(|m| m.count(INFO) == 4).await };
    let ids: Vec<_> = simulator.with_fleet(|fleet| fleet.machines.iter().map(|machine| machine.id.clone()).collect());
    let shown = |id: &String, name: &str, other: &str| {
        let labels = ["zoneId", "instanceType", "imageName", "instanceChargeType", "resourceGroupName", "tag_a_b"];
        let own = [("instanceId", &**id), ("instanceName", name)];
        let labels: Vec<_> = own.into_iter().chain(labels.map(|label| (label, other))).collect();
        metrics.value(INFO, &labels)
    };
    assert_eq!(shown(&ids[0], hostile, hostile), Some(1.0));
    assert_eq!(shown(&ids[1], "", ""), Some(1.0));
    assert_eq!(shown(&ids[2], &format!("{}…", "é".repeat(126)), ""), Some(1.0), "cut between two characters");
    assert_eq!(shown(&ids[3], "", ""), Some(1.0));
    assert_eq!(metrics.value(EXPIRY, &[("instanceId", &ids[0])]), Some(1_893_456_000.0));
    assert_eq!(metrics.count(EXPIRY), 1);
    assert!(metrics.value("zenlayer_exporter_invalid_entries_total", &[]) >= Some(2.0));
}

#[tokio::test]
async fn tags_are_labels() {
    let simulator = simulator(1).await;
    let tags =
        json!([{"key": "env", "value": "prod"}, {"key": "cost-center", "value": "7"}, {"key": "x", "value": "y"}]);
    tell(&simulator, 0, &json!({"tags": {"tags": tags}}));
    let flags = ["--collector.instance-info.tags=team,cost-center", "--collector.instance-info.tags= env "];
    let exporter = Exporter::ready(with_info(&simulator, &flags, ONCE)).await;
    let metrics = exporter.until(|metrics| metrics.count(INFO) == 1).await;
    let line = metrics.text.lines().find(|line| line.starts_with("zenlayer_instance_info{")).unwrap();
    assert!(line.ends_with(r#",resourceGroupName="",tag_team="",tag_cost_center="7",tag_env="prod"} 1"#), "{line}");
}

#[tokio::test]
async fn a_fault_of_one_collector_leaves_the_other_s_series_alone() {
    let simulator = simulator(25).await;
    let exporter = Exporter::ready(with_info(&simulator, &["--zenlayer.page-size=10"], OFTEN)).await;
    until_all_have_info(&exporter, &simulator).await;
    let break_down = |action| {
        simulator.set(|knobs| {
            knobs.fault = Some(Fault::answer(403, r#"{"code":"FORBIDDEN"}"#));
            knobs.fault_of = Some(action);
        });
    };

    break_down(Action::DescribeInstances);
    exporter.until(|metrics| metrics.value(SUCCESS.0, &SUCCESS.1) == Some(0.0)).await;
    simulator.with_fleet(|fleet| {
        fleet.machines[0].status = Some("STOPPED".to_owned());
        fleet.machines.truncate(20);
    });
    let metrics = exporter.until(|metrics| metrics.instances() == held(&simulator)).await;
    assert_eq!(metrics.value("zenlayer_up", &[]), Some(1.0));
    assert_eq!(
        metrics.values_of(INFO, "instanceId"),
        ids(&simulator),
        "what is known stays, and goes with its instance"
    );
    assert_eq!(metrics.value(SUCCESS.0, &SUCCESS.1), Some(0.0));

    break_down(Action::DescribeInstancesStatus);
    let metrics = exporter.until(|metrics| metrics.value("zenlayer_up", &[]) == Some(0.0)).await;
    tell(&simulator, 0, &json!({"instanceName": "renamed"}));
    let shows_name = |metrics: &Metrics| metrics.text.contains("instanceName=\"renamed\"");
    assert!(!shows_name(&metrics));
    let metrics = exporter.until(shows_name).await;
    assert_eq!((metrics.value("zenlayer_up", &[]), metrics.instances()), (Some(0.0), held(&simulator)));
    assert_eq!(metrics.value(SUCCESS.0, &SUCCESS.1), Some(1.0));
}

#[tokio::test]
async fn info_is_no_younger_than_the_statuses_it_stands_beside() {
    let simulator = simulator(25).await;
    let mut config = with_info(&simulator, &[], OFTEN);
    config.poll.max_staleness = Duration::from_secs(1);
    let exporter = Exporter::ready(config).await;
    until_all_have_info(&exporter, &simulator).await;
    simulator.set(|knobs| {
        knobs.fault = Some(Fault::answer(451, ""));
        knobs.fault_of = Some(Action::DescribeInstancesStatus);
    });
    let renamed = AtomicNames::default();
    exporter
        .until(|metrics| {
            // A new name every time, so that there is always something new to publish.
            tell(&simulator, 0, &json!({"instanceName": renamed.next()}));
            metrics.count("zenlayer_instance_status") == 0 && metrics.count(INFO) == 0
        })
        .await;
}

/// A name that was not there before.
#[derive(Default)]
struct AtomicNames(std::sync::atomic::AtomicU32);

impl AtomicNames {
    fn next(&self) -> String {
        format!("name-{}", self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
    }
}

#[tokio::test]
async fn statuses_do_not_wait_for_an_info_round_that_hangs() {
    let simulator = simulator(500).await;
    simulator.set(|knobs| {
        knobs.fault = Some(Fault::HangBeforeHeaders);
        knobs.fault_of = Some(Action::DescribeInstances);
    });
    let ids: Vec<_> = ids(&simulator).into_iter().collect();
    // Five requests, which would take every place that there is.
    let named = format!("--zenlayer.instance-ids={}", ids.join(","));
    for flags in [&["--zenlayer.page-size=1"][..], &[&*named][..], &["--zenlayer.concurrency=2"][..]] {
        let mut config = with_info(&simulator, flags, OFTEN);
        // All of the test long.
        config.api.request_timeout = 2 * PATIENCE;
        let exporter = Exporter::ready(config).await;
        let metrics = exporter.polls(5).await;
        assert_eq!(metrics.instances(), held(&simulator));
        assert_eq!(metrics.value(SUCCESS.0, &SUCCESS.1), Some(0.0));
        assert!(simulator.tally().in_flight >= 1, "nothing hangs");
    }
}

#[tokio::test]
async fn a_new_instance_is_asked_for_by_id_at_once_and_only_once() {
    for missing_id_is_error in [false, true] {
        let simulator = simulator(25).await;
        simulator.set(|knobs| knobs.missing_id = missing_id_is_error.then_some(NOT_FOUND));
        let exporter = Exporter::ready(with_info(&simulator, &[], ONCE)).await;
        let before = requests(&until_all_have_info(&exporter, &simulator).await);
        simulator.with_fleet(|fleet| (0..3).for_each(|_| fleet.create()));
        let after = until_all_have_info(&exporter, &simulator).await;
        assert_eq!(requests(&after) - before, 1.0, "three new ones in one request");

        // One that the API shows the status of, and tells nothing else.
        let nothing = if missing_id_is_error {
            Fault::answer(404, r#"{"requestId":"T","code":"INVALID_INSTANCE_NOT_FOUND","message":"no"}"#)
        } else {
            Fault::answer(200, r#"{"response":{"requestId":"T","totalCount":0,"dataSet":[]}}"#)
        };
        simulator.set(|knobs| {
            knobs.fault = Some(nothing);
            knobs.fault_of = Some(Action::DescribeInstances);
        });
        simulator.with_fleet(zenlayer_exporter::simulator::Fleet::create);
        exporter.until(|metrics| requests(metrics) - before == 2.0).await;
        let metrics = exporter.polls(5).await;
        assert_eq!(requests(&metrics) - before, 2.0, "it was asked for again");
        assert_eq!((metrics.count(INFO), metrics.instances().len()), (28, 29));
        assert_eq!(metrics.value(SUCCESS.0, &SUCCESS.1), Some(1.0), "a look-up is no round");
    }
}

#[tokio::test]
async fn one_that_is_gone_again_does_not_hide_those_that_came_with_it() {
    let simulator = simulator(5).await;
    let exporter = Exporter::ready(with_info(&simulator, &[], ONCE)).await;
    until_all_have_info(&exporter, &simulator).await;
    simulator.set(|knobs| knobs.missing_id = Some(NOT_FOUND));
    // Statuses are of a moment in which there was one more.
    let mut status: Vec<_> = ids(&simulator).into_iter().collect();
    simulator.with_fleet(|fleet| (0..4).for_each(|_| fleet.create()));
    status.extend(ids(&simulator).into_iter().filter(|id| !status.contains(id)).collect::<Vec<_>>());
    status.push("gone".to_owned());
    let entries: Vec<_> = status.iter().map(|id| json!({"instanceId": id, "instanceStatus": "PENDING"})).collect();
    let body = json!({"totalCount": entries.len(), "dataSet": entries}).to_string();
    simulator.set(|knobs| {
        knobs.fault = Some(Fault::answer(200, body));
        knobs.fault_of = Some(Action::DescribeInstancesStatus);
    });
    let metrics = exporter.until(|metrics| metrics.count(INFO) == 9).await;
    assert_eq!(metrics.instances().len(), 10);
    assert!(!metrics.values_of(INFO, "instanceId").contains("gone"));
}

#[tokio::test]
async fn more_new_instances_than_a_few_requests_name_wait_for_the_next_round() {
    let simulator = simulator(5).await;
    let exporter = Exporter::ready(with_info(&simulator, &[], ONCE)).await;
    let before = requests(&until_all_have_info(&exporter, &simulator).await);
    simulator.with_fleet(|fleet| (0..250).for_each(|_| fleet.create()));
    let metrics = until_all_have_info(&exporter, &simulator).await;
    assert_eq!(requests(&metrics), before + 3.0, "a hundred a request");
    simulator.with_fleet(|fleet| (0..1001).for_each(|_| fleet.create()));
    exporter.until(|metrics| metrics.instances().len() == 1256).await;
    let metrics = exporter.polls(3).await;
    assert_eq!((requests(&metrics), metrics.count(INFO)), (before + 3.0, 255));

    let often = Exporter::ready(with_info(&simulator, &[], OFTEN)).await;
    until_all_have_info(&often, &simulator).await;
    simulator.with_fleet(|fleet| (0..1001).for_each(|_| fleet.create()));
    assert_eq!(until_all_have_info(&often, &simulator).await.count(INFO), 2257);
}

#[tokio::test]
async fn named_instances_are_asked_for_a_hundred_at_a_time() {
    for missing_id_is_error in [false, true] {
        let simulator = simulator(500).await;
        simulator.set(|knobs| knobs.missing_id = missing_id_is_error.then_some(NOT_FOUND));
        let mut wanted: BTreeSet<_> = ids(&simulator).into_iter().take(250).collect();
        let flag = format!("--zenlayer.instance-ids=gone,{}", Vec::from_iter(wanted.clone()).join(","));
        let exporter = Exporter::ready(with_info(&simulator, &[&flag], ONCE)).await;
        let metrics = exporter.until(|metrics| metrics.values_of(INFO, "instanceId") == wanted).await;
        if !missing_id_is_error {
            assert_eq!(requests(&metrics), 4.0, "the one that was left out is requested once more");
        }
        wanted.insert("gone".to_owned());
        assert_eq!(metrics.count("zenlayer_instance_status"), 250);
    }
}

#[tokio::test]
async fn those_that_a_round_missed_are_asked_for_by_id() {
    let churning = Simulator::start(Knobs { churn: true, ..Knobs::still(Service::Vm, 60) }).await.unwrap();
    let mut config = with_info(&churning, &["--zenlayer.page-size=5", "--zenlayer.concurrency=1"], ONCE);
    config.poll.interval = Duration::from_mins(1);
    let exporter = Exporter::ready(config).await;
    let metrics = exporter.until(succeeds).await;
    assert!(requests(&metrics) >= 12.0);
    let complete = |metrics: &Metrics| {
        let there = ids(&churning);
        let statuses: BTreeSet<_> = metrics.instances().into_iter().map(|(id, _)| id).collect();
        metrics.values_of(INFO, "instanceId").is_superset(&(&statuses & &there))
    };
    exporter.until(complete).await;
}

#[tokio::test]
async fn entries_of_others_are_dropped_from_look_ups() {
    let simulator = simulator(5).await;
    let known: Vec<_> = ids(&simulator).into_iter().take(2).collect();
    simulator.set(|knobs| {
        knobs.rewrite = Some(|_, payload| {
            let entries = payload["dataSet"].as_array_mut().unwrap();
            entries.push(json!({"instanceId": "stranger", "instanceStatus": "RUNNING"}));
            payload["totalCount"] = entries.len().into();
        });
    });
    let named = format!("--zenlayer.instance-ids={}", known.join(","));
    let exporter = Exporter::ready(with_info(&simulator, &[&named], ONCE)).await;
    let metrics = exporter.until(succeeds).await;
    assert_eq!(metrics.values_of(INFO, "instanceId"), known.iter().cloned().collect());
    assert_eq!(metrics.values_of("zenlayer_instance_status", "instanceId"), known.into_iter().collect());
    assert!(metrics.value("zenlayer_exporter_unrequested_entries_total", &[]) >= Some(2.0));
}

#[tokio::test]
async fn broken_paging_is_no_success() {
    let simulator = simulator(25).await;
    simulator.set(|knobs| {
        // One page again and again, whichever was asked for.
        let entry = |n| json!({"instanceId": format!("i-{n}")});
        let body = json!({"totalCount": 25, "dataSet": (0..10).map(entry).collect::<Vec<_>>()});
        knobs.fault = Some(Fault::answer(200, body.to_string()));
        knobs.fault_of = Some(Action::DescribeInstances);
    });
    let exporter = Exporter::ready(with_info(&simulator, &["--zenlayer.page-size=10"], OFTEN)).await;
    exporter.until(|metrics| requests(metrics) >= 6.0).await;
    let metrics = exporter.polls(1).await;
    assert_eq!((metrics.value(SUCCESS.0, &SUCCESS.1), metrics.count(INFO)), (Some(0.0), 0));
    simulator.set(|knobs| knobs.fault = None);
    until_all_have_info(&exporter, &simulator).await;
}

#[tokio::test]
async fn a_scrape_sees_one_publication_whatever_changes_meanwhile() {
    let simulator = simulator(2000).await;
    let mut config = with_info(&simulator, &[], Duration::from_millis(5));
    config.poll.interval = Duration::from_millis(10);
    let exporter = Exporter::ready(config).await;
    exporter.until(|metrics| metrics.count(INFO) > 0).await;
    let mut seen = BTreeSet::new();
    for round in 0..60 {
        simulator.with_fleet(|fleet| (0..5).for_each(|_| fleet.churn()));
        let text = match round % 3 {
            0 => exporter.get("/metrics").await.text().to_owned(),
            1 => {
                let open = [("accept", "application/openmetrics-text;version=1.0.0")];
                let reply = request(exporter.address, Method::GET, "/metrics", &open).await;
                let text = reply.text().strip_suffix("# EOF\n").unwrap().to_owned();
                assert!(!text.contains("# EOF"));
                text
            }
            _ => {
                let reply = request(exporter.address, Method::GET, "/metrics", &[("accept-encoding", "gzip")]).await;
                let mut text = String::new();
                GzDecoder::new(&*reply.body).read_to_string(&mut text).unwrap();
                text
            }
        };
        // The exporter's own are written otherwise in OpenMetrics.
        let own = text.find("# HELP process_").unwrap();
        let metrics = Metrics::parse(&text[..own]);
        let statuses: BTreeSet<_> = metrics.instances().into_iter().map(|(id, _)| id).collect();
        let infos = metrics.values_of(INFO, "instanceId");
        assert!(infos.is_subset(&statuses), "info of {:?}", infos.difference(&statuses));
        assert!(metrics.values_of(EXPIRY, "instanceId").is_subset(&infos));
        seen.insert(infos);
    }
    assert!(seen.len() > 10, "nothing changed meanwhile: {}", seen.len());
}

#[tokio::test]
async fn the_page_shows_names_of_what_does_not_run() {
    let simulator = simulator(2).await;
    tell(&simulator, 0, &json!({"instanceName": "<b>db", "zoneId": "HKG-A"}));
    simulator.with_fleet(|fleet| fleet.machines[0].status = Some("STOPPED".to_owned()));
    let exporter = Exporter::ready(with_info(&simulator, &[], ONCE)).await;
    exporter.until(|metrics| metrics.count(INFO) == 2).await;
    let page = exporter.get("/").await;
    let row = "<td><bdi>&lt;b&gt;db</bdi></td><td><bdi>HKG-A</bdi></td><td><bdi>STOPPED</bdi></td>";
    assert!(page.text().contains(row), "{}", page.text());
}

#[tokio::test]
async fn a_rate_limit_is_shared_and_both_get_through() {
    let simulator = simulator(60).await;
    let mut config = with_info(&simulator, &["--zenlayer.page-size=5"], ONCE);
    config.poll.interval = Duration::from_mins(1);
    simulator.set(|knobs| knobs.rate_limit = Some(10));
    // Of the simulator's second, so that four tries outlast it.
    let backoff = Backoff { pause: Duration::from_millis(300), ..QUICK };
    let exporter = Exporter::start_with(config, backoff).await;
    until_all_have_info(&exporter, &simulator).await;
    let metrics = exporter.until(|metrics| metrics.instances() == held(&simulator)).await;
    assert!(simulator.tally().limited > 0, "no limit was met");
    assert!(metrics.value(SUCCESS.0, &SUCCESS.1) == Some(1.0));
}

#[tokio::test]
async fn a_round_that_takes_too_long_takes_no_status_from_what_is_printed_once() {
    let simulator = simulator(5).await;
    simulator.set(|knobs| {
        knobs.fault = Some(Fault::HangBeforeHeaders);
        knobs.fault_of = Some(Action::DescribeInstances);
    });
    let mut config = with_info(&simulator, &[], ONCE);
    config.instance_info.as_mut().unwrap().timeout = Duration::from_millis(300);
    config.poll.max_staleness = Duration::from_millis(100);
    let (text, outcome) = zenlayer_exporter::once(&config).await.unwrap();
    outcome.unwrap();
    assert_eq!(Metrics::parse(std::str::from_utf8(&text).unwrap()).instances(), held(&simulator));
}

#[tokio::test]
async fn instances_that_are_named_are_asked_for_as_many_as_a_page_takes() {
    let simulator = simulator(25).await;
    simulator.set(|knobs| knobs.longest_page = 10);
    let ids = simulator.with_fleet(|fleet| fleet.machines.iter().map(|machine| machine.id.clone()).collect::<Vec<_>>());
    let named = format!("--zenlayer.instance-ids={}", ids.join(","));
    let exporter = Exporter::ready(with_info(&simulator, &[&named, "--zenlayer.page-size=10"], ONCE)).await;
    until_all_have_info(&exporter, &simulator).await;
}
