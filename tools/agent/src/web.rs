//! The page: files that are part of the program, and what a browser is told about them.

use hyper::StatusCode;
use hyper::header::{ACCEPT, CONTENT_TYPE};
use hyper::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderMap, HeaderName, HeaderValue, LOCATION,
    REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Method, Response};

use crate::answer::{AnswerBody, HttpAnswer, whole};

/// The page may load its own files and ask its own agent, and nothing else; no other page may show it in a frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// A file, its kind, and its text.
const FILES: &[(&str, &str, &str)] = &[
    (
        "",
        "text/html; charset=utf-8",
        include_str!("../web/index.html"),
    ),
    (
        "style.css",
        "text/css; charset=utf-8",
        include_str!("../web/style.css"),
    ),
    (
        "page.mjs",
        "text/javascript; charset=utf-8",
        include_str!("../web/page.mjs"),
    ),
    ("icon.svg", "image/svg+xml", include_str!("../web/icon.svg")),
];

/// Where the page is, seen from `/` and from `/web`: a proxy may have put the agent below a path of its own.
const PLACE: HeaderValue = HeaderValue::from_static("web/");

/// The answer to who asks for the page, by its path or with a browser. It tells nothing of this agent, so it needs no token.
#[must_use]
pub fn answer(method: &Method, path: &str, headers: &HeaderMap) -> Option<HttpAnswer> {
    if method != Method::GET && method != Method::HEAD {
        return None;
    }
    if path == "/web" || (path == "/" && wants_page(headers)) {
        return Some(lead_to_page());
    }
    let name = path.strip_prefix("/web/")?;
    let (_, kind, text) = FILES.iter().find(|(known, ..)| *known == name)?;
    let mut answer = whole(StatusCode::OK, HeaderValue::from_static(kind), *text);
    let headers = answer.headers_mut();
    let told: [(HeaderName, &str); 4] = [
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        // Another version of the agent has another page.
        (CACHE_CONTROL, "no-cache"),
    ];
    for (name, value) in told {
        headers.insert(name, HeaderValue::from_static(value));
    }
    Some(answer)
}

/// Browsers name HTML first of what they take; clients of the API do not name it.
fn wants_page(headers: &HeaderMap) -> bool {
    let accepted = headers.get(ACCEPT).and_then(|value| value.to_str().ok());
    accepted.is_some_and(|kinds| kinds.contains("text/html"))
}

fn lead_to_page() -> HttpAnswer {
    let mut answer = Response::new(AnswerBody::Whole("The page is at web/\n".into()));
    *answer.status_mut() = StatusCode::SEE_OTHER;
    let headers = answer.headers_mut();
    headers.insert(LOCATION, PLACE);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(method: &Method, path: &str, accept: &'static str) -> Option<u16> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(accept));
        answer(method, path, &headers).map(|answer| answer.status().as_u16())
    }

    #[test]
    fn browsers_are_led_to_the_page_and_clients_of_the_api_are_not() {
        let browser = "text/html,application/xhtml+xml,*/*;q=0.8";
        assert_eq!(status(&Method::GET, "/", browser), Some(303));
        assert_eq!(status(&Method::GET, "/web", "*/*"), Some(303));
        assert_eq!(status(&Method::GET, "/web/", "*/*"), Some(200));
        assert_eq!(status(&Method::GET, "/", "*/*"), None);
        assert_eq!(status(&Method::GET, "/", "application/json"), None);
        assert_eq!(status(&Method::POST, "/web/", browser), None);
        assert_eq!(status(&Method::GET, "/web/../src/web.rs", browser), None);
        assert_eq!(status(&Method::GET, "/sandboxes", browser), None);
    }

    #[test]
    fn the_page_names_only_files_that_there_are_and_nothing_from_elsewhere() {
        let (_, _, page) = FILES[0];
        let named = page.split(['"', '\'']).filter(|word| {
            let ending = word.rsplit('.').next();
            ending.is_some_and(|it| matches!(it, "css" | "mjs" | "js" | "svg" | "png"))
        });
        let named: Vec<&str> = named.collect();
        assert_eq!(named.len(), 3, "{named:?}");
        for name in named {
            assert!(FILES.iter().any(|(known, ..)| *known == name), "{name}");
        }
        for (name, _, text) in FILES {
            // Names of XML name spaces are no addresses.
            let text = text.replace("http://www.w3.org/2000/svg", "");
            assert!(!text.contains("://"), "{name}");
            // The policy would not let it run.
            assert!(!text.contains(" style=\""), "{name}");
        }
        assert!(!page.contains("<script>") && !page.contains("onclick="));
    }
}
