//! Whose password is checked next: a check takes a core for as long as the hash's cost says.
//!
//! Invariant: guesses do not keep a correct login waiting. A peer with few logins in the queue goes before one with many,
//! and the newest login of a peer goes first: with as many guesses as connections, the oldest would be next too late.

use std::cmp::Reverse;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::web_config::Hash;

/// Logins that wait for a check at a time.
const MAX_WAITING: usize = 256;
/// How long a login may wait: less than a scrape does.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// All queues. They outlive a change of the users, so that no change adds checks that run at a time.
#[derive(Debug)]
pub(super) struct Checks {
    cheap: Arc<Queue>,
    /// A queue of its own: one such check takes longer than many others.
    expensive: Arc<Queue>,
}

impl Default for Checks {
    fn default() -> Self {
        Self { cheap: Queue::new(2), expensive: Queue::new(1) }
    }
}

impl Checks {
    /// Waits for the turn of a login; `None` if too many others wait.
    pub(super) async fn turn(&self, hash: &Hash, peer: IpAddr) -> Option<Turn> {
        let queue = if hash.is_expensive() { &self.expensive } else { &self.cheap };
        queue.turn(source(peer)).await
    }
}

/// One peer by its address: of IPv6, a host has a whole /64.
fn source(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address @ IpAddr::V4(_) => address,
    }
}

#[derive(Debug)]
struct Queue {
    /// Checks that may run at a time.
    limit: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    running: usize,
    /// The oldest first.
    waiting: Vec<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    peer: IpAddr,
    turn: oneshot::Sender<Turn>,
}

/// The right to run one check, which goes to the next login when this is dropped.
#[derive(Debug)]
pub(super) struct Turn(Arc<Queue>);

impl Queue {
    fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, state: Mutex::default() })
    }

    async fn turn(self: &Arc<Self>, peer: IpAddr) -> Option<Turn> {
        let turn = {
            let mut state = self.state();
            if state.running < self.limit {
                state.running += 1;
                return Some(Turn(Arc::clone(self)));
            }
            if state.waiting.len() >= MAX_WAITING {
                let last = state.order().max();
                state.take(last);
            }
            let (sender, turn) = oneshot::channel();
            state.waiting.push(Waiting { peer, turn: sender });
            turn
        };
        tokio::time::timeout(MAX_WAIT, turn).await.ok()?.ok()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Logins of the same peer, and how new the login is: the smallest is next.
type Order = (usize, Reverse<usize>);

impl State {
    fn order(&self) -> impl Iterator<Item = Order> {
        let of = |peer| self.waiting.iter().filter(|other| other.peer == peer).count();
        self.waiting.iter().enumerate().map(move |(place, waiting)| (of(waiting.peer), Reverse(place)))
    }

    fn take(&mut self, which: Option<Order>) -> Option<Waiting> {
        which.map(|(_, Reverse(place))| self.waiting.remove(place))
    }

    /// Whose turn it is; the check that ended stops counting if nobody waits.
    fn next(&mut self) -> Option<Waiting> {
        self.waiting.retain(|waiting| !waiting.turn.is_closed());
        let next = self.order().min();
        if next.is_none() {
            self.running -= 1;
        }
        self.take(next)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let next = self.0.state().next();
        if let Some(waiting) = next {
            // A client that just gave up leaves the turn here, to be dropped and so handed on.
            let _ = waiting.turn.send(Turn(Arc::clone(&self.0)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::task::{Context, Poll, Waker};

    use super::*;

    const HERE: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
    const THERE: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

    type Login = std::pin::Pin<Box<dyn Future<Output = Option<Turn>>>>;

    /// A login in the queue.
    fn login(queue: &Arc<Queue>, peer: IpAddr) -> Login {
        let queue = Arc::clone(queue);
        let mut login: Login = Box::pin(async move { queue.turn(peer).await });
        assert!(poll(&mut login).is_none(), "it has to wait");
        login
    }

    /// What has become of it: its turn, `Some(None)` if it was dropped from the queue, `None` while it waits.
    fn poll(login: &mut Login) -> Option<Option<Turn>> {
        match login.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(turn) => Some(turn),
            Poll::Pending => None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_with_few_logins_goes_first_and_then_the_newest() {
        let queue = Queue::new(1);
        let turn = queue.turn(HERE).await.unwrap();
        let [mut first, mut second] = [login(&queue, HERE), login(&queue, HERE)];
        let mut other = login(&queue, THERE);
        let mut third = login(&queue, HERE);
        drop(turn);
        let turn = poll(&mut other).unwrap().unwrap();
        assert!(poll(&mut third).is_none(), "one check runs at a time");
        drop(turn);
        drop(poll(&mut third).unwrap().unwrap());
        drop(poll(&mut second).unwrap().unwrap());
        drop(poll(&mut first).unwrap().unwrap());
        assert_eq!(queue.state().running, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_gave_up_hands_its_turn_on() {
        let queue = Queue::new(1);
        let turn = queue.turn(HERE).await.unwrap();
        let mut patient = login(&queue, HERE);
        let [gone, given] = [login(&queue, HERE), login(&queue, HERE)];
        drop(gone);
        drop(turn);
        assert!(poll(&mut patient).is_none(), "the newest is next");
        drop(given);
        drop(poll(&mut patient).unwrap().unwrap());
        assert_eq!(queue.state().running, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_queue_drops_the_oldest_login_of_the_peer_with_the_most() {
        let queue = Queue::new(1);
        let _turn = queue.turn(HERE).await.unwrap();
        let mut other = login(&queue, THERE);
        let mut crowd: Vec<_> = (1..=MAX_WAITING).map(|_| login(&queue, HERE)).collect();
        assert!(matches!(poll(&mut crowd[0]), Some(None)));
        assert!(poll(&mut crowd[1]).is_none() && poll(&mut other).is_none());
        assert_eq!(queue.state().waiting.len(), MAX_WAITING);
    }

    #[tokio::test(start_paused = true)]
    async fn no_login_waits_for_longer_than_a_scrape() {
        let queue = Queue::new(1);
        let _turn = queue.turn(HERE).await.unwrap();
        assert!(login(&queue, HERE).await.is_none());
    }

    #[test]
    fn a_peer_is_its_network_in_ipv6() {
        let source = |text: &str| source(text.parse().unwrap()).to_string();
        assert_eq!(source("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(source("::ffff:192.0.2.1"), "192.0.2.1");
    }
}
