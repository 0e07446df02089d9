//! Answers as HTTP.
//!
//! Clients look at status, headers and body. The reason phrase (`204 No Content`) is hyper's; Firecracker writes none,
//! and no client reads it (RFC 9112 §4 tells them not to).

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, SERVER};
use hyper::{Response, StatusCode};
use lightv_api::fault::{FaultStatus, TransportError};
use lightv_api::request::Reply;

use crate::service::Answer;
use crate::stream::{AnswerBody, EventStream};

/// What hyper sends.
pub(crate) type HttpResponse = Response<AnswerBody>;

const SERVER_NAME: HeaderValue = HeaderValue::from_static("Firecracker API");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const EVENTS: HeaderValue = HeaderValue::from_static("text/event-stream");
const DEPRECATION: HeaderName = HeaderName::from_static("deprecation");

/// Said after what is no request, because the connection ends there.
const DROPPED: &str = "All previous unanswered requests will be dropped.";

/// Whether a connection goes on after an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Connection {
    KeepAlive,
    Close,
}

impl Connection {
    const fn header(self) -> HeaderValue {
        match self {
            Self::KeepAlive => HeaderValue::from_static("keep-alive"),
            Self::Close => HeaderValue::from_static("close"),
        }
    }
}

/// The answer to a request, with the header of a deprecated one if it is.
pub(crate) fn answer(answer: Answer, connection: Connection, is_deprecated: bool) -> HttpResponse {
    let mut response = match answer {
        Ok(Reply::Done) => empty(StatusCode::NO_CONTENT),
        Ok(Reply::Json(json)) => with_body(StatusCode::OK, JSON, json),
        Ok(Reply::Text { content_type, body }) => {
            with_body(StatusCode::OK, HeaderValue::from_static(content_type), body)
        }
        Err(fault) => {
            let status = match fault.status {
                FaultStatus::BadRequest => StatusCode::BAD_REQUEST,
                FaultStatus::PayloadTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            };
            with_body(status, JSON, fault.to_json())
        }
    };
    let headers = response.headers_mut();
    headers.insert(CONNECTION, connection.header());
    if is_deprecated {
        headers.insert(DEPRECATION, HeaderValue::from_static("true"));
    }
    response
}

/// The answer to what is no request. The connection ends with it.
pub(crate) fn transport_error(message: &str) -> HttpResponse {
    let json = error_json(&format!("{message}\n{DROPPED}"));
    let mut response = with_body(StatusCode::BAD_REQUEST, JSON, json);
    let headers = response.headers_mut();
    headers.insert(CONNECTION, Connection::Close.header());
    response
}

/// The answer that goes on until there are no more events. The connection ends with it.
pub(crate) fn events(stream: EventStream) -> HttpResponse {
    let mut response = Response::new(AnswerBody::Events(stream));
    let headers = response.headers_mut();
    headers.insert(SERVER, SERVER_NAME);
    headers.insert(CONTENT_TYPE, EVENTS);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(CONNECTION, Connection::Close.header());
    response
}

/// What a client is sent who finds all connections taken: a whole answer, as bytes.
pub(crate) fn too_many_connections() -> Vec<u8> {
    let json = error_json("Too many open connections");
    let length = json.len();
    format!(
        "HTTP/1.1 503 Service Unavailable\r\nServer: Firecracker API\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{json}"
    )
    .into_bytes()
}

fn error_json(message: &str) -> String {
    let error = message.to_owned();
    // A text is always JSON.
    serde_json::to_string(&TransportError { error }).unwrap_or_default()
}

fn with_body(status: StatusCode, content_type: HeaderValue, body: String) -> HttpResponse {
    let body = Full::new(Bytes::from(body));
    let mut response = Response::new(AnswerBody::Whole(body));
    *response.status_mut() = status;
    response.headers_mut().insert(SERVER, SERVER_NAME);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

fn empty(status: StatusCode) -> HttpResponse {
    let mut response = Response::new(AnswerBody::Whole(Full::default()));
    *response.status_mut() = status;
    response.headers_mut().insert(SERVER, SERVER_NAME);
    response
}
