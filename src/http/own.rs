//! The exporter's own metrics as served: a few kilobytes, rendered at most once per second, however many clients scrape.
//!
//! Invariant: the end of a poll is seen at the next scrape. It must not know what the metrics are.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{self, HeaderMap};
use tokio::time::Instant;

use crate::gzip;
use crate::telemetry::Telemetry;

/// How long a rendering serves.
const LIFETIME: Duration = Duration::from_secs(1);

/// How the metrics are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Prometheus's text format 0.0.4.
    Text,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

impl Format {
    /// What the scraper prefers; the text format where it prefers nothing.
    pub fn preferred(headers: &HeaderMap) -> Self {
        let (mut text, mut open) = (0.0, 0.0);
        let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        for range in accepted.flat_map(|value| value.split(',')) {
            let mut parts = range.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default().to_ascii_lowercase();
            let (mut weight, mut version) = (1.0_f32, None);
            for part in parts {
                match part.split_once('=') {
                    Some(("q", q)) => weight = q.parse().unwrap_or(0.0),
                    Some(("version", v)) => version = Some(v),
                    _ => {}
                }
            }
            match (&*media, version) {
                ("application/openmetrics-text", None | Some("1.0.0")) => open = weight.max(open),
                ("text/plain", None | Some("0.0.4")) | ("text/*" | "*/*", _) => text = weight.max(text),
                _ => {}
            }
        }
        if open > text { Self::OpenMetrics } else { Self::Text }
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// The last rendering, for all requests while it is young.
#[derive(Debug, Default)]
pub(crate) struct Own(Mutex<Option<Arc<Rendering>>>);

/// One rendering in both formats.
#[derive(Debug)]
struct Rendering {
    made_at: Instant,
    /// How many polls and rounds had ended by then, and whether their data was fresh.
    state: (u64, bool),
    text: Body,
    open: Body,
}

#[derive(Debug)]
struct Body {
    text: Bytes,
    zipped: OnceLock<gzip::Part>,
}

impl Body {
    fn new(text: impl Into<Bytes>) -> Self {
        Self { text: text.into(), zipped: OnceLock::new() }
    }
}

/// A rendering in the format that was asked for.
pub(super) struct InFormat(Arc<Rendering>, Format);

impl InFormat {
    fn body(&self) -> &Body {
        match self.1 {
            Format::Text => &self.0.text,
            Format::OpenMetrics => &self.0.open,
        }
    }

    pub(super) fn text(&self) -> Bytes {
        self.body().text.clone()
    }

    /// The end of a gzip member; it takes tens of microseconds, and only for the first request that needs it.
    pub(super) fn zipped(&self) -> &gzip::Part {
        let Body { text, zipped } = self.body();
        zipped.get_or_init(|| gzip::Part::last(text))
    }
}

impl Own {
    pub(super) fn get(&self, telemetry: &Telemetry, state: (u64, bool), format: Format) -> InFormat {
        // A rendering is put in its place whole, so one that a panic interrupted is still the old one.
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let rendering = match &*last {
            Some(rendering)
                if rendering.state == state && now.saturating_duration_since(rendering.made_at) < LIFETIME =>
            {
                Arc::clone(rendering)
            }
            _ => {
                let text = telemetry.render();
                let open = Body::new(open_metrics(&text));
                let rendering = Arc::new(Rendering { made_at: now, state, text: Body::new(text), open });
                *last = Some(Arc::clone(&rendering));
                rendering
            }
        };
        InFormat(rendering, format)
    }
}

/// The text format as OpenMetrics wants it: a counter's family without `_total`, bounds as floats, an end.
fn open_metrics(text: &str) -> String {
    let mut open = String::with_capacity(text.len() + 200);
    for line in text.lines() {
        match line.strip_prefix("# ") {
            Some(comment) => {
                let mut words = comment.splitn(3, ' ');
                let mut word = || words.next().unwrap_or_default();
                let (keyword, name, rest) = (word(), word(), word());
                let family = name.strip_suffix("_total").unwrap_or(name);
                open.extend(["# ", keyword, " ", family, " ", rest]);
            }
            None => open.push_str(&with_float_bound(line)),
        }
        open.push('\n');
    }
    open.push_str("# EOF\n");
    open
}

/// `le="1"` as `le="1.0"`: OpenMetrics has one way to write a float.
fn with_float_bound(line: &str) -> std::borrow::Cow<'_, str> {
    let bound = line.find("le=\"").map(|at| at + 4).filter(|&at| line[..at].contains("_bucket{"));
    let is_whole = |at: usize| {
        let digits = line[at..].split('"').next().unwrap_or_default();
        (!digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())).then_some(at + digits.len())
    };
    match bound.and_then(is_whole) {
        Some(end) => format!("{}.0{}", &line[..end], &line[end..]).into(),
        None => line.into(),
    }
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn preferred(accept: &'static str) -> Format {
        Format::preferred(&HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(accept))]))
    }

    #[test]
    fn open_metrics_is_served_to_those_who_prefer_it() {
        for accept in [
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;version=1.0.0;q=0.4,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
            "application/openmetrics-text",
        ] {
            assert_eq!(preferred(accept), Format::OpenMetrics, "{accept}");
        }
        for accept in [
            "",
            "*/*",
            "text/plain;version=0.0.4;q=0.6,application/openmetrics-text;version=1.0.0;q=0.5",
            "application/openmetrics-text;version=2.0.0",
            "application/openmetrics-text;q=0",
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6,text/plain;q=0.5",
        ] {
            assert_eq!(preferred(accept), Format::Text, "{accept}");
        }
        assert_eq!(Format::preferred(&HeaderMap::new()), Format::Text);
    }

    #[test]
    fn open_metrics_differs_in_families_bounds_and_end() {
        let text = "# HELP a_total b_total.\n# TYPE a_total counter\na_total{x=\"le=\\\"1\"} 1\n\
                    # HELP h H.\n# TYPE h histogram\nh_bucket{le=\"1\"} 2\nh_bucket{le=\"0.5\"} 1\nh_bucket{le=\"+Inf\"} 2\n";
        let open = "# HELP a b_total.\n# TYPE a counter\na_total{x=\"le=\\\"1\"} 1\n\
                    # HELP h H.\n# TYPE h histogram\nh_bucket{le=\"1.0\"} 2\nh_bucket{le=\"0.5\"} 1\nh_bucket{le=\"+Inf\"} 2\n# EOF\n";
        assert_eq!(open_metrics(text), open);
    }

    #[tokio::test(start_paused = true)]
    async fn a_rendering_serves_for_a_second_or_until_a_poll_ends() {
        let (own, telemetry) = (Own::default(), Telemetry::default());
        let text = |polls| own.get(&telemetry, (polls, true), Format::Text).text();
        let first = text(0);
        telemetry.corrected(1);
        assert_eq!(text(0), first, "it is young");
        let after_a_poll = text(1);
        assert_ne!(after_a_poll, first, "a poll has ended");
        telemetry.corrected(1);
        tokio::time::advance(LIFETIME).await;
        assert_ne!(text(1), after_a_poll, "it is old");
    }
}
