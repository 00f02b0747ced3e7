//! Who may ask: names and the bcrypt hashes of their passwords.
//!
//! It must not know requests.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use bcrypt::HashParts;

/// A check at this cost takes about a second; each step doubles it.
const EXPENSIVE_COST: u32 = 14;
/// The costs that bcrypt has.
const COSTS: std::ops::RangeInclusive<u32> = 4..=31;
/// What bcrypt compares of a password, in bytes.
pub(crate) const LONGEST_PASSWORD: usize = 72;

/// Names with their hashes.
pub(crate) type Users = BTreeMap<String, Hash>;

/// A bcrypt hash, `$2y$10$…`.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Hash {
    text: Box<str>,
    pub(crate) cost: u32,
}

impl Hash {
    /// # Errors
    /// What is wrong with it, without any of it.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        const NO_HASH: &str = "is not a bcrypt hash: make one with htpasswd -nBC 10 \"\" | tr -d ':\\n'";
        let cost = text.parse().map(|parts: HashParts| parts.get_cost()).ok();
        let cost = cost.filter(|cost| COSTS.contains(cost)).ok_or(NO_HASH)?;
        Ok(Self { text: text.into(), cost })
    }

    /// Whether a check takes longer than a request should.
    pub(crate) fn is_expensive(&self) -> bool {
        self.cost >= EXPENSIVE_COST
    }

    /// How long a check takes on this machine, measured with a cheaper one: each step of the cost doubles the time.
    pub(super) fn check_time(&self) -> Duration {
        const MEASURED_COST: u32 = 8;
        let begun = Instant::now();
        let _ = bcrypt::bcrypt(MEASURED_COST, [0; 16], &[0]);
        begun.elapsed() * (1 << self.cost.saturating_sub(MEASURED_COST))
    }

    /// Takes as long as the cost says, whatever the password, of which it compares the first 72 bytes.
    pub(crate) fn matches(&self, password: &[u8]) -> bool {
        bcrypt::verify(password, &self.text).unwrap_or(false)
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.text.as_bytes()
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `pass word` by another implementation, at cost 4.
    const VECTOR: &str = "$2b$04$6fUXTI6kNlhkN9wUwXzs9eb75kMIAWENvwjspzOsUoEMkSMzJNJpe";

    #[test]
    fn a_hash_of_another_implementation_is_checked() {
        for prefix in ["$2a$", "$2b$", "$2x$", "$2y$"] {
            let hash = Hash::parse(&VECTOR.replace("$2b$", prefix)).unwrap();
            assert!(hash.matches(b"pass word"));
            assert!(!hash.matches(b"pass worD"));
            assert!(!hash.matches(b""));
        }
    }

    #[test]
    fn the_longest_password_is_checked_as_far_as_bcrypt_looks() {
        let hash = Hash::parse("$2b$04$9XGd2fM1TWfPQe3fvaTCleeEzH34s9nnt1HxglvdBBFTzsVqpFKZS").unwrap();
        assert!(hash.matches(&[b'x'; 72]));
        assert!(hash.matches(&[b'x'; 100]));
        assert!(!hash.matches(&[b'x'; 71]));
    }

    #[test]
    fn each_step_of_the_cost_doubles_the_time_of_a_check() {
        let is_expensive = |cost: &str| Hash::parse(&VECTOR.replacen("$04$", cost, 1)).unwrap().is_expensive();
        assert_eq!(["$04$", "$12$", "$14$", "$31$"].map(is_expensive), [false, false, true, true]);
        let hash = Hash::parse(&VECTOR.replacen("$04$", "$18$", 1)).unwrap();
        assert!(hash.check_time() > Duration::from_secs(1), "{:?}", hash.check_time());
    }

    #[test]
    fn what_is_no_hash_is_refused_without_being_shown() {
        let no_hash = "is not a bcrypt hash: make one with htpasswd -nBC 10 \"\" | tr -d ':\\n'";
        let cut = &VECTOR[..59];
        let cost = |cost| VECTOR.replacen("$04$", cost, 1);
        for text in
            ["", "secret", "$2b$04$", cut, &cost("$03$"), &cost("$32$"), &cost("$x4$"), &cost("$4$"), "$2b$04$é"]
        {
            assert_eq!(Hash::parse(text).unwrap_err(), no_hash, "{text}");
        }
        assert_eq!(format!("{:?}", Hash::parse(VECTOR).unwrap()), "[redacted]");
    }
}
