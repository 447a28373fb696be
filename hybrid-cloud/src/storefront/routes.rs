//! Every route there is, with who may use it: the one table from which the router is built.

use std::sync::Arc;

use axum::{
    Router,
    handler::Handler,
    http::Method,
    middleware,
    routing::{MethodRouter, delete, get, post},
};

use hybrid_core::task::{Chat, Classify, Embed, GenerateImage, Transcribe};

use super::{
    chat, classify, edge, embeddings, files, front::Front, health, identity::Scope, images, jobs, judgments, models,
    openapi, records, responses, transcriptions, vectors,
};

/// A route of a storefront; [`Storefront::routes`](super::Storefront::routes) lists them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Route {
    /// `GET`, `POST` or `DELETE`.
    pub method: Method,
    /// The pattern, such as `/v1/models/{*id}`.
    pub path: &'static str,
    /// What a caller must be allowed to do; `None` for the probes, which anyone may call.
    pub scope: Option<Scope>,
}

/// The routes that `front` offers. A route that is not here is not served; one without a scope is open to anyone.
pub(super) fn table(front: &Front) -> Vec<(Route, MethodRouter<Arc<Front>>)> {
    let mut table = vec![
        open("/healthz", health::alive),
        open("/readyz", health::ready),
        read("/v1/models", Scope::ModelsRead, models::list),
        read("/v1/models/{*id}", Scope::ModelsRead, models::get),
    ];
    table.push(read("/openapi.json", Scope::ModelsRead, openapi::document));
    if front.serves::<Chat>() {
        table.push(write("/v1/chat/completions", Scope::Inference, chat::complete));
        table.push(write("/v1/responses", Scope::Inference, responses::respond));
    }
    if front.serves::<Embed>() {
        table.push(write("/v1/embeddings", Scope::Inference, embeddings::embed));
    }
    if front.serves::<Transcribe>() {
        table.push(write("/v1/audio/transcriptions", Scope::Inference, transcriptions::transcribe));
        table.push(write("/v1/audio/translations", Scope::Inference, transcriptions::translate));
    }
    if front.serves::<GenerateImage>() {
        table.push(write("/v1/images/generations", Scope::Inference, images::generate));
    }
    if front.serves::<Classify>() {
        table.push(write("/v1/classify", Scope::Inference, classify::classify));
    }
    if front.takes_judgments() {
        table.push(write("/v1/judgments", Scope::JudgmentsWrite, judgments::judge));
    }
    if front.takes_jobs() {
        table.push(write("/v1/jobs", Scope::Jobs, jobs::submit));
        table.push(read("/v1/jobs/{id}", Scope::Jobs, jobs::status));
    }
    if front.keeps_files() {
        table.push(write("/v1/files", Scope::Files, files::upload));
        table.push(read("/v1/files", Scope::Files, files::list));
        table.push(read("/v1/files/{id}", Scope::Files, files::get));
        table.push(remove("/v1/files/{id}", Scope::Files, files::delete));
        table.push(read("/v1/files/{id}/content", Scope::Files, files::content));
    }
    if front.links_files() {
        table.push(write("/v1/files/links", Scope::Files, files::links::begin));
        table.push(write("/v1/files/{id}/complete", Scope::Files, files::links::complete));
        table.push(read("/v1/files/{id}/links", Scope::Files, files::links::download));
    }
    if front.keeps_vectors() {
        table.push(write("/v1/vectors", Scope::Vectors, vectors::upsert));
        table.push(read("/v1/vectors", Scope::Vectors, vectors::describe));
        table.push(remove("/v1/vectors", Scope::Admin, vectors::delete_all));
        table.push(write("/v1/vectors/query", Scope::Vectors, vectors::query));
        table.push(write("/v1/vectors/get", Scope::Vectors, vectors::get));
        table.push(write("/v1/vectors/delete", Scope::Vectors, vectors::delete));
    }
    if front.keeps_records() {
        table.push(write("/v1/records/{collection}", Scope::Records, records::put));
        table.push(read("/v1/records/{collection}", Scope::Records, records::list));
        table.push(read("/v1/records/{collection}/{*key}", Scope::Records, records::get));
        table.push(remove("/v1/records/{collection}/{*key}", Scope::Records, records::delete));
        table.push(read("/v1/records", Scope::Admin, records::export));
        table.push(remove("/v1/records", Scope::Admin, records::erase));
    }
    table
}

fn open<H: Handler<A, Arc<Front>>, A: 'static>(path: &'static str, handler: H) -> (Route, MethodRouter<Arc<Front>>) {
    (Route { method: Method::GET, path, scope: None }, get(handler))
}

fn read<H: Handler<A, Arc<Front>>, A: 'static>(
    path: &'static str,
    scope: Scope,
    handler: H,
) -> (Route, MethodRouter<Arc<Front>>) {
    (Route { method: Method::GET, path, scope: Some(scope) }, get(handler))
}

fn write<H: Handler<A, Arc<Front>>, A: 'static>(
    path: &'static str,
    scope: Scope,
    handler: H,
) -> (Route, MethodRouter<Arc<Front>>) {
    (Route { method: Method::POST, path, scope: Some(scope) }, post(handler))
}

fn remove<H: Handler<A, Arc<Front>>, A: 'static>(
    path: &'static str,
    scope: Scope,
    handler: H,
) -> (Route, MethodRouter<Arc<Front>>) {
    (Route { method: Method::DELETE, path, scope: Some(scope) }, delete(handler))
}

/// What the edge asks before it lets a request on.
#[derive(Clone, Copy, Debug)]
pub(super) enum Access {
    /// Anyone may come.
    Open,
    /// Whoever has the scope may come.
    Scope(Scope),
    /// There is nothing here. Whoever is somebody is told so; strangers do not learn which routes there are.
    Nowhere,
}

/// The router of `front`'s table. What a route asks for is attached to its handler: it holds wherever an application nests the router, and no handler
/// can be reached past it.
pub(super) fn router(front: &Arc<Front>) -> Router<Arc<Front>> {
    let edge = |access| middleware::from_fn_with_state((Arc::clone(front), access), edge::edge);
    let mut router = Router::new();
    for (Route { path, scope, .. }, methods) in table(front) {
        let methods = match scope {
            Some(scope) => methods.route_layer(edge(Access::Scope(scope))),
            // The wrong method on a probe reveals no more than the right one.
            None => methods.fallback(edge::method_not_allowed).layer(edge(Access::Open)),
        };
        router = router.route(path, methods);
    }
    router
        .method_not_allowed_fallback(edge::method_not_allowed.layer(edge(Access::Nowhere)))
        .fallback(edge::not_found.layer(edge(Access::Nowhere)))
}
