//! The whole exporter over real sockets: what the simulator holds is what `/metrics` shows.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use common::{Exporter, PATIENCE, config, held, request};
use hyper::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;
use zenlayer_exporter::config::{CredentialSource, SecretSource, Target};
use zenlayer_exporter::model::Service;
use zenlayer_exporter::secret::Secret;
use zenlayer_exporter::simulator::{Knobs, NOT_FOUND, Simulator, TOKEN};

async fn simulator(instances: usize) -> Simulator {
    Simulator::start(Knobs::still(Service::Vm, instances)).await.unwrap()
}

#[tokio::test]
async fn every_instance_is_there_whatever_their_number() {
    for instances in [0, 1, 999, 1000, 1001, 12_345] {
        for (service, flat, concurrency) in [(Service::Vm, false, 1), (Service::Zec, true, 8)] {
            let simulator = Simulator::start(Knobs { flat, ..Knobs::still(service, instances) }).await.unwrap();
            let flags =
                [format!("--zenlayer.service={}", service.name()), format!("--zenlayer.concurrency={concurrency}")];
            let exporter = Exporter::ready(config(&simulator, &[&flags[0], &flags[1]])).await;
            let metrics = exporter.metrics().await;
            assert_eq!(metrics.instances(), held(&simulator), "{instances} instances, {service:?}");
            assert_eq!(metrics.sum("zenlayer_instances"), f64::from(u32::try_from(instances).unwrap()));
            assert_eq!(metrics.count("zenlayer_instances"), service.documented_statuses().len());
            exporter.stop().await.unwrap();
        }
    }
}

#[tokio::test]
async fn pages_are_read_side_by_side_and_polls_one_after_the_other() {
    let knobs = Knobs { latency: Duration::from_millis(30), ..Knobs::still(Service::Vm, 500) };
    let simulator = Simulator::start(knobs).await.unwrap();
    let mut config = config(&simulator, &["--zenlayer.page-size=20", "--zenlayer.concurrency=5"]);
    // 25 pages of 30 ms, 5 at a time, take longer than this.
    config.poll.interval = Duration::from_millis(10);
    let exporter = Exporter::ready(config).await;
    let metrics = exporter.polls(3).await;
    assert_eq!(metrics.instances(), held(&simulator));
    assert_eq!(simulator.tally().most_at_once, 5);
}

#[tokio::test]
async fn hostile_names_come_out_as_they_went_in() {
    let simulator = simulator(0).await;
    let names = ["\"quoted\"", "back\\slash", "new\nline", "\\n", "naïve 雲 🦀", "{a=\"b\"} 1", "#", "'", "\t"];
    simulator.with_fleet(|fleet| {
        for name in names {
            fleet.add("RUNNING");
            fleet.machines.last_mut().unwrap().id = format!("id {name}");
            fleet.machines.last_mut().unwrap().status = Some(format!("STATUS {name}"));
        }
    });
    let exporter = Exporter::ready(config(&simulator, &[])).await;
    assert_eq!(exporter.metrics().await.instances(), held(&simulator));
    assert_eq!(held(&simulator).len(), names.len());
}

#[tokio::test]
async fn a_status_that_nobody_documented_appears_and_stays_known() {
    let simulator = simulator(2).await;
    let exporter = Exporter::ready(config(&simulator, &["--metrics.status-series=all"])).await;
    let known = Service::Vm.documented_statuses().len();
    assert_eq!(exporter.metrics().await.count("zenlayer_instance_status"), 2 * known);

    let set = |status: &str| simulator.with_fleet(|fleet| fleet.machines[0].status = Some(status.to_owned()));
    set("MELTING");
    exporter.until(|metrics| metrics.value("zenlayer_instances", &[("status", "MELTING")]) == Some(1.0)).await;
    assert_eq!(exporter.metrics().await.count("zenlayer_instance_status"), 2 * (known + 1));

    set("RUNNING");
    exporter.until(|metrics| metrics.value("zenlayer_instances", &[("status", "MELTING")]) == Some(0.0)).await;
    let melted = [("from", "MELTING"), ("to", "RUNNING")];
    assert_eq!(exporter.metrics().await.value("zenlayer_instance_status_transitions_total", &melted), Some(1.0));
}

#[tokio::test]
async fn an_instance_that_is_gone_leaves_no_series_and_a_change_moves_its_own() {
    let simulator = simulator(3).await;
    let exporter = Exporter::ready(config(&simulator, &[])).await;
    simulator.with_fleet(|fleet| {
        fleet.machines.remove(1);
        fleet.machines[0].status = Some("STOPPED".to_owned());
    });
    let metrics = exporter.until(|metrics| metrics.count("zenlayer_instance_status") == 2).await;
    assert_eq!(metrics.instances(), held(&simulator));
    let stopped = [("from", "RUNNING"), ("to", "STOPPED")];
    assert_eq!(metrics.value("zenlayer_instance_status_transitions_total", &stopped), Some(1.0));
}

#[tokio::test]
async fn two_scrapes_of_one_poll_have_the_same_instances_byte_for_byte() {
    let simulator = simulator(1500).await;
    let mut config = config(&simulator, &[]);
    config.poll.interval = Duration::from_mins(1);
    let exporter = Exporter::ready(config).await;
    let part = |text: &str| text[..text.find("# HELP process_").unwrap()].to_owned();
    let (one, other) = (exporter.metrics().await.text, exporter.metrics().await.text);
    assert_eq!(part(&one), part(&other));
    let ids: Vec<_> = one.lines().filter(|line| line.starts_with("zenlayer_instance_status{")).collect();
    assert!(ids.is_sorted(), "the series are ordered by id");
}

#[tokio::test]
async fn a_token_is_as_good_as_a_key() {
    let simulator = simulator(10).await;
    let mut config = config(&simulator, &[]);
    let token = |text| CredentialSource::Token(SecretSource::Given(Secret::new(text)));
    config.target = Target::Account { endpoint: simulator.endpoint(), credentials: token(TOKEN) };
    let exporter = Exporter::ready(config.clone()).await;
    assert_eq!(exporter.metrics().await.instances().len(), 10);

    config.target = Target::Account { endpoint: simulator.endpoint(), credentials: token("another") };
    let refused = Exporter::start(config).await;
    let outcome = [("outcome", "unauthorized")];
    refused.until(|metrics| metrics.value("zenlayer_exporter_polls_total", &outcome) >= Some(1.0)).await;
}

#[tokio::test]
async fn a_wrong_key_is_told_with_code_and_request_id_and_tried_once() {
    let simulator = simulator(10).await;
    let mut config = config(&simulator, &[]);
    config.poll.interval = Duration::from_mins(1);
    config.target = Target::Account {
        endpoint: simulator.endpoint(),
        credentials: CredentialSource::KeyPair {
            id: "SIMULATEDKEYID".to_owned(),
            password: SecretSource::Given(Secret::new("wrong")),
        },
    };
    let exporter = Exporter::start(config).await;
    let metrics = exporter.polls(1).await;
    assert_eq!(metrics.value("zenlayer_up", &[]), Some(0.0));
    assert_eq!(metrics.count("zenlayer_instance_status"), 0);
    assert_eq!(simulator.tally().failed, 1, "what cannot pass is not tried again");
    let ready = exporter.get("/readyz").await;
    assert_eq!(ready.status, 503);
    let said = "no poll has succeeded yet: DescribeInstancesStatus, page 1: HTTP 401, code INVALID_SIGNATURE, \
                the signature does not match (requestId T";
    assert!(ready.text().starts_with(said), "{}", ready.text());
    assert!(ready.text().ends_with("belong together and are active\n"), "{}", ready.text());
}

#[tokio::test]
async fn named_instances_are_asked_for_a_hundred_at_a_time() {
    for missing_id_is_error in [false, true] {
        let knobs = Knobs { missing_id: missing_id_is_error.then_some(NOT_FOUND), ..Knobs::still(Service::Vm, 500) };
        let simulator = Simulator::start(knobs).await.unwrap();
        let mut wanted: Vec<_> =
            simulator.with_fleet(|fleet| fleet.machines.iter().take(250).map(|machine| machine.id.clone()).collect());
        wanted.push("gone".to_owned());
        let ids = format!("--zenlayer.instance-ids={}", wanted.join(","));
        let mut config = config(&simulator, &[&ids]);
        config.poll.interval = Duration::from_mins(1);
        let exporter = Exporter::ready(config).await;
        let shown: BTreeSet<_> = exporter.metrics().await.instances().into_iter().map(|(id, _)| id).collect();
        assert_eq!(shown, wanted.into_iter().filter(|id| id != "gone").collect());
        if !missing_id_is_error {
            assert_eq!(simulator.tally().answered, 4, "the one that was left out is requested once more");
        }
    }
}

#[tokio::test]
async fn the_paths_answer_as_documented() {
    let simulator = simulator(5).await;
    let exporter = Exporter::ready(config(&simulator, &["--web.telemetry-path=/m"])).await;
    let get = |path| exporter.get(path);
    assert_eq!(get("/m").await.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    assert_eq!(get("/healthz").await.text(), "ok\n");
    assert_eq!(get("/readyz").await.text(), "ready\n");
    assert!(get("/").await.text().contains("5 instances, polled "));
    assert_eq!(get("/metrics").await.status, 404);

    let posted = request(exporter.address, Method::POST, "/m", &[]).await;
    assert_eq!((posted.status, posted.header("allow")), (405, Some("GET, HEAD")));
    let head = request(exporter.address, Method::HEAD, "/readyz", &[]).await;
    assert_eq!((head.status, head.header("content-length"), head.body.len()), (200, Some("6"), 0));
}

#[tokio::test]
async fn gzip_is_the_same_text() {
    let simulator = simulator(2000).await;
    let mut config = config(&simulator, &[]);
    config.poll.interval = Duration::from_mins(1);
    let exporter = Exporter::ready(config).await;
    let zipped = request(exporter.address, Method::GET, "/metrics", &[("accept-encoding", "gzip")]).await;
    assert_eq!(zipped.header("content-encoding"), Some("gzip"));
    assert_eq!(zipped.header("vary"), Some("accept, accept-encoding"), "a cache must keep the two apart");
    let mut text = String::new();
    std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&*zipped.body), &mut text).unwrap();
    assert_eq!(common::Metrics::parse(&text).instances(), held(&simulator));
    assert!(zipped.body.len() * 4 < text.len());
}

#[tokio::test]
async fn a_client_that_takes_nothing_loses_its_place_to_a_new_one() {
    let simulator = simulator(12_000).await;
    let exporter = large_exporter(&simulator, &["--web.max-connections=2"]).await;
    let stalled = [open_scrape(&exporter).await, open_scrape(&exporter).await];
    for path in ["/metrics", "/healthz"] {
        assert_eq!(exporter.get(path).await.status, 200, "{path}");
    }
    let mut whole = 0;
    for mut scrape in stalled {
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(PATIENCE, scrape.read_to_end(&mut answer)).await.expect("it is closed");
        whole += usize::from(answer.len() > 1_000_000 && answer.ends_with(b"\n"));
    }
    assert_eq!(whole, 1, "one of them made room, and the other one kept its place");
}

#[tokio::test]
async fn a_connection_without_a_request_makes_room() {
    let simulator = simulator(12_000).await;
    let exporter = large_exporter(&simulator, &["--web.max-connections=2"]).await;
    let mut scrape = open_scrape(&exporter).await;
    let mut silent = Vec::new();
    for head in ["", "GET /metrics HTTP/1.1\r\n"] {
        let mut stream = TcpStream::connect(exporter.address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        assert_eq!(exporter.get("/metrics").await.status, 200, "{head:?} keeps out others");
        silent.push(stream);
    }
    let mut idle = TcpStream::connect(exporter.address).await.unwrap();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    idle.read_u8().await.unwrap();
    assert_eq!(exporter.get("/metrics").await.status, 200, "one that is idle keeps out others");
    tokio::time::timeout(PATIENCE, idle.read_to_end(&mut Vec::new())).await.expect("it is closed").ok();
    let mut answer = String::new();
    scrape.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with('\n') && answer.len() > 1_000_000, "a scrape under way is answered whole");
    for mut stream in silent {
        tokio::time::timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await.expect("its time is up").ok();
    }
}

/// One request on a connection that is kept.
async fn ask(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\nok\n") {
        answer.push(stream.read_u8().await?);
    }
    Ok(())
}

#[tokio::test]
async fn a_connection_is_kept_between_two_scrapes() {
    let simulator = simulator(1).await;
    let exporter = Exporter::ready(config(&simulator, &[])).await;
    let mut stream = TcpStream::connect(exporter.address).await.unwrap();
    ask(&mut stream).await.unwrap();
    // Longer than a head may take.
    tokio::time::sleep(Duration::from_secs(7)).await;
    ask(&mut stream).await.unwrap();
}

#[tokio::test]
async fn a_slow_head_ends_a_connection_that_was_kept() {
    let simulator = simulator(1).await;
    let exporter = Exporter::ready(config(&simulator, &[])).await;
    let mut stream = TcpStream::connect(exporter.address).await.unwrap();
    ask(&mut stream).await.unwrap();
    let begun = Instant::now();
    let (mut reader, mut writer) = stream.split();
    let dribble = async {
        while writer.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let closed = async { drop(reader.read_to_end(&mut Vec::new()).await) };
    tokio::time::timeout(PATIENCE, async { tokio::join!(dribble, closed) }).await.expect("it is cut");
    assert!(begun.elapsed() > Duration::from_secs(4), "it had no time: {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_request_without_exactly_one_host_is_refused_and_ends_its_connection() {
    let simulator = simulator(1).await;
    let exporter = Exporter::ready(config(&simulator, &[])).await;
    let cases = [
        ("HTTP/1.1", "host: localhost\r\n", "200"),
        ("HTTP/1.1", "host: [::1]:10980\r\n", "200"),
        ("HTTP/1.1", "host:\r\n", "200"),
        ("HTTP/1.1", "", "400"),
        ("HTTP/1.1", "host: a\r\nhost: a\r\n", "400"),
        ("HTTP/1.1", "host: a\r\nhost: b\r\n", "400"),
        ("HTTP/1.1", "host: a b\r\n", "400"),
        ("HTTP/1.1", "host: user@a\r\n", "400"),
        ("HTTP/1.0", "", "200"),
        ("HTTP/1.0", "host: a\r\nhost: b\r\n", "400"),
    ];
    for (version, hosts, status) in cases {
        for path in ["/metrics", "http://a/metrics"] {
            let mut stream = TcpStream::connect(exporter.address).await.unwrap();
            let text = format!("GET {path} {version}\r\n{hosts}\r\n");
            stream.write_all(text.as_bytes()).await.unwrap();
            let mut answer = vec![0; 12];
            stream.read_exact(&mut answer).await.unwrap();
            assert_eq!(String::from_utf8(answer).unwrap(), format!("{version} {status}"), "{text}");
            if status == "400" {
                let mut rest = String::new();
                tokio::time::timeout(PATIENCE, stream.read_to_string(&mut rest)).await.expect("it ends").unwrap();
                assert!(
                    rest.ends_with("\r\n\r\na request needs exactly one Host header, with a host and perhaps a port\n"),
                    "{rest}"
                );
            }
        }
    }
}

#[tokio::test]
async fn a_request_with_a_body_is_refused_and_ends_its_connection() {
    let simulator = simulator(1).await;
    let exporter = Exporter::ready(config(&simulator, &[])).await;
    let cases = [
        ("GET /metrics", "content-length: 4", "body", "413"),
        ("GET /metrics", "transfer-encoding: chunked", "4\r\nbody\r\n", "413"),
        ("POST /metrics", "content-length: 4", "body", "405"),
        ("GET /metrics", "content-length: 0\r\nconnection: close", "", "200"),
    ];
    for (request, header, body, status) in cases {
        let mut stream = TcpStream::connect(exporter.address).await.unwrap();
        let text = format!("{request} HTTP/1.1\r\nhost: localhost\r\n{header}\r\n\r\n{body}");
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("it ends").unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}, {header}: {answer}");
        assert!(answer.contains("\r\nconnection: close\r\n"), "{request}, {header}: {answer}");
    }
}

/// Asks for the metrics and reads nothing yet; the answer is longer than the sockets' buffers.
async fn open_scrape(exporter: &Exporter) -> TcpStream {
    let mut stream = TcpStream::connect(exporter.address).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await.unwrap();
    // Once the answer has begun, the request is open.
    stream.peek(&mut [0]).await.unwrap();
    stream
}

/// An exporter whose metrics are longer than the sockets' buffers.
async fn large_exporter(simulator: &Simulator, flags: &[&str]) -> Exporter {
    let mut config = config(simulator, &[&["--metrics.status-series=all"], flags].concat());
    config.poll.interval = Duration::from_mins(1);
    let exporter = Exporter::start(config).await;
    while exporter.get("/readyz").await.status != 200 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    exporter
}

#[tokio::test]
async fn a_request_that_is_open_at_shutdown_is_answered_whole() {
    let simulator = simulator(12_000).await;
    let mut exporter = large_exporter(&simulator, &[]).await;
    let mut scrape = open_scrape(&exporter).await;
    exporter.begin_stop();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut answer = Vec::new();
    scrape.read_to_end(&mut answer).await.unwrap();
    let text = String::from_utf8(answer).unwrap();
    let (_, body) = text.split_once("\r\n\r\n").unwrap();
    assert_eq!(common::Metrics::parse(body).instances(), held(&simulator));
    exporter.ended().await.unwrap();
}

#[tokio::test]
async fn a_client_that_never_reads_does_not_hold_up_the_shutdown() {
    let simulator = simulator(12_000).await;
    let exporter = large_exporter(&simulator, &[]).await;
    let _scrape = open_scrape(&exporter).await;
    let begun = Instant::now();
    tokio::time::timeout(PATIENCE, exporter.stop()).await.expect("the drain is bounded").unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(4), "it was not given its time");
}
