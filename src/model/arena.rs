//! Stores many short strings in one: a million strings take two allocations.
//!
//! Invariant: an index stays that of its string.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use super::Overflow;

/// Strings in the order in which they were added.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct StringArena {
    text: String,
    ends: Vec<u32>,
}

impl StringArena {
    /// An empty arena with room for what is in `like`.
    pub(crate) fn with_capacity_of(like: &Self) -> Self {
        Self { text: String::with_capacity(like.text.len()), ends: Vec::with_capacity(like.len()) }
    }

    /// Adds one and returns its index.
    ///
    /// # Errors
    /// When all of them would have more than 4 GiB.
    pub(crate) fn push(&mut self, text: &str) -> Result<u32, Overflow> {
        let index = u32::try_from(self.ends.len()).map_err(|_| Overflow::Text)?;
        let end = u32::try_from(self.text.len() + text.len()).map_err(|_| Overflow::Text)?;
        self.text.push_str(text);
        self.ends.push(end);
        Ok(index)
    }

    /// The string with that index.
    pub(crate) fn at(&self, index: usize) -> &str {
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.text[start as usize..self.ends[index] as usize]
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        (0..self.len()).map(|index| self.at(index))
    }

    /// The arena with the strings that have a replacement replaced; `None` if there are none.
    pub(crate) fn replaced(&self, replacement: impl Fn(&str) -> Option<String>) -> Option<Self> {
        if self.iter().all(|text| replacement(text).is_none()) {
            return None;
        }
        let mut replaced = Self::with_capacity_of(self);
        for text in self.iter() {
            replaced.push(replacement(text).as_deref().unwrap_or(text)).expect("hardly longer than before");
        }
        Some(replaced)
    }

    /// Frees what was allocated for strings that were not added.
    pub(crate) fn shrink_to_fit(&mut self) {
        self.text.shrink_to_fit();
        self.ends.shrink_to_fit();
    }
}

/// Adds each different string to an arena only once.
#[derive(Debug, Default)]
pub(crate) struct Interner {
    by_hash: HashMap<u64, u32>,
    hasher: RandomState,
}

impl Interner {
    /// The index of that string, which is added if it is new.
    ///
    /// # Errors
    /// When there is no room for it.
    pub(crate) fn intern(&mut self, text: &str, texts: &mut StringArena) -> Result<u32, Overflow> {
        let hash = self.hasher.hash_one(text);
        match self.by_hash.get(&hash) {
            Some(&index) if texts.at(index as usize) == text => Ok(index),
            // Two strings with the same hash: the second is stored each time.
            Some(_) => texts.push(text),
            None => {
                let index = texts.push(text)?;
                self.by_hash.insert(hash, index);
                Ok(index)
            }
        }
    }
}
