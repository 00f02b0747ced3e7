//! A body of parts that exist already, sent together without being copied together.
//!
//! Invariant: its length is known from the start, and it is one frame: hyper writes the head and all parts at once,
//! where it would flush a large frame before it asked for the next. It must not know what the parts are.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes};
use http_body_util::Full;

/// The body of every answer.
pub(crate) type Body = Full<Parts>;

/// The parts not sent yet; none is empty.
#[derive(Debug, Default)]
pub(crate) struct Parts(VecDeque<Bytes>);

impl Parts {
    pub(super) fn new(parts: impl IntoIterator<Item = Bytes>) -> Self {
        Self(parts.into_iter().filter(|part| !part.is_empty()).collect())
    }
}

impl<T: Into<Bytes>> From<T> for Parts {
    fn from(part: T) -> Self {
        Self::new([part.into()])
    }
}

impl Buf for Parts {
    fn remaining(&self) -> usize {
        self.0.iter().map(Bytes::len).sum()
    }

    fn chunk(&self) -> &[u8] {
        self.0.front().map_or(&[], |part| part)
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut filled = 0;
        for (slice, part) in slices.iter_mut().zip(&self.0) {
            *slice = IoSlice::new(part);
            filled += 1;
        }
        filled
    }

    fn advance(&mut self, mut count: usize) {
        while let Some(part) = self.0.front_mut() {
            if count < part.len() {
                part.advance(count);
                return;
            }
            count -= part.len();
            self.0.pop_front();
        }
        assert_eq!(count, 0, "no more can be sent than there is");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts() -> Parts {
        Parts::new(["head".into(), Bytes::new(), "a".into(), "tail".into()])
    }

    #[test]
    fn parts_are_read_in_order_however_much_is_taken_at_a_time() {
        for step in 1..=9 {
            let mut parts = parts();
            let mut read = Vec::new();
            while parts.has_remaining() {
                let taken = step.min(parts.remaining());
                read.extend_from_slice(&parts.copy_to_bytes(taken));
            }
            assert_eq!(read, b"headatail", "{step} at a time");
        }
    }

    #[test]
    fn all_parts_go_into_one_write() {
        let mut parts = parts();
        parts.advance(5);
        let mut slices = [IoSlice::new(&[]); 4];
        assert_eq!(parts.chunks_vectored(&mut slices), 1);
        assert_eq!(&*slices[0], b"tail");
        let parts = self::parts();
        let mut slices = [IoSlice::new(&[]); 2];
        assert_eq!(parts.chunks_vectored(&mut slices), 2, "no more than there is room for");
    }
}
