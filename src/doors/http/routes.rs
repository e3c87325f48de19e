//! Paths to answers. Thin: bodies are for the doors' `checks`, headers for `forwarded`.

use std::net::SocketAddr;
use std::sync::Arc;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde::Serialize;
use serde_json::json;
use tokio::time::timeout;

use crate::doors::asked::{Bad, shown};
use crate::doors::report::ErrorReport;
use crate::doors::{Batch, Intent, Outcome, Problem, SharedDesk, answer, checks};
use crate::policy::{Policy, Rendered, Request as Asked, ResolveError};

use super::{BODY_BYTES_MAX, BODY_TIME_MAX, Forwarded};

/// The paths, for whoever asks for another.
const PATHS: &str = "/v1/check, /v1/peek, /v1/batch, /v1/adjust, /v1/release, /v1/authorize/API";

/// What proxies ask.
const AUTHORIZE: &str = "/v1/authorize";

/// In which an allowed request is given what it holds of concurrency limits.
const PERMIT: HeaderName = HeaderName::from_static("x-toll-permit");

type Answer = Response<Full<Bytes>>;

/// Answers a request, and counts it.
pub(super) async fn answer(
    desk: &Arc<SharedDesk>,
    forwarded: &Forwarded,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> Answer {
    let answered = route(desk, forwarded, peer, request).await;
    desk.count_requests(1, answered.is_err().into());
    answered.unwrap_or_else(Refused::answer)
}

async fn route(
    desk: &Arc<SharedDesk>,
    forwarded: &Forwarded,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> Result<Answer, Refused> {
    let path = request.uri().path();
    if let Some(rest) = path.strip_prefix(AUTHORIZE)
        && (rest.is_empty() || rest.starts_with('/'))
    {
        let api = rest.trim_matches('/').to_owned();
        return authorize(desk, forwarded, peer, &api, request.headers()).await;
    }
    let path = path.to_owned();
    if !["/v1/check", "/v1/peek", "/v1/batch", "/v1/adjust", "/v1/release"].contains(&&*path) {
        let message = format!("there is no path `{}`, there are {PATHS}", shown(&path));
        return Err(Refused::new(StatusCode::NOT_FOUND, "NOT_FOUND", message));
    }
    if request.method() != Method::POST {
        let found = shown(request.method().as_str());
        let message = format!("method {found} on `{path}`, allowed is POST");
        let status = StatusCode::METHOD_NOT_ALLOWED;
        return Err(Refused::new(status, "METHOD_NOT_ALLOWED", message));
    }
    expects_json(request.headers())?;
    let body = read_body(request).await?;
    Ok(match &*path {
        "/v1/check" => {
            json_answer(StatusCode::OK, &checks::check(desk, &body, Intent::Charge).await?)
        }
        "/v1/peek" => json_answer(StatusCode::OK, &checks::check(desk, &body, Intent::Peek).await?),
        "/v1/batch" => json_answer(StatusCode::OK, &checks::batch(desk, &body).await?),
        "/v1/adjust" => json_answer(StatusCode::OK, &checks::adjust(desk, &body).await?),
        _ => json_answer(StatusCode::OK, &checks::release(desk, &body).await?),
    })
}

/// Answers a proxy in the words that it is to pass on.
async fn authorize(
    desk: &Arc<SharedDesk>,
    forwarded: &Forwarded,
    peer: SocketAddr,
    api: &str,
    headers: &HeaderMap,
) -> Result<Answer, Refused> {
    if !forwarded.trusts(peer) {
        let message = format!(
            "the peer {} is not trusted to say where requests come from: start the daemon with \
             --http-trusted",
            peer.ip()
        );
        return Err(Refused::new(StatusCode::FORBIDDEN, "FORBIDDEN", message));
    }
    let mut batch = Batch::new(desk);
    let loaded = Arc::clone(batch.loaded());
    let api = api_of(&loaded.policy, api)?;
    let Some(handle) = loaded.policy.handle_of(api, None) else {
        return Err(Bad::new("UNKNOWN_API", format!("there is no API `{api}`")).into());
    };
    let values = forwarded.values(handle, headers, peer)?;
    let values: Vec<Option<&[u8]>> = values.iter().map(Option::as_deref).collect();
    let index = batch.check(handle, &Asked { values: &values, costs: &[] }, Intent::Charge);
    batch.decide().await;
    let permit = match batch.outcome(index) {
        Outcome::Decided { decision, .. } => decision.permit,
        Outcome::Failed(
            problem @ Problem::Resolve(
                ResolveError::CostTooLarge { .. } | ResolveError::TooManyLimits { .. },
            ),
        ) => return Err(Bad(answer::problem_report(problem, handle)).into()),
        _ => None,
    };
    let mut rendered = Rendered::default();
    if batch.render(index, &mut rendered).is_none() {
        let message = "the request was not decided".to_owned();
        return Err(Refused::new(StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL", message));
    }
    let body = Bytes::from(rendered.body().unwrap_or_default().to_owned());
    let mut response = Response::new(Full::new(body));
    let status = StatusCode::from_u16(rendered.status());
    *response.status_mut() = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let out = response.headers_mut();
    for (name, value) in handle.header_names().zip(rendered.headers()) {
        // The policy's compiler has looked at names and values; what clients bring into a value
        // may still be none.
        if let (Ok(name), Some(Ok(value))) =
            (name.parse::<HeaderName>(), value.map(HeaderValue::from_str))
        {
            out.append(name, value);
        }
    }
    if let Some(content_type) = rendered.content_type() {
        out.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    }
    if let Some(permit) = permit
        && let Ok(permit) = HeaderValue::from_str(&permit.id.to_string())
    {
        out.insert(PERMIT, permit);
    }
    Ok(response)
}

/// The API that is meant; it may be left out where there is one.
fn api_of<'a>(policy: &'a Policy, api: &'a str) -> Result<&'a str, Bad> {
    let known: Vec<&str> = policy.apis().collect();
    match (api, &known[..]) {
        ("", [only]) => Ok(only),
        ("", _) => {
            let known = known.join(", ");
            let message = format!("ask {AUTHORIZE}/API, where API is one of {known}");
            Err(Bad::new("UNKNOWN_API", message))
        }
        (api, _) if known.contains(&api) => Ok(api),
        (api, _) => {
            let (api, known) = (shown(api), known.join(", "));
            let message = format!("the policy has no API `{api}`, allowed are {known}");
            Err(Bad::new("UNKNOWN_API", message))
        }
    }
}

fn expects_json(headers: &HeaderMap) -> Result<(), Refused> {
    let found = headers.get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap_or("?"));
    crate::doors::json::expect(found).map_err(|message| {
        Refused::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UNSUPPORTED_MEDIA_TYPE", message)
    })
}

/// Reads a body that keeps to its length and time. One that says it is too long is not read.
async fn read_body(request: Request<Incoming>) -> Result<Bytes, Refused> {
    let too_large = |found: &str| {
        let message = format!("the body has {found} bytes, allowed are {BODY_BYTES_MAX}");
        Refused::new(StatusCode::PAYLOAD_TOO_LARGE, "TOO_LARGE", message)
    };
    let length = request.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if let Some(length) = length.filter(|length| *length > BODY_BYTES_MAX as u64) {
        return Err(too_large(&length.to_string()));
    }
    let body = Limited::new(request.into_body(), BODY_BYTES_MAX);
    match timeout(BODY_TIME_MAX, body.collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large("more")),
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

/// A request that got no answer, with the status that says whose fault it is.
struct Refused {
    status: StatusCode,
    error: ErrorReport,
}

impl Refused {
    fn new(status: StatusCode, code: &str, message: String) -> Self {
        Self { status, error: ErrorReport { code: code.to_owned(), message } }
    }

    fn answer(self) -> Answer {
        let mut answer = json_answer(self.status, &json!({ "error": self.error }));
        if self.status == StatusCode::METHOD_NOT_ALLOWED {
            answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
        }
        answer
    }
}

impl From<Bad> for Refused {
    fn from(Bad(error): Bad) -> Self {
        Self { status: StatusCode::BAD_REQUEST, error }
    }
}

fn json_answer(status: StatusCode, value: &impl Serialize) -> Answer {
    // A report is text and numbers: it can be written.
    let body = serde_json::to_vec(value).unwrap_or_default();
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    answer.headers_mut().insert(header::CONTENT_TYPE, json);
    answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}
