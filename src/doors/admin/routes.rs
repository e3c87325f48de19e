//! Paths to answers. Thin: what is asked is read in the doors' `asked`, what is answered made in
//! their `answer`, in `status` and `figures`.

use std::fmt::Write;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, FailedToBufferBody};
use axum::extract::{DefaultBodyLimit, FromRequest, Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Serialize;
use serde_json::json;
use tokio::time::timeout;

use crate::doors::answer;
use crate::doors::asked::{Asked, Bad};
use crate::doors::checks;
use crate::doors::report::ErrorReport;
use crate::doors::{Failure, Instance, Intent, NotKept, SharedDesk};
use crate::engine::group::Undecided;
use crate::metrics::cells::Protocol;
use crate::metrics::export;
use crate::policy::{ByHand, Identity};

use super::access::{Access, Refusal};
use super::changes::{self, IdentityAsked, OverrideReport, Which};
use super::cluster::{self, made};
use super::explain::{Look, explain, usage};
use super::figures::figures;
use super::status::Status;
use super::vitals::Vitals;
use super::{BODY_BYTES_MAX, BODY_TIME_MAX};

/// The paths, for whoever asks for another.
const PATHS: &str = "/metrics, /livez, /readyz, /healthz, /healthcheck, /v1/status, /v1/check, /v1/peek, /v1/snapshot, \
     /v1/explain, /v1/usage, /v1/overrides, /v1/overrides/clear, /v1/identities, \
     /v1/identities/remove, /v1/cluster, /v1/cluster/init, /v1/cluster/add, \
     /v1/cluster/promote, /v1/cluster/remove, /v1/cluster/transfer, /v1/cluster/snapshot, /v1/policy";

/// What all handlers share.
pub(super) struct Admin {
    pub(super) instance: Arc<Instance>,
    vitals: Arc<Vitals>,
    /// The door's one desk: each has cells of its own, which are never given back.
    desk: Arc<SharedDesk>,
    pub(super) access: Access,
}

type Shared = State<Arc<Admin>>;

pub(super) fn router(instance: Arc<Instance>, vitals: Arc<Vitals>, access: Access) -> Router {
    let desk = SharedDesk::new(Protocol::Admin, &instance);
    let admin = Arc::new(Admin { instance, vitals, desk, access });
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .route("/healthz", get(ready))
        .route("/healthcheck", get(ready))
        .route("/v1/status", get(status))
        .route("/v1/check", post(check))
        .route("/v1/peek", post(peek))
        .route("/v1/explain", post(explain_request))
        .route("/v1/usage", post(subject_usage))
        .route("/v1/overrides", get(list_overrides).post(set_override))
        .route("/v1/overrides/clear", post(clear_override))
        .route("/v1/identities", get(list_identities).post(put_identity))
        .route("/v1/identities/remove", post(remove_identity))
        .route("/v1/snapshot", post(snapshot))
        .merge(cluster::routes())
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(from_fn_with_state(Arc::clone(&admin), count))
        .with_state(admin)
}

async fn count(State(admin): Shared, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    let failed = response.status().is_client_error() || response.status().is_server_error();
    admin.desk.count_requests(1, failed.into());
    response
}

async fn metrics(State(admin): Shared) -> Response {
    let page = export::render(&figures(&admin.instance, &admin.vitals));
    ([(header::CONTENT_TYPE, export::CONTENT_TYPE)], page).into_response()
}

async fn live(uri: Uri) -> Response {
    health("livez", &[("http", Ok("this answer".to_owned()))], &uri)
}

async fn ready(State(admin): Shared, uri: Uri) -> Response {
    let policy = Ok(admin.instance.policy.load().origin.clone());
    let serving = match admin.instance.is_draining() {
        false => Ok("the binary protocol is answered".to_owned()),
        true => Err("the node is draining".to_owned()),
    };
    let cluster = admin.instance.steering.get().map(|steering| ("cluster", steering.readiness()));
    let checks = [("policy", policy), ("serving", serving)];
    let checks: Vec<Check<'_>> = checks.into_iter().chain(cluster).collect();
    health("readyz", &checks, &uri)
}

/// One health check: its name, and how it stands.
pub(super) type Check<'a> = (&'a str, Result<String, String>);

/// 200 if all checks pass, else 503; each has a line if `?verbose` asks for them, and those that
/// fail in any case.
pub(super) fn health(name: &str, checks: &[Check<'_>], uri: &Uri) -> Response {
    let fails = checks.iter().any(|(_, result)| result.is_err());
    let mut text = String::new();
    if fails || is_verbose(uri) {
        for (check, result) in checks {
            let _ = match result {
                Ok(how) => writeln!(text, "[+] {check} ok: {how}"),
                Err(why) => writeln!(text, "[-] {check} failed: {why}"),
            };
        }
        let _ = writeln!(text, "{name} check {}", if fails { "failed" } else { "passed" });
    } else {
        text.push_str("ok\n");
    }
    let status = if fails { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    (status, [(header::CACHE_CONTROL, "no-store")], text).into_response()
}

fn is_verbose(uri: &Uri) -> bool {
    let pairs = uri.query().unwrap_or_default().split('&');
    pairs
        .map(|pair| pair.split_once('=').map_or(pair, |(name, _)| name))
        .any(|name| name == "verbose")
}

async fn status(State(admin): Shared) -> Response {
    json_response(StatusCode::OK, &Status::of(&admin.instance, &admin.vitals))
}

/// Charges counters, so it is for those who may change things.
async fn check(State(admin): Shared, request: Request) -> Result<Response, Refused> {
    may_change(&admin, request.headers())?;
    ask(&admin, request, Intent::Charge).await
}

async fn peek(State(admin): Shared, request: Request) -> Result<Response, Refused> {
    ask(&admin, request, Intent::Peek).await
}

/// Changes what is on disk, so it is for those who may change things.
async fn snapshot(State(admin): Shared, request: Request) -> Result<Response, Refused> {
    may_change(&admin, request.headers())?;
    expects_json(request.headers())?;
    let Some(ask) = admin.instance.snapshots.get() else {
        let message = "there is no data directory; `serve --data DIR` gives one".to_owned();
        return Err(Refused::new(StatusCode::CONFLICT, "NO_DATA", message));
    };
    match ask().await {
        Ok(Ok(report)) => Ok(json_response(StatusCode::OK, &report)),
        Ok(Err(message)) => {
            Err(Refused::new(StatusCode::INTERNAL_SERVER_ERROR, "SNAPSHOT_FAILED", message))
        }
        Err(_) => {
            let message = "the node is stopping, and takes its last snapshot".to_owned();
            Err(Refused::new(StatusCode::SERVICE_UNAVAILABLE, "STOPPING", message))
        }
    }
}

async fn ask(admin: &Admin, request: Request, intent: Intent) -> Result<Response, Refused> {
    expects_json(request.headers())?;
    let body = read_body(request).await?;
    let report = checks::check(&admin.desk, &body, intent).await?;
    Ok(json_response(StatusCode::OK, &report))
}

async fn explain_request(State(admin): Shared, request: Request) -> Result<Response, Refused> {
    look(&admin, request, Asked::parse, explain).await
}

async fn subject_usage(State(admin): Shared, request: Request) -> Result<Response, Refused> {
    look(&admin, request, Asked::parse_subject, usage).await
}

/// Answers what looks at counters and changes none.
async fn look<R: Serialize>(
    admin: &Admin,
    request: Request,
    parse: impl FnOnce(&[u8]) -> Result<Asked, Bad>,
    report: impl FnOnce(Look<'_>) -> Result<R, Bad>,
) -> Result<Response, Refused> {
    expects_json(request.headers())?;
    let body = read_body(request).await?;
    let asked = parse(&body)?;
    let loaded = admin.instance.policy.load();
    let placed = &asked.place(&loaded.policy)?;
    asked.check_attributes(placed.handle)?;
    let table = admin.instance.table.load();
    let (pinned, now) = (&table.pin(), admin.instance.clock.now());
    let loaded = &loaded;
    let report = admin.desk.with(|desk| report(Look { desk, loaded, pinned, placed, now }))?;
    Ok(json_response(StatusCode::OK, &report))
}

async fn list_overrides(State(admin): Shared) -> Response {
    let overrides = admin.instance.overrides().into_iter().map(OverrideReport::from);
    let overrides: Vec<OverrideReport> = overrides.collect();
    json_response(StatusCode::OK, &json!({ "overrides": overrides }))
}

/// The body of a request that changes something, if it may.
pub(super) async fn change(admin: &Admin, request: Request) -> Result<Bytes, Refused> {
    may_change(admin, request.headers())?;
    expects_json(request.headers())?;
    read_body(request).await
}

fn may_change(admin: &Admin, headers: &HeaderMap) -> Result<(), Refused> {
    may(&admin.access, headers)
}

/// Whether who sends these headers may change things.
pub(super) fn may(access: &Access, headers: &HeaderMap) -> Result<(), Refused> {
    let authorization = headers.get(header::AUTHORIZATION);
    match access.check(authorization.map(|value| value.as_bytes())) {
        Ok(()) => Ok(()),
        Err(Refusal::NoToken) => {
            let message = "this address is not a loopback one, so changes and checks, which charge, \
                           need a token: start the daemon with --admin-token-file";
            Err(Refused::new(StatusCode::FORBIDDEN, "FORBIDDEN", message.to_owned()))
        }
        Err(Refusal::WrongToken) => {
            let message = "changes and checks need the token of the daemon's --admin-token-file, as \
                           in `Authorization: Bearer TOKEN`";
            let (status, code) = (StatusCode::UNAUTHORIZED, "UNAUTHENTICATED");
            Err(Refused::new(status, code, message.to_owned()))
        }
    }
}

async fn set_override(State(admin): Shared, request: Request) -> Result<Response, Refused> {
    let body = change(&admin, request).await?;
    let record = changes::set(&body, admin.instance.clock.now().utc)?;
    made(&admin, ByHand::SetOverride(record)).await
}

async fn clear_override(State(admin): Shared, request: Request) -> Result<Response, Refused> {
    let body = change(&admin, request).await?;
    let Which { api, limit, key, who } = changes::clear(&body)?;
    made(&admin, ByHand::ClearOverride { api, limit, key, who }).await
}

/// `?api=`, `?attribute=` and `?value=` pick some.
async fn list_identities(State(admin): Shared, uri: Uri) -> Response {
    let query = |wanted: &str| {
        let pairs = uri.query().unwrap_or_default().split('&');
        let found = pairs.filter_map(|pair| pair.split_once('=')).find(|(name, _)| *name == wanted);
        found.map(|(_, value)| unescaped(value))
    };
    let (api, attribute, value) = (query("api"), query("attribute"), query("value"));
    let is = |wanted: &Option<Vec<u8>>, found: &[u8]| wanted.as_ref().is_none_or(|w| w == found);
    let (identities, all) = changes::identities(&admin.instance, &|identity| {
        is(&api, identity.api.as_bytes())
            && is(&attribute, identity.attribute.as_bytes())
            && is(&value, &identity.value)
    });
    json_response(StatusCode::OK, &json!({ "identities": identities, "all": all }))
}

/// A value of a query, its `%XX` read.
fn unescaped(text: &str) -> Vec<u8> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).map(|digit| digit as u8);
    let mut rest = text.as_bytes();
    let mut out = Vec::new();
    while let [byte, after @ ..] = rest {
        rest = after;
        out.push(match (byte, after) {
            (b'%', [high, low, after @ ..]) => match (digit(high), digit(low)) {
                (Some(high), Some(low)) => {
                    rest = after;
                    high << 4 | low
                }
                _ => b'%',
            },
            (b'+', _) => b' ',
            _ => *byte,
        });
    }
    out
}

async fn put_identity(State(admin): Shared, request: Request) -> Result<Response, Refused> {
    let body = change(&admin, request).await?;
    let asked = changes::identity(&body, &admin.instance.policy.load().policy, true)?;
    let IdentityAsked { api, attribute, value, account } = asked;
    let Some(account) = account else {
        return Err(Bad::new("BAD_REQUEST", "field `account` is missing").into());
    };
    let (api, attribute) = (api.into(), attribute.into());
    let value = value.into_bytes().into();
    made(&admin, ByHand::PutIdentity(Identity { api, attribute, value, account })).await
}

async fn remove_identity(State(admin): Shared, request: Request) -> Result<Response, Refused> {
    let body = change(&admin, request).await?;
    let asked = changes::identity(&body, &admin.instance.policy.load().policy, false)?;
    let (api, attribute) = (asked.api.into(), asked.attribute.into());
    let value = asked.value.into_bytes().into();
    made(&admin, ByHand::RemoveIdentity { api, attribute, value }).await
}

pub(super) fn expects_json(headers: &HeaderMap) -> Result<(), Refused> {
    let found = headers.get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap_or("?"));
    crate::doors::json::expect(found).map_err(|message| {
        Refused::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UNSUPPORTED_MEDIA_TYPE", message)
    })
}

/// Reads a body that keeps to its length and time. One that says it is too long is not read.
pub(super) async fn read_body(request: Request) -> Result<Bytes, Refused> {
    read_body_of(request, BODY_BYTES_MAX).await
}

/// As [`read_body`], of at most so many bytes; the path's own layer has the same maximum.
pub(super) async fn read_body_of(request: Request, max: usize) -> Result<Bytes, Refused> {
    let too_large = |found: &str| {
        let message = format!("the body has {found} bytes, allowed are {max}");
        Refused::new(StatusCode::PAYLOAD_TOO_LARGE, "TOO_LARGE", message)
    };
    let length = request.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if let Some(length) = length.filter(|length| *length > max as u64) {
        return Err(too_large(&length.to_string()));
    }
    match timeout(BODY_TIME_MAX, Bytes::from_request(request, &())).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(BytesRejection::FailedToBufferBody(FailedToBufferBody::LengthLimitError(_)))) => {
            Err(too_large("more"))
        }
        Ok(Err(_)) => {
            let message = "the body breaks off, or its chunks are malformed".to_owned();
            Err(Refused::new(StatusCode::BAD_REQUEST, "BAD_REQUEST", message))
        }
        Err(_) => {
            let message = format!("the body did not come within {BODY_TIME_MAX:?}");
            Err(Refused::new(StatusCode::REQUEST_TIMEOUT, "TIMED_OUT", message))
        }
    }
}

async fn not_found(uri: Uri) -> Refused {
    let message = format!("there is no path `{}`, there are {PATHS}", clip(uri.path()));
    Refused::new(StatusCode::NOT_FOUND, "NOT_FOUND", message)
}

async fn method_not_allowed(request: Request) -> Refused {
    const ASKS: [&str; 7] =
        ["/snapshot", "/check", "/peek", "/explain", "/usage", "/clear", "/remove"];
    const BOTH: [&str; 2] = ["/overrides", "/identities"];
    let ends = |words: &[&str]| words.iter().any(|word| request.uri().path().ends_with(word));
    let (asks, both) = (ends(&ASKS), ends(&BOTH));
    let (method, path) = (clip(request.method().as_str()), clip(request.uri().path()));
    let allowed = match (asks, both) {
        (true, _) => "POST",
        (_, true) => "GET, POST",
        _ => "GET",
    };
    let message = format!("method {method} on `{path}`, allowed is {allowed}");
    Refused::new(StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", message)
}

fn clip(text: &str) -> &str {
    &text[..text.floor_char_boundary(128)]
}

/// A request that got no answer, with the status that says whose fault it is.
pub(super) struct Refused {
    status: StatusCode,
    error: ErrorReport,
}

impl Refused {
    pub(super) fn new(status: StatusCode, code: &str, message: String) -> Self {
        Self { status, error: ErrorReport { code: code.to_owned(), message } }
    }
}

impl From<Bad> for Refused {
    fn from(Bad(error): Bad) -> Self {
        Self { status: StatusCode::BAD_REQUEST, error }
    }
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Wrong(message) => Self::new(StatusCode::BAD_REQUEST, "BAD_REQUEST", message),
            Failure::TooMany(message) => Self::new(StatusCode::CONFLICT, "TOO_MANY_ITEMS", message),
        }
    }
}

impl From<Undecided> for Refused {
    fn from(undecided: Undecided) -> Self {
        let (status, code) = (StatusCode::SERVICE_UNAVAILABLE, answer::undecided_code(undecided));
        Self::new(status, code, undecided.describe().to_owned())
    }
}

impl From<NotKept> for Refused {
    fn from(not_kept: NotKept) -> Self {
        Self::new(StatusCode::INSUFFICIENT_STORAGE, "NOT_KEPT", not_kept.to_string())
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        json_response(self.status, &json!({ "error": self.error }))
    }
}

pub(super) fn json_response(status: StatusCode, value: &impl Serialize) -> Response {
    (status, [(header::CACHE_CONTROL, "no-store")], axum::Json(value)).into_response()
}
