//! Limits connections: which one is closed when another needs its place, and which one has used up its time.
//!
//! Invariant: a new connection is always accepted, and each stage of a connection has a limit of its own. Clients that
//! have not shown that they may send requests therefore never close the connections of those that have. A stage that is
//! full closes one of its own connections:
//!
//! - silent, handshake and pending: one of the source with the most, so that no source closes the connections of the others
//! - admitted: the one that is idle for longest, else the one whose client has taken no byte of its response for longest

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::source::Source;

/// Time for the head of a request, and for the TLS handshake before the first one.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Time between two requests: enough for scrapes every 15 or 30 seconds, and no multiple of these, so that a connection is
/// not closed just as the next scrape begins. A client that scrapes once a minute, the default of Prometheus, connects for
/// each scrape.
const IDLE_TIMEOUT: Duration = Duration::from_secs(50);
/// Time from the head of a request to the last byte of its response, which keeps an old snapshot in memory.
const REQUEST_TIMEOUT: Duration = Duration::from_mins(1);
/// Silent connections: they cost little, and in a burst a client needs time to send its first byte. Far more than tokio
/// accepts before other tasks have their turn, so that what was sent is read first.
const MAX_SILENT: usize = 2048;
/// Connections in their TLS handshake, each of which may have a `ClientHello` of 4 KiB: enough for a burst of clients.
const MAX_HANDSHAKES: usize = 1536;
/// Pending connections: each may have the buffers of TLS and HTTP/2, about 75 KiB.
pub(super) const MAX_PENDING: usize = 512;
/// A connection is young for this long, time for a handshake and the head of a request, and is closed after the others.
const GRACE: Duration = Duration::from_millis(500);
/// Connections that may be about to be closed before accepting lets them go first.
const MAX_CLOSING: usize = 64;
/// How often connections are checked for having used up their time.
const SWEEP_INTERVAL: Duration = Duration::from_millis(500);

/// What connections without an admitted request may take.
pub(super) const MAX_NEWCOMERS: usize = MAX_SILENT + MAX_HANDSHAKES + MAX_PENDING;
const NEWCOMERS: [Stage; 3] = [Stage::Silent, Stage::Handshake, Stage::Pending];

/// How far a connection has come. It never goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// The client has sent nothing.
    Silent,
    /// The TLS handshake has begun.
    Handshake,
    /// No request was admitted yet: the head of a request, or a password that waits for its check.
    Pending,
    /// A request was admitted.
    Admitted,
}

/// All connections.
pub(super) struct ConnectionLimit {
    /// The most connections of each [`Stage`].
    limits: [usize; 4],
    /// The most connections of all stages.
    total: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: u64,
    /// By [`Stage`].
    stages: [Entries; 4],
}

/// The connections of one stage.
#[derive(Default)]
struct Entries {
    /// By source, in the order in which they were opened.
    sources: HashMap<Source, BTreeMap<u64, Entry>>,
    count: usize,
}

/// Identifies a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Id {
    source: Source,
    number: u64,
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
    /// The head of a request is expected, or has begun.
    Head,
    /// Between two requests.
    Idle,
    /// That many requests are in progress.
    Busy(usize),
}

/// One connection's place under the limit, free again when dropped.
pub(super) struct ConnectionSlot {
    limit: Arc<ConnectionLimit>,
    id: Id,
}

/// Resolves when the connection has to be closed.
pub(super) type Closed = oneshot::Receiver<Infallible>;

/// A request in progress, until this is dropped.
pub(super) struct InProgress(Arc<ConnectionSlot>);

impl Entry {
    /// The one with the smallest is closed first.
    fn activity(&self) -> (bool, Instant) {
        match self.phase {
            Phase::Head | Phase::Idle => (false, self.since),
            Phase::Busy(_) => (true, self.active),
        }
    }

    fn is_young(&self, now: Instant) -> bool {
        now - self.since < GRACE
    }

    fn is_overdue(&self, now: Instant) -> bool {
        let timeout = match self.phase {
            Phase::Head => HEAD_TIMEOUT,
            Phase::Idle => IDLE_TIMEOUT,
            Phase::Busy(_) => REQUEST_TIMEOUT,
        };
        now - self.since > timeout
    }

    fn enter(&mut self, phase: Phase) {
        (self.phase, self.since) = (phase, Instant::now());
    }
}

impl Entries {
    fn insert(&mut self, id: Id, entry: Entry) {
        self.sources.entry(id.source).or_default().insert(id.number, entry);
        self.count += 1;
    }

    fn get_mut(&mut self, id: Id) -> Option<&mut Entry> {
        self.sources.get_mut(&id.source)?.get_mut(&id.number)
    }

    fn remove(&mut self, id: Id) -> Option<Entry> {
        let entries = self.sources.get_mut(&id.source)?;
        let entry = entries.remove(&id.number)?;
        if entries.is_empty() {
            self.sources.remove(&id.source);
        }
        self.count -= 1;
        Some(entry)
    }

    fn count_of(&self, source: Source) -> usize {
        self.sources.get(&source).map_or(0, BTreeMap::len)
    }

    /// The connections of the sources that pass the filter.
    fn of(&self, is_wanted: impl Fn(Source) -> bool) -> impl Iterator<Item = (Id, &Entry)> {
        let wanted = self.sources.iter().filter(move |(source, _)| is_wanted(**source));
        wanted.flat_map(|(&source, entries)| entries.iter().map(move |(&number, entry)| (Id { source, number }, entry)))
    }

    fn iter(&self) -> impl Iterator<Item = (Id, &Entry)> {
        self.of(|_| true)
    }
}

impl ConnectionLimit {
    /// `limit` is for admitted connections. `room` is what the process can open at all.
    pub(super) fn new(limit: usize, room: usize) -> Arc<Self> {
        Arc::new(Self {
            limits: [MAX_SILENT, MAX_HANDSHAKES, MAX_PENDING, limit],
            total: room,
            state: Mutex::default(),
        })
    }

    /// A place for one more connection, if need be that of another one.
    pub(super) fn open(self: &Arc<Self>, source: Source) -> (ConnectionSlot, Closed) {
        let (mut state, now) = (self.state(), Instant::now());
        if state.stages.iter().map(|entries| entries.count).sum::<usize>() >= self.total {
            let _ = state.close_one(&NEWCOMERS) || state.close_one(&[Stage::Admitted]);
        }
        let (close, closed) = oneshot::channel();
        let id = Id { source, number: state.next };
        state.next += 1;
        self.enter(&mut state, Stage::Silent, id, Entry { phase: Phase::Head, since: now, active: now, _close: close });
        (ConnectionSlot { limit: Arc::clone(self), id }, closed)
    }

    fn enter(&self, connections: &mut State, stage: Stage, id: Id, entry: Entry) {
        if connections.stages[stage as usize].count >= self.limits[stage as usize] {
            connections.close_one(&[stage]);
        }
        connections.stages[stage as usize].insert(id, entry);
    }

    /// Whether many connections that lost their place still have their file, until their tasks have their turn.
    pub(super) fn is_behind(self: &Arc<Self>) -> bool {
        // Each place holds one.
        Arc::strong_count(self) > self.total.saturating_add(MAX_CLOSING)
    }

    /// Closes connections that have used up their time, for ever.
    pub(super) async fn close_overdue(self: Arc<Self>) {
        loop {
            tokio::time::sleep(SWEEP_INTERVAL).await;
            let now = Instant::now();
            for entries in &mut self.state().stages {
                let overdue: Vec<_> =
                    entries.iter().filter_map(|(id, entry)| entry.is_overdue(now).then_some(id)).collect();
                for entry in overdue.into_iter().filter_map(|id| entries.remove(id)) {
                    tracing::debug!(phase = ?entry.phase, "closing a connection: its time is up");
                }
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Closes one connection of those stages. Returns whether there was one.
    fn close_one(&mut self, stages: &[Stage]) -> bool {
        let first = match stages {
            [Stage::Admitted] => self.least_active(),
            newcomers => self.newcomer(newcomers),
        };
        for stage in stages {
            if let Some(entry) = first.and_then(|id| self.stages[*stage as usize].remove(id)) {
                tracing::debug!(?stage, phase = ?entry.phase, "closing a connection: another needs its place");
            }
        }
        first.is_some()
    }

    /// Of the sources with the most connections in those stages, the least active connection; a young one last.
    fn newcomer(&self, stages: &[Stage]) -> Option<Id> {
        let now = Instant::now();
        let stages = || stages.iter().map(|stage| &self.stages[*stage as usize]);
        let count = |source| stages().map(|entries| entries.count_of(source)).sum::<usize>();
        let most = stages().flat_map(|entries| entries.sources.keys()).map(|source| count(*source)).max()?;
        let crowd = stages().flat_map(|entries| entries.of(|source| count(source) == most));
        crowd.min_by_key(|(id, entry)| (entry.is_young(now), entry.activity(), id.number)).map(|(id, _)| id)
    }

    /// The least active admitted connection.
    fn least_active(&self) -> Option<Id> {
        let admitted = self.stages[Stage::Admitted as usize].iter();
        admitted.min_by_key(|(id, entry)| (entry.activity(), id.number)).map(|(id, _)| id)
    }
}

impl ConnectionSlot {
    /// The connection has come to that stage.
    pub(super) fn advance(&self, stage: Stage) {
        let mut connections = self.limit.state();
        let earlier = &mut connections.stages[..stage as usize];
        let left = |(stage, entries): (_, &mut Entries)| entries.remove(self.id).map(|entry| (stage, entry));
        if let Some((left, mut entry)) = earlier.iter_mut().enumerate().find_map(left) {
            if entry.phase == Phase::Head && left == Stage::Silent as usize {
                // Its time begins with the first byte.
                entry.since = Instant::now();
            }
            self.limit.enter(&mut connections, stage, self.id, entry);
        }
    }

    /// A request begins.
    pub(super) fn begin(self: &Arc<Self>) -> InProgress {
        self.change(|entry| match entry.phase {
            Phase::Busy(requests) => entry.phase = Phase::Busy(requests + 1),
            Phase::Head | Phase::Idle => entry.enter(Phase::Busy(1)),
        });
        InProgress(Arc::clone(self))
    }

    /// Does nothing if the place was given to another connection: this one is about to end.
    fn change(&self, change: impl FnOnce(&mut Entry)) {
        let mut state = self.limit.state();
        if let Some(entry) = state.stages.iter_mut().find_map(|entries| entries.get_mut(self.id)) {
            change(entry);
        }
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        for entries in &mut self.limit.state().stages {
            entries.remove(self.id);
        }
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
    place: Arc<ConnectionSlot>,
    /// Whether a byte that is read while the connection is idle begins the head of a request: not so in HTTP/2.
    reads_heads: bool,
}

impl<S> Watched<S> {
    pub(super) fn new(stream: S, place: Arc<ConnectionSlot>, reads_heads: bool) -> Self {
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

    /// A connection from the source of that number.
    fn open_from(limit: &Arc<ConnectionLimit>, source: u8) -> (Arc<ConnectionSlot>, Closed) {
        let (place, closed) = limit.open(std::net::IpAddr::from([192, 0, 2, source]).into());
        (Arc::new(place), closed)
    }

    fn open(limit: &Arc<ConnectionLimit>) -> (Arc<ConnectionSlot>, Closed) {
        open_from(limit, 1)
    }

    fn begin_admitted(place: &Arc<ConnectionSlot>) -> InProgress {
        let in_progress = place.begin();
        place.advance(Stage::Admitted);
        in_progress
    }

    fn is_closed(closed: &mut Closed) -> bool {
        closed.try_recv() == Err(oneshot::error::TryRecvError::Closed)
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_connection_takes_the_place_of_one_without_a_request_and_else_of_the_least_active() {
        let limit = ConnectionLimit::new(9, 4);
        let [(stalled, mut stalled_closed), (idle, mut idle_closed), (_silent, mut silent_closed)] =
            std::array::from_fn(|_| open(&limit));
        let mut in_progress = vec![begin_admitted(&stalled)];
        drop(begin_admitted(&idle));
        let (pending, mut pending_closed) = open(&limit);
        pending.advance(Stage::Pending);
        let mut in_order = [&mut silent_closed, &mut pending_closed, &mut idle_closed, &mut stalled_closed];
        for closed in 1..=in_order.len() {
            tokio::time::advance(Duration::from_secs(1)).await;
            in_progress.push(begin_admitted(&open(&limit).0));
            let are_closed = in_order.each_mut().map(|closed| is_closed(closed));
            assert_eq!(are_closed.iter().position(|is_closed| !is_closed).unwrap_or(4), closed, "{are_closed:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_with_many_connections_closes_none_of_another_source() {
        for (room, advanced, stage) in [
            (99, 0, Stage::Pending),
            (99, 50, Stage::Pending),
            (99, 98, Stage::Handshake),
            (9999, 0, Stage::Pending),
            (9999, 99, Stage::Handshake),
            (9999, 99, Stage::Pending),
        ] {
            let limit = ConnectionLimit::new(9, room);
            let (place, mut closed) = open_from(&limit, 2);
            if advanced == 99 {
                place.advance(stage);
            }
            tokio::time::advance(Duration::from_secs(1)).await;
            let _crowd: Vec<_> = (0..2 * MAX_SILENT)
                .map(|number| {
                    let (place, closed) = open(&limit);
                    if number % 99 < advanced {
                        place.advance(stage);
                    }
                    (place, closed)
                })
                .collect();
            assert!(!is_closed(&mut closed), "room for {room}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_admitted_connection_takes_the_place_of_an_idle_one_or_of_one_whose_client_takes_nothing() {
        let limit = ConnectionLimit::new(3, 99);
        let ((reading, mut reading_closed), (stalled, mut stalled_closed)) = (open(&limit), open(&limit));
        let mut in_progress = vec![begin_admitted(&reading), begin_admitted(&stalled)];
        let (idle, mut idle_closed) = open(&limit);
        drop(begin_admitted(&idle));
        let mut new: Vec<_> = (0..3).map(|_| open(&limit)).collect();
        for (place, _) in &new {
            place.advance(Stage::Pending);
        }
        assert!(!is_closed(&mut idle_closed), "no request was admitted on the new ones");
        in_progress.push(begin_admitted(&new[0].0));
        assert!(is_closed(&mut idle_closed));
        tokio::time::advance(Duration::from_secs(2)).await;
        let (server, _client) = duplex(1);
        Watched::new(server, Arc::clone(&reading), true).write_u8(b'x').await.unwrap();
        in_progress.push(begin_admitted(&new[1].0));
        assert!(is_closed(&mut stalled_closed) && !is_closed(&mut reading_closed));
        assert!(!new.iter_mut().any(|(_, closed)| is_closed(closed)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pending_connection_takes_the_place_of_one_of_the_source_with_the_most() {
        let limit = ConnectionLimit::new(9, 9999);
        let pending = |source: u8, is_login: bool| {
            let (place, closed) = open_from(&limit, source);
            place.advance(Stage::Pending);
            let login = is_login.then(|| place.begin());
            (place, closed, login)
        };
        let mut other = pending(2, false);
        let mut crowd: Vec<_> = (1..MAX_PENDING).map(|number| pending(1, number != 100)).collect();
        let closed = |crowd: &mut [(_, Closed, _)]| {
            let closed: Vec<_> = crowd.iter_mut().map(|(_, closed, _)| is_closed(closed)).collect();
            closed.iter().enumerate().filter_map(|(place, closed)| closed.then_some(place)).collect::<Vec<_>>()
        };
        assert_eq!(closed(&mut crowd), [0; 0]);
        crowd.push(pending(1, true));
        assert_eq!(closed(&mut crowd), [99], "this one sent no login");
        tokio::time::advance(GRACE).await;
        crowd.push(pending(1, false));
        crowd.push(pending(1, false));
        assert_eq!(closed(&mut crowd), [0, 1, 99], "a young one is closed after the old logins");
        assert!(!is_closed(&mut other.1), "another source has only this one");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_busy_until_its_last_request_ends() {
        let limit = ConnectionLimit::new(2, 99);
        let ((first, mut first_closed), (second, mut second_closed)) = (open(&limit), open(&limit));
        let requests = (begin_admitted(&first), begin_admitted(&first));
        drop(begin_admitted(&second));
        drop(requests.0);
        let third = open(&limit);
        let _in_progress = begin_admitted(&third.0);
        assert!(is_closed(&mut second_closed) && !is_closed(&mut first_closed));
    }

    #[tokio::test(start_paused = true)]
    async fn there_are_never_more_connections_than_the_limits() {
        for (room, silent, handshakes, pending, admitted) in
            [(9999, MAX_SILENT, MAX_HANDSHAKES, MAX_PENDING, 3), (7, 7, 7, 7, 3)]
        {
            let limit = ConnectionLimit::new(3, room);
            let count = || limit.state().stages.iter().map(|entries| entries.count).sum::<usize>();
            for _ in 0..2 {
                let places: Vec<_> = (0..MAX_SILENT + 9).map(|_| open(&limit).0).collect();
                assert_eq!(count(), silent);
                for place in &places {
                    place.advance(Stage::Handshake);
                }
                assert_eq!(count(), handshakes);
                for place in &places {
                    place.advance(Stage::Pending);
                }
                assert_eq!(count(), pending);
                let in_progress: Vec<_> = places.iter().map(begin_admitted).collect();
                assert_eq!(count(), admitted);
                drop((in_progress, places));
                assert_eq!(count(), 0, "places are free again when connections end");
            }
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
        let (_place, mut closed) = open(&limit);
        assert!(is_about(lifetime(&mut closed).await, HEAD_TIMEOUT));

        let (place, mut closed) = open(&limit);
        drop(place.begin());
        assert!(is_about(lifetime(&mut closed).await, IDLE_TIMEOUT));

        let (place, mut closed) = open(&limit);
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
            let (place, mut closed) = open(&limit);
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
