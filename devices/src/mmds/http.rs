//! A request as it comes over a connection (RFC 9112), as far as the service needs it.

use httparse::{EMPTY_HEADER, Header, Status};

use crate::limits::{MMDS_HEADERS_MAX, MMDS_REQUEST_BYTES_MAX};

/// Names of the headers in which a token comes; the first that is there counts.
const TOKEN: [&str; 2] = ["X-metadata-token", "X-aws-ec2-metadata-token"];
/// Names of the headers that say how long a token is to live, in seconds.
const TOKEN_LIFE: [&str; 2] = [
    "X-metadata-token-ttl-seconds",
    "X-aws-ec2-metadata-token-ttl-seconds",
];
/// Tells that a request was handed on by somebody, who is not to get a token.
pub(super) const FORWARDED: &str = "X-Forwarded-For";

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    Get,
    Put,
    /// Its answer has no body.
    Head,
    Other,
}

/// A whole request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request<'a> {
    pub(super) method: Method,
    /// Path without query; empty if there is none.
    pub(super) path: &'a str,
    pub(super) framing: Framing,
    /// The client would rather have JSON than text.
    pub(super) wants_json: bool,
    pub(super) token: Option<&'a str>,
    /// Name of the header that asks for a token's life, and what it says.
    pub(super) token_life: Option<(&'static str, &'a str)>,
    pub(super) is_forwarded: bool,
    /// Bytes of head and body.
    pub(super) bytes: usize,
}

/// How an answer is to be framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Framing {
    /// The client speaks HTTP/1.1, else 1.0.
    pub(super) is_1_1: bool,
    /// The client wants to send more requests on this connection.
    pub(super) keeps_alive: bool,
}

impl Framing {
    /// Of an answer to what is no request: the connection ends with it.
    pub(super) const LAST: Self = Self {
        is_1_1: true,
        keeps_alive: false,
    };
}

/// What the bytes of a connection so far are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parsed<'a> {
    /// No whole request yet.
    Partial,
    /// A request.
    Whole(Request<'a>),
    /// None, and none can follow.
    Bad(BadRequest),
}

/// Why bytes are no request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BadRequest {
    /// Not HTTP, or a body whose length is not told.
    Malformed,
    /// Too many or too long headers.
    HeadTooLarge,
    /// More body than is read.
    BodyTooLarge,
}

/// Reads the request at the start of `bytes`. Not partial once there are [`MMDS_REQUEST_BYTES_MAX`].
pub(super) fn parse(bytes: &[u8]) -> Parsed<'_> {
    let mut headers = [EMPTY_HEADER; MMDS_HEADERS_MAX];
    let mut head = httparse::Request::new(&mut headers);
    let head_bytes = match head.parse(bytes) {
        Ok(Status::Complete(head_bytes)) => head_bytes,
        Ok(Status::Partial) if bytes.len() < MMDS_REQUEST_BYTES_MAX => return Parsed::Partial,
        Ok(Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return Parsed::Bad(BadRequest::HeadTooLarge);
        }
        Err(_) => return Parsed::Bad(BadRequest::Malformed),
    };
    let body_bytes = match body_bytes(head.headers) {
        Ok(body_bytes) => body_bytes,
        Err(bad) => return Parsed::Bad(bad),
    };
    let whole_bytes = head_bytes.saturating_add(body_bytes);
    if whole_bytes > MMDS_REQUEST_BYTES_MAX {
        return Parsed::Bad(BadRequest::BodyTooLarge);
    }
    if bytes.len() < whole_bytes {
        return Parsed::Partial;
    }
    let is_1_1 = head.version == Some(1);
    let headers: &[Header<'_>] = head.headers;
    Parsed::Whole(Request {
        method: match head.method {
            Some("GET") => Method::Get,
            Some("PUT") => Method::Put,
            Some("HEAD") => Method::Head,
            _ => Method::Other,
        },
        path: path(head.path.unwrap_or_default()),
        framing: Framing {
            is_1_1,
            keeps_alive: keeps_alive(headers, is_1_1),
        },
        wants_json: wants_json(headers),
        token: first_of(headers, &TOKEN).map(|(_, value)| value),
        token_life: first_of(headers, &TOKEN_LIFE),
        is_forwarded: values(headers, FORWARDED).next().is_some(),
        bytes: whole_bytes,
    })
}

/// Values of all headers `name`. One that is no text is empty.
fn values<'a>(headers: &[Header<'a>], name: &str) -> impl Iterator<Item = &'a str> {
    let named = headers
        .iter()
        .filter(move |header| header.name.eq_ignore_ascii_case(name));
    named.map(|header| str::from_utf8(header.value).unwrap_or_default().trim())
}

fn first_of<'a>(headers: &[Header<'a>], names: &[&'static str]) -> Option<(&'static str, &'a str)> {
    names
        .iter()
        .find_map(|name| Some((*name, values(headers, name).next()?)))
}

/// Length of the body, which is read and not looked at.
fn body_bytes(headers: &[Header<'_>]) -> Result<usize, BadRequest> {
    if values(headers, "Transfer-Encoding").next().is_some() {
        return Err(BadRequest::Malformed);
    }
    let mut lengths = values(headers, "Content-Length");
    let Some(length) = lengths.next() else {
        return Ok(0);
    };
    let is_number = !length.is_empty() && length.bytes().all(|digit| digit.is_ascii_digit());
    if !is_number || lengths.any(|other| other != length) {
        return Err(BadRequest::Malformed);
    }
    length.parse().map_err(|_| BadRequest::BodyTooLarge)
}

fn keeps_alive(headers: &[Header<'_>], is_1_1: bool) -> bool {
    let options = values(headers, "Connection").flat_map(|value| value.split(','));
    options.fold(is_1_1, |keeps, option| {
        let option = option.trim();
        (keeps || option.eq_ignore_ascii_case("keep-alive"))
            && !option.eq_ignore_ascii_case("close")
    })
}

/// The first known kind of content that the client names counts, whatever its weight.
fn wants_json(headers: &[Header<'_>]) -> bool {
    let kinds = values(headers, "Accept").flat_map(|value| value.split(','));
    let mut known = kinds.filter_map(|kind| {
        let kind = kind.split(';').next().unwrap_or_default().trim();
        match kind.to_ascii_lowercase().as_str() {
            "application/json" | "application/*" => Some(true),
            "text/plain" | "text/*" | "*/*" => Some(false),
            _ => None,
        }
    });
    known.next().unwrap_or(false)
}

/// The path of a target as it stands in a request: `/path?query` or `http://host/path?query`.
fn path(target: &str) -> &str {
    let target = match target.strip_prefix("http://") {
        Some(rest) => rest.find('/').and_then(|at| rest.get(at..)).unwrap_or(""),
        None if target.starts_with('/') => target,
        None => "",
    };
    target
        .split_once(['?', '#'])
        .map_or(target, |(path, _)| path)
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
