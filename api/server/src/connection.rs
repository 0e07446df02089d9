//! One client: requests one after the other, each answered before the next is read.

use std::cell::{Cell, OnceCell};
use std::convert::Infallible;
use std::rc::Rc;

use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::header::{CONNECTION, HeaderMap};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request as HttpRequest, Version};
use hyper_util::rt::TokioIo;
use lightv_api::fault::Fault;
use lightv_api::request::{Call, Method, Reply, Request, Route};
use tokio::net::UnixStream;
use tokio::time::{Instant, error::Elapsed, timeout_at};

use crate::answer::{Connection, HttpResponse, answer, events, transport_error};
use crate::feed::Awaited;
use crate::limits;
use crate::service::{Answer, Done, Service, reply_channel};
use crate::settings::Settings;
use crate::stream::EventStream;
use crate::transport::{Phase, PhaseTimes, Progress, Raced, Transport, race};

/// Serves `stream` until either side has had enough.
pub(crate) async fn serve(stream: UnixStream, service: Rc<dyn Service>, settings: Settings) {
    let client = Rc::new(Client {
        service,
        settings,
        progress: Rc::new(Progress::new()),
        goes_on: Cell::new(false),
        reader: OnceCell::new(),
    });
    let mut transport = Transport::new(stream, Rc::clone(&client.progress));
    let times = PhaseTimes {
        request: settings.request_time_max,
        idle: settings.idle_time_max,
        stall: settings.stream_stall_time_max,
    };
    loop {
        client.goes_on.set(false);
        let service = service_fn(|request| {
            let client = Rc::clone(&client);
            async move { Ok::<_, Infallible>(client.respond(request).await) }
        });
        let connection = protocol().serve_connection(TokioIo::new(transport), service);
        let served = race(connection.without_shutdown(), client.progress.expire(times)).await;
        match served {
            Raced::First(Ok(parts)) if client.goes_on.get() => {
                transport = parts.io.into_inner().rewound(parts.read_buf);
            }
            // Both sides are done, the client broke the rules and was told so, or its time is over.
            Raced::First(_) | Raced::Second(()) => return,
        }
    }
}

/// HTML §9.2.4.
const LAST_EVENT_ID: &str = "last-event-id";

fn protocol() -> http1::Builder {
    let mut protocol = http1::Builder::new();
    protocol
        .auto_date_header(false)
        .title_case_headers(true)
        // Some clients close their half once they have asked.
        .half_close(true)
        // Our own time-outs know whether a client is silent or slow.
        .header_read_timeout(None)
        .max_headers(limits::HEADERS_MAX)
        .max_header_size(limits::HEAD_BYTES_MAX)
        .max_buf_size(limits::HEAD_BYTES_MAX);
    protocol
}

struct Client {
    service: Rc<dyn Service>,
    settings: Settings,
    progress: Rc<Progress>,
    /// The client speaks HTTP/1.0 and the connection goes on nevertheless, as with Firecracker: hyper is then begun anew
    /// on the same socket.
    goes_on: Cell<bool>,
    /// Of a client that is told what happens: until the last byte is out.
    reader: OnceCell<Awaited>,
}

/// Why a body was not read.
enum BadBody {
    TooLarge(u64),
    Slow,
    Broken(hyper::Error),
}

impl Client {
    async fn respond(&self, request: HttpRequest<Incoming>) -> HttpResponse {
        let (head, body) = request.into_parts();
        let Some(method) = Method::of(head.method.as_str()) else {
            return transport_error("Invalid HTTP Method: Unsupported HTTP method.");
        };
        // From here on the time is looked at where the body is read, which tells the client when it is over.
        let deadline = self.progress.since() + self.settings.request_time_max;
        self.progress.enter(Phase::Serving);
        let body = match self.read_body(body, deadline).await {
            Ok(body) => body,
            Err(fault) => {
                self.progress.enter(Phase::Idle);
                return transport_error(&self.describe(&fault));
            }
        };
        let connection = wish(&head.headers);
        let is_1_0 = head.version == Version::HTTP_10;
        self.goes_on
            .set(is_1_0 && connection == Connection::KeepAlive);
        self.progress.owe(self.service.feed().owe());
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        let call = Call {
            method,
            path,
            body: &body,
        };
        let began = Instant::now();
        let (route, is_deprecated, answered) = match Request::parse(call) {
            Ok(parsed) if parsed.request == Request::GetEvents => {
                let route = parsed.request.route();
                match self.open_stream(&head.headers) {
                    Ok(stream) => {
                        self.note(call, route, &Ok(Reply::Done), began);
                        return events(stream);
                    }
                    Err(fault) => (route, false, Err(fault)),
                }
            }
            Ok(parsed) => {
                let route = parsed.request.route();
                let answered = self.ask(parsed.request).await;
                (route, parsed.is_deprecated, answered)
            }
            Err(fault) => (Route::UNKNOWN, false, Err(fault)),
        };
        self.note(call, route, &answered, began);
        let response = answer(answered, connection, is_deprecated);
        self.progress.enter(Phase::Idle);
        response
    }

    /// Counts and logs a request that was answered.
    fn note(&self, call: Call<'_>, route: Route, answered: &Answer, began: Instant) {
        let took = began.elapsed();
        self.service.note(Done {
            route,
            is_granted: answered.is_ok(),
            took,
        });
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let method = call.method.name();
        // What a client sends, shortened: a log line has a limit.
        let path: String = call.path.chars().take(limits::LOGGED_PATH_CHARS).collect();
        match answered {
            Ok(_) => tracing::info!(us, "{method} {path}: granted"),
            Err(fault) => {
                let text: String = fault
                    .message
                    .chars()
                    .take(limits::LOGGED_FAULT_CHARS)
                    .collect();
                tracing::warn!(us, "{method} {path}: refused: {text}");
            }
        }
    }

    /// The events after the one that the client has had last. It is the last answer of its connection.
    fn open_stream(&self, headers: &HeaderMap) -> Result<EventStream, Fault> {
        let after = last_event_id(headers)?;
        let feed = self.service.feed();
        let streams_max = self.settings.event_streams_max;
        let reader = feed.enter(streams_max).ok_or_else(|| {
            Fault::bad(format!(
                "{streams_max} clients are told events already; allowed: {streams_max}."
            ))
        })?;
        // A connection has one: it ends with it.
        let _ = self.reader.set(reader);
        self.goes_on.set(false);
        self.progress.enter(Phase::Streaming);
        let heartbeat = self.settings.heartbeat;
        Ok(EventStream::new(feed.subscribe(after), heartbeat))
    }

    async fn ask(&self, request: Request) -> Answer {
        let (sender, receiver) = reply_channel();
        self.service.call(request, sender);
        let gone = || Err(Fault::bad("The microVM ended before it could answer."));
        receiver.await.unwrap_or_else(|_| gone())
    }

    async fn read_body(&self, body: Incoming, deadline: Instant) -> Result<Vec<u8>, BadBody> {
        let limit = self.settings.body_bytes_max as u64;
        // A length that is told is refused before a byte is read.
        if let Some(length) = body.size_hint().exact().filter(|length| *length > limit) {
            return Err(BadBody::TooLarge(length));
        }
        timeout_at(deadline, collect(body, limit))
            .await
            .unwrap_or_else(|_: Elapsed| Err(BadBody::Slow))
    }

    fn describe(&self, fault: &BadBody) -> String {
        match fault {
            BadBody::TooLarge(size) => format!(
                "Request payload with size {size} is larger than the limit of {} allowed by server.",
                self.settings.body_bytes_max
            ),
            BadBody::Slow => format!(
                "The request was not complete after {} ms.",
                self.settings.request_time_max.as_millis()
            ),
            BadBody::Broken(cause) => format!("The body cannot be read: {cause}."),
        }
    }
}

/// Number of the last event that a client had before it lost its connection; 0 for one that says nothing of it.
fn last_event_id(headers: &HeaderMap) -> Result<u64, Fault> {
    let Some(value) = headers.get(LAST_EVENT_ID) else {
        return Ok(0);
    };
    let number = value.to_str().ok().and_then(|text| text.parse().ok());
    number.ok_or_else(|| {
        Fault::bad(format!(
            "The header Last-Event-ID is {value:?}; allowed: the number of an event."
        ))
    })
}

/// Whether the client wants the connection to go on. One that does not say so does, whatever its version.
fn wish(headers: &HeaderMap) -> Connection {
    let values = headers.get_all(CONNECTION).iter();
    let mut words = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    if words.any(|word| word.trim().eq_ignore_ascii_case("close")) {
        Connection::Close
    } else {
        Connection::KeepAlive
    }
}

async fn collect(mut body: Incoming, limit: u64) -> Result<Vec<u8>, BadBody> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(BadBody::Broken)?;
        // Trailers say nothing to us.
        if let Ok(data) = frame.into_data() {
            let size = bytes.len() as u64 + data.len() as u64;
            if size > limit {
                return Err(BadBody::TooLarge(size));
            }
            bytes.extend_from_slice(&data);
        }
    }
    Ok(bytes)
}
