//! A cluster over HTTP: how it stands, who belongs to it, which policy all nodes have.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::doors::asked::Bad;
use crate::doors::{Initialize, Steering};
use crate::policy::ByHand;

use super::access::Access;
use super::changes::make;
use super::routes::{
    Admin, Refused, change, expects_json, health, json_response, may, read_body, read_body_of,
};

/// The most bytes of a body that brings a policy: what fits an entry of the log, and JSON's escapes.
const POLICY_BODY_BYTES_MAX: usize = 1 << 20;

type Shared = State<Arc<Admin>>;

/// The paths of a node that belongs to a cluster.
pub(super) fn routes() -> Router<Arc<Admin>> {
    Router::new()
        .route("/v1/cluster", get(status))
        .route("/v1/cluster/init", post(already))
        .route("/v1/cluster/add", post(add))
        .route("/v1/cluster/promote", post(promote))
        .route("/v1/cluster/remove", post(remove))
        .route("/v1/cluster/transfer", post(transfer))
        .route("/v1/cluster/snapshot", post(snapshot))
        .route("/v1/policy", post(policy).layer(DefaultBodyLimit::max(POLICY_BODY_BYTES_MAX)))
}

fn steering(admin: &Admin) -> Result<Arc<dyn Steering>, Refused> {
    admin.instance.steering.get().cloned().ok_or_else(|| {
        let message = "this node decides by itself; `serve --cluster NAME` makes it a member";
        Refused::new(StatusCode::CONFLICT, "NO_CLUSTER", message.to_owned())
    })
}

fn steered(outcome: Result<Value, String>) -> Result<Response, Refused> {
    match outcome {
        Ok(value) => Ok(json_response(StatusCode::OK, &value)),
        Err(message) => Err(Refused::new(StatusCode::CONFLICT, "REFUSED", message)),
    }
}

fn parsed<T: for<'a> Deserialize<'a>>(body: &[u8]) -> Result<T, Refused> {
    serde_json::from_slice(body)
        .map_err(|error| Bad::new("BAD_REQUEST", format!("the body is not right: {error}")).into())
}

async fn status(State(admin): Shared) -> Result<Response, Refused> {
    steered(steering(&admin)?.status().await)
}

async fn already(State(admin): Shared) -> Result<Response, Refused> {
    steering(&admin)?;
    let message = "the node belongs to a cluster already".to_owned();
    Err(Refused::new(StatusCode::CONFLICT, "ALREADY", message))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    node: u64,
    #[serde(default)]
    peer: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Perhaps {
    #[serde(default)]
    node: Option<u64>,
}

async fn add(State(admin): Shared, request: Request) -> Result<Response, Refused> {
    let body = change(&admin, request).await?;
    let Named { node, peer } = parsed(&body)?;
    let peer = peer.ok_or_else(|| Bad::new("BAD_REQUEST", "field `peer` is missing"))?;
    steered(steering(&admin)?.add(node, peer).await)
}

async fn promote(State(admin): Shared, request: Request) -> Result<Response, Refused> {
    let body = change(&admin, request).await?;
    let Named { node, .. } = parsed(&body)?;
    steered(steering(&admin)?.promote(node).await)
}

async fn remove(State(admin): Shared, request: Request) -> Result<Response, Refused> {
    let body = change(&admin, request).await?;
    let Named { node, .. } = parsed(&body)?;
    steered(steering(&admin)?.remove(node).await)
}

async fn transfer(State(admin): Shared, request: Request) -> Result<Response, Refused> {
    let body = change(&admin, request).await?;
    let Perhaps { node } = parsed(&body)?;
    steered(steering(&admin)?.transfer(node).await)
}

async fn snapshot(State(admin): Shared, request: Request) -> Result<Response, Refused> {
    change(&admin, request).await?;
    steered(steering(&admin)?.snapshot().await)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyAsked {
    origin: String,
    files: Vec<PolicyFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyFile {
    name: String,
    text: String,
}

async fn policy(State(admin): Shared, request: Request) -> Result<Response, Refused> {
    may(&admin.access, request.headers())?;
    expects_json(request.headers())?;
    let body = read_body_of(request, POLICY_BODY_BYTES_MAX).await?;
    let PolicyAsked { origin, files } = parsed(&body)?;
    let texts = files.into_iter().map(|file| (file.name, file.text)).collect();
    let made = steering(&admin)?.policy(origin, texts).await;
    let version = made.map_err(Refused::from)?;
    steered(version.map(|version| json!({ "version": version })))
}

/// Makes a change by hand, here or at all nodes of the cluster, and says what came of it.
pub(super) async fn made(admin: &Admin, by_hand: ByHand) -> Result<Response, Refused> {
    let Some(steering) = admin.instance.steering.get() else {
        let (value, kept) = make(&admin.instance, by_hand)?;
        kept.await?;
        return Ok(json_response(StatusCode::OK, &value));
    };
    let text = steering.by_hand(&by_hand).await.map_err(Refused::from)?;
    match text {
        Ok(text) => {
            let value: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
            Ok(json_response(StatusCode::OK, &value))
        }
        Err(message) => Err(Refused::new(StatusCode::BAD_REQUEST, "BAD_REQUEST", message)),
    }
}

/// What a node that has not joined yet answers with.
pub(super) struct Waiting {
    access: Access,
    node: u64,
    initialize: Initialize,
}

/// The paths of a node that has not joined a cluster yet.
pub(super) fn waiting_router(node: u64, initialize: Initialize, access: Access) -> Router {
    let waiting = Arc::new(Waiting { access, node, initialize });
    Router::new()
        .route("/livez", get(live))
        .route("/readyz", get(not_ready))
        .route("/healthz", get(not_ready))
        .route("/healthcheck", get(not_ready))
        .route("/v1/cluster", get(waiting_status))
        .route("/v1/cluster/init", post(init))
        .with_state(waiting)
}

const NOT_JOINED: &str = "the node has not joined a cluster; see `tollkeeper cluster init`";

async fn live(uri: Uri) -> Response {
    health("livez", &[("http", Ok("this answer".to_owned()))], &uri)
}

async fn not_ready(uri: Uri) -> Response {
    health("readyz", &[("cluster", Err(NOT_JOINED.to_owned()))], &uri)
}

async fn waiting_status(State(waiting): State<Arc<Waiting>>) -> Response {
    json_response(StatusCode::OK, &json!({ "node": waiting.node, "state": "waiting" }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InitAsked {
    members: BTreeMap<u64, String>,
}

async fn init(State(waiting): State<Arc<Waiting>>, request: Request) -> Result<Response, Refused> {
    let headers: &HeaderMap = request.headers();
    may(&waiting.access, headers)?;
    expects_json(headers)?;
    let body = read_body(request).await?;
    let InitAsked { members } = parsed(&body)?;
    Ok(steered((waiting.initialize)(members).await).into_response())
}
