//! One poll, or one round of a collector: many requests that have to be done within one timeout.
//!
//! Invariant: a round that runs out of time reports the failure that kept it from finishing, also where that was an
//! earlier round's, and no connection outlives a round that failed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::{Action, ApiError, Client, Kind, Part, Session};

/// What is asked for within one timeout.
pub struct Round<'a> {
    client: &'a Client,
    what: &'static str,
    limit: Duration,
    failures: Arc<Failures>,
}

impl<'a> Round<'a> {
    pub(super) fn new(client: &'a Client, what: &'static str, limit: Duration) -> Self {
        Self { client, what, limit, failures: Arc::default() }
    }

    /// Reads the credential again, for the requests of this round.
    ///
    /// # Errors
    /// When its file does not hold it, or does not answer.
    pub async fn session(&self) -> Result<Session<'a>, ApiError> {
        // Half of the round at most: it is the file that has to be named, not the timeout of the round.
        let credential = self.client.credential(self.limit / 2).await?;
        Ok(Session { client: self.client, credential, failures: Arc::clone(&self.failures) })
    }

    /// Does the work of the round.
    ///
    /// # Errors
    /// When the work fails or takes too long. Then the last failure of a request that has not succeeded since is
    /// returned, or the rate limit that holds requests up; [`Kind::Deadline`] where there is neither.
    pub async fn finish<T>(&self, work: impl Future<Output = Result<T, ApiError>>) -> Result<T, ApiError> {
        let result = timeout(self.limit, work).await.unwrap_or_else(|_| {
            let overdue = format!("{} did not finish within {}", self.what, humantime::format_duration(self.limit));
            Err(match self.failures.take_last().or_else(|| self.refusal_that_holds_up()) {
                Some(error) => error.kept_from_finishing(&overdue),
                None => self.failures.deadline(overdue),
            })
        });
        if result.is_err() {
            self.client.transport.discard_all(Instant::now());
        }
        result
    }

    /// The rate limit for which requests of this round waited in the end, whichever round ran into it.
    fn refusal_that_holds_up(&self) -> Option<ApiError> {
        let is_held_up = self.failures.waiting.load(Ordering::Relaxed) > 0;
        is_held_up.then(|| self.client.pacer.refusal_in_force()).flatten()
    }
}

/// The requests that have no answer yet, with the last failure of each; the most recent failure is at the end.
#[derive(Default)]
pub(super) struct Failures {
    requests: AtomicU64,
    /// Requests that wait until they may start. One that is dropped while it waits stays counted.
    waiting: AtomicU64,
    open: Mutex<Vec<OpenRequest>>,
}

struct OpenRequest {
    number: u64,
    request: (Action, Part),
    error: Option<ApiError>,
}

impl Failures {
    /// A number for a request that begins.
    pub(super) fn begin(&self, action: Action, part: Part) -> u64 {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        self.open().push(OpenRequest { number, request: (action, part), error: None });
        number
    }

    /// A try of that request failed, and it will be tried again.
    pub(super) fn note(&self, number: u64, error: ApiError) {
        let mut open = self.open();
        let Some(place) = open.iter().position(|request| request.number == number) else { return };
        let request = open.remove(place);
        open.push(OpenRequest { error: Some(error), ..request });
    }

    /// Waits with a request until it may start.
    pub(super) async fn wait<T>(&self, admission: impl Future<Output = T>) -> T {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let admitted = admission.await;
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        admitted
    }

    /// That request is over, however it ended.
    pub(super) fn end(&self, number: u64) {
        self.open().retain(|request| request.number != number);
    }

    fn take_last(&self) -> Option<ApiError> {
        let mut open = self.open();
        let place = open.iter().rposition(|request| request.error.is_some())?;
        open.remove(place).error
    }

    /// The error of a round that ran out of time without a failure.
    fn deadline(&self, overdue: String) -> ApiError {
        let mut error = ApiError::new(Kind::Deadline, overdue);
        error.request = self.open().last().map(|unanswered| unanswered.request);
        error
    }

    fn open(&self) -> MutexGuard<'_, Vec<OpenRequest>> {
        // Every change is complete before anything could panic.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_failure_is_that_of_a_request_that_has_not_succeeded_since() {
        let failures = Failures::default();
        let [first, second, third] = std::array::from_fn(|n| failures.begin(Action::DescribeInstances, Part::Ids(n)));
        failures.note(first, ApiError::new(Kind::Server, "first"));
        failures.note(second, ApiError::new(Kind::Timeout, "second"));
        failures.note(third, ApiError::new(Kind::Connect, "third"));
        failures.note(first, ApiError::new(Kind::RateLimit, "first again"));
        failures.end(third);
        let mut taken = std::iter::from_fn(|| failures.take_last()).map(|error| error.kind);
        assert_eq!(taken.next(), Some(Kind::RateLimit));
        assert_eq!(taken.next(), Some(Kind::Timeout));
        assert_eq!(taken.next(), None);
        let unanswered = failures.begin(Action::DescribeInstances, Part::Page(7));
        let request = || failures.deadline(String::new()).request;
        assert_eq!(request(), Some((Action::DescribeInstances, Part::Page(7))));
        failures.end(unanswered);
        assert_eq!(request(), None);
    }
}
