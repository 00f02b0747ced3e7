//! Who may: names and passwords by HTTP Basic (RFC 7617), and how often anybody may ask.
//!
//! Invariant: bcrypt runs off the async threads, few at a time, and never for a password that is remembered, so that
//! wrong ones cannot keep out right ones. It bounds what guesses cost this process, not how many there are: the rate limit
//! does that. It must not know what is served, nor where the users come from.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hyper::header::{self, HeaderMap};
use ring::hmac;
use ring::rand::SystemRandom;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::web_config::{Hash, RateLimit, Users};

/// Passwords checked at a time; one takes a core for as long as its hash's cost says.
const CHECKS: usize = 2;
/// Passwords that wait to be checked; more would wait longer than a scrape does.
const WAITING: usize = 64;

/// Why a request is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Denial {
    /// No password, or a wrong one.
    Unknown,
    /// Too many passwords wait to be checked.
    Busy,
    /// Too many requests for the rate limit.
    TooOften,
}

/// How many passwords are checked at a time, whatever happens to the users.
#[derive(Debug)]
pub(super) struct Checks {
    running: Arc<Semaphore>,
    waiting: Semaphore,
}

impl Default for Checks {
    fn default() -> Self {
        Self { running: Arc::new(Semaphore::new(CHECKS)), waiting: Semaphore::new(WAITING) }
    }
}

/// The users, and whose password was right before.
pub(super) struct Accounts {
    users: Users,
    /// What an unknown user's password is held against, so that it takes as long as a known one's.
    decoy: Hash,
    /// Of this process alone.
    key: hmac::Key,
    /// At most one password a user, as a tag that is of no use without the key.
    remembered: Mutex<HashMap<String, hmac::Tag>>,
}

/// What a request says of who sends it.
struct Login {
    user: String,
    password: Zeroizing<Vec<u8>>,
}

impl Accounts {
    /// `None` where there are no users. Whose hash is as it was in `previous` is still remembered: a tag covers the hash.
    pub(super) fn new(users: Users, previous: Option<&Self>) -> Option<Self> {
        let decoy = *users.values().max_by_key(|hash| hash.cost)?;
        let (key, mut remembered) = previous.map_or_else(
            || {
                let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new());
                (key.expect("the system has randomness"), HashMap::new())
            },
            |previous| (previous.key.clone(), previous.remembered().clone()),
        );
        remembered.retain(|user, _| users.contains_key(user));
        Some(Self { users, decoy, key, remembered: Mutex::new(remembered) })
    }

    fn remembered(&self) -> MutexGuard<'_, HashMap<String, hmac::Tag>> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn users(&self) -> &Users {
        &self.users
    }

    /// Whether the request has a password that was right before: costs next to nothing.
    pub(super) fn remembers(&self, headers: &HeaderMap) -> bool {
        Login::of(headers).is_some_and(|login| self.knows(&login))
    }

    pub(super) async fn admit(&self, headers: &HeaderMap, checks: &Checks) -> Result<(), Denial> {
        let login = Login::of(headers).ok_or(Denial::Unknown)?;
        if self.knows(&login) {
            return Ok(());
        }
        let _place = checks.waiting.try_acquire().map_err(|_| Denial::Busy)?;
        let running = Arc::clone(&checks.running).acquire_owned().await.expect("nobody closes it");
        // Another request may have had the same password checked meanwhile.
        if self.knows(&login) {
            return Ok(());
        }
        let known = self.users.get(&login.user).copied();
        let hash = known.unwrap_or(self.decoy);
        let Login { user, password } = login;
        let checked = tokio::task::spawn_blocking(move || {
            // Held until the check ends, even where the client does not wait for it.
            let _running = running;
            hash.matches(&password).then_some(password)
        });
        match (known, checked.await) {
            (Some(hash), Ok(Some(password))) => {
                let tag = self.tag(&user, &hash, &password);
                self.remembered().insert(user, tag);
                Ok(())
            }
            _ => Err(Denial::Unknown),
        }
    }

    fn knows(&self, Login { user, password }: &Login) -> bool {
        let Some(hash) = self.users.get(user) else { return false };
        let tag = self.tag(user, hash, password);
        let remembered = self.remembered();
        remembered.get(user).is_some_and(|known| subtle::ConstantTimeEq::ct_eq(known.as_ref(), tag.as_ref()).into())
    }

    fn tag(&self, user: &str, hash: &Hash, password: &[u8]) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(&user.len().to_be_bytes());
        context.update(user.as_bytes());
        context.update(&hash.digest);
        context.update(password);
        context.sign()
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
}

/// A bucket that fills by one request an interval.
pub(super) struct Limiter {
    limit: RateLimit,
    left: Mutex<(f64, Instant)>,
}

impl Limiter {
    /// A full bucket.
    pub(super) fn new(limit: RateLimit) -> Self {
        Self { limit, left: Mutex::new((f64::from(limit.burst), Instant::now())) }
    }

    /// Takes one request out, if there is one.
    pub(super) fn take(&self) -> Result<(), Denial> {
        let now = Instant::now();
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let (requests, at) = *left;
        let came_back = now.saturating_duration_since(at).as_secs_f64() / self.limit.interval.as_secs_f64();
        let requests = f64::from(self.limit.burst).min(requests + came_back);
        let granted = requests >= 1.0;
        *left = (if granted { requests - 1.0 } else { requests }, now);
        granted.then_some(()).ok_or(Denial::TooOften)
    }
}
