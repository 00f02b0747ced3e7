//! A matrix of faults: each begins, lasts and ends while the exporter runs.
//!
//! While it lasts the last good answer stays, `zenlayer_up` is 0, and the log says what is wrong. Once it has ended,
//! two polls bring the exporter back.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

mod common;

use std::cell::RefCell;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Once};
use std::time::{Duration, SystemTime};

use common::{Exporter, Metrics, config, held};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use zenlayer_exporter::Options;
use zenlayer_exporter::api::{Action, Backoff};
use zenlayer_exporter::clock::Clock;
use zenlayer_exporter::config::{Config, CredentialSource, SecretSource, Target};
use zenlayer_exporter::model::Service;
use zenlayer_exporter::simulator::{Describe, Fault, KEY_ID, Knobs, NOT_FOUND, PASSWORD, Simulator};

thread_local! {
    /// What was logged on this thread: each test has one of its own, on which its exporter runs too.
    static LOG: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Appends to the log of the thread that logs.
#[derive(Clone, Copy)]
struct ToLog;

impl Write for ToLog {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LOG.with_borrow_mut(|log| log.write(bytes))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// One subscriber for all tests: with one a test, what a thread hears would depend on what others do meanwhile.
fn start_log() {
    static START: Once = Once::new();
    START.call_once(|| tracing_subscriber::fmt().with_ansi(false).with_writer(|| ToLog).init());
    LOG.take();
}

fn log() -> String {
    LOG.with_borrow(|log| String::from_utf8(log.clone()).unwrap())
}

/// Changes an answer of the simulator.
type Rewrite = fn(&Describe, &mut Value);

const REQUEST_TIMEOUT: Duration = Duration::from_millis(500);

fn impatient(simulator: &Simulator, flags: &[&str]) -> Config {
    let mut config = config(simulator, flags);
    config.poll.interval = Duration::from_millis(50);
    config.api.request_timeout = REQUEST_TIMEOUT;
    config
}

/// What a fault looks like from outside.
struct Seen {
    outcome: &'static str,
    /// Requests sent in one poll: what may pass is tried four times.
    tries: f64,
    says: &'static str,
}

/// Lets a fault begin, last for some polls, and end.
async fn endure(fault: impl FnOnce(&mut Knobs), seen: Seen) {
    start_log();
    let simulator = Simulator::start(Knobs::still(Service::Vm, 25)).await.unwrap();
    let exporter = Exporter::ready(impatient(&simulator, &["--zenlayer.page-size=10"])).await;
    let requests = |metrics: &Metrics| metrics.sum("zenlayer_exporter_api_requests_total");
    let failures = |metrics: &Metrics| metrics.value("zenlayer_exporter_polls_total", &[("outcome", seen.outcome)]);

    simulator.set(fault);
    let first = exporter.until(|metrics| failures(metrics) >= Some(1.0)).await;
    let second = exporter.until(|metrics| failures(metrics) >= Some(2.0) && failures(metrics) > failures(&first)).await;
    assert_eq!(second.value("zenlayer_up", &[]), Some(0.0));
    assert_eq!(second.instances(), held(&simulator), "the last good answer stays");
    let polls_between = failures(&second).unwrap() - failures(&first).unwrap();
    let requests_between = requests(&second) - requests(&first);
    // A scrape can come in the middle of a poll, so one poll more or less may have been counted.
    assert!(
        (requests_between / seen.tries - polls_between).abs() <= 1.0,
        "{requests_between} in {polls_between} polls"
    );
    assert!(log().contains(seen.says), "the log does not say {:?}:\n{}", seen.says, log());
    assert!(log().contains("poll failed"), "{}", log());
    assert!(log().contains("next poll within 50ms, until then the last good answer stays"), "{}", log());

    simulator.set(|knobs| *knobs = Knobs::still(Service::Vm, 25));
    // Of two polls at most one may still fail: the one that was under way.
    let ended = failures(&exporter.metrics().await).unwrap();
    let recovered = exporter.until(|metrics| metrics.value("zenlayer_up", &[]) == Some(1.0)).await;
    let failed = failures(&recovered).unwrap() - ended;
    assert!(failed <= 1.0, "{failed} polls failed after the end of the fault");
    exporter.stop().await.unwrap();
}

/// One row a fault: what goes wrong → the poll's outcome, the tries of a request, what the log says.
macro_rules! faults {
    ($($name:ident: $fault:expr => $outcome:literal, $tries:literal, $says:literal;)*) => {$(
        #[tokio::test]
        async fn $name() {
            let seen = Seen { outcome: $outcome, tries: $tries, says: $says };
            endure(|knobs| knobs.fault = Some($fault), seen).await;
        }
    )*};
}

const HTML: &str = "<!doctype html><title>502 Bad Gateway</title>";

fn with_header(status: u16, name: &'static str, value: &str, body: &'static str) -> Fault {
    Fault::Answer { status, headers: vec![(name, value.to_owned())], body: body.into() }
}

/// Code and request ID stand before and after a message of that length.
fn long_refusal(length: usize) -> String {
    format!(r#"{{"code":"NO","requestId":"T7","message":"{}","after":1}}"#, "m".repeat(length))
}

faults! {
    http_500: Fault::answer(500, r#"{"requestId":"T5","code":"INTERNAL_SERVER_ERROR","message":"oops"}"#)
        => "server", 4.0, "HTTP 500, code INTERNAL_SERVER_ERROR, oops (requestId T5), 4 tries: the API itself failed";
    html_502: Fault::answer(502, HTML)
        => "server", 4.0, "DescribeInstancesStatus, page 1: HTTP 502, 4 tries: the API failed, or a proxy or gateway before it";
    html_200: Fault::answer(200, HTML)
        => "body", 4.0, "HTTP 200, but the body is HTML, not JSON, 4 tries: a proxy or gateway may be answering";
    empty_200: Fault::answer(200, "")
        => "body", 4.0, "HTTP 200, but the body is empty, 4 tries";
    truncated_json: Fault::Truncated
        => "body", 4.0, "HTTP 200, but the body is not the JSON it should be: EOF while parsing";
    invalid_utf8: Fault::answer(200, &b"{\"totalCount\":1,\"dataSet\":[{\"instanceId\":\"\xff\xfe\"}]}"[..])
        => "body", 4.0, "HTTP 200, but the body is not UTF-8";
    error_body_under_200: Fault::answer(200, r#"{"requestId":"T2","code":"OPERATION_DENIED","message":"no"}"#)
        => "client", 1.0, "HTTP 200, code OPERATION_DENIED, no (requestId T2): check --zenlayer.endpoint";
    neither_payload_nor_error: Fault::answer(200, r#"{"response":{}}"#)
        => "body", 4.0, "HTTP 200, but the body has neither totalCount nor an error code";
    http_400: Fault::answer(400, r#"{"requestId":"T4","code":"INVALID_PARAMETER","message":"bad"}"#)
        => "client", 1.0, "HTTP 400, code INVALID_PARAMETER, bad (requestId T4)";
    outage_under_400: Fault::answer(400, r#"{"requestId":"T6","code":"SERVICE_TEMPORARY_UNAVAILABLE","message":"m"}"#)
        => "server", 4.0, "HTTP 400, code SERVICE_TEMPORARY_UNAVAILABLE, m (requestId T6), 4 tries: the API itself failed";
    outage_under_200: Fault::answer(200, r#"{"requestId":"T6","code":"Internal.Server.Error","message":"m"}"#)
        => "server", 4.0, "HTTP 200, code Internal.Server.Error, m (requestId T6), 4 tries";
    outage_under_401: Fault::answer(401, r#"{"requestId":"T6","code":"REQUEST_TIMED_OUT.db","message":"m"}"#)
        => "server", 4.0, "HTTP 401, code REQUEST_TIMED_OUT.db, m (requestId T6), 4 tries";
    rate_limit_of_the_account: Fault::answer(403, r#"{"requestId":"T9","code":"request_limit_exceeded.Account"}"#)
        => "rate_limit", 4.0, "HTTP 403, code request_limit_exceeded.Account (requestId T9), 4 tries: raise --poll";
    a_page_of_a_zone_that_is_gone: Fault::answer(404, r#"{"requestId":"T4","code":"INVALID_ZONE_NOT_FOUND"}"#)
        => "not_found", 1.0, "HTTP 404, code INVALID_ZONE_NOT_FOUND (requestId T4)";
    gzip_200: with_header(200, "content-encoding", "gzip", "anything")
        => "body", 4.0, "HTTP 200, but the body has the Content-Encoding gzip, which was not asked for, 4 tries";
    gzip_without_a_header: Fault::answer(200, &b"\x1f\x8b\x08\0"[..])
        => "body", 4.0, "HTTP 200, but the body is compressed with gzip, and no Content-Encoding says so";
    gzip_503: with_header(503, "content-encoding", "x\u{ad}gzip", "anything")
        => "server", 4.0, "HTTP 503; the body has the Content-Encoding x gzip, which was not asked for, 4 tries";
    utf_16: Fault::answer(200, &b"\xff\xfe{\0}\0"[..])
        => "body", 4.0, "HTTP 200, but the body is UTF-16, not UTF-8";
    utf_32: Fault::answer(200, &b"\xff\xfe\0\0{\0\0\0}\0\0\0"[..])
        => "body", 4.0, "HTTP 200, but the body is UTF-32, not UTF-8";
    refusal_after_a_byte_order_mark: Fault::answer(400, "\u{feff}{\"requestId\":\"T7\",\"code\":\"NO\",\"message\":\"m\"}")
        => "client", 1.0, "HTTP 400, code NO, m (requestId T7)";
    refusal_that_is_long: Fault::answer(400, long_refusal(200 << 10))
        => "client", 1.0, "HTTP 400, code NO, mmmmm";
    refusal_without_end: Fault::answer(400, long_refusal(1 << 20))
        => "client", 1.0, "… (requestId T7)";
    refusal_in_an_error_object: Fault::answer(400, r#"{"Response":{"Error":{"Code":"NO","Message":"m"},"RequestId":"T7"}}"#)
        => "client", 1.0, "HTTP 400, code NO, m (requestId T7)";
    refusal_before_garbage: Fault::answer(200, r#"{"requestId":"T7","code":"NO","message":"m"}<html>"#)
        => "client", 1.0, "HTTP 200, code NO, m (requestId T7)";
    page_that_breaks_off: Fault::answer(200, r#"{"requestId":"T7","response":{"totalCount":1,"#)
        => "body", 4.0, "HTTP 200, but the body is not the JSON it should be: EOF while parsing a value at line 1 column 45 (requestId T7)";
    characters_that_turn_others: Fault::answer(400, "{\"code\":\"N\u{202e}O\",\"requestId\":\"T\u{2066}7\",\"message\":\"a\u{2028}b\u{ad}c\"}")
        => "client", 1.0, "HTTP 400, code N O, a b c (requestId T 7)";
    http_401: Fault::answer(401, r#"{"requestId":"T1","code":"INVALID_SIGNATURE","message":"no match"}"#)
        => "unauthorized", 1.0, "HTTP 401, code INVALID_SIGNATURE, no match (requestId T1): check that access key id";
    http_403: Fault::answer(403, r#"{"requestId":"T3","code":"FORBIDDEN","message":"no"}"#)
        => "forbidden", 1.0, "HTTP 403, code FORBIDDEN, no (requestId T3): allow this key to describe instances";
    challenge_403: with_header(403, "cf-mitigated", "challenge", HTML)
        => "challenge", 1.0, "HTTP 403: a security challenge stands before the API";
    http_429: Fault::answer(429, r#"{"requestId":"T9","code":"REQUEST_LIMIT_EXCEEDED","message":"slow down"}"#)
        => "rate_limit", 4.0, "HTTP 429, code REQUEST_LIMIT_EXCEEDED, slow down (requestId T9), 4 tries: raise --poll";
    http_503_with_retry_after: with_header(503, "retry-after", "1", "")
        => "server", 4.0, "HTTP 503, 4 tries: ";
    failure_with_an_empty_payload: Fault::answer(200, r#"{"code":"OPERATION_FAILED","totalCount":0,"dataSet":null}"#)
        => "client", 1.0, "HTTP 200, code OPERATION_FAILED";
    failure_with_an_empty_payload_in_response: Fault::answer(200, r#"{"requestId":"T2","response":{"code":"INTERNAL_SERVER_ERROR","message":"x","totalCount":0,"dataSet":[]}}"#)
        => "server", 4.0, "HTTP 200, code INTERNAL_SERVER_ERROR, x (requestId T2), 4 tries";
    failure_beside_an_empty_payload: Fault::answer(200, r#"{"error":{"code":"OPERATION_DENIED"},"response":{"totalCount":0,"dataSet":[]}}"#)
        => "client", 1.0, "HTTP 200, code OPERATION_DENIED: check --zenlayer.endpoint";
    failure_with_a_number_and_an_empty_payload: Fault::answer(200, r#"{"code":500,"message":"x","totalCount":0,"dataSet":[]}"#)
        => "client", 1.0, "HTTP 200, code 500, x: check --zenlayer.endpoint";
    http_429_with_retry_after: with_header(429, "retry-after", "1", "")
        => "rate_limit", 4.0, "HTTP 429, 4 tries: ";
    rate_limit_under_200: Fault::answer(200, r#"{"requestId":"T9","code":"REQUEST_LIMIT_EXCEEDED","message":"no"}"#)
        => "rate_limit", 4.0, "HTTP 200, code REQUEST_LIMIT_EXCEEDED";
    http_451: Fault::answer(451, "")
        => "policy", 1.0, "HTTP 451: a policy forbids this machine's address";
    connection_reset_mid_body: Fault::BrokenOff
        => "body", 4.0, "broke off: ";
    hang_before_headers: Fault::HangBeforeHeaders
        => "timeout", 4.0, "within 500ms, 4 tries: check the network; if the API is only slow, raise";
    hang_mid_body: Fault::HangMidBody
        => "timeout", 4.0, "no complete answer from 127.0.0.1:";
    slow_drip: Fault::Drip(Duration::from_millis(100))
        => "timeout", 4.0, "no complete answer from 127.0.0.1:";
    data_set_that_is_no_list: Fault::answer(200, r#"{"totalCount":1,"dataSet":"none"}"#)
        => "body", 4.0, "the body is not the JSON it should be: invalid type";
    deep_json: Fault::answer(200, "[".repeat(200_000))
        => "body", 4.0, "HTTP 200, but the body is not the JSON it should be: ";
}

#[tokio::test]
async fn a_total_of_two_billion() {
    let seen = Seen { outcome: "inconsistent", tries: 1.0, says: "more than the 2000000 one exporter takes" };
    endure(|knobs| knobs.total_count = Some(2_000_000_000), seen).await;
}

#[tokio::test]
async fn pages_shorter_than_requested() {
    let says = "page 1: 7 of 10 entries expected with totalCount 25: if the API returns at most 7 entries per page, set \
                --zenlayer.page-size=7 (requestId T";
    // A list that shrank since it was counted looks the same once, so the page is read again.
    endure(|knobs| knobs.longest_page = 7, Seen { outcome: "inconsistent", tries: 2.0, says }).await;
}

#[tokio::test]
async fn pages_that_repeat_the_first() {
    let says = "page 3: more entries than expected with totalCount 25 (10 instead of 5): nothing is published";
    // Pages 1 and 2 fit, and the third is read twice.
    endure(|knobs| knobs.repeat_first_page = true, Seen { outcome: "inconsistent", tries: 4.0, says }).await;
}

#[tokio::test]
async fn a_total_that_is_smaller_than_what_is_listed() {
    let says = "page 1: more entries than expected with totalCount 3 (10 instead of 3): nothing is published";
    endure(|knobs| knobs.total_count = Some(3), Seen { outcome: "inconsistent", tries: 2.0, says }).await;
}

#[tokio::test]
async fn a_page_after_the_end_may_be_refused_or_repeat_the_last() {
    for refusal in [Some((400, "NO")), Some((403, "NO")), Some((404, NOT_FOUND.1)), None] {
        let simulator = Simulator::start(Knobs::still(Service::Vm, 20)).await.unwrap();
        simulator.set(|knobs| match refusal {
            Some((status, code)) => {
                knobs.fault = Some(Fault::answer(status, format!(r#"{{"code":"{code}"}}"#)));
                knobs.fault_from_page = 3;
            }
            None => knobs.repeat_last_page = true,
        });
        let exporter = Exporter::ready(impatient(&simulator, &["--zenlayer.page-size=10"])).await;
        let metrics = exporter.polls(2).await;
        assert_eq!((metrics.instances(), metrics.value("zenlayer_up", &[])), (held(&simulator), Some(1.0)));
    }
}

#[tokio::test]
async fn a_field_with_another_name() {
    let says = "page 1: no usable instanceId in any entry (10): check --zenlayer.api-version (requestId T";
    let rename: Rewrite = |_, payload| {
        for entry in payload["dataSet"].as_array_mut().unwrap() {
            *entry = json!({"id": entry["instanceId"], "instanceStatus": entry["instanceStatus"]});
        }
    };
    endure(|knobs| knobs.rewrite = Some(rename), Seen { outcome: "inconsistent", tries: 2.0, says }).await;
}

fn outcome(metrics: &Metrics, outcome: &str) -> Option<f64> {
    metrics.value("zenlayer_exporter_polls_total", &[("outcome", outcome)])
}

#[tokio::test]
async fn a_page_size_capped_in_silence_hides_nobody() {
    let simulator = Simulator::start(Knobs { longest_page: 100, ..Knobs::still(Service::Vm, 109) }).await.unwrap();
    let exporter = Exporter::start(impatient(&simulator, &[])).await;
    let metrics = exporter.until(|metrics| outcome(metrics, "inconsistent") >= Some(1.0)).await;
    assert_eq!((metrics.count("zenlayer_instance_status"), metrics.value("zenlayer_up", &[])), (0, Some(0.0)));
    assert_eq!(metrics.value("zenlayer_exporter_instances_missing", &[]), Some(9.0));
    assert!(exporter.get("/readyz").await.text().contains("set --zenlayer.page-size=100"));
    let advised = Exporter::ready(impatient(&simulator, &["--zenlayer.page-size=100"])).await;
    let metrics = advised.metrics().await;
    assert_eq!(metrics.instances(), held(&simulator));
    assert_eq!(metrics.value("zenlayer_exporter_instances_missing", &[]), Some(0.0));
}

#[tokio::test]
async fn an_instance_listed_twice_is_tolerated_for_two_polls() {
    let simulator = Simulator::start(Knobs::still(Service::Vm, 25)).await.unwrap();
    simulator.with_fleet(|fleet| fleet.machines[1].id = fleet.machines[0].id.clone());
    let exporter = Exporter::start(impatient(&simulator, &[])).await;
    let metrics = exporter.until(|metrics| outcome(metrics, "inconsistent") >= Some(2.0)).await;
    assert_eq!(outcome(&metrics, "success"), Some(2.0));
    assert_eq!(metrics.value("zenlayer_exporter_instances_missing", &[]), Some(1.0));
    assert_eq!(metrics.instances().len(), 24, "the last good answer stays");
    simulator.with_fleet(|fleet| fleet.machines[1].id = "unique again".to_owned());
    let metrics = exporter.until(|metrics| metrics.value("zenlayer_up", &[]) == Some(1.0)).await;
    assert_eq!(metrics.value("zenlayer_exporter_instances_missing", &[]), Some(0.0));
    assert_eq!(metrics.instances(), held(&simulator));
}

#[tokio::test]
async fn a_walk_goes_on_where_a_later_page_counts_more() {
    let rewrites: [Rewrite; 2] = [
        |request, payload| {
            if request.page_num == 1 {
                payload["totalCount"] = 15.into();
            }
        },
        // As many as the pages so far: only a page more shows the others.
        |request, payload| {
            if request.page_num <= 2 {
                payload["totalCount"] = (10 * request.page_num).into();
            }
        },
    ];
    for rewrite in rewrites {
        let simulator =
            Simulator::start(Knobs { rewrite: Some(rewrite), ..Knobs::still(Service::Vm, 25) }).await.unwrap();
        let exporter = Exporter::ready(impatient(&simulator, &["--zenlayer.page-size=10"])).await;
        assert_eq!(exporter.metrics().await.instances(), held(&simulator));
    }
}

#[tokio::test]
async fn a_deleted_instance_is_gone_however_a_look_up_is_refused() {
    let refusals = [
        (404, "INVALID_INSTANCE_NOT_FOUND", false),
        (403, "FORBIDDEN", true),
        (400, "INVALID_PARAMETER", true),
        (401, "UNAUTHORIZED", true),
        (500, "BROKEN", true),
    ];
    for (status, code, falls_back) in refusals {
        start_log();
        let simulator = Simulator::start(Knobs::still(Service::Vm, 25)).await.unwrap();
        simulator.set(|knobs| knobs.missing_id = Some((status, code)));
        let exporter = Exporter::ready(impatient(&simulator, &[])).await;
        simulator.with_fleet(|fleet| fleet.machines.remove(7));
        let metrics = exporter.until(|metrics| metrics.instances().len() == 24).await;
        assert_eq!(metrics.instances(), held(&simulator));
        assert_eq!(metrics.value("zenlayer_up", &[]), Some(1.0), "{code}");
        assert_eq!(outcome(&metrics, "success"), Some(metrics.sum("zenlayer_exporter_polls_total")), "{code}");
        let fallbacks = if falls_back { 1.0 } else { 0.0 };
        assert_eq!(metrics.value("zenlayer_exporter_poll_fallbacks_total", &[]), Some(fallbacks), "{code}");
        assert_eq!(
            log().contains("look-ups by ID do not show which instances exist: reading all pages again"),
            falls_back,
            "{}",
            log()
        );
    }
}

#[tokio::test]
async fn what_is_too_old_to_serve_is_not_held_against_the_api() {
    let simulator = Simulator::start(Knobs::still(Service::Vm, 3)).await.unwrap();
    // An API that fails whenever it is asked for one that is gone, which is all of them.
    simulator.set(|knobs| knobs.missing_id = Some((500, "BROKEN")));
    let mut config = impatient(&simulator, &[]);
    config.poll.max_staleness = Duration::from_secs(1);
    let exporter = Exporter::ready(config).await;
    simulator.with_fleet(|fleet| fleet.machines.clear());
    let metrics = exporter.until(|metrics| metrics.value("zenlayer_up", &[]) == Some(0.0)).await;
    assert_eq!(metrics.instances().len(), 3);
    let metrics = exporter.until(|metrics| metrics.value("zenlayer_up", &[]) == Some(1.0)).await;
    assert_eq!(metrics.instances().len(), 0);
}

#[tokio::test]
async fn empty_pages_empty_no_account_that_look_ups_still_know() {
    for instances in [2500, 500] {
        let simulator = Simulator::start(Knobs::still(Service::Vm, instances)).await.unwrap();
        let exporter = Exporter::ready(impatient(&simulator, &[])).await;
        simulator.set(|knobs| knobs.rewrite = Some(empty_pages));
        // Those that a few look-ups can find are found, but not the new ones.
        let tolerated = if instances == 500 { 2.0 } else { 0.0 };
        let before = outcome(&exporter.metrics().await, "success").unwrap();
        let metrics = exporter.until(|metrics| outcome(metrics, "inconsistent") >= Some(2.0)).await;
        assert_eq!(metrics.instances(), held(&simulator));
        assert_eq!(metrics.value("zenlayer_up", &[]), Some(0.0));
        let succeeded = outcome(&metrics, "success").unwrap() - before;
        // One of them may have ended before the fault began.
        assert!((tolerated..=tolerated + 1.0).contains(&succeeded), "{succeeded} of {tolerated}");
        simulator.set(|knobs| knobs.rewrite = None);
        exporter.until(|metrics| metrics.value("zenlayer_up", &[]) == Some(1.0)).await;
    }
}

/// An API whose pages are empty while its look-ups answer, in one way or another.
fn empty_pages(request: &Describe, payload: &mut Value) {
    if request.instance_ids.is_empty() {
        *payload = json!({"totalCount": 0, "dataSet": []});
    }
}

#[tokio::test]
async fn look_ups_that_are_cut_short_show_all_the_same_that_pages_are_wrong() {
    // Twenty entries at a time do not suffice for 500 within the budget; the total of an account says nothing.
    let rewrites: [(Rewrite, &str); 2] = [
        (
            |request, payload| {
                empty_pages(request, payload);
                payload["dataSet"].as_array_mut().unwrap().truncate(20);
            },
            "two readings of all pages miss instances of the previous poll (500)",
        ),
        (
            |request, payload| {
                empty_pages(request, payload);
                if !request.instance_ids.is_empty() {
                    payload["totalCount"] = 500.into();
                }
            },
            "look-ups by ID find 500 instances that the pages leave out, for more than 2 polls in a row",
        ),
    ];
    for (rewrite, says) in rewrites {
        let simulator = Simulator::start(Knobs::still(Service::Vm, 500)).await.unwrap();
        let exporter = Exporter::ready(impatient(&simulator, &[])).await;
        simulator.set(|knobs| knobs.rewrite = Some(rewrite));
        let metrics = exporter.until(|metrics| outcome(metrics, "inconsistent") >= Some(1.0)).await;
        assert_eq!(metrics.instances(), held(&simulator));
        assert_eq!(metrics.value("zenlayer_exporter_instances_missing", &[]), Some(500.0));
        assert!(exporter.get("/").await.text().contains(says), "{}", exporter.get("/").await.text());
    }
}

#[tokio::test]
async fn later_pages_that_count_less_hide_nobody() {
    let simulator = Simulator::start(Knobs::still(Service::Vm, 25)).await.unwrap();
    simulator.set(|knobs| {
        knobs.rewrite = Some(|request, payload| {
            if request.page_num > 1 {
                *payload = json!({"totalCount": 0, "dataSet": []});
            }
        });
    });
    let exporter = Exporter::start(impatient(&simulator, &["--zenlayer.page-size=10"])).await;
    let metrics = exporter.until(|metrics| outcome(metrics, "inconsistent") >= Some(1.0)).await;
    assert_eq!((metrics.instances().len(), metrics.value("zenlayer_up", &[])), (0, Some(0.0)));
    assert_eq!(metrics.value("zenlayer_exporter_instances_missing", &[]), Some(15.0));
}

#[tokio::test]
async fn pages_that_stay_empty_empty_no_account() {
    let simulator = Simulator::start(Knobs::still(Service::Vm, 2500)).await.unwrap();
    let mut config = impatient(&simulator, &[]);
    config.poll.max_staleness = Duration::from_secs(1);
    let exporter = Exporter::ready(config).await;
    simulator.set(|knobs| knobs.rewrite = Some(empty_pages));
    exporter.until(|metrics| metrics.instances().is_empty()).await;
    let metrics = exporter.polls(5).await;
    assert_eq!(
        metrics.value("zenlayer_up", &[]),
        Some(0.0),
        "what is too old to serve still tells that pages are wrong"
    );
    simulator.set(|knobs| knobs.rewrite = None);
    let metrics = exporter.until(|metrics| metrics.value("zenlayer_up", &[]) == Some(1.0)).await;
    assert_eq!(metrics.instances(), held(&simulator));
}

#[tokio::test]
async fn look_ups_that_never_work_again_hold_up_no_poll_for_good() {
    let others: Rewrite = |request, payload| {
        if !request.instance_ids.is_empty() {
            *payload = json!({"totalCount": 1, "dataSet": [{"instanceId": "nobody", "instanceStatus": "RUNNING"}]});
        }
    };
    let simulator = Simulator::start(Knobs::still(Service::Vm, 25)).await.unwrap();
    let mut config = impatient(&simulator, &[]);
    config.poll.max_staleness = Duration::from_secs(1);
    let exporter = Exporter::ready(config).await;
    simulator.set(|knobs| knobs.rewrite = Some(others));
    simulator.with_fleet(|fleet| fleet.machines.remove(7));
    let metrics = exporter.until(|metrics| metrics.instances().len() == 24).await;
    assert_eq!((metrics.instances(), metrics.value("zenlayer_up", &[])), (held(&simulator), Some(1.0)));
    assert!(outcome(&metrics, "inconsistent") >= Some(1.0));
}

#[tokio::test]
async fn look_ups_that_take_all_the_time_hold_up_no_poll_for_good() {
    let waits = with_header(503, "retry-after", "60", r#"{"code": "MAINTENANCE"}"#);
    for fault in [waits, Fault::HangBeforeHeaders] {
        let simulator = Simulator::start(Knobs::still(Service::Vm, 25)).await.unwrap();
        let mut config = impatient(&simulator, &[]);
        config.poll.timeout = Duration::from_millis(300);
        config.poll.max_staleness = Duration::from_secs(1);
        let exporter = Exporter::ready(config).await;
        simulator.set(|knobs| (knobs.fault, knobs.fault_by_id) = (Some(fault), true));
        simulator.with_fleet(|fleet| fleet.machines.remove(7));
        let metrics = exporter.until(|metrics| metrics.instances().len() == 24).await;
        assert_eq!((metrics.instances(), metrics.value("zenlayer_up", &[])), (held(&simulator), Some(1.0)));
    }
}

#[tokio::test]
async fn released_instances_that_look_ups_still_return_stop_no_poll() {
    // The list leaves out what is being released; a look-up returns it. A list that changes does not explain so many.
    let hides: Rewrite = |request, payload| {
        if request.instance_ids.is_empty() {
            let entries = payload["dataSet"].as_array_mut().unwrap();
            let listed = entries.len();
            entries.retain(|entry| entry["instanceStatus"] != "RECYCLE");
            let hidden = (listed - entries.len()) as u64;
            payload["totalCount"] = (payload["totalCount"].as_u64().unwrap() - hidden).into();
        }
    };
    let simulator = Simulator::start(Knobs { rewrite: Some(hides), ..Knobs::still(Service::Vm, 900) }).await.unwrap();
    // A page for all, since each page knows only what it hides itself.
    let flags = ["--zenlayer.page-size=900", "--zenlayer.concurrency=1"];
    let exporter = Exporter::ready(impatient(&simulator, &flags)).await;
    simulator.with_fleet(|fleet| {
        for machine in &mut fleet.machines[..700] {
            machine.status = Some("RECYCLE".to_owned());
        }
    });
    let status = [("status", "RECYCLE")];
    let metrics = exporter.until(|metrics| metrics.value("zenlayer_instances", &status) == Some(700.0)).await;
    let before = outcome(&metrics, "success");
    let metrics = exporter.polls(4).await;
    assert!(outcome(&metrics, "success") > before && metrics.value("zenlayer_up", &[]) == Some(1.0));
    assert_eq!(outcome(&metrics, "inconsistent"), Some(0.0));
}

#[tokio::test]
async fn data_too_old_to_serve_is_not_up_while_a_poll_is_in_progress() {
    let simulator = Simulator::start(Knobs::still(Service::Vm, 25)).await.unwrap();
    let mut config = impatient(&simulator, &[]);
    config.poll.max_staleness = Duration::from_secs(1);
    config.api.request_timeout = Duration::from_mins(1);
    let exporter = Exporter::ready(config).await;
    simulator.set(|knobs| knobs.fault = Some(Fault::HangBeforeHeaders));
    let metrics = exporter.until(|metrics| metrics.instances().is_empty()).await;
    assert_eq!(metrics.value("zenlayer_up", &[]), Some(0.0));
    assert_eq!(outcome(&metrics, "success"), Some(metrics.sum("zenlayer_exporter_polls_total")), "none has failed yet");
    assert!(exporter.get("/").await.text().contains("ago. No poll has ended since."));
}

#[tokio::test]
async fn a_named_instance_that_is_refused_hides_no_other() {
    for (refusal, refused) in [((403, "FORBIDDEN"), 1.0), ((400, "INVALID_PARAMETER"), 1.0), (NOT_FOUND, 0.0)] {
        start_log();
        let simulator = Simulator::start(Knobs::still(Service::Vm, 25)).await.unwrap();
        simulator.set(|knobs| knobs.missing_id = Some(refusal));
        let ids: Vec<_> = held(&simulator).into_iter().map(|(id, _)| id).collect();
        let named = format!("--zenlayer.instance-ids={}", ids.join(","));
        let exporter = Exporter::ready(impatient(&simulator, &[&named])).await;
        simulator.with_fleet(|fleet| fleet.machines.remove(7));
        let metrics = exporter.polls(3).await;
        assert_eq!(
            (metrics.instances(), metrics.value("zenlayer_up", &[])),
            (held(&simulator), Some(1.0)),
            "{refusal:?}"
        );
        assert_eq!(metrics.value("zenlayer_exporter_instances_missing", &[]), Some(refused), "{refusal:?}");
        assert_eq!(log().contains("the API does not answer for some IDs"), refused > 0.0, "{}", log());
        simulator.with_fleet(|fleet| fleet.machines.clear());
        if refused > 0.0 {
            // An API that answers for none of them is not one whose instances are all gone.
            exporter.until(|metrics| metrics.value("zenlayer_up", &[]) == Some(0.0)).await;
        }
    }
}

#[tokio::test]
async fn entries_without_an_id_are_missing_but_fail_no_poll() {
    let hide: Rewrite = |_, payload| {
        let entries = payload["dataSet"].as_array_mut().unwrap();
        let hidden = entries.iter_mut().filter(|entry| entry["instanceId"].as_str().unwrap().ends_with(['3', '7']));
        hidden.for_each(|entry| entry["instanceId"] = json!(null));
    };
    let simulator = Simulator::start(Knobs::still(Service::Vm, 25)).await.unwrap();
    let hidden = held(&simulator).iter().filter(|(id, _)| id.ends_with(['3', '7'])).count();
    let missing = u32::try_from(hidden).unwrap().into();
    assert!(hidden > 0);
    let ids: Vec<_> = held(&simulator).into_iter().map(|(id, _)| id).collect();
    let warm = Exporter::ready(impatient(&simulator, &[])).await;
    simulator.set(|knobs| knobs.rewrite = Some(hide));
    let fresh = Exporter::ready(impatient(&simulator, &[])).await;
    let named = Exporter::ready(impatient(&simulator, &[&format!("--zenlayer.instance-ids={}", ids.join(","))])).await;
    for exporter in [warm, fresh, named] {
        let metrics = exporter.polls(5).await;
        assert_eq!((metrics.instances().len(), metrics.value("zenlayer_up", &[])), (25 - hidden, Some(1.0)));
        assert_eq!(metrics.value("zenlayer_exporter_instances_missing", &[]), Some(missing));
        assert_eq!(outcome(&metrics, "success"), Some(metrics.sum("zenlayer_exporter_polls_total")));
        let page = exporter.get("/").await;
        assert!(
            page.text().contains(&format!(r#"<p class="state warn">Polled 0s ago: {} of 25 instances."#, 25 - hidden)),
            "{}",
            page.text()
        );
    }
}

#[tokio::test]
async fn statuses_that_nobody_knows_are_warned_of_once() {
    for status in [json!(null), json!("ACTIVE")] {
        start_log();
        let simulator = Simulator::start(Knobs::still(Service::Vm, 25)).await.unwrap();
        let exporter = Exporter::ready(impatient(&simulator, &[])).await;
        let warnings = || log().matches("instances have an undocumented status, or none").count();
        exporter.polls(2).await;
        assert_eq!(warnings(), 0, "{}", log());
        simulator.set(|knobs| {
            knobs.rewrite = Some(if status.is_null() {
                |_, payload| rename_status(payload, &json!(null))
            } else {
                |_, payload| rename_status(payload, &json!("ACTIVE"))
            });
        });
        exporter.polls(3).await;
        assert_eq!(warnings(), 1, "{}", log());
    }
}

fn rename_status(payload: &mut Value, status: &Value) {
    for entry in payload["dataSet"].as_array_mut().unwrap() {
        entry["instanceStatus"] = status.clone();
    }
}

#[tokio::test]
async fn an_account_that_loses_most_instances_says_so() {
    start_log();
    let simulator = Simulator::start(Knobs::still(Service::Vm, 25)).await.unwrap();
    let exporter = Exporter::ready(impatient(&simulator, &[])).await;
    for (left, warnings) in [(13, 0), (6, 1), (0, 2)] {
        simulator.with_fleet(|fleet| fleet.machines.truncate(left));
        exporter.until(|metrics| metrics.instances().len() == left).await;
        exporter.polls(2).await;
        assert_eq!(log().matches("most instances are gone at once").count(), warnings, "{}", log());
    }
}

#[tokio::test]
async fn a_look_up_that_returns_others_adds_nobody() {
    let simulator = Simulator::start(Knobs::still(Service::Vm, 50)).await.unwrap();
    let exporter = Exporter::ready(impatient(&simulator, &[])).await;
    let before = held(&simulator);
    simulator.set(|knobs| {
        knobs.rewrite = Some(|request, payload| {
            if !request.instance_ids.is_empty() {
                let other = |id| json!({"instanceId": id, "instanceStatus": "RUNNING"});
                *payload = json!({"totalCount": 2, "dataSet": [other("nobody"), other("no one")]});
            }
        });
    });
    simulator.with_fleet(|fleet| fleet.machines.remove(7));
    let metrics = exporter.until(|metrics| outcome(metrics, "inconsistent") >= Some(1.0)).await;
    assert_eq!(metrics.instances(), before);
    assert!(metrics.value("zenlayer_exporter_unrequested_entries_total", &[]) >= Some(2.0));
    assert!(exporter.get("/").await.text().contains("only entries that were not requested (2)"));
    simulator.set(|knobs| knobs.rewrite = None);
    let metrics = exporter.until(|metrics| metrics.value("zenlayer_up", &[]) == Some(1.0)).await;
    assert_eq!(metrics.instances(), held(&simulator));
}

#[tokio::test]
async fn ids_that_are_numbers_are_ids() {
    let simulator = Simulator::start(Knobs::still(Service::Vm, 25)).await.unwrap();
    let exporter = Exporter::ready(impatient(&simulator, &[])).await;
    let before = exporter.metrics().await.instances();
    simulator.set(|knobs| {
        knobs.rewrite = Some(|_, payload| {
            for entry in payload["dataSet"].as_array_mut().unwrap() {
                entry["instanceId"] = entry["instanceId"].as_str().unwrap().parse::<u64>().unwrap().into();
            }
        });
    });
    let metrics = exporter.polls(2).await;
    assert_eq!((metrics.instances(), metrics.value("zenlayer_up", &[])), (before, Some(1.0)));
    let corrections = metrics.value("zenlayer_exporter_poll_corrections_total", &[]);
    assert_eq!(corrections, Some(0.0), "they are the same instances");
}

#[tokio::test]
async fn new_words_for_a_status_make_no_series_without_bound() {
    let simulator = Simulator::start(Knobs::still(Service::Vm, 3)).await.unwrap();
    let exporter = Exporter::ready(impatient(&simulator, &[])).await;
    let word = |n: usize| format!("{n:05}{}", "X".repeat(195));
    for n in 0..300 {
        simulator.with_fleet(|fleet| fleet.machines[0].status = Some(word(n)));
        if n % 10 == 0 {
            exporter.until(|metrics| metrics.instances() == held(&simulator)).await;
        } else {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    let metrics = exporter.until(|metrics| metrics.instances() == held(&simulator)).await;
    assert_eq!(outcome(&metrics, "success"), Some(metrics.sum("zenlayer_exporter_polls_total")));
    let transitions = "zenlayer_instance_status_transitions_total";
    let (from, to) = (metrics.values_of(transitions, "from"), metrics.values_of(transitions, "to"));
    let most = Service::Vm.documented_statuses().len() + 32 + 1;
    assert!(from.len() <= most && to.len() <= most, "{} and {}", from.len(), to.len());
    assert!(from.contains("other") && to.contains("other") && to.contains(&word(0)));
    assert!(metrics.count("zenlayer_instances") <= most, "{}", metrics.count("zenlayer_instances"));
}

/// Polls change status, counters and times in one step: no scrape shows the status of one poll beside the counters of
/// another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scrape_shows_one_poll() {
    let simulator = Simulator::start(Knobs::still(Service::Vm, 3000)).await.unwrap();
    let id = simulator.with_fleet(|fleet| {
        fleet.machines[0].status = Some("RUNNING".to_owned());
        fleet.machines[0].id.clone()
    });
    let mut config = impatient(&simulator, &[]);
    config.poll.interval = Duration::from_millis(1);
    let exporter = Exporter::ready(config).await;
    let (stopped, running) = (series(&id, "STOPPED"), series(&id, "RUNNING"));
    let transition = |text: &str, from: &str, to: &str| {
        number(text, &format!("zenlayer_instance_status_transitions_total{{from=\"{from}\",to=\"{to}\"}} "))
    };
    let mut seen = [0, 0];
    let deadline = tokio::time::Instant::now() + common::PATIENCE;
    while seen.iter().any(|&times| times < 150) {
        assert!(tokio::time::Instant::now() < deadline, "it did not toggle often enough: {seen:?}");
        simulator.with_fleet(|fleet| {
            let status = &mut fleet.machines[0].status;
            *status = Some(if status.as_deref() == Some("RUNNING") { "STOPPED" } else { "RUNNING" }.to_owned());
        });
        let reply = exporter.get("/metrics").await;
        let text = reply.text();
        let is_stopped = text.contains(&stopped);
        assert!(is_stopped != text.contains(&running));
        let balance = transition(text, "RUNNING", "STOPPED") - transition(text, "STOPPED", "RUNNING");
        assert_eq!(balance, if is_stopped { 1.0 } else { 0.0 }, "the status of one poll, the counters of another");
        let time = |which: &str| number(text, &format!("zenlayer_exporter_last_{which}_timestamp_seconds "));
        assert_eq!(time("poll"), time("successful_poll"));
        seen[usize::from(is_stopped)] += 1;
    }
}

fn series(id: &str, status: &str) -> String {
    format!("zenlayer_instance_status{{instanceId=\"{id}\",status=\"{status}\"}} 1\n")
}

fn number(text: &str, before: &str) -> f64 {
    let (_, rest) = text.split_once(&format!("\n{before}")).unwrap_or_else(|| panic!("no {before}"));
    rest.lines().next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_machine_that_slept_does_not_serve_what_is_hours_old() {
    let simulator = Simulator::start(Knobs::still(Service::Vm, 5)).await.unwrap();
    let slept = Arc::new(AtomicU64::new(0));
    let hours = Arc::clone(&slept);
    let clock = Clock::with_wall(move || SystemTime::now() + Duration::from_hours(hours.load(Ordering::Relaxed)));
    let options = Options { backoff: common::QUICK, clock, ..Options::default() };
    let exporter = Exporter::start_as(impatient(&simulator, &[]), options).await;
    exporter.until(|metrics| metrics.instances().len() == 5).await;
    simulator.set(|knobs| knobs.fault = Some(Fault::answer(451, "")));
    exporter.until(|metrics| metrics.value("zenlayer_up", &[]) == Some(0.0)).await;
    assert!(exporter.get("/").await.text().contains("The last poll failed. The data below is "));
    slept.store(8, Ordering::Relaxed);
    let metrics = exporter.metrics().await;
    assert_eq!((metrics.count("zenlayer_instance_status"), metrics.count("zenlayer_instances")), (0, 0));
    assert!(exporter.get("/").await.text().contains("Data too old to show: the last successful poll was 8h"));
    let ready = exporter.get("/readyz").await;
    assert_eq!(ready.status, 200);
    let says = "ready, but the data is too old to serve: the last successful poll was 8h";
    assert!(ready.text().starts_with(says) && ready.text().contains("HTTP 451"), "{}", ready.text());
}

#[tokio::test]
async fn an_endless_body() {
    let simulator = Simulator::start(Knobs::still(Service::Vm, 25)).await.unwrap();
    let mut config = impatient(&simulator, &[]);
    // Long enough that the cap is met first.
    config.api.request_timeout = common::PATIENCE;
    let exporter = Exporter::ready(config).await;
    simulator.set(|knobs| knobs.fault = Some(Fault::Endless));
    let body = [("outcome", "body")];
    exporter.until(|metrics| metrics.value("zenlayer_exporter_polls_total", &body) >= Some(1.0)).await;
    assert!(
        exporter.get("/").await.text().contains("the body is longer than 2 MiB, the limit for this request, 4 tries")
    );
    simulator.set(|knobs| knobs.fault = None);
    exporter.until(|metrics| metrics.value("zenlayer_up", &[]) == Some(1.0)).await;
}

#[tokio::test]
async fn connection_refused_and_back() {
    start_log();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let knobs = Knobs::still(Service::Vm, 25);
    let simulator = Simulator::start_on(listener, knobs.clone()).unwrap();
    let exporter = Exporter::ready(impatient(&simulator, &[])).await;
    let held = held(&simulator);
    drop(simulator);
    let connect = [("outcome", "connect")];
    exporter.until(|metrics| metrics.value("zenlayer_exporter_polls_total", &connect) >= Some(1.0)).await;
    let says = format!("no connection to {address}: Connection refused (os error 111), 4 tries: check the network");
    assert!(log().contains(&says), "{}", log());
    assert_eq!(exporter.metrics().await.instances(), held);

    let _simulator = Simulator::start_on(TcpListener::bind(address).await.unwrap(), knobs).unwrap();
    let failures = |metrics: &Metrics| metrics.value("zenlayer_exporter_polls_total", &connect).unwrap();
    let ended = failures(&exporter.metrics().await);
    let recovered = exporter.until(|metrics| metrics.value("zenlayer_up", &[]) == Some(1.0)).await;
    assert!(failures(&recovered) - ended <= 1.0);
}

#[tokio::test]
async fn the_log_has_changes_the_first_and_every_tenth_failure_and_the_recovery() {
    start_log();
    let simulator = Simulator::start(Knobs::still(Service::Vm, 5)).await.unwrap();
    let exporter = Exporter::ready(impatient(&simulator, &[])).await;
    exporter.polls(3).await;
    assert_eq!(log().matches("poll succeeded").count(), 1, "{}", log());
    simulator.with_fleet(|fleet| fleet.machines[0].status = Some("STOPPED".to_owned()));
    exporter.polls(3).await;
    assert_eq!(log().matches("poll succeeded").count(), 2, "{}", log());

    simulator.set(|knobs| knobs.fault = Some(Fault::answer(403, r#"{"code":"NO"}"#)));
    exporter.until(|metrics| outcome(metrics, "forbidden") >= Some(25.0)).await;
    let lines: Vec<_> = log().lines().filter(|line| line.contains("poll failed")).map(str::to_owned).collect();
    assert_eq!(lines.len(), 3, "{lines:#?}");
    for (line, failures) in lines.iter().zip([1, 10, 20]) {
        assert!(line.contains(&format!(" failures={failures} ")), "{line}");
    }
    assert_eq!(log().lines().count(), 5, "a failed poll is one line: {}", log());
    simulator.set(|knobs| knobs.fault = Some(Fault::answer(401, r#"{"code":"NO"}"#)));
    exporter.until(|metrics| outcome(metrics, "unauthorized") >= Some(1.0)).await;
    assert!(log().lines().last().unwrap().contains("HTTP 401"), "another failure is news: {}", log());
    simulator.set(|knobs| knobs.fault = None);
    exporter.until(|metrics| metrics.value("zenlayer_up", &[]) == Some(1.0)).await;
    assert!(log().contains("recovered after "), "{}", log());
}

#[tokio::test]
async fn a_redirect_takes_nothing_elsewhere() {
    let elsewhere = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let location = format!("http://{}/api/v2/vm", elsewhere.local_addr().unwrap());
    for status in [301, 302, 307, 308] {
        let fault = Fault::Answer { status, headers: vec![("location", location.clone())], body: "".into() };
        let seen = Seen { outcome: "redirect", tries: 1.0, says: "a signed request goes to no other host" };
        endure(|knobs| knobs.fault = Some(fault), seen).await;
    }
    let visit = tokio::time::timeout(Duration::from_millis(200), elsewhere.accept()).await;
    assert!(visit.is_err(), "the other host was contacted");
}

#[tokio::test]
async fn a_poll_that_takes_too_long_ends() {
    start_log();
    let simulator = Simulator::start(Knobs::still(Service::Vm, 25)).await.unwrap();
    let mut config = impatient(&simulator, &[]);
    config.poll.timeout = Duration::from_millis(200);
    config.api.request_timeout = common::PATIENCE;
    let exporter = Exporter::ready(config).await;
    simulator.set(|knobs| knobs.fault = Some(Fault::HangBeforeHeaders));
    let deadline = [("outcome", "deadline")];
    let metrics =
        exporter.until(|metrics| metrics.value("zenlayer_exporter_polls_total", &deadline) >= Some(1.0)).await;
    assert_eq!(metrics.value("zenlayer_up", &[]), Some(0.0));
    exporter.until(|_| log().contains("the poll did not finish within 200ms: raise --poll.timeout")).await;
    simulator.set(|knobs| knobs.fault = None);
    exporter.until(|metrics| metrics.value("zenlayer_up", &[]) == Some(1.0)).await;
}

#[tokio::test]
async fn a_poll_that_takes_too_long_reports_the_last_error_of_its_requests() {
    start_log();
    let body = r#"{"requestId":"T8","code":"MAINTENANCE","message":"back soon"}"#;
    let waits = |status| {
        let headers = vec![("retry-after", "60".to_owned())];
        Fault::Answer { status, headers, body: body.into() }
    };
    let simulator = Simulator::start(Knobs::still(Service::Vm, 25)).await.unwrap();
    let mut config = impatient(&simulator, &["--zenlayer.page-size=10"]);
    config.poll.timeout = Duration::from_millis(300);
    let exporter = Exporter::ready(config).await;
    simulator.set(|knobs| knobs.fault = Some(waits(503)));
    let polls = |metrics: &Metrics, outcome| metrics.value("zenlayer_exporter_polls_total", &[("outcome", outcome)]);
    exporter.until(|metrics| polls(metrics, "server") >= Some(2.0)).await;
    let says = "the poll did not finish within 300ms; the last error: DescribeInstancesStatus, page 1: HTTP 503, code \
                MAINTENANCE, back soon (requestId T8): the API itself failed";
    assert!(exporter.get("/").await.text().contains(says));
    assert!(log().contains(r#"code="MAINTENANCE" requestId="T8" error=the poll did not finish"#), "{}", log());

    // A rate limit holds requests back before they are sent.
    simulator.set(|knobs| knobs.fault = Some(waits(429)));
    let metrics = exporter.until(|metrics| polls(metrics, "rate_limit") >= Some(1.0)).await;
    assert_eq!(polls(&metrics, "deadline"), Some(0.0));
}

/// Each poll but the first sends nothing: it waits for what an earlier poll was told.
#[tokio::test]
async fn a_poll_that_waits_for_an_earlier_polls_rate_limit_reports_it() {
    start_log();
    let body = r#"{"requestId":"T9","code":"REQUEST_LIMIT_EXCEEDED","message":"slow down"}"#;
    let headers = vec![("retry-after", "60".to_owned())];
    let simulator = Simulator::start(Knobs::still(Service::Vm, 25)).await.unwrap();
    let mut config = impatient(&simulator, &[]);
    config.poll.timeout = Duration::from_millis(300);
    let exporter = Exporter::ready(config).await;
    simulator.set(|knobs| knobs.fault = Some(Fault::Answer { status: 429, headers, body: body.into() }));
    let polls = |metrics: &Metrics, outcome| metrics.value("zenlayer_exporter_polls_total", &[("outcome", outcome)]);
    let metrics = exporter.until(|metrics| polls(metrics, "rate_limit") >= Some(3.0)).await;
    assert_eq!(polls(&metrics, "deadline"), Some(0.0));
    let refused = [("action", "DescribeInstancesStatus"), ("code", "429")];
    assert_eq!(metrics.value("zenlayer_exporter_api_requests_total", &refused), Some(1.0));
    let says = "the poll did not finish within 300ms; the last error: DescribeInstancesStatus, page 1: HTTP 429, code \
                REQUEST_LIMIT_EXCEEDED, slow down (requestId T9): raise --poll.interval";
    assert!(exporter.get("/").await.text().contains(says), "{}", exporter.get("/").await.text());
}

#[tokio::test]
async fn a_poll_that_learned_pacing_makes_too_long_reports_the_rate_limit() {
    let simulator = Simulator::start(Knobs::still(Service::Vm, 40)).await.unwrap();
    let mut config = impatient(&simulator, &["--zenlayer.page-size=1"]);
    config.poll.timeout = Duration::from_secs(2);
    let backoff = Backoff { pause: Duration::from_millis(1500), ..common::QUICK };
    let exporter = Exporter::start_with(config, backoff).await;
    exporter.until(|metrics| metrics.value("zenlayer_up", &[]) == Some(1.0)).await;
    let one = Fault::answer(429, r#"{"requestId":"T9","code":"REQUEST_LIMIT_EXCEEDED"}"#);
    simulator.set(|knobs| knobs.fault = Some(one));
    exporter.until(|metrics| metrics.sum("zenlayer_exporter_api_retries_total") >= 1.0).await;
    // From now on every request succeeds, 150 ms or more after the one before it: 41 take more than 2 s.
    simulator.set(|knobs| knobs.fault = None);
    let polls = |metrics: &Metrics, outcome| metrics.value("zenlayer_exporter_polls_total", &[("outcome", outcome)]);
    let metrics = exporter.until(|metrics| polls(metrics, "rate_limit") >= Some(2.0)).await;
    assert_eq!(polls(&metrics, "deadline"), Some(0.0));
}

#[tokio::test]
async fn an_error_that_was_followed_by_success_is_not_blamed() {
    let knobs = Knobs { latency: Duration::from_millis(50), ..Knobs::still(Service::Vm, 60) };
    let simulator = Simulator::start(knobs).await.unwrap();
    let mut config = impatient(&simulator, &["--zenlayer.page-size=1", "--zenlayer.concurrency=1"]);
    config.poll.timeout = Duration::from_secs(6);
    config.api.request_timeout = common::PATIENCE;
    let exporter = Exporter::ready(config).await;
    let connections = simulator.tally().connections;
    simulator.set(|knobs| {
        knobs.fault = Some(Fault::answer(503, ""));
        knobs.fault_on_first = Some(connections);
    });
    exporter.until(|metrics| metrics.sum("zenlayer_exporter_api_retries_total") >= 1.0).await;
    let answered = simulator.tally().answered;
    exporter.until(|_| simulator.tally().answered > answered + 2).await;
    simulator.set(|knobs| {
        knobs.fault = Some(Fault::HangBeforeHeaders);
        knobs.fault_on_first = None;
    });
    let polls = |metrics: &Metrics, outcome| metrics.value("zenlayer_exporter_polls_total", &[("outcome", outcome)]);
    let metrics = exporter.until(|metrics| metrics.value("zenlayer_up", &[]) == Some(0.0)).await;
    assert_eq!((polls(&metrics, "deadline"), polls(&metrics, "server")), (Some(1.0), Some(0.0)));
}

#[tokio::test]
async fn a_round_that_takes_too_long_reports_the_last_error_of_its_requests() {
    start_log();
    let simulator = Simulator::start(Knobs::still(Service::Vm, 25)).await.unwrap();
    let mut config = impatient(&simulator, &["--collector.instance-info"]);
    config.instance_info.as_mut().unwrap().timeout = Duration::from_millis(300);
    let body = r#"{"requestId":"T8","code":"MAINTENANCE","message":"back soon"}"#;
    simulator.set(|knobs| {
        let headers = vec![("retry-after", "60".to_owned())];
        knobs.fault = Some(Fault::Answer { status: 503, headers, body: body.into() });
        knobs.fault_of = Some(Action::DescribeInstances);
    });
    let exporter = Exporter::ready(config).await;
    let says = "did not finish within 300ms; the last error: DescribeInstances, page 1: HTTP 503, code MAINTENANCE, back \
                soon (requestId T8): the API itself failed";
    exporter.until(|_| log().contains("collecting instance metadata failed")).await;
    assert!(log().contains(says), "{}", log());
}

#[tokio::test]
async fn the_advice_about_metadata_names_its_own_settings() {
    let limited = Fault::answer(429, r#"{"requestId":"T9","code":"REQUEST_LIMIT_EXCEEDED"}"#);
    for (fault, says) in [
        (Fault::HangBeforeHeaders, "within 300ms: raise --collector.instance-info.interval or --zenlayer.concurrency"),
        (limited, "raise --collector.instance-info.interval or --poll.interval, or ask"),
    ] {
        start_log();
        let simulator = Simulator::start(Knobs::still(Service::Vm, 25)).await.unwrap();
        let mut config = impatient(&simulator, &["--collector.instance-info"]);
        config.instance_info.as_mut().unwrap().timeout = Duration::from_millis(300);
        simulator.set(|knobs| (knobs.fault, knobs.fault_of) = (Some(fault), Some(Action::DescribeInstances)));
        let exporter = Exporter::ready(config).await;
        exporter.until(|_| log().contains(says)).await;
    }
}

#[tokio::test]
async fn the_advice_about_a_refusal_names_the_resource_group_where_one_is_set() {
    let simulator = Simulator::start(Knobs::still(Service::Zec, 25)).await.unwrap();
    simulator.set(|knobs| knobs.fault = Some(Fault::answer(400, r#"{"code":"NO"}"#)));
    let flags = ["--zenlayer.service=zec", "--zenlayer.resource-group-id=rg"];
    let exporter = Exporter::start(impatient(&simulator, &flags)).await;
    exporter.until(|metrics| outcome(metrics, "client") >= Some(1.0)).await;
    let said = exporter.get("/readyz").await;
    assert!(said.text().contains("code NO: check --zenlayer.resource-group-id, "), "{}", said.text());
}

/// Kept connections lead to what the API has left; new ones lead to the API. Returns what three polls made of it.
async fn leave_connections_behind(fault: Fault) -> (Metrics, Metrics) {
    let simulator = Simulator::start(Knobs::still(Service::Vm, 25)).await.unwrap();
    let exporter = Exporter::ready(impatient(&simulator, &["--zenlayer.page-size=10"])).await;
    let before = exporter.metrics().await;
    simulator.set(|knobs| knobs.fault = Some(fault));
    let connections = simulator.tally().connections;
    simulator.set(|knobs| knobs.fault_on_first = Some(connections));
    let after = exporter.polls(3).await;
    assert!(simulator.tally().connections > connections, "no new connection");
    assert_eq!(after.value("zenlayer_up", &[]), Some(1.0));
    (before, after)
}

#[tokio::test]
async fn a_failed_try_is_repeated_on_a_new_connection() {
    for fault in [
        Fault::answer(503, ""),
        Fault::answer(400, r#"{"code":"SERVICE_TEMPORARY_UNAVAILABLE"}"#),
        Fault::answer(200, HTML),
        Fault::HangBeforeHeaders,
        Fault::HangMidBody,
        Fault::BrokenOff,
    ] {
        let (before, after) = leave_connections_behind(fault.clone()).await;
        let retries = |metrics: &Metrics| metrics.sum("zenlayer_exporter_api_retries_total");
        assert!(retries(&after) > retries(&before), "{fault:?} was never met");
        let success = [("outcome", "success")];
        let failed = |metrics: &Metrics| {
            let polls = metrics.sum("zenlayer_exporter_polls_total");
            polls - metrics.value("zenlayer_exporter_polls_total", &success).unwrap()
        };
        assert_eq!(failed(&after), failed(&before), "{fault:?}: a poll failed");
    }
}

#[tokio::test]
async fn a_failed_poll_is_repeated_on_new_connections() {
    let shorter = r#"{"totalCount":25,"dataSet":[]}"#;
    for fault in [Fault::answer(404, HTML), Fault::answer(401, ""), Fault::Echo(302), Fault::answer(200, shorter)] {
        let (before, after) = leave_connections_behind(fault.clone()).await;
        let failed = |metrics: &Metrics| {
            let polls = metrics.sum("zenlayer_exporter_polls_total");
            polls - metrics.value("zenlayer_exporter_polls_total", &[("outcome", "success")]).unwrap()
        };
        assert_eq!(failed(&after) - failed(&before), 1.0, "{fault:?}: polls failed");
    }
}

#[tokio::test]
async fn many_connections_that_die_silently_cost_one_try() {
    let knobs = Knobs { latency: Duration::from_millis(30), ..Knobs::still(Service::Vm, 25) };
    let simulator = Simulator::start(knobs).await.unwrap();
    let exporter =
        Exporter::ready(impatient(&simulator, &["--zenlayer.page-size=2", "--zenlayer.concurrency=16"])).await;
    let connections = simulator.tally().connections;
    assert!(connections >= 11, "{connections} connections");
    simulator.set(|knobs| {
        knobs.fault = Some(Fault::HangBeforeHeaders);
        knobs.fault_on_first = Some(connections);
    });
    let metrics = exporter.polls(3).await;
    assert_eq!(metrics.value("zenlayer_exporter_polls_total", &[("outcome", "timeout")]), Some(0.0));
    let retries = metrics.value("zenlayer_exporter_api_retries_total", &[("reason", "timeout")]).unwrap();
    // Each request that was under way then: only page 1, unless it happened in the middle of a poll.
    assert!((1.0..=12.0).contains(&retries), "{retries} retries");
}

#[tokio::test]
async fn more_statuses_than_can_be_told_apart_are_other() {
    let simulator = Simulator::start(Knobs::still(Service::Vm, 400)).await.unwrap();
    let exporter = Exporter::ready(impatient(&simulator, &[])).await;
    let good = simulator.with_fleet(|fleet| fleet.machines.clone());
    simulator.with_fleet(|fleet| {
        for (number, machine) in fleet.machines.iter_mut().enumerate() {
            machine.status = Some(format!("JUNK-{number}"));
        }
    });
    let others = |metrics: &Metrics| metrics.value("zenlayer_instances", &[("status", "other")]);
    let metrics = exporter.until(|metrics| others(metrics).is_some()).await;
    let documented = Service::Vm.documented_statuses().len();
    assert_eq!(metrics.instances().len(), 400);
    assert_eq!(metrics.count("zenlayer_instances"), 256);
    let told_apart = u32::try_from(255 - documented).unwrap();
    assert_eq!(others(&metrics), Some((400 - told_apart).into()));
    simulator.with_fleet(|fleet| fleet.machines = good);
    let metrics = exporter.until(|metrics| metrics.count("zenlayer_instances") == documented + 32).await;
    assert_eq!(metrics.instances(), held(&simulator));
    assert_eq!(outcome(&metrics, "success"), Some(metrics.sum("zenlayer_exporter_polls_total")));
}

#[tokio::test]
async fn an_account_that_outgrows_broken_paging_is_not_shown_as_whole() {
    let simulator = Simulator::start(Knobs::still(Service::Vm, 25)).await.unwrap();
    let exporter = Exporter::ready(impatient(&simulator, &["--zenlayer.page-size=10"])).await;
    simulator.set(|knobs| knobs.repeat_first_page = true);
    simulator.with_fleet(|fleet| (0..75).for_each(|_| fleet.create()));
    let inconsistent = [("outcome", "inconsistent")];
    let metrics =
        exporter.until(|metrics| metrics.value("zenlayer_exporter_polls_total", &inconsistent) >= Some(1.0)).await;
    assert_eq!((metrics.value("zenlayer_up", &[]), metrics.instances().len()), (Some(0.0), 25));
}

#[tokio::test]
async fn a_clock_that_is_off_is_named() {
    let simulator = Simulator::start(Knobs { clock_ahead: -3600, ..Knobs::still(Service::Vm, 5) }).await.unwrap();
    let exporter = Exporter::start(impatient(&simulator, &[])).await;
    let unauthorized = [("outcome", "unauthorized")];
    exporter.until(|metrics| metrics.value("zenlayer_exporter_polls_total", &unauthorized) >= Some(1.0)).await;
    let ready = exporter.get("/readyz").await;
    assert!(ready.text().contains("code SIGNATURE_EXPIRED"), "{}", ready.text());
    let (_, clock) = ready.text().split_once("; this machine's clock is ").unwrap();
    assert!(clock.contains(" ahead of the API's, set it right and keep it so with NTP"), "{clock}");
}

#[tokio::test]
async fn entries_without_an_id_are_counted_and_the_rest_is_shown() {
    let simulator = Simulator::start(Knobs::still(Service::Vm, 3)).await.unwrap();
    simulator.with_fleet(|fleet| {
        fleet.machines[0].id = String::new();
        fleet.machines[1].id = "x".repeat(10_000);
        fleet.machines[2].status = None;
    });
    start_log();
    let mut config = impatient(&simulator, &[]);
    config.poll.interval = Duration::from_mins(1);
    let exporter = Exporter::ready(config).await;
    let metrics = exporter.metrics().await;
    assert_eq!(metrics.value("zenlayer_exporter_invalid_entries_total", &[]), Some(2.0));
    assert_eq!(log().matches("entries without a usable instanceId").count(), 1, "{}", log());
    let id = simulator.with_fleet(|fleet| fleet.machines[2].id.clone());
    assert_eq!(metrics.instances(), [(id, String::new())].into());
    assert_eq!(metrics.value("zenlayer_instances", &[("status", "")]), Some(1.0));
}

#[tokio::test]
async fn a_page_longer_than_asked_for_counts_each_instance_once() {
    let simulator = Simulator::start(Knobs { longer_pages: true, ..Knobs::still(Service::Vm, 25) }).await.unwrap();
    let exporter = Exporter::ready(impatient(&simulator, &["--zenlayer.page-size=10"])).await;
    assert_eq!(exporter.metrics().await.instances(), held(&simulator));
}

#[tokio::test]
async fn what_is_too_old_goes_and_comes_back() {
    start_log();
    let simulator = Simulator::start(Knobs::still(Service::Vm, 25)).await.unwrap();
    let mut config = impatient(&simulator, &[]);
    config.poll.max_staleness = Duration::from_secs(2);
    let exporter = Exporter::ready(config).await;
    simulator.set(|knobs| knobs.fault = Some(Fault::answer(451, "")));
    let stale = exporter.until(|metrics| metrics.value("zenlayer_up", &[]) == Some(0.0)).await;
    assert_eq!(stale.instances().len(), 25, "a young answer stays");
    let gone = exporter.until(|metrics| metrics.count("zenlayer_instance_status") == 0).await;
    assert_eq!(gone.count("zenlayer_instances"), 0, "counts of what is not known any more");
    exporter.polls(1).await;
    assert!(log().contains("until then the last good answer is too old, its instance series are gone"), "{}", log());
    assert!(gone.value("zenlayer_exporter_last_successful_poll_timestamp_seconds", &[]) > Some(0.0));
    simulator.set(|knobs| knobs.fault = None);
    exporter.until(|metrics| metrics.instances().len() == 25).await;
}

#[tokio::test]
async fn an_empty_account_is_a_success_that_says_where_else_to_look() {
    start_log();
    let simulator = Simulator::start(Knobs::still(Service::Vm, 0)).await.unwrap();
    let exporter = Exporter::ready(impatient(&simulator, &[])).await;
    let metrics = exporter.polls(3).await;
    assert_eq!(metrics.count("zenlayer_instance_status"), 0);
    assert_eq!(metrics.value("zenlayer_instances", &[("status", "RUNNING")]), Some(0.0));
    let page = exporter.get("/").await;
    let says = "<p class=\"state warn\">No instances found in vm (Zenlayer&#39;s legacy virtual machines). Elastic compute is \
                <code>--zenlayer.service=zec</code>. Polled ";
    assert!(page.text().contains(says) && !page.text().contains("Every instance is RUNNING"), "{}", page.text());
    let says =
        "No instances found in vm (Zenlayer's legacy virtual machines). Elastic compute is `--zenlayer.service=zec`.";
    assert_eq!(log().matches(says).count(), 1, "{}", log());
    // One that has been emptied is worth another.
    simulator.with_fleet(zenlayer_exporter::simulator::Fleet::create);
    exporter.until(|metrics| metrics.instances().len() == 1).await;
    simulator.with_fleet(|fleet| fleet.machines.clear());
    exporter.until(|metrics| metrics.instances().is_empty()).await;
    exporter.until(|_| log().matches(says).count() == 2).await;
}

/// A directory as Kubernetes mounts a secret: the file is a link into a directory that is swapped whole.
struct Mount(tempfile::TempDir);

impl Mount {
    fn new(secret: &str) -> Self {
        let mount = Self(tempfile::tempdir().unwrap());
        std::os::unix::fs::symlink("..data/secret", mount.0.path().join("secret")).unwrap();
        mount.swap(secret);
        mount
    }

    fn swap(&self, secret: &str) {
        let path = |name: &str| self.0.path().join(name);
        let data = format!("..{}", fastrand::u64(..));
        std::fs::create_dir(path(&data)).unwrap();
        std::fs::write(path(&data).join("secret"), secret).unwrap();
        std::os::unix::fs::symlink(&data, path("..tmp")).unwrap();
        std::fs::rename(path("..tmp"), path("..data")).unwrap();
    }

    fn target(&self, simulator: &Simulator) -> Target {
        let password = SecretSource::File(self.0.path().join("secret"));
        let credentials = CredentialSource::KeyPair { id: KEY_ID.to_owned(), password };
        Target::Account { endpoint: simulator.endpoint(), credentials }
    }
}

#[tokio::test]
async fn a_rotated_key_is_used_from_the_next_poll_on() {
    let simulator = Simulator::start(Knobs::still(Service::Vm, 5)).await.unwrap();
    let mount = Mount::new(&format!("{PASSWORD}\n"));
    let mut config = impatient(&simulator, &[]);
    config.target = mount.target(&simulator);
    let exporter = Exporter::ready(config).await;

    let failing = async |secret: &str, outcome: &str| {
        mount.swap(secret);
        let outcome = [("outcome", outcome)];
        exporter.until(|metrics| metrics.value("zenlayer_exporter_polls_total", &outcome) >= Some(1.0)).await;
        assert_eq!(exporter.metrics().await.instances(), held(&simulator));
        mount.swap(PASSWORD);
        exporter.until(|metrics| metrics.value("zenlayer_up", &[]) == Some(1.0)).await;
    };
    failing("another\n", "unauthorized").await;
    failing("", "credentials").await;

    std::fs::remove_file(mount.0.path().join("..data")).unwrap();
    exporter.until(|metrics| metrics.value("zenlayer_up", &[]) == Some(0.0)).await;
    assert!(exporter.get("/").await.text().contains("cannot be read: No such file or directory"));
    mount.swap(PASSWORD);
    exporter.until(|metrics| metrics.value("zenlayer_up", &[]) == Some(1.0)).await;
}
