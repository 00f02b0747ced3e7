//! The rendered answer that is served, swapped whole.
//!
//! Invariant: a reader has one poll or the next, never a mix, and nothing older than `max_staleness`. It must not
//! know where an inventory comes from or how it is sent.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use crate::clock::Moment;
use crate::gzip;
use crate::model::{Infos, Inventory, Statuses};

/// Series of instances, rendered once: the same bytes in the text format and in OpenMetrics.
#[derive(Debug)]
pub(crate) struct Text {
    pub(crate) bytes: Bytes,
    /// The text compressed, once somebody wants it so.
    zipped: Arc<OnceCell<gzip::Part>>,
}

impl Text {
    fn new(text: impl Into<Bytes>) -> Self {
        Self { bytes: text.into(), zipped: Arc::default() }
    }

    /// The text compressed: by the first request, off the async threads, for all requests.
    pub(crate) async fn zipped(&self) -> &gzip::Part {
        if self.zipped.get().is_none() {
            let (zipped, text) = (Arc::clone(&self.zipped), self.bytes.clone());
            // A task of its own: work that has begun is finished even if the client that asked is gone.
            let compression = tokio::spawn(async move {
                zipped.get_or_init(|| compressed(text)).await;
            });
            compression.await.expect("compression does not panic");
        }
        self.zipped.get().expect("it was just compressed")
    }
}

async fn compressed(text: Bytes) -> gzip::Part {
    let length = text.len();
    let compressed = tokio::task::spawn_blocking(move || gzip::Part::first(&text)).await;
    let part = compressed.expect("compression does not panic");
    tracing::debug!(from = length, to = part.len(), "instance series compressed");
    part
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
        *self.inventory == *inventory && self.statuses == *statuses
    }
}

/// The instance metadata that is served, rendered once.
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
    pub(crate) taken_at: Moment,
}

impl Snapshot {
    /// The parts of what is served, in their order.
    pub(crate) fn texts(&self) -> impl Iterator<Item = &Text> {
        [&self.rendered.text].into_iter().chain(self.infos.as_ref().map(|infos| &infos.text))
    }

    /// How old it is at `now`.
    pub(crate) fn age(&self, now: Moment) -> Duration {
        now.since(self.taken_at)
    }
}

/// How the last poll went, for a person.
#[derive(Debug, Clone)]
pub(crate) struct Report {
    /// When it ended.
    pub(crate) at: SystemTime,
    /// What it found, or what went wrong.
    pub(crate) outcome: Result<Count, String>,
}

/// How many instances a successful poll found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Count {
    pub(crate) instances: usize,
    /// How many more there are according to the API.
    pub(crate) missing: u64,
}

/// What polls have published so far.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) snapshot: Option<Arc<Snapshot>>,
    /// How the last poll went; `None` before its end.
    pub(crate) report: Option<Report>,
    /// The number of polls and metadata rounds that have ended. Anything derived from the state is outdated when it
    /// changes.
    pub(crate) rounds: u64,
    max_staleness: Duration,
}

impl State {
    /// The latest snapshot, unless it is too old at `now`.
    pub(crate) fn fresh(&self, now: Moment) -> Option<Arc<Snapshot>> {
        let fresh = |snapshot: &&Arc<Snapshot>| snapshot.age(now) <= self.max_staleness;
        self.snapshot.as_ref().filter(fresh).cloned()
    }
}

/// The state, shared between the poller, which changes it, and the server, which reads it.
///
/// The exporter's own metrics are stored elsewhere but belong to it: a poll changes them within [`Published::update`],
/// and they are rendered within [`Published::read`].
#[derive(Debug)]
pub(crate) struct Published {
    state: RwLock<State>,
    /// When the poller last showed that it lives.
    pulse: RwLock<Instant>,
}

impl Published {
    /// Nothing yet.
    pub(crate) fn new(max_staleness: Duration) -> Self {
        let state = State { snapshot: None, report: None, rounds: 0, max_staleness };
        Self { state: state.into(), pulse: RwLock::new(Instant::now()) }
    }

    /// Applies everything that a poll or round changes. Readers see all of it or nothing.
    pub(crate) fn update(&self, change: impl FnOnce(&mut State)) {
        let mut state = write(&self.state);
        change(&mut state);
        state.rounds += 1;
    }

    /// Reads several things as of one instant.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&read(&self.state))
    }

    /// The latest snapshot, unless it is too old at `now`.
    pub(crate) fn fresh(&self, now: Moment) -> Option<Arc<Snapshot>> {
        self.read(|state| state.fresh(now))
    }

    /// The poller lives at `now`.
    pub(crate) fn beat(&self, now: Instant) {
        *write(&self.pulse) = now;
    }

    /// How long the poller has not shown itself at `now`.
    pub(crate) fn silence(&self, now: Instant) -> Duration {
        now.saturating_duration_since(*read(&self.pulse))
    }
}

/// A panic in the poller ends the process, so nobody reads a state that it left half changed.
fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::model::Service;

    #[tokio::test(start_paused = true)]
    async fn a_snapshot_is_served_until_it_is_too_old() {
        let published = Published::new(Duration::from_mins(5));
        let taken_at = Clock::default().now();
        assert!(published.fresh(taken_at).is_none());
        let rendered = Rendered::new(b"a 1\n".to_vec(), Arc::default(), Statuses::documented(Service::Vm));
        let snapshot = Arc::new(Snapshot { rendered: Arc::new(rendered), infos: None, taken_at });
        published.update(|state| state.snapshot = Some(snapshot));
        let [young, old] = [300, 301].map(Duration::from_secs);
        let on_monotonic = |age| Moment { monotonic: taken_at.monotonic + age, ..taken_at };
        let on_wall = |age| Moment { wall: taken_at.wall + age, ..taken_at };
        assert!(published.fresh(on_monotonic(young)).is_some());
        assert!(published.fresh(on_monotonic(old)).is_none());
        assert!(published.fresh(on_wall(young)).is_some());
        assert!(published.fresh(on_wall(old)).is_none(), "the machine slept");
    }
}
