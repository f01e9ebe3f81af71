//! Names of tensors and of files that stand in files.

use orion_core::Result;

use crate::reason::Reason;

/// Refuses what no tensor is called. A tensor name never becomes a path, and `..` in one is refused all the same:
/// somebody's exporter will make a path of it.
pub(crate) fn check_tensor_name(name: &str, longest: usize) -> Result<()> {
    let fault = if name.is_empty() {
        "empty tensor name"
    } else if name.len() > longest {
        "tensor name too long"
    } else if name.chars().any(char::is_control) {
        "control character in tensor name"
    } else if name.split(['/', '\\']).any(|part| part == "..") || name.starts_with(['/', '\\']) {
        "tensor name is a path"
    } else {
        return Ok(());
    };
    Err(Reason::BadName.error(fault).about(format!("tensor {}", shown(name))))
}

/// Refuses a file name that is more than one plain component, on any system.
pub(crate) fn check_file_name(name: &str) -> Result<()> {
    let plain = !name.is_empty()
        && name.len() <= 255
        && !name.starts_with('.')
        && !name.ends_with(['.', ' '])
        && !name.chars().any(|c| {
            c.is_control() || matches!(c, '/' | '\\' | ':' | '%' | '?' | '#' | '*' | '"' | '<' | '>' | '|')
        });
    if plain {
        return Ok(());
    }
    Err(Reason::PathEscape.error("not a plain file name").about(format!("file {}", shown(name))))
}

/// A hostile name fit for an error message: control characters escaped, cut at 80 characters.
pub(crate) fn shown(name: &str) -> String {
    let mut text: String = name.chars().take(80).flat_map(char::escape_debug).collect();
    if name.chars().nth(80).is_some() {
        text.push('…');
    }
    text
}

/// [`shown`] for bytes that may be no UTF-8.
pub(crate) fn shown_bytes(name: &[u8]) -> String {
    shown(&String::from_utf8_lossy(&name[..name.len().min(400)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_that_could_leave_their_directory_are_refused() {
        check_file_name("model-00001-of-00002.safetensors").unwrap();
        for bad in [
            "",
            ".",
            "..",
            "../x",
            "/etc/passwd",
            "C:\\x",
            "C:x",
            "a/../../b",
            "%2e%2e/x",
            "%2e%2e",
            "a\\b",
            "a/b",
            "a\0b",
            ".hidden",
            "a?b",
            "a#b",
            "a ",
            "a.",
            "\u{7f}",
            "//x",
            "~/../x",
        ] {
            let error = check_file_name(bad).unwrap_err();
            assert_eq!(Reason::of(&error), Some(Reason::PathEscape), "{bad:?}");
        }
    }

    #[test]
    fn long_hostile_names_are_cut_and_escaped_in_messages() {
        assert_eq!(shown("a\u{1b}[31m"), "a\\u{1b}[31m");
        assert_eq!(shown(&"x".repeat(1000)).chars().count(), 81);
    }
}
