//! The exporter's own metrics as served: a few kilobytes, rendered at most once per second, however many clients scrape.
//!
//! Invariant: the end of a poll is seen at the next scrape.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::negotiation::Format;
use crate::exposition::openmetrics;
use crate::gzip;
use crate::telemetry::Telemetry;

/// How long a rendering serves.
const LIFETIME: Duration = Duration::from_secs(1);

/// The last rendering, for all requests while it is young.
#[derive(Debug, Default)]
pub(crate) struct SelfMetrics(Mutex<Option<Arc<Rendering>>>);

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

impl SelfMetrics {
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
                let open = Body::new(openmetrics::from_text(&text));
                let rendering = Arc::new(Rendering { made_at: now, state, text: Body::new(text), open });
                *last = Some(Arc::clone(&rendering));
                rendering
            }
        };
        InFormat(rendering, format)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_rendering_serves_for_a_second_or_until_a_poll_ends() {
        let (own, telemetry) = (SelfMetrics::default(), Telemetry::default());
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
