//! Who may: names and passwords by HTTP Basic (RFC 7617), and how often anybody may ask.
//!
//! Invariant: bcrypt runs off the async threads, few at a time, and never for a password that is remembered. A check that
//! has begun is finished and remembered, whether or not its client waits for it. It must not know what is served, nor where
//! the users come from.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hyper::header::{self, HeaderMap};
use ring::hmac;
use ring::rand::SystemRandom;
use subtle::ConstantTimeEq;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::checks::Checks;
use super::source::Source;
use crate::web_config::{Hash, LONGEST_PASSWORD, RateLimit, Users};

/// Wrong passwords that are remembered: a client with an outdated one repeats it at every scrape.
const MAX_WRONG: usize = 256;
/// Sources whose bucket of the rate limit is remembered.
const MAX_BUCKETS: usize = 4096;

/// Why a request is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Denial {
    /// No password, or a wrong one.
    Unknown,
    /// A password of which bcrypt would compare a part.
    Unusable,
    /// Too many passwords wait to be checked.
    Busy,
    /// Too many requests for the rate limit.
    TooOften,
}

/// What is known of a request's password without a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Recall {
    /// It was right before.
    Right,
    /// The request has none.
    NoLogin,
    /// It is wrong or new.
    Other,
}

/// The users, and what is remembered of their passwords.
pub(super) struct Accounts {
    users: Users,
    memory: Arc<Memory>,
}

/// What is remembered across changes of the users: a check that began before one is not lost.
struct Memory {
    /// Of this process alone.
    key: hmac::Key,
    checked: Mutex<Checked>,
}

/// Passwords that were checked, as tags that are of no use without the key.
#[derive(Default)]
struct Checked {
    /// At most one per user.
    right: HashMap<String, hmac::Tag>,
    /// The oldest first.
    wrong: VecDeque<hmac::Tag>,
}

/// What a request says of who sends it.
struct Login {
    user: String,
    password: Zeroizing<Vec<u8>>,
}

impl Accounts {
    /// `None` where there are no users. Whose hash is as it was in `previous` is still remembered: a tag covers the hash.
    pub(super) fn new(users: Users, previous: Option<&Self>) -> Option<Self> {
        if users.is_empty() {
            return None;
        }
        let memory = previous.map_or_else(Arc::default, |previous| Arc::clone(&previous.memory));
        memory.checked().right.retain(|user, _| users.contains_key(user));
        Some(Self { users, memory })
    }

    pub(super) fn users(&self) -> &Users {
        &self.users
    }

    /// What is known of the request's password without a check: costs next to nothing.
    pub(super) fn recall(&self, headers: &HeaderMap) -> Recall {
        match Login::of(headers) {
            None => Recall::NoLogin,
            Some(login) if self.outcome(&login.user, &self.tag(&login)) == Some(true) => Recall::Right,
            Some(_) => Recall::Other,
        }
    }

    pub(super) async fn admit(
        self: &Arc<Self>,
        headers: &HeaderMap,
        source: Source,
        checks: &Checks,
    ) -> Result<(), Denial> {
        let login = Login::of(headers).ok_or(Denial::Unknown)?;
        if !login.is_usable() {
            return Err(Denial::Unusable);
        }
        let tag = self.tag(&login);
        let right = match self.outcome(&login.user, &tag) {
            Some(right) => right,
            None => self.check(login, tag, source, checks).await?,
        };
        right.then_some(()).ok_or(Denial::Unknown)
    }

    async fn check(
        self: &Arc<Self>,
        login: Login,
        tag: hmac::Tag,
        source: Source,
        checks: &Checks,
    ) -> Result<bool, Denial> {
        let hash = self.hash(&login.user).clone();
        let turn = checks.turn(&hash, source).await.ok_or(Denial::Busy)?;
        // Another request may have had the same password checked meanwhile.
        if let Some(right) = self.outcome(&login.user, &tag) {
            return Ok(right);
        }
        let accounts = Arc::clone(self);
        let check = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let right = hash.matches(&login.password) && accounts.users.contains_key(&login.user);
            accounts.remember(login.user, tag, right);
            right
        });
        Ok(check.await.unwrap_or(false))
    }

    /// What came of the check of a password; `None` if it is not remembered.
    fn outcome(&self, user: &str, tag: &hmac::Tag) -> Option<bool> {
        let is_it = |known: &hmac::Tag| bool::from(known.as_ref().ct_eq(tag.as_ref()));
        let checked = self.memory.checked();
        // A check from before a change of the users may remember one who is gone.
        if self.users.contains_key(user) && checked.right.get(user).is_some_and(is_it) {
            return Some(true);
        }
        checked.wrong.iter().any(is_it).then_some(false)
    }

    fn remember(&self, user: String, tag: hmac::Tag, right: bool) {
        let mut checked = self.memory.checked();
        if right {
            checked.right.insert(user, tag);
            return;
        }
        if checked.wrong.len() >= MAX_WRONG {
            checked.wrong.pop_front();
        }
        checked.wrong.push_back(tag);
    }

    /// What the user's password is held against. A name that is not known has the hash of a user, always of the same one:
    /// the time of a check shows the cost of a hash, not whether there is such a user.
    fn hash(&self, user: &str) -> &Hash {
        self.users.get(user).unwrap_or_else(|| {
            let tag = hmac::sign(&self.memory.key, user.as_bytes());
            let number =
                tag.as_ref().iter().fold(0, |number, &byte| (number << 8 | usize::from(byte)) % self.users.len());
            self.users.values().nth(number).expect("there are users, and the number is smaller")
        })
    }

    fn tag(&self, Login { user, password }: &Login) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.memory.key);
        context.update(&user.len().to_be_bytes());
        context.update(user.as_bytes());
        context.update(self.hash(user).as_bytes());
        context.update(password);
        context.sign()
    }
}

impl Memory {
    fn checked(&self) -> MutexGuard<'_, Checked> {
        self.checked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Memory {
    fn default() -> Self {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new());
        Self { key: key.expect("the system has randomness"), checked: Mutex::default() }
    }
}

impl Login {
    fn of(headers: &HeaderMap) -> Option<Self> {
        let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
        let (scheme, credentials) = value.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("basic") {
            return None;
        }
        let pair = Zeroizing::new(BASE64_STANDARD.decode(credentials.trim()).ok()?);
        let colon = pair.iter().position(|&byte| byte == b':')?;
        let user = std::str::from_utf8(&pair[..colon]).ok()?.to_owned();
        Some(Self { user, password: Zeroizing::new(pair[colon + 1..].to_vec()) })
    }

    /// Whether bcrypt compares all of the password: it stops at 72 bytes, and repeats what ends with a NUL.
    fn is_usable(&self) -> bool {
        self.password.len() <= LONGEST_PASSWORD && !self.password.contains(&0)
    }
}

/// A bucket of requests per source, so that one client cannot use up the requests of another.
pub(super) struct Limiter {
    limit: RateLimit,
    started: Instant,
    /// When each bucket will be full again, counted from the start. A bucket that is not here is full.
    full_at: Mutex<HashMap<Source, Duration>>,
}

impl Limiter {
    /// Full buckets.
    pub(super) fn new(limit: RateLimit) -> Self {
        Self { limit, started: Instant::now(), full_at: Mutex::default() }
    }

    /// Takes one request out of the source's bucket, if there is one.
    pub(super) fn take(&self, source: Source) -> Result<(), Denial> {
        let RateLimit { interval, burst } = self.limit;
        let now = self.started.elapsed();
        let mut buckets = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        let full_at = buckets.get(&source).map_or(now, |&full_at| full_at.max(now)).saturating_add(interval);
        if full_at.saturating_sub(now) > interval.saturating_mul(burst) {
            return Err(Denial::TooOften);
        }
        if buckets.len() >= MAX_BUCKETS {
            buckets.retain(|_, full_at| *full_at > now);
        }
        if buckets.len() >= MAX_BUCKETS {
            // The fullest: its source gains least.
            let fullest = buckets.iter().min_by_key(|(_, full_at)| **full_at).map(|(source, _)| *source);
            fullest.and_then(|source| buckets.remove(&source));
        }
        buckets.insert(source, full_at);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn source(number: u32) -> Source {
        std::net::IpAddr::from(Ipv4Addr::from_bits(number)).into()
    }

    fn users(users: &[(&str, &str)]) -> Users {
        users.iter().map(|(user, hash)| ((*user).to_owned(), Hash::parse(hash).unwrap())).collect()
    }

    /// bcrypt hashes of that cost, one for each salt.
    fn hash(cost: u32, salt: char) -> String {
        format!("$2y${cost:02}${}ubFi6DXncSjhoQNJgRrnGs7EsimhC7zG", salt.to_string().repeat(21))
    }

    #[test]
    fn an_unknown_name_always_has_the_hash_of_the_same_user_and_names_have_all_of_them() {
        let (cheap, expensive) = (hash(4, 'a'), hash(12, 'b'));
        let accounts = Accounts::new(users(&[("alice", &cheap), ("bob", &expensive)]), None).unwrap();
        let names = || (0..64).map(|number| format!("nobody{number}"));
        let costs: Vec<_> = names().map(|name| accounts.hash(&name).cost).collect();
        assert!(costs.contains(&4) && costs.contains(&12), "{costs:?}");
        assert_eq!(names().map(|name| accounts.hash(&name).cost).collect::<Vec<_>>(), costs);
        assert_eq!((accounts.hash("alice").cost, accounts.hash("bob").cost), (4, 12));
    }

    #[test]
    fn a_check_that_runs_across_a_change_of_the_users_is_remembered() {
        let headers = |user: &str| {
            let value = format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:password")));
            HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())])
        };
        // The same hash for all, so that their tags differ by no more than the name.
        let hash = hash(4, 'a');
        let before = Accounts::new(users(&[("alice", &hash), ("bob", &hash)]), None).unwrap();
        let after = Accounts::new(users(&[("alice", &hash), ("carol", &hash)]), Some(&before)).unwrap();
        for user in ["alice", "bob"] {
            let tag = before.tag(&Login::of(&headers(user)).unwrap());
            before.remember(user.to_owned(), tag, true);
        }
        assert_eq!(after.recall(&headers("alice")), Recall::Right);
        assert_eq!(after.recall(&headers("bob")), Recall::Other, "he is no user any more");
    }

    #[tokio::test(start_paused = true)]
    async fn a_bucket_refills_by_one_request_per_interval() {
        let limiter = Limiter::new(RateLimit { interval: Duration::from_secs(10), burst: 2 });
        let granted = || (0..9).take_while(|_| limiter.take(source(1)).is_ok()).count();
        assert_eq!((granted(), granted()), (2, 0));
        assert_eq!(limiter.take(source(2)), Ok(()), "another source has a bucket of its own");
        tokio::time::advance(Duration::from_secs(9)).await;
        assert_eq!(granted(), 0);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(granted(), 1);
        tokio::time::advance(Duration::from_mins(1)).await;
        assert_eq!(granted(), 2, "no more than the burst");
    }

    #[test]
    fn no_limit_overflows() {
        let longest = Limiter::new(RateLimit { interval: Duration::MAX, burst: u32::MAX });
        assert_eq!([longest.take(source(1)), longest.take(source(1))], [Ok(()); 2]);
        let none = Limiter::new(RateLimit { interval: Duration::from_secs(1), burst: 0 });
        assert_eq!(none.take(source(1)), Err(Denial::TooOften));
    }

    #[tokio::test(start_paused = true)]
    async fn the_number_of_buckets_is_bounded_and_an_empty_one_is_kept() {
        let limiter = Limiter::new(RateLimit { interval: Duration::from_secs(1), burst: 3 });
        while limiter.take(source(0)).is_ok() {}
        for number in 1..=u32::try_from(2 * MAX_BUCKETS).unwrap() {
            assert_eq!(limiter.take(source(number)), Ok(()));
        }
        assert_eq!(limiter.full_at.lock().unwrap().len(), MAX_BUCKETS);
        assert_eq!(limiter.take(source(0)), Err(Denial::TooOften));
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(limiter.take(source(0)), Ok(()));
        assert_eq!(limiter.full_at.lock().unwrap().len(), 1, "full buckets are forgotten");
    }
}
