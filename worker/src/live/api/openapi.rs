//! The contract of the read API, as OpenAPI 3.1 (<https://spec.openapis.org/oas/v3.1.1>):
//! parameters and answers are the schemas of the types that the handlers take and give.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use axum::Json;
use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::{JsonSchema, Schema};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::portal::{LaunchParameters, PortalLaunch, PortalSessionView, PortalToken, PortalUrl};
use super::{FeedParameters, HistoryParameters, OpenedCredential, ShowParameters};
use crate::store::feed::FeedPage;
use crate::store::find::{Candidate, Filter, HistoryPage, Page, Which};
use crate::store::relatives::Related;

/// Of every request.
const PROBLEMS: [(u16, &str); 6] = [
    (400, "invalid-parameter"),
    (401, "unauthorized"),
    (403, "insufficient-scope"),
    (429, "rate-limited"),
    (503, "database-unavailable"),
    (503, "issuer-unavailable"),
];
/// Of one that has a body.
const OF_BODY: [(u16, &str); 5] = [
    (400, "malformed-json"),
    (400, "unreadable-body"),
    (413, "payload-too-large"),
    (415, "unsupported-media-type"),
    (422, "invalid-field"),
];
/// Of one that names an installation.
const OF_ID: [(u16, &str); 2] = [(404, "installation-not-found"), (409, "ambiguous-installation")];

/// One request that callers may make.
struct Operation {
    path: &'static str,
    id: &'static str,
    summary: &'static str,
    scope: &'static str,
    parameters: Schema,
    /// It is a POST of this.
    body: Option<Schema>,
    answer: Schema,
    /// Beside JSON.
    media: Option<&'static str>,
    /// `If-None-Match` is understood.
    has_etag: bool,
    problems: Vec<(u16, &'static str)>,
}

/// RFC 9457.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Problem")]
struct ProblemBody {
    /// Stable: `urn:mooring:problem:<name>`.
    r#type: String,
    title: String,
    status: u16,
    /// For people.
    detail: String,
    /// Of `ambiguous-installation`.
    #[serde(skip_serializing_if = "Option::is_none")]
    candidates: Option<Vec<Candidate>>,
}

#[derive(JsonSchema)]
struct NoParameters {}

fn read_operations(taken: &mut SchemaGenerator, given: &mut SchemaGenerator) -> Vec<Operation> {
    vec![
        Operation {
            path: "/v1/installations",
            id: "listInstallations",
            summary: "List installations, ordered by source, place and id",
            scope: "installations:read",
            parameters: taken.root_schema_for::<Filter>(),
            body: None,
            answer: given.subschema_for::<Page>(),
            media: None,
            has_etag: false,
            problems: vec![],
        },
        Operation {
            path: "/v1/installations/{id}",
            id: "getInstallation",
            summary: "Read one installation",
            scope: "installations:read",
            parameters: taken.root_schema_for::<ShowParameters>(),
            body: None,
            answer: given.subschema_for::<Related>(),
            media: None,
            has_etag: true,
            problems: OF_ID.to_vec(),
        },
        Operation {
            path: "/v1/installations/{id}/events",
            id: "listEvents",
            summary: "Read the events of one installation, in log order",
            scope: "installations:read",
            parameters: taken.root_schema_for::<HistoryParameters>(),
            body: None,
            answer: given.subschema_for::<HistoryPage>(),
            media: None,
            has_etag: false,
            problems: [&OF_ID[..], &[(503, "archive-unavailable")]].concat(),
        },
        Operation {
            path: "/v1/installations/{id}/credential",
            id: "openCredential",
            summary: "Open the credential of one installation; it is recorded who did",
            scope: "credentials:open",
            parameters: taken.root_schema_for::<Which>(),
            body: None,
            answer: given.subschema_for::<OpenedCredential<'_>>(),
            media: None,
            has_etag: false,
            problems: [
                &OF_ID[..],
                &[
                    (404, "no-credential"),
                    (500, "credential-not-opened"),
                    (503, "data-key-unavailable"),
                ],
            ]
            .concat(),
        },
        Operation {
            path: "/v1/changes",
            id: "followChanges",
            summary: "Read what became of installations: a page, or a stream of events",
            scope: "installations:read",
            parameters: taken.root_schema_for::<FeedParameters>(),
            body: None,
            answer: given.subschema_for::<FeedPage>(),
            media: Some("text/event-stream"),
            has_etag: false,
            problems: vec![(410, "cursor-expired")],
        },
    ]
}

fn portal_operations(taken: &mut SchemaGenerator, given: &mut SchemaGenerator) -> Vec<Operation> {
    vec![
        Operation {
            path: "/v1/portal-sessions",
            id: "openPortalSession",
            summary: "Open the portal of an app for a user who launches it",
            scope: "portal_sessions:open",
            parameters: taken.root_schema_for::<LaunchParameters>(),
            body: Some(taken.subschema_for::<PortalLaunch>()),
            answer: given.subschema_for::<PortalUrl>(),
            media: None,
            has_etag: false,
            problems: [
                &OF_ID[..],
                &OF_BODY,
                &[(404, "portal-not-configured"), (409, "installation-not-active")],
            ]
            .concat(),
        },
        Operation {
            path: "/v1/portal-sessions/introspect",
            id: "introspectPortalSession",
            summary: "Read who launched the app, by the token that its page was given",
            scope: "portal_sessions:open",
            parameters: taken.root_schema_for::<NoParameters>(),
            body: Some(taken.subschema_for::<PortalToken>()),
            answer: given.subschema_for::<PortalSessionView>(),
            media: None,
            has_etag: false,
            problems: [
                &OF_BODY[..],
                &[(404, "no-portal-session"), (410, "portal-session-expired")],
            ]
            .concat(),
        },
    ]
}

impl Operation {
    fn item(&self) -> Value {
        let mut content = Map::new();
        content.insert("application/json".to_owned(), json!({ "schema": self.answer }));
        if let Some(media) = self.media {
            content.insert(media.to_owned(), json!({ "schema": { "type": "string" } }));
        }
        let mut headers = json!({
            "RateLimit-Policy": text("How often the caller may ask, such as `\"caller\";q=100;w=1`"),
            "RateLimit": text("How many requests it has left, such as `\"caller\";r=99`"),
        });
        if self.has_etag
            && let Some(headers) = headers.as_object_mut()
        {
            headers.insert("ETag".to_owned(), text("For `If-None-Match`"));
        }
        let success =
            json!({ "description": self.summary, "content": content, "headers": headers });
        let mut responses = Map::from_iter([("200".to_owned(), success)]);
        if self.has_etag {
            let unchanged =
                json!({ "description": "As `If-None-Match` has it", "headers": headers });
            responses.insert("304".to_owned(), unchanged);
        }
        for (status, names) in self.problems() {
            responses.insert(status.to_string(), problem(&names));
        }
        let mut operation = json!({
            "operationId": self.id,
            "summary": self.summary,
            "description": format!("Needs the scope `{}`.", self.scope),
            "security": [{ "token": [] }],
            "parameters": self.parameters(),
            "responses": responses,
        });
        let method = match (&self.body, operation.as_object_mut()) {
            (Some(schema), Some(operation)) => {
                let content = json!({ "application/json": { "schema": schema } });
                let body = json!({ "required": true, "content": content });
                operation.insert("requestBody".to_owned(), body);
                "post"
            }
            _ => "get",
        };
        json!({ method: operation })
    }

    fn parameters(&self) -> Vec<Value> {
        let mut parameters = Vec::new();
        if self.path.contains("{id}") {
            parameters.push(json!({
                "name": "id", "in": "path", "required": true,
                "description": "The platform's id of the installation",
                "schema": { "type": "string", "minLength": 1 },
            }));
        }
        if self.has_etag {
            parameters.push(json!({
                "name": "If-None-Match", "in": "header",
                "description": "An `ETag` of an earlier answer",
                "schema": { "type": "string" },
            }));
        }
        let properties = self.parameters.get("properties").and_then(Value::as_object);
        for (name, schema) in properties.into_iter().flatten() {
            let mut schema = schema.as_object().cloned().unwrap_or_default();
            let description = schema.remove("description");
            // What may be left out is not null.
            let types = schema.get("type").and_then(Value::as_array);
            if let Some(only) = types.and_then(|types| types.first()).cloned() {
                schema.insert("type".to_owned(), only);
            }
            parameters.push(json!({
                "name": name, "in": "query", "description": description, "schema": schema,
            }));
        }
        parameters
    }

    fn problems(&self) -> BTreeMap<u16, Vec<&'static str>> {
        let mut by_status = BTreeMap::<u16, Vec<&'static str>>::new();
        for (status, name) in PROBLEMS.iter().chain(&self.problems) {
            by_status.entry(*status).or_default().push(name);
        }
        by_status
    }
}

fn text(description: &str) -> Value {
    json!({ "description": description, "schema": { "type": "string" } })
}

fn problem(names: &[&str]) -> Value {
    let types: Vec<String> =
        names.iter().map(|name| format!("urn:mooring:problem:{name}")).collect();
    json!({
        "description": names.join(", "),
        "content": { "application/problem+json": { "schema": {
            "allOf": [
                { "$ref": "#/components/schemas/Problem" },
                { "properties": { "type": { "enum": types } } },
            ],
        } } },
    })
}

/// The whole contract.
pub(super) static DOCUMENT: LazyLock<Value> = LazyLock::new(document);

fn document() -> Value {
    let settings = || {
        SchemaSettings::draft2020_12().with(|settings| {
            settings.definitions_path = "/components/schemas".into();
            settings.meta_schema = None;
        })
    };
    let mut taken = settings().for_deserialize().into_generator();
    let mut given = settings().for_serialize().into_generator();
    given.subschema_for::<ProblemBody>();
    let mut operations = read_operations(&mut taken, &mut given);
    operations.extend(portal_operations(&mut taken, &mut given));
    let paths: Map<String, Value> =
        operations.iter().map(|it| (it.path.to_owned(), it.item())).collect();
    let mut schemas = given.take_definitions(true);
    schemas.extend(taken.take_definitions(true));
    json!({
        "openapi": "3.1.1",
        "info": {
            "title": "Mooring",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Reads installations, their events, their credentials and what became \
                            of them. An unknown query parameter is refused.",
            "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
        },
    })
}

/// Anybody may read it: it holds nothing of an installation.
pub(super) async fn show() -> Json<&'static Value> {
    Json(&DOCUMENT)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn docs_openapi_json_says_what_the_code_says() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.json");
        let made = serde_json::to_string_pretty(&*DOCUMENT).unwrap() + "\n";
        if std::env::var_os("MOORING_WRITE_DOCS").is_some() {
            std::fs::write(&path, &made).unwrap();
        }
        assert!(
            std::fs::read_to_string(&path).unwrap_or_default() == made,
            "docs/openapi.json differs: run MOORING_WRITE_DOCS=1 cargo test -p worker openapi"
        );
    }
}
