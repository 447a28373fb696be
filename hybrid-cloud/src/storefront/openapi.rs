//! `GET /openapi.json`: an OpenAPI 3.1 document of the routes that this storefront offers.
//!
//! Paths and methods come from the one table that the router is built from, schemas from the types that are read and written, which are JSON
//! Schema 2020-12 in both.

use axum::{Json, http::Method};
use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use super::{
    classify,
    files::links,
    front::{Admitted, Front},
    jobs, judgments, models, records,
    routes::{Route, table},
    vectors,
};
use crate::wire::{
    chat::{Chunk, Completion, CompletionRequest},
    embed::{EmbeddingList, EmbeddingRequest},
    error::ErrorBody,
    file::{Deleted, FileForm, FileList, FileObject},
    image::{ImageList, ImageRequest},
    responses::{ResponseObject, ResponseRequest},
    transcribe::{Transcription, TranscriptionForm},
};

pub(super) async fn document(admitted: Admitted) -> Json<Value> {
    Json(describe(admitted.front()))
}

fn describe(front: &Front) -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut schemas = settings.into_generator();
    let error = schemas.subschema_for::<ErrorBody>();
    let mut paths = Map::new();
    for (route, _) in table(front) {
        let (path, parameters) = template(route.path);
        let mut operation = operation(&route, &mut schemas);
        let in_path = |name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } });
        let mut parameters: Vec<_> = parameters.into_iter().map(in_path).collect();
        if let Some(asked) = operation["parameters"].as_array_mut() {
            parameters.append(asked);
        }
        if !parameters.is_empty() {
            operation["parameters"] = parameters.into();
        }
        operation["responses"]["default"] = json!({
            "description": "An error.",
            "content": { "application/json": { "schema": error } },
        });
        operation["security"] = match route.scope {
            Some(_) => json!([{ "bearer": [] }]),
            None => json!([]),
        };
        if let Some(scope) = route.scope {
            operation["x-scope"] = scope.to_string().into();
        }
        let methods = paths.entry(path).or_insert_with(|| json!({}));
        methods[route.method.as_str().to_ascii_lowercase()] = operation;
    }
    json!({
        "openapi": "3.1.0",
        "info": { "title": "hybrid storefront", "version": env!("CARGO_PKG_VERSION") },
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "paths": paths,
        "components": {
            "schemas": schemas.take_definitions(true),
            "securitySchemes": { "bearer": { "type": "http", "scheme": "bearer" } },
        },
    })
}

/// A path as OpenAPI writes it, and the names of its parameters.
fn template(path: &str) -> (String, Vec<String>) {
    let path = path.replace("{*", "{");
    let names = path.split('{').skip(1).filter_map(|rest| rest.split_once('}')).map(|(name, _)| name.to_owned());
    let names = names.collect();
    (path, names)
}

fn operation(route: &Route, schemas: &mut SchemaGenerator) -> Value {
    match (&route.method, route.path) {
        (&Method::POST, "/v1/chat/completions") => {
            let mut operation =
                posts::<CompletionRequest, Completion>(schemas, "Writes the next message of a conversation.");
            streams(
                &mut operation,
                "Chunks, if `stream` is true; `[DONE]` ends them.",
                schemas.subschema_for::<Chunk>(),
            );
            operation
        }
        (&Method::POST, "/v1/responses") => {
            let mut operation = posts::<ResponseRequest, ResponseObject>(
                schemas,
                "Writes the next message of a conversation; nothing is kept.",
            );
            streams(&mut operation, "Named events, if `stream` is true.", schemas.subschema_for::<Value>());
            operation
        }
        (&Method::POST, "/v1/embeddings") => {
            posts::<EmbeddingRequest, EmbeddingList>(schemas, "Turns texts into vectors.")
        }
        (&Method::POST, "/v1/images/generations") => posts::<ImageRequest, ImageList>(schemas, "Makes pictures."),
        (&Method::POST, "/v1/audio/transcriptions") => uploads(schemas, "Writes down what is said."),
        (&Method::POST, "/v1/audio/translations") => uploads(schemas, "Writes down what is said, in English."),
        (&Method::POST, "/v1/classify") => posts::<classify::Body, classify::Answer>(schemas, "Labels texts."),
        (&Method::POST, "/v1/judgments") => {
            let summary = "Records a judgment, or with `judgments` a list of them.";
            let mut operation = posts::<judgments::Body, judgments::Recorded>(schemas, summary);
            or_else::<judgments::List>(schemas, &mut operation["requestBody"]["content"]["application/json"]);
            let answer = &mut operation["responses"]["200"]["content"]["application/json"];
            or_else::<judgments::RecordedList>(schemas, answer);
            with_status(operation, "201")
        }
        (&Method::POST, "/v1/jobs") => {
            with_status(posts::<jobs::Body, jobs::Answer>(schemas, "Orders work of the kitchen."), "202")
        }
        (&Method::GET, "/v1/jobs/{id}") => answers::<jobs::Answer>(schemas, "Tells how a job stands."),
        (&Method::POST, "/v1/files") => sends_form::<FileForm>(
            schemas,
            answers::<FileObject>,
            "Keeps a file; one that is sent with `expires_after` for so long.",
        ),
        (&Method::GET, "/v1/files") => listing(schemas),
        (&Method::GET, "/v1/files/{id}") => answers::<FileObject>(schemas, "Tells about a file."),
        (&Method::DELETE, "/v1/files/{id}") => {
            answers::<Deleted>(schemas, "Removes a file and all that it is made of.")
        }
        (&Method::GET, "/v1/files/{id}/content") => {
            let mut operation =
                answers::<Value>(schemas, "Sends a file as it was uploaded, or with `Range` some of its bytes.");
            operation["responses"]["200"]["content"] = json!({ "application/octet-stream": {} });
            operation
        }
        (&Method::POST, "/v1/files/links") => {
            let summary =
                "Begins a file that is uploaded past the storefront: answers with a signed link for each part.";
            posts::<links::Body, links::Links>(schemas, summary)
        }
        (&Method::POST, "/v1/files/{id}/complete") => {
            let summary = "Makes a file of what was uploaded by links; takes what its beginning took.";
            posts::<links::Body, FileObject>(schemas, summary)
        }
        (&Method::GET, "/v1/files/{id}/links") => {
            answers::<links::Links>(schemas, "Answers with a signed link to each part of a file.")
        }
        (&Method::POST, "/v1/vectors") => posts::<vectors::Upsert, vectors::Upserted>(
            schemas,
            "Keeps documents; those with the same ids are replaced.",
        ),
        (&Method::POST, "/v1/vectors/query") => {
            posts::<vectors::Query, vectors::Neighbors>(schemas, "Finds the documents that are nearest.")
        }
        (&Method::POST, "/v1/vectors/get") => posts::<vectors::Ids, vectors::Found>(schemas, "Reads documents."),
        (&Method::POST, "/v1/vectors/delete") => {
            posts::<vectors::Ids, vectors::Upserted>(schemas, "Removes documents for good.")
        }
        (&Method::GET, "/v1/vectors") => answers::<vectors::Index>(schemas, "Tells what the index is."),
        (&Method::DELETE, "/v1/vectors") => {
            answers::<vectors::Deleted>(schemas, "Removes all documents of the tenant for good.")
        }
        (&Method::POST, "/v1/records/{collection}") => {
            posts::<records::Put, records::Written>(schemas, "Writes a record, where its condition holds.")
        }
        (&Method::GET, "/v1/records/{collection}") => {
            let mut operation = answers::<records::List>(schemas, "Lists records in the order of their keys.");
            let number = json!({ "type": "integer", "minimum": 1, "maximum": 100 });
            let (text, order) = (json!({ "type": "string" }), json!({ "enum": ["asc", "desc"] }));
            operation["parameters"] =
                in_query([("prefix", &text), ("after", &text), ("limit", &number), ("order", &order)]);
            operation
        }
        (&Method::GET, "/v1/records/{collection}/{*key}") => answers::<records::Shown>(schemas, "Reads a record."),
        (&Method::DELETE, "/v1/records/{collection}/{*key}") => {
            answers::<records::Deleted>(schemas, "Removes a record.")
        }
        (&Method::GET, "/v1/records") => {
            let summary = "Sends all records of the tenant, one a line; the last line says how many there were.";
            let mut operation = answers::<records::Shown>(schemas, summary);
            let line = operation["responses"]["200"]["content"]["application/json"].take();
            operation["responses"]["200"]["content"] = json!({ "application/x-ndjson": line });
            operation
        }
        (&Method::DELETE, "/v1/records") => {
            answers::<records::Erased>(schemas, "Removes all records of the tenant for good.")
        }
        (&Method::GET, "/v1/models") => answers::<models::List>(schemas, "Lists the models."),
        (&Method::GET, "/v1/models/{*id}") => answers::<models::Entry>(schemas, "Tells about a model."),
        (&Method::GET, "/healthz") => answers::<Value>(schemas, "Says that the process is alive."),
        (&Method::GET, "/readyz") => answers::<Value>(schemas, "Says whether requests should come here."),
        (&Method::GET, "/openapi.json") => answers::<Value>(schemas, "This document."),
        // What is served is in the document, described or not.
        (&Method::GET | &Method::DELETE, path) => answers::<Value>(schemas, path),
        (_, path) => posts::<Value, Value>(schemas, path),
    }
}

fn answers<A: JsonSchema>(schemas: &mut SchemaGenerator, summary: &str) -> Value {
    let schema = schemas.subschema_for::<A>();
    json!({
        "summary": summary,
        "responses": { "200": { "description": "The answer.", "content": { "application/json": { "schema": schema } } } },
    })
}

/// The same with another status for its success.
fn with_status(mut operation: Value, status: &str) -> Value {
    if let Some(responses) = operation["responses"].as_object_mut()
        && let Some(success) = responses.remove("200")
    {
        responses.insert(status.to_owned(), success);
    }
    operation
}

fn posts<Q: JsonSchema, A: JsonSchema>(schemas: &mut SchemaGenerator, summary: &str) -> Value {
    let mut operation = answers::<A>(schemas, summary);
    let schema = schemas.subschema_for::<Q>();
    operation["requestBody"] = json!({ "required": true, "content": { "application/json": { "schema": schema } } });
    operation
}

/// Says of what has one shape that it may have the shape `T` instead.
fn or_else<T: JsonSchema>(schemas: &mut SchemaGenerator, content: &mut Value) {
    let one = content["schema"].take();
    content["schema"] = json!({ "oneOf": [one, schemas.subschema_for::<T>()] });
}

fn uploads(schemas: &mut SchemaGenerator, summary: &str) -> Value {
    let mut operation = sends_form::<TranscriptionForm>(schemas, answers::<Transcription>, summary);
    for media_type in ["text/plain", "application/x-subrip", "text/vtt"] {
        operation["responses"]["200"]["content"][media_type] = json!({ "schema": { "type": "string" } });
    }
    operation
}

/// The list of files, with what may be asked of it.
fn listing(schemas: &mut SchemaGenerator) -> Value {
    let mut operation = answers::<FileList>(schemas, "Lists files, the newest first.");
    let number = json!({ "type": "integer", "minimum": 1, "maximum": 10_000 });
    let (text, order) = (json!({ "type": "string" }), json!({ "enum": ["asc", "desc"] }));
    let asked = [("after", &text), ("limit", &number), ("order", &order), ("purpose", &text)];
    operation["parameters"] = in_query(asked);
    operation
}

fn in_query<const N: usize>(asked: [(&str, &Value); N]) -> Value {
    asked.map(|(name, schema)| json!({ "name": name, "in": "query", "schema": schema })).to_vec().into()
}

/// What takes a form of the shape `Q`.
fn sends_form<Q: JsonSchema>(
    schemas: &mut SchemaGenerator,
    answers: fn(&mut SchemaGenerator, &str) -> Value,
    summary: &str,
) -> Value {
    let mut operation = answers(schemas, summary);
    let schema = schemas.subschema_for::<Q>();
    operation["requestBody"] = json!({ "required": true, "content": { "multipart/form-data": { "schema": schema } } });
    operation
}

fn streams(operation: &mut Value, description: &str, schema: schemars::Schema) {
    operation["responses"]["200"]["content"]["text/event-stream"] =
        json!({ "schema": { "type": "string", "description": description }, "x-event-schema": schema });
}
