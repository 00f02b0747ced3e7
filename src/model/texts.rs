//! Many short texts as one long one, and where each ends: a million strings are two allocations.
//!
//! Invariant: an index that was given out stays that of its text. It must not know what the texts mean.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use super::Overflow;

/// Texts by the order in which they came.
#[derive(Debug, Clone, Default)]
pub(crate) struct Texts {
    text: String,
    ends: Vec<u32>,
}

impl Texts {
    /// Room for as many as in `like`, which is about what will come.
    pub(crate) fn with_room(like: &Self) -> Self {
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

    /// Gives back what was allocated for texts that did not come.
    pub(crate) fn shrink(&mut self) {
        self.text.shrink_to_fit();
        self.ends.shrink_to_fit();
    }
}

/// Finds the index of a text that is there already.
#[derive(Debug, Default)]
pub(crate) struct Finder {
    by_hash: HashMap<u64, u32>,
    hasher: RandomState,
}

impl Finder {
    /// The index of that text, added where it is new.
    ///
    /// # Errors
    /// When there is no room for it.
    pub(crate) fn intern(&mut self, text: &str, texts: &mut Texts) -> Result<u32, Overflow> {
        let hash = self.hasher.hash_one(text);
        match self.by_hash.get(&hash) {
            Some(&index) if texts.at(index as usize) == text => Ok(index),
            // Two texts of one hash: the second is only kept more than once.
            Some(_) => texts.push(text),
            None => {
                let index = texts.push(text)?;
                self.by_hash.insert(hash, index);
                Ok(index)
            }
        }
    }
}
