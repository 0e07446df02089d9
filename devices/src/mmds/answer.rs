//! Answers: what a request gets, and its bytes.

use std::fmt::Write as _;
use std::time::Duration;

use super::counters::count;
use super::http::{BadRequest, FORWARDED, Framing, Method, Request};
use super::service::{MmdsOptions, Service, Version};
use super::store::{Format, LookUpError};
use super::token::LIFE_SECONDS;

/// Where tokens are asked for.
const TOKEN_PATH: &str = "/latest/api/token";

/// Status codes with their reasons (RFC 9110 §15).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    Ok,
    BadRequest,
    Unauthorized,
    NotFound,
    MethodNotAllowed,
    ContentTooLarge,
    HeadTooLarge,
    NotImplemented,
    Unavailable,
}

impl Code {
    const fn line(self) -> &'static str {
        match self {
            Self::Ok => "200 OK",
            Self::BadRequest => "400 Bad Request",
            Self::Unauthorized => "401 Unauthorized",
            Self::NotFound => "404 Not Found",
            Self::MethodNotAllowed => "405 Method Not Allowed",
            Self::ContentTooLarge => "413 Content Too Large",
            Self::HeadTooLarge => "431 Request Header Fields Too Large",
            Self::NotImplemented => "501 Not Implemented",
            Self::Unavailable => "503 Service Unavailable",
        }
    }
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) code: Code,
    pub(super) body: String,
    is_json: bool,
    /// A line of the head that only some have.
    line: Option<String>,
    /// The length of the body is told, and nothing else of it.
    is_head_only: bool,
}

impl Answer {
    fn text(code: Code, body: impl Into<String>) -> Self {
        Self {
            code,
            body: body.into(),
            is_json: false,
            line: None,
            is_head_only: false,
        }
    }

    fn with_line(mut self, name: &str, value: &str) -> Self {
        self.line = Some(format!("{name}: {value}\r\n"));
        self
    }

    fn not_found(path: &str) -> Self {
        Self::text(Code::NotFound, format!("Resource not found: {path}."))
    }

    /// To what is no request.
    pub(super) fn to_bad(bad: BadRequest) -> Self {
        match bad {
            BadRequest::Malformed => Self::text(Code::BadRequest, "Invalid request."),
            BadRequest::HeadTooLarge => Self::text(Code::HeadTooLarge, "Request head too large."),
            BadRequest::BodyTooLarge => Self::text(Code::ContentTooLarge, "Request too large."),
        }
    }

    /// Its bytes.
    pub(super) fn bytes(&self, framing: Framing) -> Vec<u8> {
        let version = if framing.is_1_1 { "1.1" } else { "1.0" };
        let connection = if framing.keeps_alive {
            "keep-alive"
        } else {
            "close"
        };
        let kind = if self.is_json {
            "application/json"
        } else {
            "text/plain"
        };
        let mut text = String::with_capacity(self.body.len().saturating_add(256));
        // A String takes every byte.
        let _ = write!(
            text,
            "HTTP/{version} {}\r\nServer: Firecracker API\r\nConnection: {connection}\r\nContent-Type: {kind}\r\n\
             Content-Length: {}\r\n{}\r\n",
            self.code.line(),
            self.body.len(),
            self.line.as_deref().unwrap_or_default(),
        );
        if !self.is_head_only {
            text.push_str(&self.body);
        }
        text.into_bytes()
    }
}

/// The answer to `request`. The words are Firecracker's.
pub(super) fn answer(mmds: &Service, options: &MmdsOptions, request: &Request<'_>) -> Answer {
    if request.path.is_empty() {
        return Answer::text(Code::BadRequest, "Invalid URI.");
    }
    match request.method {
        Method::Get => get(mmds, options, request),
        Method::Put => put(mmds, request),
        Method::Head | Method::Other => {
            let answer = Answer::text(Code::MethodNotAllowed, "Not allowed HTTP method.");
            Answer {
                is_head_only: request.method == Method::Head,
                ..answer.with_line("Allow", "GET, PUT")
            }
        }
    }
}

fn get(mmds: &Service, options: &MmdsOptions, request: &Request<'_>) -> Answer {
    let refusal = match request.token {
        None => {
            count(&mmds.counters.rx_no_token);
            Some(
                "No MMDS token provided. Use `X-metadata-token` or `X-aws-ec2-metadata-token` header to \
                 specify the session token.",
            )
        }
        Some(token) if !mmds.tokens.is_valid(token) => {
            count(&mmds.counters.rx_invalid_token);
            Some("MMDS token not valid.")
        }
        Some(_) => None,
    };
    // Of version 1 they are only counted.
    if let (Some(words), Version::V2) = (refusal, options.version) {
        return Answer::text(Code::Unauthorized, words);
    }
    let is_json = request.wants_json && !options.imds_compat;
    let format = if is_json { Format::Json } else { Format::Text };
    match mmds.store.look_up(&single_slashes(request.path), format) {
        Ok(body) => Answer {
            is_json,
            ..Answer::text(Code::Ok, body)
        },
        Err(LookUpError::NotFound) => Answer::not_found(request.path),
        Err(LookUpError::NoText) => Answer::text(
            Code::NotImplemented,
            "Cannot retrieve value. The value has an unsupported type.",
        ),
    }
}

/// Only a token can be put.
fn put(mmds: &Service, request: &Request<'_>) -> Answer {
    let bad_header = |reason: String| {
        Answer::text(
            Code::BadRequest,
            format!("Invalid header. Reason: {reason}"),
        )
    };
    if request.is_forwarded {
        return bad_header(format!("Unsupported header name. Key: {FORWARDED}"));
    }
    if single_slashes(request.path) != TOKEN_PATH {
        return Answer::not_found(request.path);
    }
    let Some((name, value)) = request.token_life else {
        return Answer::text(
            Code::BadRequest,
            "Token time to live value not found. Use `X-metadata-token-ttl-seconds` or \
             `X-aws-ec2-metadata-token-ttl-seconds` header to specify the token's lifetime.",
        );
    };
    let Ok(seconds) = value.parse::<u32>() else {
        return bad_header(format!("Invalid value. Key:{name}; Value:{value}"));
    };
    if !LIFE_SECONDS.contains(&seconds) {
        let (least, most) = (LIFE_SECONDS.start(), LIFE_SECONDS.end());
        return Answer::text(
            Code::BadRequest,
            format!(
                "Invalid time to live value provided for token: {seconds}. Please provide a value between \
                 {least} and {most}."
            ),
        );
    }
    match mmds.tokens.make(Duration::from_secs(seconds.into())) {
        Ok(token) => Answer::text(Code::Ok, token).with_line(name, &seconds.to_string()),
        Err(_) => Answer::text(Code::Unavailable, "No token can be made now."),
    }
}

/// `path` with one slash where there are several.
fn single_slashes(path: &str) -> String {
    let mut single = String::with_capacity(path.len());
    for letter in path.chars() {
        if letter != '/' || !single.ends_with('/') {
            single.push(letter);
        }
    }
    single
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
