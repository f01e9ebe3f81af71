//! What a file that is no model looks like, so that the error can say it.

use std::fmt;

/// Kinds of files that are taken for models by mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LooksLike {
    /// The pointer Git LFS leaves where the file was not fetched.
    LfsPointer,
    /// A web page: an error page or a login form saved under the model's name.
    Html,
    /// An XML document, as object stores answer errors.
    Xml,
    /// gzip.
    Gzip,
    /// A zip archive, the container of PyTorch checkpoints.
    Zip,
    /// A bare pickle.
    Pickle,
    /// A Linux program.
    Elf,
    /// A Windows program.
    Pe,
    /// Zstandard.
    Zstd,
    /// xz.
    Xz,
    /// bzip2.
    Bzip2,
    /// 7-Zip.
    SevenZip,
    /// tar.
    Tar,
    /// PDF.
    Pdf,
    /// NumPy.
    Numpy,
    /// HDF5, as Keras writes.
    Hdf5,
    /// ggml's formats before GGUF.
    LegacyGgml,
    /// GGUF where something else was expected.
    Gguf,
}

impl LooksLike {
    /// What to tell a person.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::LfsPointer => "a Git LFS pointer, run `git lfs pull`",
            Self::Html => "an HTML page",
            Self::Xml => "an XML document",
            Self::Gzip => "gzip data",
            Self::Zip => "a zip archive (perhaps a PyTorch checkpoint)",
            Self::Pickle => "a Python pickle",
            Self::Elf => "an ELF program",
            Self::Pe => "a Windows program",
            Self::Zstd => "zstd data",
            Self::Xz => "xz data",
            Self::Bzip2 => "bzip2 data",
            Self::SevenZip => "a 7-Zip archive",
            Self::Tar => "a tar archive",
            Self::Pdf => "a PDF document",
            Self::Numpy => "a NumPy array",
            Self::Hdf5 => "an HDF5 file",
            Self::LegacyGgml => "a ggml file older than GGUF",
            Self::Gguf => "a GGUF file",
        }
    }
}

impl fmt::Display for LooksLike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

const MAGICS: &[(&[u8], LooksLike)] = &[
    (b"version https://git-lfs", LooksLike::LfsPointer),
    (b"\x1f\x8b", LooksLike::Gzip),
    (b"PK\x03\x04", LooksLike::Zip),
    (b"PK\x05\x06", LooksLike::Zip),
    (b"\x7fELF", LooksLike::Elf),
    (b"MZ", LooksLike::Pe),
    (b"\x28\xb5\x2f\xfd", LooksLike::Zstd),
    (b"\xfd7zXZ\0", LooksLike::Xz),
    (b"BZh", LooksLike::Bzip2),
    (b"7z\xbc\xaf\x27\x1c", LooksLike::SevenZip),
    (b"%PDF-", LooksLike::Pdf),
    (b"\x93NUMPY", LooksLike::Numpy),
    (b"\x89HDF\r\n", LooksLike::Hdf5),
    (b"lmgg", LooksLike::LegacyGgml),
    (b"tjgg", LooksLike::LegacyGgml),
    (b"fmgg", LooksLike::LegacyGgml),
    (b"algg", LooksLike::LegacyGgml),
    (b"GGUF", LooksLike::Gguf),
];

/// Recognises by its first bytes a file that a parser has refused. 512 bytes are enough.
#[must_use]
pub fn looks_like(start: &[u8]) -> Option<LooksLike> {
    if let Some((_, kind)) = MAGICS.iter().find(|(magic, _)| start.starts_with(magic)) {
        return Some(*kind);
    }
    // Protocols 2 to 5: the opcode, the version, then a frame, an empty container, a long or a global.
    if let [0x80, 2..=5, b'}' | b']' | b'(' | b'c' | 0x8a | 0x95 | b'X' | 0x8c, ..] = start {
        return Some(LooksLike::Pickle);
    }
    if start.get(257..262) == Some(b"ustar") {
        return Some(LooksLike::Tar);
    }
    let text = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start();
    let begins = |tag: &[u8]| text.get(..tag.len()).is_some_and(|head| head.eq_ignore_ascii_case(tag));
    if begins(b"<!doctype html") || begins(b"<html") || begins(b"<head") {
        return Some(LooksLike::Html);
    }
    if begins(b"<?xml") || begins(b"<error>") {
        return Some(LooksLike::Xml);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_mistakes_are_recognised() {
        let tar = [&[b'a'; 257][..], b"ustar\0"].concat();
        for (start, kind) in [
            (&b"version https://git-lfs.github.com/spec/v1\noid sha256:"[..], LooksLike::LfsPointer),
            (b"\n<!DOCTYPE HTML><html>", LooksLike::Html),
            (b"\xef\xbb\xbf<html lang=en>", LooksLike::Html),
            (b"<?xml version=\"1.0\"?><Error>", LooksLike::Xml),
            (b"\x1f\x8b\x08\0", LooksLike::Gzip),
            (b"PK\x03\x04\0\0archive/data.pkl", LooksLike::Zip),
            (b"\x80\x02}q\0", LooksLike::Pickle),
            (b"\x80\x04\x95", LooksLike::Pickle),
            (b"\x7fELF\x02", LooksLike::Elf),
            (b"tjgg\x03\0\0\0", LooksLike::LegacyGgml),
            (&tar, LooksLike::Tar),
        ] {
            assert_eq!(looks_like(start), Some(kind), "{kind:?}");
        }
        assert_eq!(looks_like(b""), None);
        assert_eq!(looks_like(&[0; 512]), None);
    }
}
