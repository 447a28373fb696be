//! IAM before a server that asks nobody: a reverse proxy that lets through what the policies of a stack allow.
//!
//! It decides as the user guide's "policy evaluation logic" says for one account: an explicit `Deny` wins, then an `Allow` of the caller's role, and without
//! either the call is refused. It knows the parts of the policy language that the template uses, and panics at any other, so that a template cannot
//! outgrow it unseen. Who calls which service is told from the request's signature, which itself is not checked.

mod call;
mod policy;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use serde_json::Value;
use tokio::net::TcpListener;

use call::{Call, Scope};

/// The policies of a stack.
pub(super) struct Policies {
    /// Each role's policy, by the access key of who has taken it.
    pub(super) roles: BTreeMap<String, (String, Value)>,
    pub(super) bucket: Value,
}

/// A gate at work.
pub(super) struct Gate {
    pub(super) endpoint: String,
    shared: Arc<Shared>,
}

struct Shared {
    policies: Policies,
    server: String,
    /// Services that are another server's.
    others: BTreeMap<String, String>,
    client: reqwest::Client,
    decided: Mutex<Vec<Decided>>,
}

/// A call that was let through or refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Decided {
    pub(super) role: String,
    pub(super) action: String,
    pub(super) resource: String,
    pub(super) allowed: bool,
}

impl Gate {
    /// A gate before `server`, and before the `others` of some services, for as long as the runtime lives.
    pub(super) async fn open(server: &str, others: &[(&str, &str)], policies: Policies) -> Self {
        let others = others.iter().map(|(service, server)| ((*service).to_owned(), (*server).to_owned())).collect();
        let (server, client) = (server.to_owned(), reqwest::Client::new());
        let shared = Arc::new(Shared { policies, server, others, client, decided: Mutex::default() });
        let router = Router::new().fallback(pass).with_state(Arc::clone(&shared));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { endpoint, shared }
    }

    /// Whether a role may do something that nobody has done.
    pub(super) fn decide(&self, role: &str, action: &str, resource: &str, context: &[(&'static str, &str)]) -> bool {
        let Policies { roles, bucket } = &self.shared.policies;
        let (_, policy) = roles.values().find(|(name, _)| name == role).unwrap();
        let context = context.iter().map(|(key, value)| (*key, vec![(*value).to_owned()])).collect();
        Call { action: action.to_owned(), resource: resource.to_owned(), context }.is_allowed(policy, bucket)
    }

    pub(super) fn decided(&self) -> Vec<Decided> {
        self.shared.decided.lock().unwrap().clone()
    }
}

async fn pass(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, 64 << 20).await.unwrap();
    let Scope { key, service } = Scope::of(&parts.headers);
    let (role, policy) = shared.policies.roles.get(&key).unwrap_or_else(|| panic!("nobody has the key {key}"));
    for call in Call::all_of(&service, &parts.method, &parts.uri, &parts.headers, &body) {
        let allowed = call.is_allowed(policy, &shared.policies.bucket);
        let (action, resource) = (call.action.clone(), call.resource.clone());
        shared.decided.lock().unwrap().push(Decided { role: role.clone(), action, resource, allowed });
        if !allowed {
            return call.refusal();
        }
    }
    let server = shared.others.get(&service).unwrap_or(&shared.server);
    let url = format!("{server}{}", parts.uri.path_and_query().unwrap());
    let answer = shared.client.request(parts.method, url).headers(parts.headers).body(body).send().await.unwrap();
    let (status, mut headers) = (answer.status(), answer.headers().clone());
    headers.remove("transfer-encoding");
    let bytes = answer.bytes().await.unwrap();
    (status, headers, Body::from(bytes)).into_response()
}
