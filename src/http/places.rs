//! The places that connections have, and whose is given to the next one when all are taken.
//!
//! Invariant: no more places are taken than there are, and none is taken away from a connection while a request of
//! its is under way, unless that takes too long. It must not know sockets or protocols.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// How long a request may be under way: from its head to the last byte of its answer. No scrape may take longer than
/// the interval it is repeated at, and few are a minute apart.
const LONGEST_REQUEST: Duration = Duration::from_mins(1);
/// How long a connection may wait for its next request. Less than `LONGEST_REQUEST`, so that no time limit comes
/// earlier than the one before it; and no scrape interval, so that it does not end as the next scrape begins.
const LONGEST_IDLE: Duration = Duration::from_secs(50);

/// All places.
pub(super) struct Places {
    limit: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: u64,
    taken: HashMap<u64, Taken>,
    /// Since when, and which place: the connections without a request.
    idle: BTreeSet<(Instant, u64)>,
}

struct Taken {
    idle_since: Instant,
    /// Since when, and which request.
    under_way: BTreeSet<(Instant, u64)>,
    given_away: Arc<Notify>,
}

/// One connection's place, free again when dropped.
pub(super) struct Place {
    places: Arc<Places>,
    number: u64,
    given_away: Arc<Notify>,
}

/// A request, until this is dropped.
pub(super) struct UnderWay {
    place: Arc<Place>,
    request: (Instant, u64),
}

impl Places {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, state: Mutex::default() })
    }

    /// A free place, or that of the connection that has been idle for longest; `None` where every connection has a
    /// request under way.
    pub(super) fn take(self: &Arc<Self>) -> Option<Arc<Place>> {
        let mut state = self.state();
        if state.taken.len() >= self.limit {
            let (_, longest_idle) = state.idle.pop_first()?;
            let taken = state.taken.remove(&longest_idle).expect("who is idle has a place");
            taken.given_away.notify_one();
        }
        let (now, number, given_away) = (Instant::now(), state.number(), Arc::new(Notify::new()));
        let taken = Taken { idle_since: now, under_way: BTreeSet::new(), given_away: Arc::clone(&given_away) };
        state.taken.insert(number, taken);
        state.idle.insert((now, number));
        Some(Arc::new(Place { places: Arc::clone(self), number, given_away }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

impl Place {
    /// A request begins.
    pub(super) fn begin(self: &Arc<Self>) -> UnderWay {
        let mut state = self.places.state();
        let request = (Instant::now(), state.number());
        // A place that was given away meanwhile has a connection that is about to end.
        if let Some(taken) = state.taken.get_mut(&self.number) {
            taken.under_way.insert(request);
            let idle = (taken.idle_since, self.number);
            state.idle.remove(&idle);
        }
        UnderWay { place: Arc::clone(self), request }
    }

    /// Waits until the connection is to end, and says why.
    pub(super) async fn lost(&self) -> &'static str {
        loop {
            let Some((due, why)) = self.due() else { return "another needed its place" };
            if due <= Instant::now() {
                return why;
            }
            tokio::select! {
                () = self.given_away.notified() => {}
                () = tokio::time::sleep_until(due) => {}
            }
        }
    }

    /// Until when what it does now has to end; `None` where the place was given away.
    fn due(&self) -> Option<(Instant, &'static str)> {
        let state = self.places.state();
        let taken = state.taken.get(&self.number)?;
        Some(match taken.under_way.first() {
            Some((since, _)) => (*since + LONGEST_REQUEST, "a request took too long"),
            None => (taken.idle_since + LONGEST_IDLE, "it was idle for too long"),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.places.state();
        if let Some(taken) = state.taken.remove(&self.number) {
            state.idle.remove(&(taken.idle_since, self.number));
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut state = self.place.places.state();
        let Some(taken) = state.taken.get_mut(&self.place.number) else { return };
        taken.under_way.remove(&self.request);
        if taken.under_way.is_empty() {
            taken.idle_since = Instant::now();
            let idle = (taken.idle_since, self.place.number);
            state.idle.insert(idle);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn is_lost(place: &Place) -> bool {
        tokio::time::timeout(Duration::ZERO, place.lost()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_idle_for_longest_makes_room() {
        let places = Places::new(2);
        let (one, other) = (places.take().unwrap(), places.take().unwrap());
        tokio::time::advance(Duration::from_secs(1)).await;
        drop(one.begin());
        let third = places.take().unwrap();
        assert_eq!(other.lost().await, "another needed its place");
        assert!(!is_lost(&one).await && !is_lost(&third).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_keeps_its_place_until_its_last_stream_ends() {
        let places = Places::new(1);
        let place = places.take().unwrap();
        let (one, other) = (place.begin(), place.begin());
        assert!(places.take().is_none());
        drop(one);
        assert!(places.take().is_none(), "another request is still under way");
        drop(other);
        assert!(places.take().is_some());
        assert!(is_lost(&place).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_that_was_given_away_frees_none_when_its_connection_ends() {
        let places = Places::new(1);
        let lost = places.take().unwrap();
        let kept = places.take().unwrap();
        let late = lost.begin();
        let _busy = kept.begin();
        drop((late, lost));
        assert!(places.take().is_none(), "there is one place, and it is taken");
        assert_eq!(places.state().idle.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn places_come_back_with_their_connections() {
        let places = Places::new(3);
        for _ in 0..10 {
            let taken: Vec<_> = (0..3).map(|_| places.take().unwrap()).collect();
            let busy: Vec<_> = taken.iter().map(Place::begin).collect();
            assert!(places.take().is_none());
            drop((taken, busy));
            assert!(places.state().taken.is_empty() && places.state().idle.is_empty());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_has_its_time_and_so_has_the_wait_for_the_next() {
        let places = Places::new(1);
        let place = places.take().unwrap();
        let begun = Instant::now();
        assert_eq!(place.lost().await, "it was idle for too long");
        assert_eq!(begun.elapsed(), LONGEST_IDLE);

        let place = places.take().unwrap();
        tokio::time::advance(Duration::from_secs(40)).await;
        let slow = place.begin();
        let begun = Instant::now();
        tokio::time::advance(Duration::from_secs(30)).await;
        drop(place.begin());
        assert_eq!(place.lost().await, "a request took too long", "another on the same connection is no excuse");
        assert_eq!(begun.elapsed(), LONGEST_REQUEST);
        drop(slow);
    }
}
