//! The rendered answer that is served, swapped whole.
//!
//! Invariant: a reader has one poll or the next, never a mix, and nothing older than `max_staleness`. It must not
//! know where an inventory comes from or how it is sent.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::time::Instant;

use crate::model::{Inventory, Statuses};

/// What one successful poll has to show.
#[derive(Debug)]
pub(crate) struct Snapshot {
    /// The instance series in the text format.
    pub(crate) text: Bytes,
    /// What it was rendered from.
    pub(crate) inventory: Arc<Inventory>,
    /// Every status known by then.
    pub(crate) statuses: Statuses,
    /// When the poll ended.
    pub(crate) taken_at: Instant,
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
    }

    /// The poller lives at `now`.
    pub(crate) fn beat(&self, now: Instant) {
        *write(&self.pulse) = now;
    }

    /// The latest snapshot, unless it is too old at `now`.
    pub(crate) fn fresh(&self, now: Instant) -> Option<Arc<Snapshot>> {
        let fresh = |snapshot: &&Arc<Snapshot>| now.saturating_duration_since(snapshot.taken_at) <= self.max_staleness;
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
        published.publish(Snapshot {
            text: Bytes::from_static(b"a 1\n"),
            inventory: Arc::default(),
            statuses: Statuses::documented(Service::Vm),
            taken_at,
        });
        assert!(published.fresh(taken_at + Duration::from_mins(5)).is_some());
        assert!(published.fresh(taken_at + Duration::from_secs(301)).is_none());
        assert!(published.is_ready(), "readiness is about the first success");
    }
}
