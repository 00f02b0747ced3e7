//! Which instances are this exporter's, where several share an account.
//!
//! Invariant: whose an id is depends on the id and the number of shards alone, today and in every later version: two
//! exporters that disagree would both serve one instance, or neither. It must not know statuses or where ids come from.

use std::fmt;

use crate::model::{MAX_INSTANCES, Overflow};

/// Most shards of an account: each of them reads all of it.
pub const MAX_SHARDS: usize = 100;

/// One of the parts that an account is spread over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    number: usize,
    total: usize,
}

impl Shard {
    /// All of the account.
    pub const WHOLE: Self = Self { number: 0, total: 1 };

    /// The shard of that number, from 0; `None` where there are not so many.
    pub fn new(number: usize, total: usize) -> Option<Self> {
        (number < total).then_some(Self { number, total })
    }

    /// Whether there is no other shard.
    pub fn is_whole(self) -> bool {
        self.total == 1
    }

    /// Whether the instance of that id is this shard's.
    pub fn owns(self, id: &str) -> bool {
        self.foreign(id).is_none()
    }

    /// The hash of an id that another shard has; `None` for one of this shard's own.
    pub(crate) fn foreign(self, id: &str) -> Option<u64> {
        if self.is_whole() {
            return None;
        }
        let hash = hash(id);
        (hash % self.total as u64 != self.number as u64).then_some(hash)
    }

    /// Most instances that all shards together take.
    pub(crate) fn most_instances(self) -> usize {
        MAX_INSTANCES * self.total
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // "1 of 4" would be read as the first.
        write!(f, "shard {} (numbered 0 to {})", self.number, self.total - 1)
    }
}

/// FNV-1a of 64 bits over the id's bytes, then the finalizer of `MurmurHash3`: without it the remainder by a power of
/// two would depend on a few low bits of each byte.
fn hash(id: &str) -> u64 {
    let fnv = id
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let once = (fnv ^ (fnv >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let twice = (once ^ (once >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    twice ^ (twice >> 33)
}

/// Instances of other shards. Of each only the hash is kept, eight bytes, which is what counting them takes: two ids of
/// two million share one in a poll of ten million, and are then counted as one.
#[derive(Debug, Default)]
pub(crate) struct Others {
    hashes: Vec<u64>,
}

impl Others {
    /// Adds one entry of an answer.
    ///
    /// # Errors
    /// When there are more than `most`.
    pub(crate) fn push(&mut self, hash: u64, most: usize) -> Result<(), Overflow> {
        if self.hashes.len() == most {
            return Err(Overflow::Instances);
        }
        self.hashes.push(hash);
        Ok(())
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Leaves each once.
    pub(crate) fn distinct(mut self) -> Self {
        self.hashes.sort_unstable();
        self.hashes.dedup();
        self
    }

    /// Those of both, each once.
    pub(crate) fn merge(mut self, later: &Self) -> Self {
        self.hashes.extend(&later.hashes);
        self.distinct()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Real ids are numbers of 18 digits; these are those of the simulated API.
    fn ids(count: u64) -> impl Iterator<Item = String> {
        (1..=count).map(|n| {
            let scattered = n.wrapping_mul(0x9E37_79B9_7F4A_7C15) & ((1 << 59) - 1);
            (100_000_000_000_000_000 + scattered).to_string()
        })
    }

    fn shares(ids: impl Iterator<Item = String>, total: usize) -> Vec<usize> {
        let mut shares = vec![0; total];
        for id in ids {
            let owners: Vec<_> = (0..total).filter(|&n| Shard::new(n, total).unwrap().owns(&id)).collect();
            assert_eq!(owners.len(), 1, "{id} is on {owners:?}");
            shares[owners[0]] += 1;
        }
        shares
    }

    #[test]
    fn the_hash_is_what_it_always_was() {
        // Computed by another program, in another language.
        let known = [
            ("", 0xefd0_1f60_ba99_2926),
            ("a", 0x82a2_a958_a9be_ce5b),
            ("foobar", 0x2c22_1949_22d1_672b),
            ("932237369560662463", 0xc1d0_96a1_f757_7751),
            ("naïve 雲", 0x71c2_78a8_0489_2e9a),
        ];
        for (id, hashed) in known {
            assert_eq!(hash(id), hashed, "{id}");
        }
    }

    #[test]
    fn ids_are_spread_within_a_few_percent() {
        for total in [2, 3, 4, 7, 16] {
            let even = 100_000 / total;
            let scattered = shares(ids(100_000), total);
            let sequential = shares((0..100_000_u64).map(|n| (932_237_369_560_600_000 + n).to_string()), total);
            for share in scattered.into_iter().chain(sequential) {
                assert!(share.abs_diff(even) * 100 <= even * 4, "{share} of 100000 over {total}");
            }
        }
    }

    #[test]
    fn the_whole_account_owns_whatever_there_is() {
        assert_eq!(Shard::new(0, 1), Some(Shard::WHOLE));
        assert!(ids(100).all(|id| Shard::WHOLE.owns(&id)));
        assert_eq!(Shard::new(4, 4), None);
    }

    #[test]
    fn others_are_counted_once_each() {
        let of = |hashes: &[u64]| {
            let mut others = Others::default();
            hashes.iter().try_for_each(|&hash| others.push(hash, 4)).map(|()| others.distinct())
        };
        assert_eq!(of(&[3, 1, 3]).unwrap().len(), 2);
        assert_eq!(of(&[3, 1]).unwrap().merge(&of(&[1, 2]).unwrap()).len(), 3);
        assert_eq!(of(&[0; 5]).unwrap_err(), Overflow::Instances);
    }
}
