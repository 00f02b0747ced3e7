//! The exporter's own metrics, in a registry of their own.
//!
//! Invariant: every name here is in docs/metrics.md, and a test compares the two. It must not know how an
//! instance is rendered, nor how metrics are served.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::core::Collector;
use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use crate::api::{Action, Kind, Observer};

const SUCCESS: &str = "success";
/// The collectors of statuses and instance metadata, as label values.
const INSTANCE_STATUS: &str = "instance-status";
const INSTANCE_INFO: &str = "instance-info";
const VALID: &str = "names and labels are valid, and each name is registered once";

/// How many HTTP statuses have a series each: they come from outside, and must not make series without bound.
const MAX_CODES: usize = 32;
/// The label value of all others.
const OTHER_CODE: &str = "other";

/// Every metric of the exporter's own.
pub(crate) struct Telemetry {
    registry: Registry,
    up: IntGauge,
    transitions: IntCounterVec,
    last_poll: Gauge,
    last_successful_poll: Gauge,
    poll_duration: Histogram,
    polls: IntCounterVec,
    corrections: IntCounter,
    fallbacks: IntCounter,
    missing: IntGauge,
    collector_success: IntGaugeVec,
    api_requests: IntCounterVec,
    /// The values of `code` so far.
    codes: Mutex<BTreeSet<String>>,
    api_request_duration: HistogramVec,
    api_retries: IntCounterVec,
    invalid_entries: IntCounter,
    unrequested_entries: IntCounter,
    http_requests: IntCounterVec,
}

/// Log lines that were dropped. The log begins before there is a registry.
pub(crate) fn log_lines_dropped() -> IntCounter {
    let help = "Log lines that were dropped because standard error was blocked or could not be written.";
    IntCounter::new("zenlayer_exporter_log_lines_dropped_total", help).expect(VALID)
}

impl Default for Telemetry {
    fn default() -> Self {
        Self::new(Registry::new(), log_lines_dropped())
    }
}

impl Telemetry {
    /// Metrics for a process that lives on to be scraped: the process's own memory, files and CPU time are there.
    pub(crate) fn of_process(log_lines_dropped: IntCounter) -> Self {
        let registry = Registry::new();
        #[cfg(target_os = "linux")]
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self())).expect(VALID);
        Self::new(registry, log_lines_dropped)
    }

    /// Those whose labels are known begin at 0, so that their first increase is seen.
    fn new(registry: Registry, log_lines_dropped: IntCounter) -> Self {
        register(&registry, Ok(log_lines_dropped));
        let gauge = |name, help| register(&registry, Gauge::new(name, help));
        let flag = |name, help| register(&registry, IntGauge::new(name, help));
        let flags = |name, help, labels| register(&registry, IntGaugeVec::new(Opts::new(name, help), labels));
        let counter = |name, help| register(&registry, IntCounter::new(name, help));
        let counters = |name, help, labels| register(&registry, IntCounterVec::new(Opts::new(name, help), labels));
        let buckets = |name, help, bounds| HistogramOpts::new(name, help).buckets(Vec::from(bounds));

        flags(
            "zenlayer_exporter_build_info",
            "What the exporter was built from; always 1.",
            &["version", "revision", "rustversion"],
        )
        .with_label_values(&[crate::build_info::VERSION, crate::build_info::REVISION, crate::build_info::RUST_VERSION])
        .set(1);
        let collectors = flags(
            "zenlayer_exporter_collector_success",
            "Whether the collector's last round succeeded.",
            &["collector"],
        );
        let poll_duration = buckets(
            "zenlayer_exporter_poll_duration_seconds",
            "Duration of whole polls.",
            [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0],
        );
        let api_request_duration = buckets(
            "zenlayer_exporter_api_request_duration_seconds",
            "Duration of API requests, bodies included.",
            [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0],
        );
        let telemetry = Self {
            up: flag("zenlayer_up", "Whether the last poll succeeded and its data is not too old."),
            transitions: counters(
                "zenlayer_instance_status_transitions_total",
                "Status changes seen between two polls.",
                &["from", "to"],
            ),
            last_poll: gauge(
                "zenlayer_exporter_last_poll_timestamp_seconds",
                "Unix time of the last poll's end, whatever came of it; 0 before the first.",
            ),
            last_successful_poll: gauge(
                "zenlayer_exporter_last_successful_poll_timestamp_seconds",
                "Unix time of the last successful poll's end; 0 before the first.",
            ),
            poll_duration: register(&registry, Histogram::with_opts(poll_duration)),
            polls: counters(
                "zenlayer_exporter_polls_total",
                "Polls by outcome: success, or the kind of error.",
                &["outcome"],
            ),
            corrections: counter(
                "zenlayer_exporter_poll_corrections_total",
                "Known instances that paging missed and a look-up by ID or a second walk found.",
            ),
            fallbacks: counter(
                "zenlayer_exporter_poll_fallbacks_total",
                "Polls that read all pages twice to decide which instances are gone, because look-ups by ID could not.",
            ),
            missing: flag(
                "zenlayer_exporter_instances_missing",
                "Instances that the API counts and the last poll did not find; 0 when the poll is complete.",
            ),
            collector_success: collectors,
            api_requests: counters(
                "zenlayer_exporter_api_requests_total",
                "API requests by action and HTTP status, or by what kept the status from coming.",
                &["action", "code"],
            ),
            codes: Mutex::default(),
            api_request_duration: register(&registry, HistogramVec::new(api_request_duration, &["action"])),
            api_retries: counters(
                "zenlayer_exporter_api_retries_total",
                "API requests that were tried again, by reason.",
                &["reason"],
            ),
            invalid_entries: counter(
                "zenlayer_exporter_invalid_entries_total",
                "Entries of the API's pages without a usable instance id.",
            ),
            unrequested_entries: counter(
                "zenlayer_exporter_unrequested_entries_total",
                "Entries that look-ups by ID returned without being asked for them; they are dropped.",
            ),
            http_requests: counters(
                "zenlayer_exporter_http_requests_total",
                "HTTP requests answered, by path and status.",
                &["path", "code"],
            ),
            registry,
        };
        telemetry.collector_success.with_label_values(&[INSTANCE_STATUS]);
        telemetry.polls.with_label_values(&[SUCCESS]);
        for kind in Kind::ALL {
            telemetry.polls.with_label_values(&[kind.label()]);
            if kind.may_pass() {
                telemetry.api_retries.with_label_values(&[kind.label()]);
            }
        }
        telemetry
    }

    /// A poll ended at `now` after `took`, well or with that kind of error.
    pub(crate) fn poll_ended(&self, outcome: Result<(), Kind>, took: Duration, now: SystemTime) {
        let timestamp = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let success = i64::from(outcome.is_ok());
        self.up.set(success);
        self.collector_success.with_label_values(&[INSTANCE_STATUS]).set(success);
        self.last_poll.set(timestamp);
        if outcome.is_ok() {
            self.last_successful_poll.set(timestamp);
        }
        self.poll_duration.observe(took.as_secs_f64());
        self.polls.with_label_values(&[outcome.map_or_else(Kind::label, |()| SUCCESS)]).inc();
    }

    /// Instance metadata will be collected: no round has succeeded yet.
    pub(crate) fn expect_infos(&self) {
        self.infos_collected(false);
    }

    /// A round that collects instance metadata ended, successfully or not.
    pub(crate) fn infos_collected(&self, success: bool) {
        self.collector_success.with_label_values(&[INSTANCE_INFO]).set(success.into());
    }

    /// Changes between these statuses are expected: each begins at 0, so that its first is an increase.
    pub(crate) fn expect_transitions(&self, statuses: &[&str]) {
        for from in statuses {
            for to in statuses.iter().filter(|to| *to != from) {
                self.transitions.with_label_values(&[from, to]);
            }
        }
    }

    /// So many instances changed their status.
    pub(crate) fn transitions(&self, from: &str, to: &str, instances: u64) {
        self.transitions.with_label_values(&[from, to]).inc_by(instances);
    }

    /// Paging missed that many instances.
    pub(crate) fn corrected(&self, instances: usize) {
        self.corrections.inc_by(instances as u64);
    }

    /// A second walk had to decide which instances are gone.
    pub(crate) fn fell_back(&self) {
        self.fallbacks.inc();
    }

    /// There is no data that is young enough to be served.
    pub(crate) fn went_down(&self) {
        self.up.set(0);
    }

    /// The last poll that counted did not find that many instances which the API counts.
    pub(crate) fn missing(&self, instances: u64) {
        self.missing.set(i64::try_from(instances).unwrap_or(i64::MAX));
    }

    /// A request to this process was answered. `path` is one of a fixed few.
    pub(crate) fn http_request(&self, path: &str, code: &str) {
        self.http_requests.with_label_values(&[path, code]).inc();
    }

    /// For a process with a web config: 1, until files that are not in use make it 0.
    pub(crate) fn web_config_reload_success(&self) -> IntGauge {
        let gauge = IntGauge::new(
            "zenlayer_exporter_web_config_reload_success",
            "Whether the web config's files as they are now are in use.",
        );
        let gauge = register(&self.registry, gauge);
        gauge.set(1);
        gauge
    }

    fn code_label<'a>(&self, code: &'a str) -> &'a str {
        // Only ever added to: a panic in between leaves nothing half done.
        let mut codes = self.codes.lock().unwrap_or_else(PoisonError::into_inner);
        if codes.contains(code) {
            return code;
        }
        let is_kind = Kind::ALL.iter().any(|kind| kind.label() == code);
        if !is_kind && codes.len() >= MAX_CODES {
            return OTHER_CODE;
        }
        codes.insert(code.to_owned());
        code
    }

    /// All of it in the text format, as it is now.
    pub(crate) fn render(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).expect("no registered family is empty")
    }
}

fn register<M: Collector + Clone + 'static>(registry: &Registry, metric: prometheus::Result<M>) -> M {
    let metric = metric.expect(VALID);
    registry.register(Box::new(metric.clone())).expect(VALID);
    metric
}

impl Observer for Telemetry {
    fn request_ended(&self, action: Action, code: &str, took: Duration) {
        let action = action.to_string();
        self.api_requests.with_label_values(&[&*action, self.code_label(code)]).inc();
        self.api_request_duration.with_label_values(&[&*action]).observe(took.as_secs_f64());
    }

    fn request_retried(&self, reason: Kind) {
        self.api_retries.with_label_values(&[reason.label()]).inc();
    }

    fn entries_skipped(&self, count: usize) {
        self.invalid_entries.inc_by(count as u64);
    }

    fn unrequested_entries(&self, count: usize) {
        self.unrequested_entries.inc_by(count as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(telemetry: &Telemetry) -> String {
        telemetry.render()
    }

    #[test]
    fn a_failed_poll_keeps_the_time_of_the_last_good_one() {
        let telemetry = Telemetry::default();
        let second = |n| UNIX_EPOCH + Duration::from_secs(n);
        telemetry.poll_ended(Ok(()), Duration::from_millis(200), second(100));
        telemetry.poll_ended(Err(Kind::Timeout), Duration::from_secs(10), second(130));
        let text = rendered(&telemetry);
        for line in [
            "zenlayer_up 0",
            "zenlayer_exporter_collector_success{collector=\"instance-status\"} 0",
            "zenlayer_exporter_last_poll_timestamp_seconds 130",
            "zenlayer_exporter_last_successful_poll_timestamp_seconds 100",
            "zenlayer_exporter_polls_total{outcome=\"success\"} 1",
            "zenlayer_exporter_polls_total{outcome=\"timeout\"} 1",
            "zenlayer_exporter_polls_total{outcome=\"tls\"} 0",
            "zenlayer_exporter_poll_duration_seconds_count 2",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
        }
    }

    #[test]
    fn statuses_are_escaped_in_transitions_too() {
        let telemetry = Telemetry::default();
        telemetry.transitions("RUNNING", "a\"b\\c\nd", 2);
        assert!(rendered(&telemetry).contains(r#"{from="RUNNING",to="a\"b\\c\nd"} 2"#));
    }

    #[test]
    fn http_statuses_make_so_many_series_and_no_more() {
        let telemetry = Telemetry::default();
        for code in 200..300 {
            for _ in 0..2 {
                telemetry.request_ended(Action::DescribeInstances, &code.to_string(), Duration::ZERO);
            }
        }
        telemetry.request_ended(Action::DescribeInstances, Kind::Timeout.label(), Duration::ZERO);
        let text = rendered(&telemetry);
        let series = |code: &str| {
            format!("zenlayer_exporter_api_requests_total{{action=\"DescribeInstances\",code=\"{code}\"}}")
        };
        assert_eq!(text.lines().filter(|line| line.starts_with("zenlayer_exporter_api_requests_total{")).count(), 34);
        for (code, count) in [("231", 2), ("other", 136), ("timeout", 1)] {
            assert!(text.contains(&format!("{} {count}\n", series(code))), "{text}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_process_is_there_only_where_it_lives_on() {
        assert!(rendered(&Telemetry::of_process(log_lines_dropped())).contains("\nprocess_resident_memory_bytes "));
        assert!(!rendered(&Telemetry::default()).contains("process_resident_memory_bytes"));
    }
}
