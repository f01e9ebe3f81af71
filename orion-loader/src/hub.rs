//! `hf://org/name@revision/file`: models on a Hugging Face style hub.

use std::sync::Arc;

use orion_core::{Digest, Error, Result};
use serde::Deserialize;

use crate::fetch::{Fetcher, Wanted};

/// Longest listing of a repository.
const LONGEST_LISTING: u64 = 16 << 20;

/// A parsed `hf://` location.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HubLocation {
    pub(crate) repository: String,
    pub(crate) revision: String,
    pub(crate) file: Option<String>,
}

/// A repository at one revision.
pub(crate) struct Listing {
    files: Vec<Sibling>,
    base: String,
}

#[derive(Deserialize)]
struct RawListing {
    sha: Option<String>,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    #[serde(default)]
    size: Option<u64>,
    #[serde(default)]
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    #[serde(default)]
    sha256: Option<String>,
}

impl HubLocation {
    /// Parses `org/name[@revision][/file]`, what stands behind `hf://`.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let bad = || {
            Error::invalid("expected hf://organisation/name, @revision and /file as needed")
                .about(format!("hf://{text}"))
        };
        let mut parts = text.splitn(3, '/');
        let (Some(owner), Some(name)) = (parts.next(), parts.next()) else { return Err(bad()) };
        let file = parts.next().map(str::to_owned);
        let (name, revision) = name.split_once('@').unwrap_or((name, "main"));
        let plain = |part: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            !part.is_empty() && part.chars().all(allowed) && !part.starts_with('.') && !part.contains("..")
        };
        if ![owner, name, revision].into_iter().all(plain)
            || file.as_deref().is_some_and(|file| !file.split('/').all(plain))
        {
            return Err(bad());
        }
        Ok(Self { repository: format!("{owner}/{name}"), revision: revision.to_owned(), file })
    }
}

impl Listing {
    /// Asks the hub which files there are, how long they are and, where it says so, their digests.
    pub(crate) fn fetch(fetcher: &Arc<Fetcher>, location: &HubLocation) -> Result<Self> {
        let hub = fetcher.options.hub_url.trim_end_matches('/');
        let HubLocation { repository, revision, .. } = location;
        let url = format!("{hub}/api/models/{repository}/revision/{revision}?blobs=true");
        let json = fetcher.small(Wanted::new(url).at_most(LONGEST_LISTING))?;
        let raw: RawListing = serde_json::from_slice(&json).map_err(|error| {
            Error::corrupt(format!("the hub's answer is not a listing: {error}"))
                .about(format!("hf://{repository}"))
        })?;
        // All files from one commit, even if the branch moves meanwhile.
        let commit =
            raw.sha.filter(|sha| sha.len() == 40 && sha.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let revision = commit.as_deref().unwrap_or(revision);
        Ok(Self { files: raw.siblings, base: format!("{hub}/{repository}/resolve/{revision}/") })
    }

    /// The names of all files.
    pub(crate) fn names(&self) -> Vec<String> {
        self.files.iter().map(|file| file.rfilename.clone()).collect()
    }

    /// The names of the files at the root, among which the model is looked for.
    pub(crate) fn root_names(&self) -> Vec<String> {
        self.names().into_iter().filter(|name| !name.contains('/')).collect()
    }

    /// Where all files are.
    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    /// What the listing says of one file.
    pub(crate) fn wanted(&self, name: &str) -> Wanted {
        let mut wanted = Wanted::new(format!("{}{name}", self.base));
        if let Some(file) = self.files.iter().find(|file| file.rfilename == name) {
            wanted.bytes = file.size;
            wanted.digest = file.lfs.as_ref().and_then(|lfs| lfs.sha256.as_deref()).and_then(Digest::parse);
        }
        wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hub_locations_have_owner_name_revision_and_file() {
        let parse = |text| HubLocation::parse(text).map(|at| (at.repository, at.revision, at.file)).ok();
        let expected =
            |r: &str, v: &str, f: Option<&str>| Some((r.to_owned(), v.to_owned(), f.map(str::to_owned)));
        assert_eq!(parse("org/name"), expected("org/name", "main", None));
        assert_eq!(parse("org/name@v1"), expected("org/name", "v1", None));
        assert_eq!(parse("org/name@v1/sub/m.gguf"), expected("org/name", "v1", Some("sub/m.gguf")));
        for bad in [
            "",
            "org",
            "org/",
            "/name",
            "../name",
            "org/..",
            "org/name@",
            "org/name@..",
            "org/name/../x",
            "org/na me",
            "org/name/a//b",
            "org/name?x",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
