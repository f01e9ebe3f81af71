//! Where a file of a model may be.

use std::path::{Path, PathBuf};

/// What is wrong with a path or URL, and what to do.
pub(crate) type Complaint = (&'static str, String, &'static str);

/// Checks a relative path as it is written, without looking at the disk. The rules hold on every system, so that a
/// registry written on one does not escape its folder on another.
pub(crate) fn check_path(path: &str) -> Result<(), Complaint> {
    let escape = |message: String, help| Err(("path-escapes", message, help));
    let shown = crate::schema::Quoted(path);
    let bytes = path.as_bytes();
    if path.starts_with('/') || path.starts_with('~') {
        return escape(format!("{shown} is absolute"), "write it relative to the folder of this file");
    }
    if bytes.get(1) == Some(&b':') && bytes[0].is_ascii_alphabetic() {
        return escape(format!("{shown} names a drive"), "write it relative to the folder of this file");
    }
    if path.contains('\\') {
        return escape(format!("{shown} has a backslash"), "separate folders with forward slashes");
    }
    let encoded =
        bytes.windows(3).any(|w| w[0] == b'%' && w[1].is_ascii_hexdigit() && w[2].is_ascii_hexdigit());
    if encoded {
        return escape(format!("{shown} is percent-encoded"), "write the characters themselves");
    }
    if path.split('/').any(|part| part == "..") {
        return escape(format!("{shown} leads out of its folder"), "remove the \"..\"");
    }
    if path.chars().any(|c| c.is_control() || c == ':')
        || path.split('/').any(|part| part.is_empty() || part == ".")
    {
        return Err(("malformed-path", format!("{shown} is no plain path"), "write it as folder/file"));
    }
    Ok(())
}

/// Checks a URL: http or https, a host, no credentials.
pub(crate) fn check_url(url: &str) -> Result<(), Complaint> {
    let shown = crate::schema::Quoted(url);
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let Some(rest) = rest else {
        return Err(("malformed-url", format!("{shown} is no http or https URL"), "start it with https://"));
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.contains('@') {
        let message = "a URL with a user name or password".to_owned();
        return Err(("malformed-url", message, "keep credentials out of this file"));
    }
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    if host.is_empty() || url.chars().any(|c| c.is_whitespace() || c.is_control() || c == '\\') {
        return Err(("malformed-url", format!("{shown} is no URL"), "write it as https://host/path"));
    }
    Ok(())
}

/// Where a checked relative path leads, links followed.
#[derive(Debug)]
pub(crate) enum Found {
    /// A file of that size, inside the root.
    File(u64),
    /// Nothing there.
    Missing,
    /// Something that is no file.
    NoFile,
    /// A link out of the root, to this place.
    Outside(PathBuf),
}

/// Looks at the disk. `root` is canonical.
pub(crate) fn look(root: &Path, path: &str) -> Found {
    let Ok(real) = root.join(path).canonicalize() else { return Found::Missing };
    if !real.starts_with(root) {
        return Found::Outside(real);
    }
    match real.metadata() {
        Ok(metadata) if metadata.is_file() => Found::File(metadata.len()),
        Ok(_) => Found::NoFile,
        Err(_) => Found::Missing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside() {
        for good in ["a.gguf", "models/a b/x-1.gguf", "..hidden", "a..b/c", "50%/x"] {
            assert!(check_path(good).is_ok(), "{good}");
        }
        for (bad, code) in [
            ("../x", "path-escapes"),
            ("a/../../x", "path-escapes"),
            ("/etc/passwd", "path-escapes"),
            ("~/x", "path-escapes"),
            ("C:\\x", "path-escapes"),
            ("c:x", "path-escapes"),
            ("a\\..\\x", "path-escapes"),
            ("\\\\server\\share", "path-escapes"),
            ("%2e%2e/x", "path-escapes"),
            ("%2E%2E%2fx", "path-escapes"),
            ("a//b", "malformed-path"),
            ("./a", "malformed-path"),
            ("", "malformed-path"),
            ("a\0b", "malformed-path"),
            ("a.gguf:stream", "malformed-path"),
        ] {
            assert_eq!(check_path(bad).unwrap_err().0, code, "{bad}");
        }
    }

    #[test]
    fn urls_name_a_host_and_no_secret() {
        for good in ["https://models.example/x.gguf", "http://127.0.0.1:8080/a?b=c"] {
            assert!(check_url(good).is_ok(), "{good}");
        }
        for bad in [
            "file:///etc/passwd",
            "ftp://x/y",
            "https://",
            "https://:80/x",
            "https://u:p@h/x",
            "https://h/a b",
            "x",
        ] {
            assert!(check_url(bad).is_err(), "{bad}");
        }
    }
}
