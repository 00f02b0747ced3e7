//! Whose password is checked next: a check takes a core for as long as the hash's cost says.
//!
//! Invariant: guesses do not keep a correct login from another source waiting. A source with few logins in the queue goes
//! before one with many. Of one source, the newest and the oldest login take turns: among many guesses, most logins are
//! checked at once, and none waits for ever.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::limit::MAX_PENDING;
use super::source::{self, Source};
use crate::web_config::Hash;

/// Logins that wait for a check at a time: one on each connection that has to show its password first.
const MAX_WAITING: usize = MAX_PENDING;

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
    pub(super) async fn turn(&self, hash: &Hash, source: Source) -> Option<Turn> {
        let queue = if hash.is_expensive() { &self.expensive } else { &self.cheap };
        queue.turn(source).await
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
    /// Whether the last turn went to the newest login.
    was_newest: bool,
    /// The oldest first.
    waiting: Vec<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    source: Source,
    turn: oneshot::Sender<Turn>,
}

/// The right to run one check, which goes to the next login when this is dropped.
#[derive(Debug)]
pub(super) struct Turn(Arc<Queue>);

impl Queue {
    fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, state: Mutex::default() })
    }

    async fn turn(self: &Arc<Self>, source: Source) -> Option<Turn> {
        let turn = {
            let mut state = self.state();
            if state.running < self.limit {
                state.running += 1;
                return Some(Turn(Arc::clone(self)));
            }
            if state.waiting.len() >= MAX_WAITING {
                state.make_room();
            }
            let (sender, turn) = oneshot::channel();
            state.waiting.push(Waiting { source, turn: sender });
            turn
        };
        turn.await.ok()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whose turn it is; the check that ended stops counting if nobody waits.
    fn next(&mut self) -> Option<Waiting> {
        self.forget_closed();
        let counts = self.counts();
        let fewest = counts.values().min();
        let is_one = |place: &usize| Some(&counts[&self.waiting[*place].source]) == fewest;
        let mut places = (0..self.waiting.len()).filter(is_one);
        let next = if self.was_newest { places.next() } else { places.next_back() };
        self.was_newest = !self.was_newest;
        if next.is_none() {
            self.running -= 1;
        }
        next.map(|place| self.waiting.remove(place))
    }

    /// Drops the logins of clients that have left, or else the oldest login of the source that has the most.
    fn make_room(&mut self) {
        self.forget_closed();
        if self.waiting.len() < MAX_WAITING {
            return;
        }
        let counts = self.counts();
        let order = |&place: &usize| (counts[&self.waiting[place].source], Reverse(place));
        if let Some(place) = (0..self.waiting.len()).max_by_key(order) {
            self.waiting.remove(place);
        }
    }

    fn forget_closed(&mut self) {
        self.waiting.retain(|waiting| !waiting.turn.is_closed());
    }

    fn counts(&self) -> HashMap<Source, usize> {
        source::counts(self.waiting.iter().map(|waiting| waiting.source))
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
    use std::net::IpAddr;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn here() -> Source {
        IpAddr::from([192, 0, 2, 1]).into()
    }

    fn there() -> Source {
        IpAddr::from([192, 0, 2, 2]).into()
    }

    type Login = std::pin::Pin<Box<dyn Future<Output = Option<Turn>>>>;

    /// A login in the queue.
    fn login(queue: &Arc<Queue>, source: Source) -> Login {
        let queue = Arc::clone(queue);
        let mut login: Login = Box::pin(async move { queue.turn(source).await });
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

    #[tokio::test]
    async fn a_source_with_few_logins_goes_first_and_of_one_source_the_newest_and_the_oldest_take_turns() {
        let queue = Queue::new(1);
        let turn = queue.turn(here()).await.unwrap();
        let mut other = login(&queue, there());
        let mut logins: [_; 4] = std::array::from_fn(|_| login(&queue, here()));
        drop(turn);
        let turn = self::turn(&mut other);
        assert!(logins.iter_mut().all(|login| poll(login).is_pending()), "one check runs at a time");
        drop(turn);
        for place in [0, 3, 1, 2] {
            drop(self::turn(&mut logins[place]));
        }
        assert_eq!(queue.state().running, 0);
    }

    #[tokio::test]
    async fn a_client_that_gave_up_hands_its_turn_on() {
        let queue = Queue::new(1);
        let turn = queue.turn(here()).await.unwrap();
        let mut patient = login(&queue, here());
        let [gone, given] = [login(&queue, here()), login(&queue, here())];
        drop(gone);
        drop(turn);
        assert!(poll(&mut patient).is_pending(), "another one is first");
        drop(given);
        drop(self::turn(&mut patient));
        assert_eq!(queue.state().running, 0);
    }

    #[tokio::test]
    async fn a_full_queue_drops_the_oldest_login_of_the_source_with_the_most() {
        let queue = Queue::new(1);
        let _turn = queue.turn(here()).await.unwrap();
        let mut other = login(&queue, there());
        let mut crowd: Vec<_> = (1..=MAX_WAITING).map(|_| login(&queue, here())).collect();
        assert!(matches!(poll(&mut crowd[0]), Poll::Ready(None)));
        assert!(poll(&mut crowd[1]).is_pending() && poll(&mut other).is_pending());
        assert_eq!(queue.state().waiting.len(), MAX_WAITING);
    }

    #[tokio::test]
    async fn logins_of_clients_that_left_do_not_fill_the_queue() {
        let queue = Queue::new(1);
        let turn = queue.turn(here()).await.unwrap();
        let mut patient = login(&queue, here());
        for _ in 0..2 * MAX_WAITING {
            drop(login(&queue, here()));
        }
        assert!(poll(&mut patient).is_pending(), "it is still in the queue");
        drop(turn);
        drop(self::turn(&mut patient));
        assert_eq!(queue.state().running, 0);
    }
}
