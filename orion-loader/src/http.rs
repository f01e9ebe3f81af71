//! One GET: redirects that keep secrets, timeouts, and what the answer says of the file.

use std::io::Read;
use std::time::Duration;

use orion_core::{Digest, Error, ErrorKind, Result};
use orion_formats::Reason;
use ureq::http::{HeaderMap, StatusCode, Uri, header};

const MOST_REDIRECTS: usize = 10;

/// Sends requests. The token goes to the origin it belongs to and nowhere else.
pub(crate) struct Client {
    agent: ureq::Agent,
    /// Origin and token.
    token: Option<(String, String)>,
}

/// What part of a file is asked for, under what condition.
#[derive(Default)]
pub(crate) struct Ask<'a> {
    /// First byte wanted.
    pub(crate) from: u64,
    /// The byte behind the last one wanted, if not all are.
    pub(crate) to: Option<u64>,
    /// Part only of this version, else the whole.
    pub(crate) if_range: Option<&'a str>,
    /// Nothing if it is still this version.
    pub(crate) if_none_match: Option<&'a str>,
}

/// An answer whose status has been understood.
pub(crate) enum Answer {
    /// Bytes from [`Body::from`] on.
    Body(Body),
    /// The version that was named is still current.
    NotModified,
    /// There is nothing from that byte on.
    BeyondEnd,
}

pub(crate) struct Body {
    pub(crate) from: u64,
    /// Whether it is the part that was asked for, not the whole.
    pub(crate) partial: bool,
    /// Length of the whole file, where the server says it.
    pub(crate) total: Option<u64>,
    /// A strong entity tag.
    pub(crate) etag: Option<String>,
    /// SHA-256 of the file as the origin itself announces it.
    pub(crate) digest: Option<Digest>,
    pub(crate) reader: Box<dyn Read + Send>,
}

/// A request that failed, and whether and when to try again.
pub(crate) struct Failure {
    pub(crate) error: Error,
    pub(crate) retry: bool,
    pub(crate) retry_after: Option<Duration>,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error, retry: false, retry_after: None }
    }
}

impl Client {
    pub(crate) fn new(stall: Duration, token: Option<(String, String)>) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_connect(Some(stall))
            .timeout_recv_response(Some(stall))
            .timeout_per_read(Some(stall))
            .user_agent(concat!("orion/", env!("CARGO_PKG_VERSION")))
            .build();
        Self { agent: config.into(), token }
    }

    pub(crate) fn get(&self, url: &str, ask: &Ask<'_>) -> Result<Answer, Failure> {
        let mut at = parse(url)?;
        let mut digest = None;
        for hop in 0..=MOST_REDIRECTS {
            let response = self.send(&at, ask)?;
            let headers = response.headers();
            if hop == 0 {
                digest = text(headers, "x-linked-etag").and_then(|tag| Digest::parse(tag.trim_matches('"')));
            }
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return understand(&at, ask, response, digest);
            }
            let Some(location) = text(headers, header::LOCATION.as_str()) else {
                return Err(network(&at, "a redirect to nowhere").into());
            };
            at = follow(&at, location)?;
        }
        Err(network(&at, "too many redirects").into())
    }

    fn send(&self, url: &Uri, ask: &Ask<'_>) -> Result<ureq::http::Response<ureq::Body>, Failure> {
        let mut request = self.agent.get(url.clone()).header(header::ACCEPT_ENCODING, "identity");
        if let Some((owner, token)) = &self.token
            && *owner == origin(url)
        {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if ask.from > 0 || ask.to.is_some() {
            let last = ask.to.map_or(String::new(), |to| (to - 1).to_string());
            request = request.header(header::RANGE, format!("bytes={}-{last}", ask.from));
            if let Some(tag) = ask.if_range {
                request = request.header(header::IF_RANGE, tag);
            }
        }
        if let Some(tag) = ask.if_none_match {
            request = request.header(header::IF_NONE_MATCH, tag);
        }
        request.call().map_err(|error| {
            let error = network(url, error.to_string()).with_source(error);
            Failure { error, retry: true, retry_after: None }
        })
    }
}

/// Scheme, host and port.
pub(crate) fn origin(url: &Uri) -> String {
    let scheme = url.scheme_str().unwrap_or_default();
    let port = url.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
    format!("{scheme}://{}:{port}", url.host().unwrap_or_default().to_ascii_lowercase())
}

/// Parses an absolute URL of a scheme that is spoken here.
pub(crate) fn parse(url: &str) -> Result<Uri> {
    let uri: Uri =
        url.parse().map_err(|error| Error::invalid("not a URL").about(shown(url)).with_source(error))?;
    let spoken = matches!(uri.scheme_str(), Some("http" | "https"));
    let plain = uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
    if spoken && plain {
        return Ok(uri);
    }
    Err(Error::invalid("only http and https URLs without credentials are fetched").about(shown(url)))
}

fn follow(from: &Uri, location: &str) -> Result<Uri> {
    let base = format!(
        "{}://{}",
        from.scheme_str().unwrap_or_default(),
        from.authority().map_or("", |a| a.as_str())
    );
    let target = if location.contains("://") {
        location.to_owned()
    } else if let Some(rest) = location.strip_prefix("//") {
        format!("{}://{rest}", from.scheme_str().unwrap_or_default())
    } else if location.starts_with('/') {
        format!("{base}{location}")
    } else {
        let folder = from.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{base}{folder}/{location}")
    };
    let to = parse(&target)
        .map_err(|error| network(from, "redirected to what is not fetched").with_source(error))?;
    if from.scheme_str() == Some("https") && to.scheme_str() == Some("http") {
        return Err(network(from, "redirected from https to http, which is refused"));
    }
    Ok(to)
}

fn understand(
    url: &Uri,
    ask: &Ask<'_>,
    response: ureq::http::Response<ureq::Body>,
    digest: Option<Digest>,
) -> Result<Answer, Failure> {
    let status = response.status();
    let headers = response.headers();
    let length = text(headers, "content-length").and_then(|text| text.parse::<u64>().ok());
    if text(headers, "content-encoding").is_some_and(|coding| !coding.eq_ignore_ascii_case("identity")) {
        return Err(network(url, "the server compresses, though it was asked not to").into());
    }
    let (from, total) = match status {
        StatusCode::OK => (0, length),
        StatusCode::PARTIAL_CONTENT => match text(headers, "content-range").and_then(content_range) {
            Some((from, total)) if from == ask.from => (from, total),
            _ => return Err(network(url, "the server sent another range than asked for").into()),
        },
        StatusCode::NOT_MODIFIED => return Ok(Answer::NotModified),
        StatusCode::RANGE_NOT_SATISFIABLE => return Ok(Answer::BeyondEnd),
        _ => return Err(refusal(url, status, headers)),
    };
    let etag = text(headers, "etag").filter(|tag| !tag.starts_with("W/")).map(str::to_owned);
    let digest = digest.or_else(|| text(headers, "x-checksum-sha256").and_then(Digest::parse));
    let reader = Box::new(response.into_body().into_with_config().limit(u64::MAX).reader());
    let partial = status == StatusCode::PARTIAL_CONTENT;
    Ok(Answer::Body(Body { from, partial, total, etag, digest, reader }))
}

fn refusal(url: &Uri, status: StatusCode, headers: &HeaderMap) -> Failure {
    let code = status.as_u16();
    let retry = matches!(code, 408 | 425 | 429 | 500 | 502 | 503 | 504);
    let retry_after =
        text(headers, "retry-after").and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
    let error = match code {
        404 | 410 => {
            Error::new(ErrorKind::NotFound, "the server has no such file").about(shown(&url.to_string()))
        }
        401 | 403 => {
            network(url, format!("the server answers {code}; a token may be missing or lack the right"))
        }
        _ => network(url, format!("the server answers {status}")),
    };
    Failure { error, retry, retry_after }
}

/// `bytes 5-9/10`: the first byte and the length of the whole.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (from, to) = range.split_once('-')?;
    let (from, to): (u64, u64) = (from.parse().ok()?, to.parse().ok()?);
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    (from <= to && total.is_none_or(|total| to < total)).then_some((from, total))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn network(url: &Uri, message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Network, message).about(shown(&url.to_string()))
}

/// A URL fit for messages: without query, which may hold a signature.
pub(crate) fn shown(url: &str) -> String {
    let plain = url.split(['?', '#']).next().unwrap_or_default();
    // Credentials before an `@` are not shown either.
    match plain.split_once("://").and_then(|(scheme, rest)| Some((scheme, rest.split_once('@')?.1))) {
        Some((scheme, rest)) => format!("{scheme}://{rest}"),
        None => plain.to_owned(),
    }
}

/// An answer that is longer than it may be.
pub(crate) fn too_large(url: &str, most: u64) -> Error {
    Reason::TooLarge.error(format!("more than {most} bytes")).about(shown(url))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn followed(from: &str, location: &str) -> Option<String> {
        follow(&from.parse().unwrap(), location).ok().map(|uri| uri.to_string())
    }

    #[test]
    fn redirects_resolve_and_never_downgrade() {
        let from = "https://a.example/x/y?q";
        assert_eq!(followed(from, "/z").unwrap(), "https://a.example/z");
        assert_eq!(followed(from, "z").unwrap(), "https://a.example/x/z");
        assert_eq!(followed(from, "//b.example/z").unwrap(), "https://b.example/z");
        assert_eq!(followed(from, "https://b.example/z").unwrap(), "https://b.example/z");
        for bad in ["http://a.example/z", "file:///etc/passwd", "ftp://a/x", "https://u:p@a.example/"] {
            assert_eq!(followed(from, bad), None, "{bad}");
        }
        assert!(followed("http://a.example/", "https://b.example/").is_some());
    }

    #[test]
    fn origins_include_scheme_and_port() {
        let origin = |url: &str| origin(&url.parse().unwrap());
        assert_eq!(origin("https://A.example/x"), origin("https://a.example:443/y"));
        assert_ne!(origin("https://a.example/"), origin("http://a.example/"));
        assert_ne!(origin("https://a.example/"), origin("https://a.example:8443/"));
        assert_ne!(origin("https://a.example/"), origin("https://a.example.evil/"));
    }

    #[test]
    fn ranges_that_contradict_themselves_are_refused() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(content_range("bytes 5-9/*"), Some((5, None)));
        for bad in ["bytes 5-10/10", "bytes 9-5/10", "5-9/10", "bytes */10", "bytes a-b/c"] {
            assert_eq!(content_range(bad), None, "{bad}");
        }
    }

    #[test]
    fn signatures_and_credentials_stay_out_of_messages() {
        assert_eq!(shown("https://a/x?X-Amz-Signature=s"), "https://a/x");
        assert_eq!(shown("https://user:secret@a/x"), "https://a/x");
    }
}
