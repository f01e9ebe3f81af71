//! A forward reader that knows how much is left and never takes a length on trust.

use std::io::{BufReader, ErrorKind as IoKind, Read};

use orion_core::{Error, Result};

use crate::reason::Reason;

/// Bytes taken from the source at a time, so that a lying length costs no memory.
const PIECE: usize = 1 << 16;

pub(crate) struct Reader<R> {
    inner: BufReader<R>,
    offset: u64,
    len: u64,
}

impl<R: Read> Reader<R> {
    /// Reads a file of `len` bytes from its start.
    pub(crate) fn new(inner: R, len: u64) -> Self {
        Self { inner: BufReader::with_capacity(PIECE, inner), offset: 0, len }
    }

    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    pub(crate) fn remaining(&self) -> u64 {
        self.len - self.offset
    }

    /// Fails unless `bytes` more are there.
    pub(crate) fn expect(&self, bytes: u64, what: &str) -> Result<()> {
        if bytes > self.remaining() {
            return Err(Reason::Truncated.error(format!(
                "{what} needs {bytes} bytes at offset {}, the file ends after {}",
                self.offset,
                self.remaining()
            )));
        }
        Ok(())
    }

    pub(crate) fn fill(&mut self, out: &mut [u8], what: &str) -> Result<()> {
        self.expect(out.len() as u64, what)?;
        self.inner.read_exact(out).map_err(|error| match error.kind() {
            IoKind::UnexpectedEof => {
                Reason::Truncated.error(format!("the file ended inside {what} at offset {}", self.offset))
            }
            _ => Error::io(error, what),
        })?;
        self.offset += out.len() as u64;
        Ok(())
    }

    pub(crate) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut out = [0; N];
        self.fill(&mut out, what)?;
        Ok(out)
    }

    pub(crate) fn u32(&mut self, what: &str) -> Result<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, what: &str) -> Result<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// `len` bytes in place of what `out` held.
    pub(crate) fn bytes(&mut self, out: &mut Vec<u8>, len: u64, what: &str) -> Result<()> {
        self.expect(len, what)?;
        out.clear();
        let mut left = usize::try_from(len).map_err(|_| Reason::LengthTooLarge.error(what.to_owned()))?;
        while left > 0 {
            let (start, piece) = (out.len(), left.min(PIECE));
            out.resize(start + piece, 0);
            self.fill(&mut out[start..], what)?;
            left -= piece;
        }
        Ok(())
    }

    /// `count` numbers of `N` bytes each.
    pub(crate) fn numbers<T, const N: usize>(
        &mut self,
        count: u64,
        decode: impl Fn([u8; N]) -> T,
    ) -> Result<Vec<T>> {
        let bytes = count.saturating_mul(N as u64);
        self.expect(bytes, "array")?;
        let count = usize::try_from(count).map_err(|_| Reason::LengthTooLarge.error("array"))?;
        let mut out = Vec::with_capacity(count);
        let mut piece = vec![0; (PIECE / N).min(count) * N];
        while out.len() < count {
            let take = (count - out.len()).min(PIECE / N);
            self.fill(&mut piece[..take * N], "array")?;
            let (chunks, _) = piece[..take * N].as_chunks::<N>();
            out.extend(chunks.iter().map(|chunk| decode(*chunk)));
        }
        Ok(out)
    }
}
