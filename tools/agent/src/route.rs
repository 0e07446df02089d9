//! What a request is called where requests are counted: so many names, whatever clients ask for.

use hyper::Method;

/// Method and path of a request, as `docs/agent-openapi.json` has them; `-` for what it has not.
#[must_use]
pub fn name(method: &Method, path: &str) -> (&'static str, &'static str) {
    let method = match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "PUT" => "PUT",
        "POST" => "POST",
        "DELETE" => "DELETE",
        _ => "-",
    };
    let parts: Vec<&str> = path.trim_start_matches('/').splitn(4, '/').collect();
    let path = match parts.as_slice() {
        [""] => "/",
        ["events"] => "/events",
        ["images"] => "/images",
        ["images", _] => "/images/{name}",
        ["metrics"] => "/metrics",
        ["openapi.json"] => "/openapi.json",
        ["pools"] => "/pools",
        ["pools", _] => "/pools/{image}",
        ["sandboxes"] => "/sandboxes",
        ["sandboxes", _] => "/sandboxes/{id}",
        ["sandboxes", _, "exec"] => "/sandboxes/{id}/exec",
        ["sandboxes", _, "fork"] => "/sandboxes/{id}/fork",
        ["sandboxes", _, "logs"] => "/sandboxes/{id}/logs",
        ["sandboxes", _, "pause"] => "/sandboxes/{id}/pause",
        ["sandboxes", _, "resume"] => "/sandboxes/{id}/resume",
        ["sandboxes", _, "stop"] => "/sandboxes/{id}/stop",
        ["sandboxes", _, "wait"] => "/sandboxes/{id}/wait",
        ["stats"] => "/stats",
        ["web", ..] => "/web/",
        _ => "-",
    };
    (method, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_has_its_own_name_and_all_else_has_one() {
        let document: serde_json::Value =
            serde_json::from_str(&crate::openapi::document()).unwrap();
        for (path, operations) in document["paths"].as_object().unwrap() {
            for method in operations.as_object().unwrap().keys() {
                let method = method.to_uppercase();
                let called = path.replace("{id}", "0a").replace("{name}", "web");
                let called = called.replace("{image}", "web");
                let found = name(&method.parse().unwrap(), &called);
                assert_eq!(found, (method.as_str(), path.as_str()));
            }
        }
        assert_eq!(name(&Method::PATCH, "/a/b"), ("-", "-"));
        let long = "/sandboxes/a/stop/b";
        assert_eq!(name(&Method::GET, long), ("GET", "-"));
    }
}
