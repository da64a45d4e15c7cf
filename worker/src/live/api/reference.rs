//! The contract as a page to read, without scripts.

use std::sync::LazyLock;

use askama::Template;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse as _, Response};
use serde_json::Value;
use service::problem::Problem;

use super::openapi::DOCUMENT;

const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";

#[derive(Template)]
#[template(path = "reference.html")]
struct Reference {
    title: String,
    version: String,
    operations: Vec<Operation>,
    schemas: Vec<Schema>,
}

struct Operation {
    method: String,
    path: String,
    id: String,
    summary: String,
    description: String,
    parameters: Vec<Field>,
    body: Option<Type>,
    answers: Vec<Answer>,
}

struct Answer {
    status: String,
    description: String,
    content: Option<Type>,
}

struct Schema {
    name: String,
    description: String,
    fields: Vec<Field>,
}

struct Field {
    name: String,
    of: Type,
    description: String,
}

/// A type as a reader names it, and the schema that says more.
struct Type {
    name: String,
    link: Option<String>,
}

pub(super) async fn show() -> Response {
    static PAGE: LazyLock<Option<String>> = LazyLock::new(|| of(&DOCUMENT).render().ok());
    let Some(page) = PAGE.as_deref() else {
        let (status, detail) = (StatusCode::INTERNAL_SERVER_ERROR, "the page cannot be written");
        return Problem::new(status, "internal-error", detail).response();
    };
    ([(header::CONTENT_SECURITY_POLICY, POLICY)], Html(page)).into_response()
}

fn of(document: &Value) -> Reference {
    let operations = members(at(document, "/paths")).flat_map(|(path, item)| {
        members(item).map(move |(method, operation)| self::operation(path, method, operation))
    });
    let schemas = members(at(document, "/components/schemas")).map(|(name, schema)| Schema {
        name: name.clone(),
        description: text(&schema["description"]),
        fields: fields(schema),
    });
    Reference {
        title: text(at(document, "/info/title")),
        version: text(at(document, "/info/version")),
        operations: operations.collect(),
        schemas: schemas.collect(),
    }
}

fn operation(path: &str, method: &str, of: &Value) -> Operation {
    let parameters = of["parameters"].as_array().into_iter().flatten().map(|parameter| Field {
        name: text(&parameter["name"]),
        of: type_of(&parameter["schema"]),
        description: text(&parameter["description"]),
    });
    let answers = members(&of["responses"]).map(|(status, answer)| Answer {
        status: status.clone(),
        description: text(&answer["description"]),
        content: content(answer),
    });
    Operation {
        method: method.to_uppercase(),
        path: path.to_owned(),
        id: text(&of["operationId"]),
        summary: text(&of["summary"]),
        description: text(&of["description"]),
        parameters: parameters.collect(),
        body: content(&of["requestBody"]),
        answers: answers.collect(),
    }
}

/// Of a success, or of a body. Every problem is of one type.
fn content(of: &Value) -> Option<Type> {
    of["content"].get("application/json").map(|content| type_of(&content["schema"]))
}

fn fields(schema: &Value) -> Vec<Field> {
    let field = |(name, schema): (&String, &Value)| Field {
        name: name.clone(),
        of: type_of(schema),
        description: text(&schema["description"]),
    };
    members(&schema["properties"]).map(field).collect()
}

fn type_of(schema: &Value) -> Type {
    if let Some(name) = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next()) {
        return Type { name: name.to_owned(), link: Some(name.to_owned()) };
    }
    if let Some(choices) = schema["anyOf"].as_array() {
        let choices: Vec<Type> = choices.iter().map(type_of).collect();
        let names: Vec<&str> = choices.iter().map(|it| it.name.as_str()).collect();
        let name = names.join(" or ");
        return Type { name, link: choices.into_iter().find_map(|it| it.link) };
    }
    if let Some(choices) = schema["enum"].as_array() {
        let names: Vec<&str> = choices.iter().filter_map(Value::as_str).collect();
        return Type { name: names.join(" | "), link: None };
    }
    if schema["type"] == "array" {
        let of = type_of(&schema["items"]);
        return Type { name: format!("list of {}", of.name), link: of.link };
    }
    let names: Vec<String> = match &schema["type"] {
        Value::Array(names) => names.iter().map(text).collect(),
        name => vec![text(name)],
    };
    let format = schema["format"].as_str().map(|format| format!(" ({format})"));
    Type { name: format!("{}{}", names.join(" or "), format.unwrap_or_default()), link: None }
}

fn at<'a>(document: &'a Value, pointer: &str) -> &'a Value {
    document.pointer(pointer).unwrap_or(&Value::Null)
}

fn members(of: &Value) -> impl Iterator<Item = (&String, &Value)> {
    of.as_object().into_iter().flatten()
}

fn text(of: &Value) -> String {
    of.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_names_every_request_and_every_type() {
        let page = of(&DOCUMENT).render().unwrap();
        for (path, _) in members(&DOCUMENT["paths"]) {
            assert!(page.contains(path.as_str()), "{path}");
        }
        for (name, _) in members(&DOCUMENT["components"]["schemas"]) {
            assert!(page.contains(&format!("id=\"{name}\"")), "{name}");
        }
        assert!(!page.contains("<script") && !page.contains("http"), "it loads nothing");
    }
}
