//! How fast the API is asked: every request of a client passes here.
//!
//! A rate limit is a word to the whole client, not to the request it hit: all requests wait out one pause, then
//! resume with fewer in flight and a gap between their starts. Each minute without a refusal takes a little of
//! that back, so what one poll learned serves the next. It must not know what is asked, or of whom.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Mutex as AsyncMutex, Notify};
use tokio::time::{Instant, sleep_until};

use super::ApiError;

/// The gap after a first refusal is the pause divided by this; it doubles with each further one, up to the pause: a
/// wider one would outlast the trouble it was learned from.
const FIRST_SPACING: u32 = 10;
/// A gap below the pause divided by this is not worth waiting for.
const NARROWEST_SPACING: u32 = 50;
/// How often the pause doubles while refusals follow each other: 1, 2, 4, 8 s, much as the vendor's SDKs wait.
const DOUBLINGS: u32 = 3;
/// How long without a refusal before one step back up.
const CLIMB_EVERY: Duration = Duration::from_mins(1);

/// Lets requests through, in the order they come.
#[derive(Debug)]
pub(crate) struct Pacer {
    pace: Mutex<Pace>,
    /// Held by whoever waits at the head of the queue.
    turn: AsyncMutex<()>,
    ended: Notify,
    last_refusal: Mutex<Option<ApiError>>,
}

/// One request that may be in flight; dropped when it is over.
#[derive(Debug)]
pub(crate) struct Permit<'a> {
    pacer: &'a Pacer,
    started: Instant,
}

impl Pacer {
    /// At most `most` requests in flight; `pause` is how long a first refusal stops them all where the API does not
    /// say how long.
    pub(crate) fn new(most: usize, pause: Duration) -> Self {
        Self {
            pace: Mutex::new(Pace::new(most, pause, Instant::now())),
            turn: AsyncMutex::new(()),
            ended: Notify::new(),
            last_refusal: Mutex::default(),
        }
    }

    /// Keeps the error of a refusal for the requests that it holds up.
    pub(crate) fn remember(&self, refusal: &ApiError) {
        *self.last_refusal() = Some(refusal.clone());
    }

    /// The last refusal, for as long as it stops or slows requests.
    pub(crate) fn refusal_in_force(&self) -> Option<ApiError> {
        let is_in_force = self.pace().is_slowed(Instant::now());
        self.last_refusal().clone().filter(|_| is_in_force)
    }

    /// Waits until another request may start.
    pub(crate) async fn admit(&self) -> Permit<'_> {
        let _turn = self.turn.lock().await;
        loop {
            let now = Instant::now();
            let admission = self.pace().admit(now);
            match admission {
                Admission::Now => return Permit { pacer: self, started: now },
                Admission::At(when) => sleep_until(when).await,
                Admission::WhenOneEnds => self.ended.notified().await,
            }
        }
    }

    fn last_refusal(&self) -> MutexGuard<'_, Option<ApiError>> {
        // It is replaced whole.
        self.last_refusal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pace(&self) -> MutexGuard<'_, Pace> {
        // Every change to the pace is complete before anything could panic.
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Permit<'_> {
    /// The API answered, whatever it said.
    pub(crate) fn accepted(self) {
        self.pacer.pace().accepted(self.started);
    }

    /// The API refused for its rate limit. Returns how long every request now waits.
    pub(crate) fn refused(self, retry_after: Option<Duration>) -> Duration {
        self.pacer.pace().refused(self.started, Instant::now(), retry_after)
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.pacer.pace().in_flight -= 1;
        self.pacer.ended.notify_one();
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Admission {
    Now,
    At(Instant),
    WhenOneEnds,
}

/// The state behind the gate; time is an argument.
#[derive(Debug)]
struct Pace {
    most: usize,
    first_pause: Duration,
    limit: usize,
    in_flight: usize,
    spacing: Duration,
    next_start: Instant,
    refusals_in_a_row: u32,
    /// When the last refusal came that was news.
    refused_at: Option<Instant>,
    /// When the pace last changed.
    stepped_at: Instant,
}

impl Pace {
    fn new(most: usize, first_pause: Duration, now: Instant) -> Self {
        Self {
            most,
            first_pause,
            limit: most,
            in_flight: 0,
            spacing: Duration::ZERO,
            next_start: now,
            refusals_in_a_row: 0,
            refused_at: None,
            stepped_at: now,
        }
    }

    fn admit(&mut self, now: Instant) -> Admission {
        self.climb(now);
        if self.in_flight >= self.limit {
            return Admission::WhenOneEnds;
        }
        if now < self.next_start {
            return Admission::At(self.next_start);
        }
        self.in_flight += 1;
        self.next_start = now + self.spacing;
        Admission::Now
    }

    fn accepted(&mut self, started: Instant) {
        if self.is_news(started) {
            self.refusals_in_a_row = 0;
        }
    }

    /// A request that was under way when the last refusal came says nothing new.
    fn is_news(&self, started: Instant) -> bool {
        self.refused_at.is_none_or(|at| started > at)
    }

    fn refused(&mut self, started: Instant, now: Instant, retry_after: Option<Duration>) -> Duration {
        if self.is_news(started) {
            self.refused_at = Some(now);
            self.stepped_at = now;
            self.limit = (self.limit / 2).max(1);
            self.spacing = (self.spacing * 2).clamp(self.first_pause / FIRST_SPACING, self.first_pause);
            let pause = self.first_pause * (1 << self.refusals_in_a_row.min(DOUBLINGS));
            self.refusals_in_a_row += 1;
            self.next_start = self.next_start.max(now + pause);
        }
        if let Some(asked) = retry_after {
            self.next_start = self.next_start.max(now + asked);
        }
        self.next_start.saturating_duration_since(now)
    }

    /// Whether a refusal still stops or slows requests.
    fn is_slowed(&mut self, now: Instant) -> bool {
        self.climb(now);
        self.has_learned() || now < self.next_start
    }

    fn has_learned(&self) -> bool {
        self.limit < self.most || !self.spacing.is_zero()
    }

    fn climb(&mut self, now: Instant) {
        while self.has_learned() {
            let Some(next_step) = self.stepped_at.checked_add(CLIMB_EVERY).filter(|&step| step <= now) else {
                return;
            };
            self.stepped_at = next_step;
            self.limit = (self.limit + 1).min(self.most);
            self.spacing = self.spacing * 3 / 4;
            if self.spacing < self.first_pause / NARROWEST_SPACING {
                self.spacing = Duration::ZERO;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    const fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn one_burst_of_refusals_is_one_lesson() {
        let start = Instant::now();
        let mut pace = Pace::new(8, SECOND, start);
        assert_eq!(pace.refused(start, start + millis(10), None), SECOND);
        pace.refused(start + millis(5), start + millis(12), None);
        assert_eq!((pace.limit, pace.spacing), (4, millis(100)));
        let after = start + Duration::from_secs(2);
        assert_eq!(pace.refused(after, after + millis(10), None), Duration::from_secs(2));
        assert_eq!((pace.limit, pace.spacing), (2, millis(200)));
    }

    #[test]
    fn an_answer_makes_the_next_pause_short_again() {
        let start = Instant::now();
        let mut pace = Pace::new(1, SECOND, start);
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(pace.refused(start, start, None), SECOND);
        pace.accepted(start);
        assert_eq!(pace.refused(at(10), at(10), None), 2 * SECOND, "an answer from before the refusal is no news");
        pace.accepted(at(20));
        assert_eq!(pace.refused(at(30), at(30), None), SECOND);
        for refusals in 4..10 {
            pace.refused(at(refusals * 10), at(refusals * 10), None);
        }
        assert_eq!(pace.spacing, SECOND, "the gap has a bound");
        assert_eq!(pace.refused(at(200), at(200), None), 8 * SECOND, "and so has the pause");
    }

    #[test]
    fn a_longer_wait_that_the_api_asks_for_is_kept() {
        let start = Instant::now();
        let mut pace = Pace::new(2, SECOND, start);
        let asked = Duration::from_secs(30);
        assert_eq!(pace.refused(start, start, Some(asked)), asked);
        assert_eq!(pace.admit(start + millis(1)), Admission::At(start + asked));
        assert_eq!(pace.admit(start + asked), Admission::Now);
        assert_eq!(pace.admit(start + asked), Admission::WhenOneEnds);
    }

    #[test]
    fn it_climbs_back_slowly_and_all_the_way() {
        let start = Instant::now();
        let mut pace = Pace::new(4, SECOND, start);
        pace.refused(start, start, None);
        pace.climb(start + Duration::from_secs(59));
        assert_eq!((pace.limit, pace.spacing), (2, millis(100)));
        pace.climb(start + Duration::from_mins(1));
        assert_eq!((pace.limit, pace.spacing), (3, millis(75)));
        assert!(pace.is_slowed(start + Duration::from_mins(1)));
        pace.climb(start + Duration::from_hours(1));
        assert_eq!((pace.limit, pace.spacing), (4, Duration::ZERO));
        assert!(!pace.is_slowed(start + Duration::from_hours(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_than_the_limit_are_in_flight_and_none_is_forgotten() {
        let pacer = Pacer::new(2, SECOND);
        let first = pacer.admit().await;
        let second = pacer.admit().await;
        let third = tokio::time::timeout(millis(50), pacer.admit()).await;
        assert!(third.is_err(), "a third request went through");
        first.accepted();
        let third = tokio::time::timeout(millis(50), pacer.admit()).await;
        assert!(third.is_ok(), "the third request never went through");
        drop(second);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_stops_those_who_wait_already() {
        let pacer = Pacer::new(4, SECOND);
        let start = Instant::now();
        pacer.admit().await.refused(Some(Duration::from_secs(5)));
        pacer.admit().await.accepted();
        pacer.admit().await.accepted();
        assert_eq!(start.elapsed(), Duration::from_secs(5) + millis(100));
    }
}
