//! Memory for large texts, which goes back to the system as soon as it is dropped.
//!
//! glibc keeps what was freed for the next request of its thread's own arena: with a text of megabytes rendered at each
//! change, by whichever thread, twice what is in use stays resident. Invariant: what is not written to is not resident
//! either, so room to spare costs nothing. It must not know what is written.

use bytes::Bytes;
use memmap2::MmapMut;

/// Beyond an eighth: small texts change by more than large ones.
const HEADROOM: usize = 64 << 10;

/// A text that grows at its end.
pub(crate) struct Buffer {
    map: MmapMut,
    length: usize,
}

impl Buffer {
    /// Room for that many bytes; more move what is there to a larger place.
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        Self { map: map(bytes), length: 0 }
    }

    /// Room for a text that replaces one of that many bytes, and for some more.
    pub(crate) fn after(previous: usize) -> Self {
        Self::with_capacity(previous + previous / 8 + HEADROOM)
    }

    /// Appends each part.
    pub(crate) fn extend<T: AsRef<[u8]>>(&mut self, parts: impl IntoIterator<Item = T>) {
        for part in parts {
            let part = part.as_ref();
            let end = self.length + part.len();
            if end > self.map.len() {
                let mut larger = map(end.max(2 * self.map.len()));
                larger[..self.length].copy_from_slice(&self.map[..self.length]);
                self.map = larger;
            }
            self.map[self.length..end].copy_from_slice(part);
            self.length = end;
        }
    }

    /// What was written.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map[..self.length]
    }

    /// The text, to be shared without being copied.
    pub(crate) fn freeze(self) -> Bytes {
        let length = self.length;
        Bytes::from_owner(self.map).slice(..length)
    }
}

fn map(bytes: usize) -> MmapMut {
    MmapMut::map_anon(bytes.max(1)).expect("the system has memory, or this process ends as for any other allocation")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_that_is_too_small_grows() {
        let mut buffer = Buffer::with_capacity(0);
        let mut expected = String::new();
        for number in 0..3000 {
            let number = number.to_string();
            buffer.extend([&*number, "\n"]);
            expected.extend([&*number, "\n"]);
        }
        assert_eq!(buffer.freeze(), expected);
    }

    #[test]
    fn an_empty_text_is_one() {
        assert_eq!(Buffer::with_capacity(10).freeze(), "");
    }
}
