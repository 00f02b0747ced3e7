//! The page for a person at `/`: what is running, how the last poll went, what is not RUNNING.
//!
//! Invariant: every value from outside is escaped and isolated, and nothing is loaded from anywhere else, which the content
//! security policy holds the browser to. It must not know sockets or how a poll is done.

use std::fmt::Write;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ring::digest;

use crate::model::Infos;
use crate::plural::counted;
use crate::snapshot::{Count, Rendered, Report};

const STYLE: &str = include_str!("page/style.css");
const SCRIPT: &str = include_str!("page/update.js");
/// The status of an instance that needs no one's attention.
const RUNNING: &str = "RUNNING";
/// Instances listed at most: a page of more helps nobody.
const MOST_LISTED: usize = 200;

/// Allows this very style and script, and requests to nobody else.
pub(super) static SECURITY_POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = |text: &str| BASE64_STANDARD.encode(digest::digest(&digest::SHA256, text.as_bytes()));
    format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
        hash(STYLE),
        hash(SCRIPT)
    )
});

/// What this exporter is there for.
#[derive(Debug, Clone)]
pub(crate) struct About {
    /// The service whose instances are watched.
    pub(crate) service: &'static str,
    /// What is polled, in words.
    pub(crate) polled: String,
    /// What to say where a poll finds nothing, with code in backticks.
    pub(crate) nothing_found: String,
    /// How often.
    pub(crate) interval: Duration,
}

/// What there is to show.
pub(super) struct View<'a> {
    pub(super) about: &'a About,
    pub(super) report: Option<&'a Report>,
    /// What is served now.
    pub(super) served: Option<&'a Rendered>,
    /// The age of the last successful poll, also if it is too old to be served.
    pub(super) age: Option<Duration>,
    /// Names and zones of its instances, where they are read.
    pub(super) infos: Option<&'a Infos>,
    pub(super) telemetry_path: &'a str,
    pub(super) now: SystemTime,
}

pub(super) fn render(view: &View<'_>) -> String {
    let About { service, polled, interval, .. } = view.about;
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>zenlayer-exporter</title>\n\
         <style>{STYLE}</style>\n</head>\n<body>\n<h1>zenlayer-exporter {}</h1>\n\
         <p class=\"muted\">{} (<code>{service}</code>), polled every {}</p>\n\
         <p id=\"lost\" class=\"state bad\" hidden></p>\n<main>\n",
        escape(crate::build_info::VERSION),
        escape(polled),
        humantime::format_duration(*interval),
    );
    state(&mut page, view);
    if let Some(snapshot) = view.served {
        counts(&mut page, snapshot);
        others(&mut page, snapshot, view);
    }
    let metrics = escape(view.telemetry_path);
    page.extend([
        "</main>\n<nav><a href=\"",
        &metrics,
        "\">metrics</a> <a href=\"/healthz\">health</a> <a href=\"/readyz\">readiness</a></nav>\n<script>",
        SCRIPT,
        "</script>\n</body>\n</html>\n",
    ]);
    page
}

/// One line that says whether to trust the rest.
fn state(page: &mut String, view: &View<'_>) {
    let age = view.age.map(in_seconds).unwrap_or_default();
    let too_old = format!("Data too old to show: the last successful poll was {age} ago.");
    let (class, text, cause) = match (view.report.map(|report| &report.outcome), view.served) {
        (None, _) => ("warn", "The first poll is in progress.".to_owned(), None),
        (Some(Ok(count)), Some(_)) if count.missing > 0 => {
            let Count { instances, missing } = count;
            let text = format!("Polled {age} ago: {instances} of {} instances.", *instances as u64 + missing);
            ("warn", format!("{text} The API's answers leave out {missing}: see the log."), None)
        }
        (Some(Ok(Count { instances: 0, .. })), Some(_)) => {
            ("warn", format!("{} Polled {age} ago.", with_code(&view.about.nothing_found)), None)
        }
        (Some(Ok(Count { instances, .. })), Some(_)) => {
            ("good", format!("{}, polled {age} ago.", counted(*instances, "instance")), None)
        }
        (Some(Ok(_)), None) => ("bad", format!("{too_old} No poll has ended since."), None),
        (Some(Err(error)), Some(_)) => {
            ("warn", format!("The last poll failed. The data below is {age} old."), Some(error))
        }
        (Some(Err(error)), None) if view.age.is_none() => ("bad", "No poll has succeeded yet.".to_owned(), Some(error)),
        (Some(Err(error)), None) => ("bad", too_old, Some(error)),
    };
    page.extend(["<p class=\"state ", class, "\">", &text, "</p>\n"]);
    if let (Some(cause), Some(report)) = (cause, view.report) {
        let ago = in_seconds(view.now.duration_since(report.at).unwrap_or_default());
        page.extend(["<p>", &ago, " ago: ", &foreign(cause), "</p>\n"]);
    }
}

fn counts(page: &mut String, snapshot: &Rendered) {
    page.push_str("<h2>By status</h2>\n<table id=\"counts\">\n");
    let total = snapshot.inventory.len().max(1);
    let counts = snapshot.inventory.count_by_status(&snapshot.statuses);
    for (name, count) in snapshot.statuses.names().zip(counts) {
        let class = if count == 0 { " class=\"none\"" } else { "" };
        let name = shown_status(name);
        // Writing to a string does not fail.
        let _ = writeln!(
            page,
            "<tr{class}><th scope=\"row\">{name}</th><td class=\"count\">{count}</td>\
             <td class=\"bar\"><meter max=\"{total}\" value=\"{count}\">{count} of {total}</meter></td></tr>"
        );
    }
    page.push_str("</table>\n");
}

fn others(page: &mut String, snapshot: &Rendered, view: &View<'_>) {
    let is_other = |name: &str| name != RUNNING;
    let others = || snapshot.inventory.iter().filter(|instance| is_other(snapshot.statuses.name(instance.status)));
    let count = others().count();
    if count == 0 {
        let is_complete =
            view.report.is_some_and(|report| report.outcome.as_ref().is_ok_and(|count| count.missing == 0));
        // No instances at all is not good news.
        if !snapshot.inventory.is_empty() {
            let shown = if is_complete { "" } else { " shown" };
            let _ = writeln!(page, "<h2>Every instance{shown} is RUNNING</h2>");
        }
        return;
    }
    let _ = writeln!(page, "<h2>{count} not RUNNING</h2>\n<table id=\"others\">");
    for instance in others().take(MOST_LISTED) {
        let status = shown_status(snapshot.statuses.name(instance.status));
        page.extend(["<tr><td>", &foreign(instance.id), "</td>"]);
        if let Some(infos) = view.infos {
            let (name, zone) = infos.find(instance.id).map_or(("", ""), |info| (info.name, info.zone()));
            page.extend(["<td>", &foreign(name), "</td><td>", &foreign(zone), "</td>"]);
        }
        page.extend(["<td>", &status, "</td></tr>\n"]);
    }
    page.push_str("</table>\n");
    if count > MOST_LISTED {
        let _ = writeln!(page, "<p class=\"muted\">and {} more</p>", count - MOST_LISTED);
    }
}

fn shown_status(name: &str) -> String {
    if name.is_empty() { "(no status)".to_owned() } else { foreign(name) }
}

pub(super) fn in_seconds(span: Duration) -> String {
    humantime::format_duration(Duration::from_secs(span.as_secs())).to_string()
}

/// A text with code in backticks as HTML.
fn with_code(text: &str) -> String {
    let parts = text.split('`').enumerate();
    parts.map(|(n, part)| if n % 2 == 0 { escape(part) } else { format!("<code>{}</code>", escape(part)) }).collect()
}

/// Text from outside: whatever direction it is written in, it does not turn what is beside it.
fn foreign(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("<bdi>{}</bdi>", escape(text)) }
}

/// Text as it may stand between tags and in quoted attributes.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{Findings, Service, Sightings, Statuses};

    fn snapshot(entries: &[(&str, &str)]) -> Rendered {
        let mut statuses = Statuses::documented(Service::Vm);
        let mut sightings = Sightings::default();
        for (id, status) in entries {
            sightings.push(id, status, &mut statuses).unwrap();
        }
        let inventory = Arc::new(sightings.into_inventory());
        Rendered::new(Vec::new(), inventory, statuses)
    }

    fn page(outcome: Option<Result<usize, &str>>, served: Option<&Rendered>) -> String {
        page_with(outcome, served, None)
    }

    fn page_with(outcome: Option<Result<usize, &str>>, served: Option<&Rendered>, infos: Option<&Infos>) -> String {
        let about = About {
            service: "vm",
            polled: "https://<api>".to_owned(),
            nothing_found: "No instances found. Try `--x=<y>`.".to_owned(),
            interval: Duration::from_secs(30),
        };
        let at = SystemTime::UNIX_EPOCH;
        let count = |instances| Count { instances, missing: instances as u64 / 100 };
        let report = outcome.map(|outcome| Report { at, outcome: outcome.map(count).map_err(str::to_owned) });
        render(&View {
            about: &about,
            report: report.as_ref(),
            served,
            age: Some(Duration::from_secs(65)),
            infos,
            telemetry_path: "/metrics",
            now: at + Duration::from_secs(5),
        })
    }

    #[test]
    fn every_value_is_escaped() {
        let hostile = "<script>alert(1)</script>";
        let page = page(Some(Err("<b>\"&'")), Some(&snapshot(&[(hostile, "<i>")])));
        assert!(
            page.contains("<td><bdi>&lt;script&gt;alert(1)&lt;/script&gt;</bdi></td><td><bdi>&lt;i&gt;</bdi></td>"),
            "{page}"
        );
        assert!(page.contains("5s ago: <bdi>&lt;b&gt;&quot;&amp;&#39;</bdi></p>"), "{page}");
        assert!(page.contains("https://&lt;api&gt; (<code>vm</code>), polled every 30s"), "{page}");
        assert_eq!(page.matches("<script>").count(), 1, "the page's own and no other");
    }

    #[test]
    fn it_says_first_whether_to_trust_it() {
        let one = snapshot(&[("a", "RUNNING")]);
        assert!(page(None, None).contains(r#"<p class="state warn">The first poll is in progress.</p>"#));
        assert!(page(Some(Ok(1)), Some(&one)).contains(r#"<p class="state good">1 instance, polled 1m 5s ago.</p>"#));
        let short = page(Some(Ok(200)), Some(&one));
        let missing = "Polled 1m 5s ago: 200 of 202 instances. The API's answers leave out 2: see the log.";
        assert!(short.contains("<h2>Every instance shown is RUNNING</h2>"), "{short}");
        assert!(short.contains(&format!(r#"<p class="state warn">{missing}</p>"#)), "{short}");
        let nothing = page(Some(Ok(0)), Some(&snapshot(&[])));
        let advice =
            r#"<p class="state warn">No instances found. Try <code>--x=&lt;y&gt;</code>. Polled 1m 5s ago.</p>"#;
        assert!(nothing.contains(advice) && !nothing.contains("Every instance is RUNNING"), "{nothing}");
        let failed = page(Some(Err("no connection")), Some(&one));
        assert!(failed.contains(r#"<p class="state warn">The last poll failed. The data below is 1m 5s old.</p>"#));
        let gone = page(Some(Err("no connection")), None);
        assert!(
            gone.contains(r#"<p class="state bad">Data too old to show: the last successful poll was 1m 5s ago.</p>"#),
            "{gone}"
        );
        assert!(!gone.contains("By status"));
    }

    #[test]
    fn names_and_zones_are_shown_where_they_are_known() {
        let mut findings = Findings::new(0);
        findings.push("i-1", "<b>db", ["SIN-\"A", "", "", "", ""], [], None).unwrap();
        let infos = findings.into_infos();
        let stopped = snapshot(&[("i-1", "STOPPED"), ("i-2", "STOPPED"), ("i-3", "RUNNING")]);
        let page = page_with(Some(Ok(3)), Some(&stopped), Some(&infos));
        assert!(
            page.contains("<tr><td><bdi>i-1</bdi></td><td><bdi>&lt;b&gt;db</bdi></td><td><bdi>SIN-&quot;A</bdi></td><td><bdi>STOPPED</bdi></td></tr>"),
            "{page}"
        );
        assert!(
            page.contains("<tr><td><bdi>i-2</bdi></td><td></td><td></td><td><bdi>STOPPED</bdi></td></tr>"),
            "{page}"
        );
    }

    #[test]
    fn those_that_do_not_run_are_listed_up_to_a_bound() {
        assert!(page(Some(Ok(1)), Some(&snapshot(&[("a", "RUNNING")]))).contains("Every instance is RUNNING"));
        let ids: Vec<_> = (0..250).map(|n| format!("i-{n:03}")).collect();
        let stopped: Vec<_> = ids.iter().map(|id| (&**id, "STOPPED")).collect();
        let page = page(Some(Ok(250)), Some(&snapshot(&stopped)));
        assert!(page.contains("<h2>250 not RUNNING</h2>"));
        assert!(page.contains("<td><bdi>i-199</bdi></td>") && !page.contains("<bdi>i-200</bdi>"));
        assert!(page.contains("and 50 more"));
    }
}
