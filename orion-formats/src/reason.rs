//! Why a file was refused, for programs.

use orion_core::{Error, ErrorKind};

use crate::looks_like::LooksLike;

/// The class of a rejection. Every [`Error`] of this crate about a file's content carries one as its source.
///
/// ```
/// use orion_formats::{Reason, gguf};
/// let error = gguf::parse(b"FUGG", 4).unwrap_err();
/// assert_eq!(Reason::of(&error), Some(Reason::BadMagic));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// It is some other kind of file.
    #[error("not a model file, looks like {0}")]
    NotAModel(LooksLike),
    /// The first bytes are not the format's.
    #[error("bad magic")]
    BadMagic,
    /// A version that is not read.
    #[error("unsupported version")]
    UnsupportedVersion,
    /// The file ends before what it announces.
    #[error("truncated")]
    Truncated,
    /// More tensors or keys than any model has.
    #[error("count too large")]
    CountTooLarge,
    /// A string or array longer than any model has.
    #[error("length too large")]
    LengthTooLarge,
    /// A metadata key that is empty, not UTF-8 or holds control characters.
    #[error("bad key")]
    BadKey,
    /// A metadata key twice.
    #[error("duplicate key")]
    DuplicateKey,
    /// A value type that does not exist, or a boolean that is neither.
    #[error("bad value type")]
    BadType,
    /// Text that is not UTF-8.
    #[error("bad text")]
    BadText,
    /// Arrays in arrays beyond the limit.
    #[error("nested too deep")]
    TooDeep,
    /// An alignment that is no power of two, too large or of the wrong type.
    #[error("bad alignment")]
    BadAlignment,
    /// A tensor name that is empty, too long, not UTF-8, or holds control characters or `..`.
    #[error("bad tensor name")]
    BadName,
    /// A tensor name twice.
    #[error("duplicate tensor")]
    DuplicateTensor,
    /// More dimensions than any tensor has.
    #[error("too many dimensions")]
    TooManyDims,
    /// A dimension or a product of dimensions beyond the limit.
    #[error("shape overflow")]
    ShapeOverflow,
    /// A row that is no whole number of blocks.
    #[error("row is no whole number of blocks")]
    BadBlock,
    /// An element type that is not read.
    #[error("unsupported element type")]
    UnsupportedDtype,
    /// An offset that is not where the tensor must stand: misaligned, or with a hole before it.
    #[error("bad offset")]
    BadOffset,
    /// Tensors that share bytes.
    #[error("overlapping tensors")]
    Overlap,
    /// A tensor outside the file.
    #[error("out of bounds")]
    OutOfBounds,
    /// A hyper-parameter no model can have.
    #[error("bad hyper-parameter")]
    BadHyperparam,
    /// A vocabulary that contradicts itself.
    #[error("bad vocabulary")]
    BadVocab,
    /// Parts of a split model that do not belong together.
    #[error("bad split")]
    BadSplit,
    /// A header length that is zero, beyond the file or beyond the limit.
    #[error("bad header length")]
    HeaderLength,
    /// A header that is not the JSON it must be.
    #[error("bad header")]
    BadHeader,
    /// A tensor entry whose shape, type and range contradict each other.
    #[error("bad tensor entry")]
    BadInfo,
    /// Data that is longer or shorter than the header says.
    #[error("incomplete buffer")]
    IncompleteBuffer,
    /// A shard index that is not the JSON it must be.
    #[error("bad index")]
    BadIndex,
    /// A shard index that contradicts its shards.
    #[error("index and shards differ")]
    IndexMismatch,
    /// A shard set's manifest that is not the JSON it must be, or contradicts itself.
    #[error("bad manifest")]
    BadManifest,
    /// A digest that is not 64 lower-case hexadecimal digits.
    #[error("bad digest")]
    BadDigest,
    /// Content whose digest or size is not the one announced.
    #[error("digest or size does not match")]
    HashMismatch,
    /// More bytes than a file of its kind may have.
    #[error("too large")]
    TooLarge,
    /// A file name that could leave its directory.
    #[error("path escapes its directory")]
    PathEscape,
}

impl Reason {
    /// The reason behind an error, however deep, if it came from this crate.
    #[must_use]
    pub fn of(error: &Error) -> Option<Self> {
        let mut cause = std::error::Error::source(error);
        while let Some(inner) = cause {
            if let Some(reason) = inner.downcast_ref::<Self>() {
                return Some(*reason);
            }
            cause = inner.source();
        }
        None
    }

    /// An error of this reason.
    #[must_use]
    pub fn error(self, message: impl Into<String>) -> Error {
        let kind = match self {
            Self::UnsupportedDtype | Self::UnsupportedVersion => ErrorKind::Unsupported,
            _ => ErrorKind::Corrupt,
        };
        Error::new(kind, message).with_source(self)
    }
}
