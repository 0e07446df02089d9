//! The server: connections, and requests out of them.

use std::cell::Cell;
use std::convert::Infallible;
use std::rc::Rc;
use std::time::Instant;

use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::header::{HeaderValue, SERVER, WWW_AUTHENTICATE};
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

use crate::agent::Agent;
use crate::answer::{HttpAnswer, refused};
use crate::figures::Done;
use crate::limits;
use crate::patient::Patient;
use crate::refusal::Refusal;
use crate::route;
use crate::router::{self, Asked};
use crate::tokens::Tokens;
use crate::web;

const SERVER_NAME: HeaderValue = HeaderValue::from_static("lightv-agent");

/// Who may ask for more than the page.
#[derive(Debug, Clone)]
pub enum Access {
    /// Whoever can open the socket.
    Socket,
    /// Whoever has one of these.
    Token(Rc<Tokens>),
}

/// Connections that are open; shared by all listeners.
#[derive(Debug, Clone, Default)]
pub struct Connections(Rc<Cell<u64>>);

/// A connection's place; free when it is dropped.
#[derive(Debug)]
pub struct ConnectionPlace(Rc<Cell<u64>>);

impl Connections {
    /// A place among `max`; `None` when they are taken.
    #[must_use]
    pub fn take(&self, max: u64) -> Option<ConnectionPlace> {
        if self.0.get() >= max {
            return None;
        }
        self.0.set(self.0.get() + 1);
        Some(ConnectionPlace(Rc::clone(&self.0)))
    }
}

impl Drop for ConnectionPlace {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

/// Serves all who come to `listener`, for ever.
pub async fn accept_all(agent: Rc<Agent>, listener: UnixListener, connections: Connections) {
    loop {
        // The client may have gone, or descriptors may be short: neither is a reason to serve nobody.
        let Ok((stream, _)) = listener.accept().await else {
            sleep(limits::ACCEPT_PAUSE).await;
            continue;
        };
        let max = agent.settings.connections_max;
        match connections.take(max) {
            Some(place) => {
                let agent = Rc::clone(&agent);
                spawn_local(async move {
                    serve(stream, agent, Access::Socket).await;
                    drop(place);
                });
            }
            None => refuse(stream, max),
        }
    }
}

/// Tells a client that there is no place. The socket is new and its buffer empty: the answer fits or the client is gone.
fn refuse(stream: UnixStream, max: u64) {
    use std::io::Write as _;
    let text = format!("{max} connections are open; no more are allowed. Try again.");
    let json = Refusal::unavailable(text).to_json();
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\nServer: lightv-agent\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{json}",
        json.len()
    );
    if let Ok(mut stream) = stream.into_std() {
        let _ = stream.write(answer.as_bytes());
    }
}

/// Serves one client until either side has had enough.
pub async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, agent: Rc<Agent>, access: Access) {
    let service = service_fn(move |request| {
        let (agent, access) = (Rc::clone(&agent), access.clone());
        async move { Ok::<_, Infallible>(respond(&agent, &access, request).await) }
    });
    let stream = Patient::new(stream, limits::STALL_TIME_MAX);
    // A client that breaks the rules was told so.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::REQUEST_TIME_MAX)
        // A client that is gone is seen to be while it waits: it holds no place then.
        .half_close(false)
        .max_headers(limits::HEADERS_MAX)
        .max_header_size(limits::HEAD_BYTES_MAX)
        .max_buf_size(limits::HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn respond(agent: &Rc<Agent>, access: &Access, request: Request<Incoming>) -> HttpAnswer {
    let at = Instant::now();
    let (head, body) = request.into_parts();
    let (method, route) = route::name(&head.method, head.uri.path());
    let mut answer = match web::answer(&head.method, head.uri.path(), &head.headers) {
        Some(page) => page,
        None if !is_admitted(access, &head) => {
            agent.figures.note_intruder();
            intruder()
        }
        None => {
            let answered = ask(agent, (head, body), at).await;
            answered.unwrap_or_else(|refusal| refused(&refusal))
        }
    };
    agent.figures.note_request(&Done {
        method,
        route,
        status: answer.status().as_u16(),
        took: at.elapsed(),
    });
    answer.headers_mut().insert(SERVER, SERVER_NAME);
    answer
}

async fn ask(
    agent: &Rc<Agent>,
    (head, body): (Parts, Incoming),
    at: Instant,
) -> Result<HttpAnswer, Refusal> {
    let asked = Asked {
        method: head.method,
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        body: read_body(body).await?,
        at,
    };
    router::answer(agent, asked).await
}

fn is_admitted(access: &Access, head: &Parts) -> bool {
    match access {
        Access::Socket => true,
        Access::Token(tokens) => tokens.admit(&head.headers),
    }
}

/// The answer to who has no token. The body is not read: the connection ends, unless there is none.
fn intruder() -> HttpAnswer {
    let text = "This needs a token: send the header `Authorization: Bearer TOKEN` with one from the agent's --token-file.";
    let mut answer = refused(&Refusal::new(StatusCode::UNAUTHORIZED, text));
    let scheme = HeaderValue::from_static("Bearer realm=\"lightv\"");
    answer.headers_mut().insert(WWW_AUTHENTICATE, scheme);
    answer
}

async fn read_body(body: Incoming) -> Result<Vec<u8>, Refusal> {
    let max = limits::BODY_BYTES_MAX;
    let too_large = || {
        let text = format!("The body is larger than {max} bytes.");
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, text)
    };
    // A length that is told is refused before a byte is read.
    if body.size_hint().lower() > max as u64 {
        return Err(too_large());
    }
    let collected = timeout(limits::REQUEST_TIME_MAX, Limited::new(body, max).collect()).await;
    match collected {
        Ok(Ok(body)) => Ok(body.to_bytes().to_vec()),
        Ok(Err(cause)) if cause.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(cause)) => Err(Refusal::bad(format!("The body cannot be read: {cause}."))),
        Err(_) => Err(Refusal::new(
            StatusCode::REQUEST_TIMEOUT,
            format!(
                "The body was not complete after {} s.",
                limits::REQUEST_TIME_MAX.as_secs()
            ),
        )),
    }
}
