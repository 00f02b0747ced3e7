//! A body of parts that exist already, sent together without being copied together.
//!
//! Invariant: its length is known from the start, and it is one frame: hyper writes the head and all parts at once,
//! where it would flush a large frame before it asked for the next. It must not know what the parts are.

use std::any::Any;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::IoSlice;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use hyper::body::{Frame, SizeHint};

/// The body of every answer.
#[derive(Debug)]
pub(crate) struct Body(Option<Parts>);

/// The parts not sent yet; none is empty.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    left: VecDeque<Bytes>,
    /// What is dropped once all is sent.
    kept: Option<Box<dyn Any + Send + Sync>>,
}

impl Body {
    pub(super) fn new(parts: Parts) -> Self {
        Self(parts.has_remaining().then_some(parts))
    }

    /// Drops what would be sent.
    pub(super) fn clear(&mut self) {
        self.0 = None;
    }

    /// Keeps something until the last byte is written; a body by itself is gone before, as soon as its frame is taken.
    pub(super) fn keep(&mut self, kept: impl Any + Send + Sync) {
        if let Some(parts) = &mut self.0 {
            parts.kept = Some(Box::new(kept));
        }
    }
}

impl hyper::body::Body for Body {
    type Data = Parts;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Parts>, Infallible>>> {
        Poll::Ready(self.0.take().map(|parts| Ok(Frame::data(parts))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.as_ref().map_or(0, |parts| parts.remaining() as u64))
    }
}

impl Parts {
    pub(super) fn new(parts: impl IntoIterator<Item = Bytes>) -> Self {
        Self { left: parts.into_iter().filter(|part| !part.is_empty()).collect(), kept: None }
    }
}

impl<T: Into<Bytes>> From<T> for Parts {
    fn from(part: T) -> Self {
        Self::new([part.into()])
    }
}

impl Buf for Parts {
    fn remaining(&self) -> usize {
        self.left.iter().map(Bytes::len).sum()
    }

    fn chunk(&self) -> &[u8] {
        self.left.front().map_or(&[], |part| part)
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut filled = 0;
        for (slice, part) in slices.iter_mut().zip(&self.left) {
            *slice = IoSlice::new(part);
            filled += 1;
        }
        filled
    }

    fn advance(&mut self, mut count: usize) {
        while let Some(part) = self.left.front_mut() {
            if count < part.len() {
                part.advance(count);
                return;
            }
            count -= part.len();
            self.left.pop_front();
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
