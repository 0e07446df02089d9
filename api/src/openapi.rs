//! What the descriptions of both REST APIs, the monitor's and the host agent's, are made of, beside the types.

use utoipa::openapi::path::Operation;
use utoipa::openapi::request_body::{RequestBody, RequestBodyBuilder};
use utoipa::openapi::schema::{ArrayBuilder, Object, Type};
use utoipa::openapi::{
    Content, HttpMethod, OpenApi, PathItem, Ref, RefOr, Required, Response, ResponseBuilder, Schema,
};

const JSON: &str = "application/json";

/// A body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// None.
    None,
    /// Of this schema.
    Of(&'static str),
    /// Of this schema, or none.
    Optional(&'static str),
    /// A list of this schema.
    List(&'static str),
    /// Any JSON object.
    Any,
    /// A text of this kind.
    Text(&'static str),
}

impl Body {
    /// Its kind and content, if there is a body at all.
    #[must_use]
    pub fn content(self) -> Option<(&'static str, Content)> {
        let (kind, schema) = match self {
            Self::None => return None,
            Self::Of(name) | Self::Optional(name) => (JSON, named(name)),
            Self::List(name) => {
                let list = ArrayBuilder::new().items(named(name)).build();
                (JSON, Schema::Array(list).into())
            }
            Self::Any => (JSON, object(Type::Object)),
            Self::Text(kind) => (kind, object(Type::String)),
        };
        Some((kind, Content::new(Some(schema))))
    }

    /// The body of a request.
    #[must_use]
    pub fn of_request(self) -> Option<RequestBody> {
        let (kind, content) = self.content()?;
        let required = match self {
            Self::Optional(_) => Required::False,
            _ => Required::True,
        };
        let request = RequestBodyBuilder::new().content(kind, content);
        Some(request.required(Some(required)).build())
    }
}

/// An answer that is a refusal.
#[must_use]
pub fn refusal(about: &str) -> Response {
    ResponseBuilder::new()
        .description(about)
        .content(JSON, Content::new(Some(named("FaultMessage"))))
        .build()
}

/// Adds `operation` to `document`.
pub fn add(document: &mut OpenApi, path: &str, method: HttpMethod, operation: Operation) {
    let item = PathItem::new(method, operation);
    match document.paths.paths.get_mut(path) {
        Some(known) => known.merge_operations(item),
        None => drop(document.paths.paths.insert(path.to_owned(), item)),
    }
}

/// `document` as JSON. Links of our own documentation, ``[`A::b`]``, become names that a reader of the JSON knows: `b` of `A`.
///
/// # Errors
/// Never, but for a bug in us: texts, numbers and lists of them are always JSON.
pub fn text(document: &OpenApi) -> Result<String, serde_json::Error> {
    let json = document.to_pretty_json()?;
    let mut parts = json.split("[`");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (link, rest) = part.split_once("`]").unwrap_or((part, ""));
        text += &match link.split_once("::") {
            Some((owner, name)) => format!("`{name}` of `{owner}`"),
            None => format!("`{link}`"),
        };
        text += rest;
    }
    text.push('\n');
    Ok(text)
}

fn named(schema: &str) -> RefOr<Schema> {
    Ref::from_schema_name(schema).into()
}

fn object(kind: Type) -> RefOr<Schema> {
    Schema::Object(Object::with_type(kind)).into()
}

#[cfg(test)]
mod tests {
    use utoipa::openapi::{Info, OpenApi, Paths};

    use super::*;

    #[test]
    fn links_of_our_documentation_become_names() {
        let mut info = Info::new("t", "1");
        info.description = Some("See [`A::b`], [`C`]; `[1]` stays, and [d] does.".to_owned());
        let text = text(&OpenApi::new(info, Paths::new())).unwrap();
        let expected = "See `b` of `A`, `C`; `[1]` stays, and [d] does.";
        assert!(text.contains(expected), "{text}");
    }
}
