//! The description of the REST API, made from the types that the agent reads and writes.

use lightv_api::agent::{event, exec, host, image, pool, sandbox, stats};
use lightv_api::fault;
use lightv_api::openapi::{self, Body, refusal};
use utoipa::OpenApi;
use utoipa::openapi::path::{OperationBuilder, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::Type;
use utoipa::openapi::{HttpMethod, Object, Required, ResponseBuilder};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "LightV agent",
        description = "The REST API of LightV's host agent (`lightv serve`), over a Unix socket."
    ),
    components(schemas(
        event::AgentEvent,
        event::AgentHappening,
        exec::ExecEnd,
        exec::ExecLine,
        exec::ExecSpec,
        fault::FaultMessage,
        host::AgentCounts,
        host::AgentInfo,
        host::AgentLimits,
        host::HostInfo,
        image::ImageSpec,
        image::StoredImage,
        pool::Pool,
        pool::PoolSpec,
        pool::RefillSpec,
        sandbox::ForkSandboxSpec,
        sandbox::Sandbox,
        sandbox::SandboxSpec,
        sandbox::SandboxState,
        sandbox::StopSpec,
        sandbox::WarmUse,
        stats::AgentStats,
        stats::HostUsage,
        stats::SandboxUsage,
        stats::StartCounts,
        stats::TimeCounts,
    ))
)]
struct Document;

/// One operation. Fields in order: method, path, name, what it does, parameters of the query, body of the request, body of the
/// answer, statuses of refusals.
struct Row(
    HttpMethod,
    &'static str,
    &'static str,
    &'static str,
    &'static [&'static str],
    (Body, Body),
    &'static [&'static str],
);

use self::Body::{Any, List, None as Nothing, Of, Optional, Text};
use utoipa::openapi::HttpMethod::{Delete, Get, Post, Put};

#[rustfmt::skip]
const OPERATIONS: &[Row] = &[
    Row(Get, "/", "getAgent", "The agent, its limits and its host.", &[], (Nothing, Of("AgentInfo")), &[]),
    Row(Get, "/events", "getEvents", "What happens, until the client leaves: a line of JSON each, an empty one every 15 s when nothing does.", &["since"], (Nothing, Text("application/x-ndjson")), &["400"]),
    Row(Get, "/images", "listImages", "All names.", &[], (Nothing, List("StoredImage")), &[]),
    Row(Get, "/images/{name}", "getImage", "What a name or a digest leads to.", &[], (Nothing, Of("StoredImage")), &["404"]),
    Row(Put, "/images/{name}", "putImage", "Copies an image into the store; the name leads to it.", &[], (Of("ImageSpec"), Of("StoredImage")), &["400", "429", "503", "507"]),
    Row(Delete, "/images/{name}", "deleteImage", "Forgets a name. What runs keeps its bytes.", &[], (Nothing, Nothing), &["404", "503", "507"]),
    Row(Get, "/metrics", "getMetrics", "What is counted, in Prometheus' text form (docs/agent-web.md).", &[], (Nothing, Text("application/openmetrics-text")), &[]),
    Row(Get, "/openapi.json", "getOpenapi", "This document.", &[], (Nothing, Any), &[]),
    Row(Get, "/pools", "listPools", "All pools.", &[], (Nothing, List("Pool")), &[]),
    Row(Get, "/pools/{image}", "getPool", "The pool of an image.", &[], (Nothing, Of("Pool")), &["404"]),
    Row(Put, "/pools/{image}", "putPool", "Makes the pool of an image, or changes it.", &[], (Optional("PoolSpec"), Of("Pool")), &["400", "404", "429", "503", "507"]),
    Row(Delete, "/pools/{image}", "deletePool", "Ends a pool, its template and what is ready.", &[], (Nothing, Nothing), &["404", "503", "507"]),
    Row(Get, "/sandboxes", "listSandboxes", "All sandboxes, the oldest first. `label` is NAME=VALUE and may be repeated.", &["label", "state"], (Nothing, List("Sandbox")), &["400"]),
    Row(Post, "/sandboxes", "createSandbox", "Starts a sandbox. The answer comes when it runs.", &[], (Of("SandboxSpec"), Of("Sandbox")), &["400", "404", "409", "429", "503", "507"]),
    Row(Get, "/sandboxes/{id}", "getSandbox", "A sandbox.", &[], (Nothing, Of("Sandbox")), &["404"]),
    Row(Delete, "/sandboxes/{id}", "deleteSandbox", "Kills a sandbox, if it runs, and forgets it with its log.", &[], (Nothing, Nothing), &["404", "409", "503"]),
    Row(Post, "/sandboxes/{id}/exec", "execInSandbox", "Starts a program in its guest. The answer comes when that runs, and has an ExecLine as JSON in each line, until its end; an empty one every 15 s without output. When the client leaves, the program gets SIGHUP.", &[], (Of("ExecSpec"), Text("application/x-ndjson")), &["400", "404", "409", "429", "502", "503"]),
    Row(Post, "/sandboxes/{id}/fork", "forkSandbox", "Starts a sandbox that begins where this one is now. The answer comes when it runs.", &[], (Optional("ForkSandboxSpec"), Of("Sandbox")), &["400", "404", "409", "429", "503", "507"]),
    Row(Get, "/sandboxes/{id}/logs", "getLogs", "What guest and monitor have printed.", &["follow", "tail"], (Nothing, Text("text/plain")), &["400", "404", "503"]),
    Row(Post, "/sandboxes/{id}/pause", "pauseSandbox", "Lets it stand still.", &[], (Nothing, Of("Sandbox")), &["404", "409", "503"]),
    Row(Post, "/sandboxes/{id}/resume", "resumeSandbox", "Lets it go on.", &[], (Nothing, Of("Sandbox")), &["404", "409", "503"]),
    Row(Post, "/sandboxes/{id}/stop", "stopSandbox", "Asks its guest to end, and ends it when the time is over. The answer comes when it has ended.", &[], (Optional("StopSpec"), Of("Sandbox")), &["400", "404", "409", "503"]),
    Row(Get, "/sandboxes/{id}/wait", "waitSandbox", "Answers when it has ended, or when the time is over.", &["timeout_ms"], (Nothing, Of("Sandbox")), &["400", "404"]),
    Row(Get, "/stats", "getStats", "What is counted, and what sandboxes take of the host, for whoever draws it.", &[], (Nothing, Of("AgentStats")), &[]),
];

/// The document as JSON, as it is checked in.
#[must_use]
pub fn document() -> String {
    let mut document = Document::openapi();
    document.info.contact = None;
    for row in OPERATIONS {
        openapi::add(&mut document, row.1, row.0.clone(), operation(row));
    }
    // Texts, numbers and lists of them are always JSON.
    openapi::text(&document).unwrap_or_default()
}

fn operation(row: &Row) -> utoipa::openapi::path::Operation {
    let Row(_, path, name, about, query, (body, answer), refusals) = row;
    let mut operation = OperationBuilder::new()
        .operation_id(Some(*name))
        .summary(Some(*about));
    for (part, about) in [
        ("image", "name of an image"),
        ("name", "name of an image; for GET a digest too"),
        ("id", "id or name of a sandbox"),
    ] {
        if path.contains(&format!("{{{part}}}")) {
            operation = operation.parameter(parameter(part, ParameterIn::Path, about));
        }
    }
    for part in *query {
        operation = operation.parameter(parameter(part, ParameterIn::Query, ""));
    }
    if let Some(request) = body.of_request() {
        operation = operation.request_body(Some(request));
    }
    let done = match (answer.content(), *name) {
        (Some((content_type, content)), name) => {
            let response = ResponseBuilder::new().description("Done.");
            let status = if matches!(name, "createSandbox" | "forkSandbox") {
                "201"
            } else {
                "200"
            };
            (status, response.content(content_type, content))
        }
        (None, _) => ("204", ResponseBuilder::new().description("Done.")),
    };
    operation = operation.response(done.0, done.1.build());
    for status in *refusals {
        operation = operation.response(*status, refusal(meaning(status)));
    }
    operation.build()
}

fn parameter(name: &str, place: ParameterIn, about: &str) -> utoipa::openapi::path::Parameter {
    let required = match place {
        ParameterIn::Path => Required::True,
        _ => Required::False,
    };
    ParameterBuilder::new()
        .name(name)
        .parameter_in(place)
        .required(required)
        .description((!about.is_empty()).then_some(about))
        .schema(Some(Object::with_type(Type::String)))
        .build()
}

/// What a refusal with `status` means.
fn meaning(status: &str) -> &'static str {
    match status {
        "400" => "The request is wrong.",
        "404" => "There is no such thing.",
        "409" => "Not in this state.",
        "429" => "There are as many as there may be.",
        "502" => "The guest breaks the rules.",
        "503" => "Not now, or the host refuses.",
        _ => "No room, on disk or in memory.",
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::{env, fs};

    use super::*;

    #[test]
    fn the_checked_in_document_is_current() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/agent-openapi.json");
        let made = document();
        if env::var_os("LIGHTV_UPDATE_REST").is_some() {
            fs::write(&path, &made).unwrap();
        }
        let found = fs::read_to_string(&path).unwrap_or_default();
        let text = "docs/agent-openapi.json is not what the types say: run `cargo xtask rest`";
        assert!(found == made, "{text}");
    }

    #[test]
    fn every_schema_that_is_named_is_there() {
        let json: serde_json::Value = serde_json::from_str(&document()).unwrap();
        let known = json["components"]["schemas"].as_object().unwrap();
        let text = json.to_string();
        for rest in text.split("#/components/schemas/").skip(1) {
            let name = rest.split('"').next().unwrap();
            assert!(known.contains_key(name), "{name}");
        }
    }
}
