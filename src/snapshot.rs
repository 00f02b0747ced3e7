//! The rendered answer that is served, swapped whole.
//!
//! Invariant: a reader has one poll or the next, never a mix, and nothing older than `max_staleness`. It must not
//! know where an inventory comes from or how it is sent.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use crate::gzip;
use crate::model::{Infos, Inventory, Statuses};

/// Series of instances, rendered once: the same bytes in the text format and in OpenMetrics.
#[derive(Debug)]
pub(crate) struct Text {
    pub(crate) bytes: Bytes,
    /// The text compressed, once somebody wants it so.
    zipped: OnceCell<gzip::Part>,
}

impl Text {
    fn new(text: impl Into<Bytes>) -> Self {
        Self { bytes: text.into(), zipped: OnceCell::new() }
    }

    /// The text compressed: by the first who asks, off the async threads, for all who ask.
    pub(crate) async fn zipped(&self) -> &gzip::Part {
        let compress = || async {
            let text = self.bytes.clone();
            let compressed = tokio::task::spawn_blocking(move || gzip::Part::first(&text)).await;
            let part = compressed.expect("compression does not panic");
            tracing::debug!(from = self.bytes.len(), to = part.len(), "instance series compressed");
            part
        };
        self.zipped.get_or_init(compress).await
    }
}

/// What is served of an inventory, rendered once.
#[derive(Debug)]
pub(crate) struct Rendered {
    /// The status of every instance.
    pub(crate) text: Text,
    /// What it was rendered from.
    pub(crate) inventory: Arc<Inventory>,
    /// Every status known by then.
    pub(crate) statuses: Statuses,
}

impl Rendered {
    /// Text that was rendered from that inventory.
    pub(crate) fn new(text: impl Into<Bytes>, inventory: Arc<Inventory>, statuses: Statuses) -> Self {
        Self { text: Text::new(text), inventory, statuses }
    }

    /// Whether the same text would be rendered again.
    pub(crate) fn is_of(&self, inventory: &Inventory, statuses: &Statuses) -> bool {
        *self.inventory == *inventory && self.statuses.names().len() == statuses.names().len()
    }
}

/// What is served of names and the like, rendered once.
#[derive(Debug)]
pub(crate) struct RenderedInfos {
    /// The info of every instance that has one.
    pub(crate) text: Text,
    /// What it was rendered from.
    pub(crate) infos: Infos,
}

impl RenderedInfos {
    /// Text that was rendered from those infos.
    pub(crate) fn new(text: impl Into<Bytes>, infos: Infos) -> Self {
        Self { text: Text::new(text), infos }
    }
}

/// What one successful poll has to show.
#[derive(Debug)]
pub(crate) struct Snapshot {
    /// Shared with the polls before, for as long as nothing changes.
    pub(crate) rendered: Arc<Rendered>,
    /// Of instances of that poll alone; `None` where nothing but statuses is read, or not yet.
    pub(crate) infos: Option<Arc<RenderedInfos>>,
    /// When the poll ended.
    pub(crate) taken_at: Instant,
}

impl Snapshot {
    /// The parts of what is served, in their order.
    pub(crate) fn texts(&self) -> impl Iterator<Item = &Text> {
        [&self.rendered.text].into_iter().chain(self.infos.as_ref().map(|infos| &infos.text))
    }

    /// How old it is at `now`.
    pub(crate) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.taken_at)
    }
}

/// How the last poll went, for a person.
#[derive(Debug, Clone)]
pub(crate) struct Report {
    /// When it ended.
    pub(crate) at: SystemTime,
    /// How many instances there are, or what went wrong.
    pub(crate) outcome: Result<usize, String>,
}

/// The latest snapshot, shared between the poller, which replaces it, and the server, which reads it.
#[derive(Debug)]
pub(crate) struct Published {
    snapshot: RwLock<Option<Arc<Snapshot>>>,
    report: RwLock<Option<Report>>,
    /// How many polls and rounds have ended.
    rounds: AtomicU64,
    /// When the poller last showed that it lives.
    pulse: RwLock<Instant>,
    max_staleness: Duration,
}

impl Published {
    /// Nothing yet.
    pub(crate) fn new(max_staleness: Duration) -> Self {
        Self {
            snapshot: RwLock::default(),
            report: RwLock::default(),
            rounds: AtomicU64::new(0),
            pulse: RwLock::new(Instant::now()),
            max_staleness,
        }
    }

    /// Replaces the snapshot.
    pub(crate) fn publish(&self, snapshot: Snapshot) {
        *write(&self.snapshot) = Some(Arc::new(snapshot));
    }

    /// Tells how the last poll went.
    pub(crate) fn report(&self, report: Report) {
        *write(&self.report) = Some(report);
        self.count_round();
    }

    /// A poll, or a round that collects something else, has ended.
    pub(crate) fn count_round(&self) {
        self.rounds.fetch_add(1, Ordering::Release);
    }

    /// How many of them have ended: what is derived from one is old when this has changed.
    pub(crate) fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Acquire)
    }

    /// The poller lives at `now`.
    pub(crate) fn beat(&self, now: Instant) {
        *write(&self.pulse) = now;
    }

    /// The latest snapshot, unless it is too old at `now`.
    pub(crate) fn fresh(&self, now: Instant) -> Option<Arc<Snapshot>> {
        let fresh = |snapshot: &&Arc<Snapshot>| snapshot.age(now) <= self.max_staleness;
        read(&self.snapshot).as_ref().filter(fresh).cloned()
    }

    /// Whether any poll has succeeded yet.
    pub(crate) fn is_ready(&self) -> bool {
        read(&self.snapshot).is_some()
    }

    /// How the last poll went; `None` before its end.
    pub(crate) fn last_report(&self) -> Option<Report> {
        read(&self.report).clone()
    }

    /// How long the poller has not shown itself at `now`.
    pub(crate) fn silence(&self, now: Instant) -> Duration {
        now.saturating_duration_since(*read(&self.pulse))
    }
}

/// A value is replaced in one step, so one that a panic interrupted is still whole.
fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Service;

    #[tokio::test(start_paused = true)]
    async fn a_snapshot_is_served_until_it_is_too_old() {
        let published = Published::new(Duration::from_mins(5));
        assert!(!published.is_ready());
        assert!(published.fresh(Instant::now()).is_none());
        let taken_at = Instant::now();
        let rendered = Rendered::new(b"a 1\n".to_vec(), Arc::default(), Statuses::documented(Service::Vm));
        published.publish(Snapshot { rendered: Arc::new(rendered), infos: None, taken_at });
        assert!(published.fresh(taken_at + Duration::from_mins(5)).is_some());
        assert!(published.fresh(taken_at + Duration::from_secs(301)).is_none());
        assert!(published.is_ready(), "readiness is about the first success");
    }
}
