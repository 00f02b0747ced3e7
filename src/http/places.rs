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
/// How long a connection is left alone at least, so that a client has the time for its handshake and its head however
/// many more come behind it: those wait to be accepted.
const GRACE: Duration = Duration::from_millis(250);

/// All places.
pub(super) struct Places {
    limit: usize,
    freed: Notify,
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

/// Why there is no place now.
enum Full {
    /// Every connection has a request under way.
    Busy,
    /// The one that is idle for longest is left alone until then.
    Until(Instant),
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
        Arc::new(Self { limit, freed: Notify::new(), state: Mutex::default() })
    }

    /// A free place, or that of the connection that has been idle for longest; `None` where every connection has a
    /// request under way.
    pub(super) async fn take(self: &Arc<Self>) -> Option<Arc<Place>> {
        loop {
            match self.try_take() {
                Ok(place) => return Some(place),
                Err(Full::Busy) => return None,
                Err(Full::Until(grace_ends)) => tokio::select! {
                    () = self.freed.notified() => {}
                    () = tokio::time::sleep_until(grace_ends) => {}
                },
            }
        }
    }

    fn try_take(self: &Arc<Self>) -> Result<Arc<Place>, Full> {
        let (mut state, now) = (self.state(), Instant::now());
        if state.taken.len() >= self.limit {
            let &(since, longest_idle) = state.idle.first().ok_or(Full::Busy)?;
            if now < since + GRACE {
                return Err(Full::Until(since + GRACE));
            }
            state.idle.pop_first();
            let taken = state.taken.remove(&longest_idle).expect("who is idle has a place");
            taken.given_away.notify_one();
        }
        let (number, given_away) = (state.number(), Arc::new(Notify::new()));
        let taken = Taken { idle_since: now, under_way: BTreeSet::new(), given_away: Arc::clone(&given_away) };
        state.taken.insert(number, taken);
        state.idle.insert((now, number));
        Ok(Arc::new(Place { places: Arc::clone(self), number, given_away }))
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
            self.places.freed.notify_one();
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
        let (one, other) = (places.take().await.unwrap(), places.take().await.unwrap());
        tokio::time::advance(Duration::from_secs(1)).await;
        drop(one.begin());
        let third = places.take().await.unwrap();
        assert_eq!(other.lost().await, "another needed its place");
        assert!(!is_lost(&one).await && !is_lost(&third).await);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_sent_away_before_it_could_ask() {
        let places = Places::new(1);
        let (begun, place) = (Instant::now(), places.take().await.unwrap());
        let next = places.take().await.unwrap();
        assert_eq!(begun.elapsed(), GRACE);
        assert!(is_lost(&place).await);
        drop(next);
        let begun = Instant::now();
        let place = places.take().await.unwrap();
        tokio::join!(async { drop(place) }, async { places.take().await.unwrap() });
        assert_eq!(begun.elapsed(), Duration::ZERO, "a place that is free is given at once");
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_keeps_its_place_until_its_last_stream_ends() {
        let places = Places::new(1);
        let place = places.take().await.unwrap();
        let (one, other) = (place.begin(), place.begin());
        assert!(places.take().await.is_none());
        drop(one);
        assert!(places.take().await.is_none(), "another request is still under way");
        drop(other);
        assert!(places.take().await.is_some());
        assert!(is_lost(&place).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_that_was_given_away_frees_none_when_its_connection_ends() {
        let places = Places::new(1);
        let lost = places.take().await.unwrap();
        let kept = places.take().await.unwrap();
        let late = lost.begin();
        let _busy = kept.begin();
        drop((late, lost));
        assert!(places.take().await.is_none(), "there is one place, and it is taken");
        assert_eq!(places.state().idle.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn places_come_back_with_their_connections() {
        let places = Places::new(3);
        for _ in 0..10 {
            let taken = [places.take().await.unwrap(), places.take().await.unwrap(), places.take().await.unwrap()];
            let busy: Vec<_> = taken.iter().map(Place::begin).collect();
            assert!(places.take().await.is_none());
            drop((taken, busy));
            assert!(places.state().taken.is_empty() && places.state().idle.is_empty());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_has_its_time_and_so_has_the_wait_for_the_next() {
        let places = Places::new(1);
        let place = places.take().await.unwrap();
        let begun = Instant::now();
        assert_eq!(place.lost().await, "it was idle for too long");
        assert_eq!(begun.elapsed(), LONGEST_IDLE);

        let place = places.take().await.unwrap();
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
