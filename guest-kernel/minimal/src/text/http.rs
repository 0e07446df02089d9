//! The head of an HTTP/1.1 request (RFC 9112), as far as a test server needs it.

/// Longest request head that is read, in bytes.
pub const HEAD_BYTES_MAX: usize = 4096;

/// A request without a body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request<'a> {
    /// `GET`, `HEAD`, …
    pub method: &'a str,
    /// As sent: `/path?query`.
    pub target: &'a str,
    /// The client wants to send more requests on this connection.
    pub keep_alive: bool,
    /// Bytes of the head, the empty line included.
    pub len: usize,
}

/// What a connection's bytes so far are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Head<'a> {
    /// No whole head yet.
    Partial,
    /// One whole head.
    Whole(Request<'a>),
    /// Not HTTP, or longer than [`HEAD_BYTES_MAX`].
    Bad,
}

/// Reads the head at the start of `bytes`.
pub fn parse(bytes: &[u8]) -> Head<'_> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return if bytes.len() < HEAD_BYTES_MAX {
            Head::Partial
        } else {
            Head::Bad
        };
    };
    match core::str::from_utf8(&bytes[..end])
        .ok()
        .and_then(|text| request(text, end + 4))
    {
        Some(request) => Head::Whole(request),
        None => Head::Bad,
    }
}

fn request(text: &str, len: usize) -> Option<Request<'_>> {
    let mut lines = text.split("\r\n");
    let mut words = lines.next()?.split(' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    if words.next().is_some() || !target.starts_with('/') || !version.starts_with("HTTP/1.") {
        return None;
    }
    let mut keep_alive = version != "HTTP/1.0";
    for line in lines {
        let (name, value) = line.split_once(':')?;
        if name.eq_ignore_ascii_case("connection") {
            keep_alive = value.trim().eq_ignore_ascii_case("keep-alive")
                || keep_alive && !value.trim().eq_ignore_ascii_case("close");
        }
    }
    Some(Request {
        method,
        target,
        keep_alive,
        len,
    })
}

/// Value of `name` in the query of `target`.
pub fn query<'a>(target: &'a str, name: &str) -> Option<&'a str> {
    let (_, query) = target.split_once('?')?;
    query
        .split('&')
        .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

/// The path of `target`, without its query.
pub fn path(target: &str) -> &str {
    target.split_once('?').map_or(target, |(path, _)| path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(bytes: &[u8]) -> (&str, &str, bool, usize) {
        match parse(bytes) {
            Head::Whole(r) => (r.method, r.target, r.keep_alive, r.len),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn heads_are_read_one_at_a_time() {
        let two = b"GET /a?b=1 HTTP/1.1\r\nHost: x\r\n\r\nGET /c HTTP/1.1\r\n\r\n";
        let (method, target, keep_alive, len) = whole(two);
        assert_eq!((method, target, keep_alive), ("GET", "/a?b=1", true));
        assert_eq!(whole(&two[len..]).1, "/c");
    }

    #[test]
    fn connection_header_decides_on_keep_alive() {
        assert!(!whole(b"GET / HTTP/1.1\r\nconnection: Close\r\n\r\n").2);
        assert!(!whole(b"GET / HTTP/1.0\r\n\r\n").2);
        assert!(whole(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").2);
    }

    #[test]
    fn partial_and_bad_heads() {
        assert_eq!(parse(b""), Head::Partial);
        assert_eq!(parse(b"GET / HTTP/1.1\r\nHost: x\r\n"), Head::Partial);
        for bad in [
            &b"\r\n\r\n"[..],
            b"GET /\r\n\r\n",
            b"GET x HTTP/1.1\r\n\r\n",
            b"\xff\r\n\r\n",
        ] {
            assert_eq!(parse(bad), Head::Bad, "{bad:?}");
        }
        assert_eq!(parse(&[b'a'; HEAD_BYTES_MAX]), Head::Bad);
    }

    #[test]
    fn target_has_path_and_query() {
        assert_eq!((path("/a?b=1"), path("/a")), ("/a", "/a"));
        assert_eq!(query("/exit?x=2&status=7", "status"), Some("7"));
        assert_eq!(query("/exit?xstatus=7", "status"), None);
    }
}
