//! Whose password is checked next: a check takes a core for as long as the hash's cost says.
//!
//! Invariant: guesses do not keep a correct login waiting. A peer with few logins in the queue goes before one with many.
//! Of one peer, logins that have waited for long go last: with a guess on every connection, the others would wait as long.

use std::cmp::Reverse;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::web_config::Hash;

/// Logins that wait for a check at a time.
const MAX_WAITING: usize = 256;
/// A login that has waited for so long goes last.
const PROMPT: Duration = Duration::from_millis(250);

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
    since: Instant,
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
                state.drop_one();
            }
            let (sender, turn) = oneshot::channel();
            state.waiting.push(Waiting { peer, since: Instant::now(), turn: sender });
            turn
        };
        turn.await.ok()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Logins of the same peer.
    fn logins_of(&self, peer: IpAddr) -> usize {
        self.waiting.iter().filter(|waiting| waiting.peer == peer).count()
    }

    /// Whose turn it is; the check that ended stops counting if nobody waits.
    fn next(&mut self) -> Option<Waiting> {
        self.waiting.retain(|waiting| !waiting.turn.is_closed());
        let order = |waiting: &Waiting| (self.logins_of(waiting.peer), waiting.since.elapsed() > PROMPT);
        let next = (0..self.waiting.len()).min_by_key(|&place| order(&self.waiting[place]));
        if next.is_none() {
            self.running -= 1;
        }
        next.map(|place| self.waiting.remove(place))
    }

    /// Makes room: the oldest login of the peer that has the most.
    fn drop_one(&mut self) {
        let logins = |&place: &usize| (self.logins_of(self.waiting[place].peer), Reverse(place));
        if let Some(place) = (0..self.waiting.len()).max_by_key(logins) {
            self.waiting.remove(place);
        }
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
        assert!(poll(&mut login).is_pending(), "it has to wait");
        login
    }

    /// What has become of it: its turn, or nothing if it was dropped from the queue.
    fn poll(login: &mut Login) -> Poll<Option<Turn>> {
        login.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    }

    fn turn(login: &mut Login) -> Turn {
        let Poll::Ready(Some(turn)) = poll(login) else { panic!("it is not its turn") };
        turn
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_with_few_logins_goes_first_and_logins_that_have_waited_for_long_go_last() {
        let queue = Queue::new(1);
        let turn = queue.turn(HERE).await.unwrap();
        let mut old = login(&queue, HERE);
        tokio::time::advance(PROMPT + Duration::from_millis(1)).await;
        let [mut first, mut second] = [login(&queue, HERE), login(&queue, HERE)];
        let mut other = login(&queue, THERE);
        drop(turn);
        let turn = self::turn(&mut other);
        assert!(poll(&mut first).is_pending(), "one check runs at a time");
        drop(turn);
        for login in [&mut first, &mut second, &mut old] {
            drop(self::turn(login));
        }
        assert_eq!(queue.state().running, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_gave_up_hands_its_turn_on() {
        let queue = Queue::new(1);
        let turn = queue.turn(HERE).await.unwrap();
        let [gone, given] = [login(&queue, HERE), login(&queue, HERE)];
        let mut patient = login(&queue, HERE);
        drop(gone);
        drop(turn);
        assert!(poll(&mut patient).is_pending(), "another one is first");
        drop(given);
        drop(self::turn(&mut patient));
        assert_eq!(queue.state().running, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_queue_drops_the_oldest_login_of_the_peer_with_the_most() {
        let queue = Queue::new(1);
        let _turn = queue.turn(HERE).await.unwrap();
        let mut other = login(&queue, THERE);
        let mut crowd: Vec<_> = (1..=MAX_WAITING).map(|_| login(&queue, HERE)).collect();
        assert!(matches!(poll(&mut crowd[0]), Poll::Ready(None)));
        assert!(poll(&mut crowd[1]).is_pending() && poll(&mut other).is_pending());
        assert_eq!(queue.state().waiting.len(), MAX_WAITING);
    }

    #[test]
    fn a_peer_is_its_network_in_ipv6() {
        let source = |text: &str| source(text.parse().unwrap()).to_string();
        assert_eq!(source("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(source("::ffff:192.0.2.1"), "192.0.2.1");
    }
}
