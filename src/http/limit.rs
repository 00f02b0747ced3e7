//! The limit on connections: which one is closed when another comes, and which one has used up its time.
//!
//! Invariant: a new connection is always admitted, and no more than the limit have sent a request. If one has to be closed,
//! it is one that has sent no request; else the one that is idle for longest; else the one whose client has taken no byte
//! of its response for longest.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Time for the head of a request, and for the TLS handshake before the first one.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Time between two requests: longer than the scrape intervals in common use, and no multiple of them, so that a
/// connection is not closed just as the next scrape begins.
const IDLE_TIMEOUT: Duration = Duration::from_secs(50);
/// Time from the head of a request to the last byte of its response, which keeps an old snapshot in memory.
const REQUEST_TIMEOUT: Duration = Duration::from_mins(1);
/// A new connection has this time for its handshake and first head before it goes first.
const GRACE: Duration = Duration::from_millis(100);
/// Connections beyond the limit while no request was sent on them: in a burst, a client needs time to send one.
/// Far more than tokio accepts before other tasks have their turn, so that what was sent is read first.
const MAX_NEW: usize = 2048;
/// How often connections are checked for having used up their time.
const SWEEP_INTERVAL: Duration = Duration::from_millis(500);

/// All connections.
pub(super) struct ConnectionLimit {
    /// Connections that have sent a request.
    limit: usize,
    /// All connections.
    total: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: u64,
    open: HashMap<u64, Entry>,
}

struct Entry {
    phase: Phase,
    /// When the phase began.
    since: Instant,
    /// When a byte was last read or written.
    active: Instant,
    /// Dropped with the entry, which closes the connection.
    _close: oneshot::Sender<Infallible>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No request was sent yet.
    New,
    /// Between two requests.
    Idle,
    /// The head of another request has begun.
    Head,
    /// That many requests are in progress.
    Busy(usize),
}

/// Whose place is taken first: the smallest.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Silent(Instant),
    Idle(Instant),
    Active(Instant),
}

/// One connection's place under the limit, free again when dropped.
pub(super) struct Place {
    limit: Arc<ConnectionLimit>,
    number: u64,
}

/// Resolves when the connection has to be closed.
pub(super) type Closed = oneshot::Receiver<Infallible>;

/// A request in progress, until this is dropped.
pub(super) struct InProgress(Arc<Place>);

impl Entry {
    fn rank(&self, now: Instant) -> Rank {
        match self.phase {
            Phase::New if now - self.since > GRACE => Rank::Silent(self.since),
            Phase::New => Rank::Active(self.since),
            Phase::Idle | Phase::Head => Rank::Idle(self.since),
            Phase::Busy(_) => Rank::Active(self.active),
        }
    }

    fn is_overdue(&self, now: Instant) -> bool {
        let timeout = match self.phase {
            Phase::New | Phase::Head => HEAD_TIMEOUT,
            Phase::Idle => IDLE_TIMEOUT,
            Phase::Busy(_) => REQUEST_TIMEOUT,
        };
        now - self.since > timeout
    }

    fn enter(&mut self, phase: Phase) {
        (self.phase, self.since) = (phase, Instant::now());
    }
}

impl ConnectionLimit {
    /// `room` is what the process can open at all.
    pub(super) fn new(limit: usize, room: usize) -> Arc<Self> {
        let limit = limit.min(room);
        Arc::new(Self { limit, total: room.min(limit + MAX_NEW), state: Mutex::default() })
    }

    /// A place for one more connection, if need be that of another one.
    pub(super) fn admit(self: &Arc<Self>) -> (Place, Closed) {
        let (mut state, now) = (self.state(), Instant::now());
        if state.open.len() >= self.total {
            state.close_first(|_| true);
        }
        let (close, closed) = oneshot::channel();
        let number = state.next;
        state.next += 1;
        state.open.insert(number, Entry { phase: Phase::New, since: now, active: now, _close: close });
        (Place { limit: Arc::clone(self), number }, closed)
    }

    /// Closes connections that have used up their time, for ever.
    pub(super) async fn close_overdue(self: Arc<Self>) {
        loop {
            tokio::time::sleep(SWEEP_INTERVAL).await;
            let now = Instant::now();
            self.state().open.retain(|_, entry| {
                let overdue = entry.is_overdue(now);
                if overdue {
                    tracing::debug!(phase = ?entry.phase, "closing a connection: its time is up");
                }
                !overdue
            });
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Closes one of those connections.
    fn close_first(&mut self, is_one: impl Fn(&Entry) -> bool) {
        let now = Instant::now();
        let ones = self.open.iter().filter(|(_, entry)| is_one(entry));
        let first = ones.min_by_key(|(number, entry)| (entry.rank(now), **number)).map(|(number, _)| *number);
        let closed = first.and_then(|number| self.open.remove(&number));
        tracing::debug!(phase = ?closed.map(|entry| entry.phase), "closing a connection: another needs its place");
    }
}

impl Place {
    /// A request begins: with the first one, the connection counts towards the limit.
    pub(super) fn begin(self: &Arc<Self>) -> InProgress {
        let mut state = self.limit.state();
        match state.open.get_mut(&self.number).map(|entry| (entry.phase, entry)) {
            Some((Phase::New, _)) => {
                let has_asked = |entry: &Entry| entry.phase != Phase::New;
                if state.open.values().filter(|entry| has_asked(entry)).count() >= self.limit.limit {
                    state.close_first(has_asked);
                }
                state.open.entry(self.number).and_modify(|entry| entry.enter(Phase::Busy(1)));
            }
            Some((Phase::Busy(requests), entry)) => entry.phase = Phase::Busy(requests + 1),
            Some((_, entry)) => entry.enter(Phase::Busy(1)),
            None => {}
        }
        InProgress(Arc::clone(self))
    }

    /// Does nothing if the place was given to another connection: this one is about to end.
    fn change(&self, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.limit.state().open.get_mut(&self.number) {
            change(entry);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.limit.state().open.remove(&self.number);
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        self.0.change(|entry| match entry.phase {
            Phase::Busy(requests) if requests > 1 => entry.phase = Phase::Busy(requests - 1),
            _ => entry.enter(Phase::Idle),
        });
    }
}

/// A stream that reports its reads and writes to the connection's place.
pub(super) struct Watched<S> {
    stream: S,
    place: Arc<Place>,
    /// Whether a byte that is read while the connection is idle begins the head of a request: not so in HTTP/2.
    reads_heads: bool,
}

impl<S> Watched<S> {
    pub(super) fn new(stream: S, place: Arc<Place>, reads_heads: bool) -> Self {
        Self { stream, place, reads_heads }
    }

    fn wrote(&self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(1..)) = result {
            self.place.change(|entry| entry.active = Instant::now());
        }
        result
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.place.change(|entry| {
                entry.active = Instant::now();
                if self.reads_heads && entry.phase == Phase::Idle {
                    entry.enter(Phase::Head);
                }
            });
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.wrote(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.wrote(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    fn admit(limit: &Arc<ConnectionLimit>) -> (Arc<Place>, Closed) {
        let (place, closed) = limit.admit();
        (Arc::new(place), closed)
    }

    fn is_closed(closed: &mut Closed) -> bool {
        closed.try_recv() == Err(oneshot::error::TryRecvError::Closed)
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_connection_takes_the_place_of_the_least_active_one() {
        let limit = ConnectionLimit::new(9, 4);
        let ((_silent, mut silent), (stalled, mut stalled_closed)) = (admit(&limit), admit(&limit));
        let _in_progress = stalled.begin();
        let (idle, mut idle_closed) = admit(&limit);
        drop(idle.begin());
        tokio::time::advance(GRACE + Duration::from_millis(1)).await;
        let mut new = vec![admit(&limit), admit(&limit)];
        assert!(is_closed(&mut silent) && !is_closed(&mut idle_closed), "no request was sent on the first one");
        new.push(admit(&limit));
        assert!(is_closed(&mut idle_closed) && !is_closed(&mut stalled_closed));
        new.push(admit(&limit));
        assert!(is_closed(&mut stalled_closed), "its client has taken nothing since before the others were new");
        assert!(!new.iter_mut().any(|(_, closed)| is_closed(closed)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_first_request_takes_the_place_of_an_idle_connection_or_of_one_whose_client_takes_nothing() {
        let limit = ConnectionLimit::new(3, 99);
        let ((reading, mut reading_closed), (stalled, mut stalled_closed)) = (admit(&limit), admit(&limit));
        let mut in_progress = vec![reading.begin(), stalled.begin()];
        let (idle, mut idle_closed) = admit(&limit);
        drop(idle.begin());
        let mut new: Vec<_> = (0..3).map(|_| admit(&limit)).collect();
        assert!(!is_closed(&mut idle_closed), "no request was sent on the new ones");
        in_progress.push(new[0].0.begin());
        assert!(is_closed(&mut idle_closed));
        tokio::time::advance(Duration::from_secs(2)).await;
        let (server, _client) = duplex(1);
        Watched::new(server, Arc::clone(&reading), true).write_u8(b'x').await.unwrap();
        in_progress.push(new[1].0.begin());
        assert!(is_closed(&mut stalled_closed) && !is_closed(&mut reading_closed));
        assert!(!new.iter_mut().any(|(_, closed)| is_closed(closed)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_busy_until_its_last_request_ends() {
        let limit = ConnectionLimit::new(2, 99);
        let ((first, mut first_closed), (second, mut second_closed)) = (admit(&limit), admit(&limit));
        let requests = (first.begin(), first.begin());
        drop(second.begin());
        drop(requests.0);
        let third = admit(&limit);
        let _in_progress = third.0.begin();
        assert!(is_closed(&mut second_closed) && !is_closed(&mut first_closed));
    }

    #[tokio::test(start_paused = true)]
    async fn there_are_never_more_connections_than_the_limits() {
        let limit = ConnectionLimit::new(3, 7);
        for _ in 0..10 {
            let places: Vec<_> = (0..9).map(|_| admit(&limit)).collect();
            assert_eq!(limit.state().open.len(), 7);
            let in_progress: Vec<_> = places.iter().map(|(place, _)| place.begin()).collect();
            assert_eq!(limit.state().open.len(), 3);
            drop((in_progress, places));
            assert_eq!(limit.state().open.len(), 0, "places are free again when connections end");
        }
    }

    /// How long a connection stays open, to the next sweep.
    async fn lifetime(closed: &mut Closed) -> Duration {
        let begun = Instant::now();
        closed.await.unwrap_err();
        begun.elapsed()
    }

    fn is_about(time: Duration, expected: Duration) -> bool {
        (expected..=expected + 2 * SWEEP_INTERVAL).contains(&time)
    }

    #[tokio::test(start_paused = true)]
    async fn each_phase_has_its_time() {
        let limit = ConnectionLimit::new(9, 9);
        let sweeper = tokio::spawn(Arc::clone(&limit).close_overdue());
        let (_place, mut closed) = admit(&limit);
        assert!(is_about(lifetime(&mut closed).await, HEAD_TIMEOUT));

        let (place, mut closed) = admit(&limit);
        drop(place.begin());
        assert!(is_about(lifetime(&mut closed).await, IDLE_TIMEOUT));

        let (place, mut closed) = admit(&limit);
        let _in_progress = place.begin();
        tokio::time::advance(Duration::from_secs(30)).await;
        drop(place.begin());
        let left = lifetime(&mut closed).await + Duration::from_secs(30);
        assert!(is_about(left, REQUEST_TIMEOUT), "a second request on the connection gives no more time: {left:?}");
        sweeper.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_for_a_head_begins_with_its_first_byte() {
        for (reads_heads, expected) in
            [(true, HEAD_TIMEOUT), (false, IDLE_TIMEOUT.saturating_sub(Duration::from_secs(20)))]
        {
            let limit = ConnectionLimit::new(1, 1);
            let sweeper = tokio::spawn(Arc::clone(&limit).close_overdue());
            let (place, mut closed) = admit(&limit);
            drop(place.begin());
            tokio::time::sleep(Duration::from_secs(20)).await;
            let (mut client, server) = duplex(9);
            client.write_u8(b'G').await.unwrap();
            Watched::new(server, Arc::clone(&place), reads_heads).read_u8().await.unwrap();
            assert!(is_about(lifetime(&mut closed).await, expected));
            sweeper.abort();
        }
    }
}
