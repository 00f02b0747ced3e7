//! One gzip member glued of parts, so that what does not change is compressed once (RFC 1951, RFC 1952).
//!
//! Invariant: the result is an ordinary gzip file that every client reads. It must not know what is compressed.

use std::io::Write;

use bytes::Bytes;
use crc32fast::Hasher;
use flate2::Compression;
use flate2::write::DeflateEncoder;

/// Deflate; no name, no time, no system.
const HEADER: &[u8] = &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
const IN_MEMORY: &str = "writing to memory does not fail";

/// Deflate blocks and the checksum of what is in them.
#[derive(Debug, Clone)]
pub struct Part {
    blocks: Bytes,
    checksum: Hasher,
}

impl Part {
    /// A part that others follow: the flush ends it on a whole byte.
    pub fn first(bytes: &[u8]) -> Self {
        let mut deflate = DeflateEncoder::new(Vec::new(), Compression::fast());
        deflate.write_all(bytes).expect(IN_MEMORY);
        deflate.flush().expect(IN_MEMORY);
        Self::new(std::mem::take(deflate.get_mut()), bytes)
    }

    /// The part that ends a member.
    pub fn last(bytes: &[u8]) -> Self {
        let mut deflate = DeflateEncoder::new(Vec::new(), Compression::fast());
        deflate.write_all(bytes).expect(IN_MEMORY);
        Self::new(deflate.finish().expect(IN_MEMORY), bytes)
    }

    /// Compressed bytes.
    pub(crate) fn len(&self) -> usize {
        self.blocks.len()
    }

    fn new(mut blocks: Vec<u8>, bytes: &[u8]) -> Self {
        blocks.shrink_to_fit();
        let mut checksum = Hasher::new();
        checksum.update(bytes);
        Self { blocks: blocks.into(), checksum }
    }
}

/// The frames of a member of `parts`, of which the last ends it; none is copied.
pub fn member(parts: &[&Part]) -> Vec<Bytes> {
    let mut checksum = Hasher::new();
    for part in parts {
        checksum.combine(&part.checksum);
    }
    let mut trailer = Vec::with_capacity(8);
    // The length counts modulo 2^32, as RFC 1952 has it.
    let length = checksum.total_len().to_le_bytes();
    trailer.extend(checksum.finalize().to_le_bytes());
    trailer.extend(&length[..4]);
    let blocks = parts.iter().map(|part| part.blocks.clone());
    [Bytes::from_static(HEADER)].into_iter().chain(blocks).chain([trailer.into()]).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;

    use super::*;

    fn unzipped(member: &[Bytes]) -> Vec<u8> {
        let mut bytes = Vec::new();
        // It reads one member alone, and checks its checksum and length.
        GzDecoder::new(&*member.concat()).read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_glued_member_is_an_ordinary_one() {
        let large: Vec<u8> = (0..100_000).flat_map(|n| format!("line {n}\n").into_bytes()).collect();
        for (first, last) in [(&large[..], &b"end\n"[..]), (b"", b"all"), (b"all", b""), (b"", b""), (&large, &large)] {
            let (head, tail) = (Part::first(first), Part::last(last));
            assert_eq!(unzipped(&member(&[&tail])), last);
            assert_eq!(unzipped(&member(&[&head, &tail])), [first, last].concat());
            assert_eq!(unzipped(&member(&[&head, &head, &tail])), [first, first, last].concat());
        }
    }
}
