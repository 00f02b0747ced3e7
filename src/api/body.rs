//! Reads bodies, each up to the limit that fits its request, and all of them within one budget of memory.
//!
//! Invariant: a body that waits for the budget holds none of it. A small one needs none; one that turns out larger
//! takes all that it may need at once. So bodies cannot wait for each other, and they take turns in the order they came.

use std::time::Duration;

use reqwest::Response;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout};

use super::wire::MAX_PAGE_SIZE;
use crate::buffer::Buffer;

/// A body up to this length needs nothing of the budget. A page of 1000 statuses has about 70 kB.
const SMALL: usize = 256 << 10;
/// What all larger bodies take together: two of the longest.
const BUDGET: usize = 32 << 20;

/// The most that a body with so many entries may have, where one with the most entries may have `longest`.
pub(super) fn limit(longest: usize, entries: usize) -> usize {
    (longest * entries / MAX_PAGE_SIZE).max(SMALL)
}

/// The memory for all bodies that are under way.
pub(super) struct Budget(Semaphore);

/// What was read of a body, with its part of the budget.
pub(super) struct Body<'a> {
    buffer: Buffer,
    room: Option<SemaphorePermit<'a>>,
}

impl Body<'_> {
    pub(super) fn bytes(&self) -> &[u8] {
        self.buffer.bytes()
    }
}

/// Why a body was not read to its end.
pub(super) enum ReadError {
    TooLong,
    TimedOut,
    Broken(reqwest::Error),
}

/// What is left of the time for a request. Waiting for the budget does not count.
pub(super) struct TimeLeft(pub(super) Duration);

impl TimeLeft {
    pub(super) async fn spend_on<F: Future>(&mut self, work: F) -> Result<F::Output, Elapsed> {
        let started = Instant::now();
        let result = timeout(self.0, work).await;
        self.0 = self.0.saturating_sub(started.elapsed());
        result
    }
}

impl Budget {
    pub(super) fn new() -> Self {
        Self(Semaphore::new(BUDGET))
    }

    /// Reads up to `limit` bytes. What came before an error is returned with it.
    pub(super) async fn read(
        &self,
        response: &mut Response,
        limit: usize,
        time: &mut TimeLeft,
    ) -> (Body<'_>, Result<(), ReadError>) {
        let announced = response.content_length().and_then(|length| usize::try_from(length).ok());
        let most = announced.map_or(limit, |length| length.min(limit));
        let mut body = Body { buffer: Buffer::with_capacity(most), room: None };
        loop {
            let chunk = match time.spend_on(response.chunk()).await {
                Ok(Ok(Some(chunk))) => chunk,
                Ok(Ok(None)) => return (body, Ok(())),
                Ok(Err(error)) => return (body, Err(ReadError::Broken(error))),
                Err(_) => return (body, Err(ReadError::TimedOut)),
            };
            let fits = chunk.len().min(limit - body.bytes().len());
            if body.bytes().len() + fits > SMALL && body.room.is_none() {
                body.room = Some(self.reserve(most).await);
            }
            body.buffer.extend([&chunk[..fits]]);
            if fits < chunk.len() {
                return (body, Err(ReadError::TooLong));
            }
        }
    }

    async fn reserve(&self, bytes: usize) -> SemaphorePermit<'_> {
        let bytes = u32::try_from(bytes.min(BUDGET)).expect("the budget is below 4 GiB");
        self.0.acquire_many(bytes).await.expect("the semaphore is never closed")
    }
}

/// A limit in words.
pub(super) fn in_words(limit: usize) -> String {
    match limit >> 10 {
        kib if kib % 1024 == 0 => format!("{} MiB", kib >> 10),
        kib => format!("{kib} KiB"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_fits_the_page_and_leaves_room_for_a_small_one() {
        let of = |longest: usize, entries| in_words(limit(longest << 20, entries));
        assert_eq!(of(2, 1000), "2 MiB");
        assert_eq!(of(2, 500), "1 MiB");
        assert_eq!(of(2, 300), "614 KiB");
        assert_eq!(of(2, 1), "256 KiB");
        assert_eq!(of(16, 1000), "16 MiB");
        assert_eq!(of(16, 100), "1638 KiB");
    }
}
