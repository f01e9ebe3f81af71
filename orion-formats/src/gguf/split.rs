//! Models split over several GGUF files.

use std::collections::HashSet;
use std::fmt;

use orion_core::{ModelHeader, Result};

use super::GgufHeader;
use crate::name::shown;
use crate::reason::Reason;

/// Most parts of a split: what five digits hold.
const MOST_PARTS: u32 = 99_999;

/// A file name of the form `stem-00001-of-00003.gguf`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SplitName {
    /// What stands before the numbers.
    pub stem: String,
    /// Number of this part, from 1.
    pub part: u32,
    /// Number of parts.
    pub parts: u32,
}

impl SplitName {
    /// Parses a file name; `None` if it is no part of a split.
    #[must_use]
    pub fn parse(file_name: &str) -> Option<Self> {
        let base = file_name.strip_suffix(".gguf")?;
        let (rest, parts) = base.rsplit_once("-of-")?;
        let (stem, part) = rest.rsplit_once('-')?;
        let number = |text: &str| {
            (text.len() == 5 && text.bytes().all(|digit| digit.is_ascii_digit()))
                .then(|| text.parse().ok())?
        };
        let (part, parts) = (number(part)?, number(parts)?);
        (1 <= part && part <= parts).then(|| Self { stem: stem.to_owned(), part, parts })
    }

    /// The names of all parts, in order.
    pub fn all(&self) -> impl Iterator<Item = Self> + use<> {
        let (stem, parts) = (self.stem.clone(), self.parts.min(MOST_PARTS));
        (1..=parts).map(move |part| Self { stem: stem.clone(), part, parts })
    }
}

impl fmt::Display for SplitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:05}-of-{:05}.gguf", self.stem, self.part, self.parts)
    }
}

/// Makes one model of the headers of all files, in order. The metadata is the first file's; tensors say by their
/// `file` which one holds them. One file that says of itself that it is whole is a model, too.
///
/// # Errors
/// [`Reason::BadSplit`] if numbers or tensor counts do not add up, [`Reason::DuplicateTensor`].
pub fn join(files: Vec<GgufHeader>) -> Result<ModelHeader> {
    let count = files.len();
    let mut announced = None;
    let mut files = files.into_iter().enumerate();
    let Some((_, first)) = files.next() else { return Err(Reason::BadSplit.error("no file")) };
    check_numbers(&first.model, 0, count, &mut announced)?;
    let mut model = first.model;
    for (index, part) in files {
        check_numbers(&part.model, index, count, &mut announced)
            .map_err(|error| error.about(format!("part {} of {count}", index + 1)))?;
        model.tensors.extend(part.model.tensors.into_iter().map(|mut tensor| {
            tensor.file = index;
            tensor
        }));
    }
    if let Some(announced) = announced
        && announced != model.tensors.len() as u64
    {
        return Err(Reason::BadSplit
            .error(format!("{announced} tensors announced, {} found in all parts", model.tensors.len())));
    }
    let mut names = HashSet::with_capacity(model.tensors.len());
    if let Some(twice) = model.tensors.iter().find(|tensor| !names.insert(tensor.name.as_str())) {
        return Err(Reason::DuplicateTensor
            .error("appears in two parts")
            .about(format!("tensor {}", shown(&twice.name))));
    }
    Ok(model)
}

fn check_numbers(model: &ModelHeader, index: usize, count: usize, announced: &mut Option<u64>) -> Result<()> {
    let number = |key: &str| match model.metadata.get(key) {
        None => Ok(None),
        Some(value) => value.as_u64().map(Some).ok_or_else(|| {
            Reason::BadSplit.error("must be a non-negative integer").about(format!("key {key}"))
        }),
    };
    let parts = number("split.count")?.unwrap_or(0);
    // A split that was merged again says 0.
    let whole = parts <= 1;
    if whole && count == 1 {
        return Ok(());
    }
    if parts != count as u64 {
        return Err(Reason::BadSplit.error(format!(
            "the file says the model has {parts} parts, {count} were given; name them `stem-00001-of-{:05}.gguf` and so on",
            parts.max(1)
        )));
    }
    let no = number("split.no")?;
    if no != Some(index as u64) {
        let no = no.map_or("none".to_owned(), |no| no.to_string());
        return Err(Reason::BadSplit.error(format!("split.no is {no}, expected {index}")));
    }
    let total = number("split.tensors.count")?;
    match (total, *announced) {
        (None, _) => return Err(Reason::BadSplit.error("split.tensors.count is missing")),
        (Some(total), Some(before)) if total != before => {
            return Err(
                Reason::BadSplit.error(format!("split.tensors.count is {total}, another part says {before}"))
            );
        }
        (total, _) => *announced = total,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_names_go_both_ways() {
        let name = SplitName::parse("a-b-00002-of-00003.gguf").unwrap();
        assert_eq!(name, SplitName { stem: "a-b".into(), part: 2, parts: 3 });
        assert_eq!(name.to_string(), "a-b-00002-of-00003.gguf");
        assert_eq!(name.all().map(|name| name.part).collect::<Vec<_>>(), [1, 2, 3]);
        for bad in [
            "a.gguf",
            "a-00000-of-00003.gguf",
            "a-00004-of-00003.gguf",
            "a-2-of-3.gguf",
            "a-00002-of-00003.bin",
            "a-+0002-of-00003.gguf",
            "a-00002-of-00000.gguf",
        ] {
            assert_eq!(SplitName::parse(bad), None, "{bad}");
        }
    }
}
