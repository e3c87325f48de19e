//! Envoy's rate limit service as a client of gRPC sees it.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::RecvStream;
use h2::client::{ResponseFuture, SendRequest};
use hyper::{HeaderMap, Method, Request, Response};
use prost::Message;
use tokio::runtime::Runtime;

use super::{Daemon, send};

pub(super) const SHOULD_RATE_LIMIT: &str =
    "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";

#[derive(Clone, PartialEq, Message)]
pub(super) struct Call {
    #[prost(string, tag = "1")]
    pub(super) domain: String,
    #[prost(message, repeated, tag = "2")]
    pub(super) descriptors: Vec<Descriptor>,
    #[prost(uint32, tag = "3")]
    pub(super) hits_addend: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Descriptor {
    #[prost(message, repeated, tag = "1")]
    entries: Vec<Entry>,
    #[prost(message, optional, tag = "2")]
    limit: Option<Number>,
    #[prost(message, optional, tag = "3")]
    hits_addend: Option<Number>,
    #[prost(bool, tag = "4")]
    is_negative_hits: bool,
}

#[derive(Clone, PartialEq, Message)]
struct Entry {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Number {
    #[prost(uint64, tag = "1")]
    value: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Answer {
    #[prost(int32, tag = "1")]
    pub(super) code: i32,
    #[prost(message, repeated, tag = "2")]
    statuses: Vec<Status>,
    #[prost(message, repeated, tag = "3")]
    headers: Vec<Header>,
    #[prost(bytes = "vec", tag = "5")]
    raw_body: Vec<u8>,
    #[prost(message, optional, tag = "6")]
    metadata: Option<Struct>,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(message, optional, tag = "2")]
    limit: Option<Limit>,
    #[prost(uint32, tag = "3")]
    remaining: u32,
    #[prost(message, optional, tag = "4")]
    until_reset: Option<Span>,
}

#[derive(Clone, PartialEq, Message)]
struct Limit {
    #[prost(uint32, tag = "1")]
    requests: u32,
    #[prost(int32, tag = "2")]
    unit: i32,
    #[prost(string, tag = "3")]
    name: String,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Span {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Header {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, Message)]
struct Struct {
    #[prost(btree_map = "string, message", tag = "1")]
    fields: std::collections::BTreeMap<String, Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "3")]
    text: String,
}

pub(super) const OK: i32 = 1;
const OVER_LIMIT: i32 = 2;

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let header = self.headers.iter().find(|header| header.key == name);
        header.map(|header| header.value.as_str())
    }

    fn metadata(&self, name: &str) -> Option<&str> {
        Some(&self.metadata.as_ref()?.fields.get(name)?.text)
    }

    fn remaining(&self) -> Vec<u32> {
        self.statuses.iter().map(|status| status.remaining).collect()
    }
}

fn descriptor(entries: &[(&str, &str)]) -> Descriptor {
    let entry = |(key, value): &(&str, &str)| Entry {
        key: (*key).to_owned(),
        value: value.as_bytes().to_vec(),
    };
    Descriptor { entries: entries.iter().map(entry).collect(), ..Descriptor::default() }
}

/// What ends a call of gRPC.
#[derive(Debug, PartialEq)]
pub(super) struct Refused {
    status: u16,
    message: String,
}

pub(super) struct Client {
    pub(super) runtime: Runtime,
    pub(super) send: SendRequest<Bytes>,
}

pub(super) fn framed(message: &[u8]) -> Bytes {
    let mut body = vec![0];
    body.extend_from_slice(&(message.len() as u32).to_be_bytes());
    body.extend_from_slice(message);
    body.into()
}

impl Client {
    pub(super) fn connect(address: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let send = runtime.block_on(async {
            let stream = tokio::net::TcpStream::connect(address).await.unwrap();
            let (send, connection) = h2::client::handshake(stream).await.unwrap();
            tokio::spawn(async move {
                let _ = connection.await;
            });
            send
        });
        Self { runtime, send }
    }

    pub(super) fn request(&mut self, path: &str, body: Bytes) -> ResponseFuture {
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("http://x{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .unwrap();
        let (response, mut stream) = self.send.send_request(request, false).unwrap();
        stream.send_data(body, true).unwrap();
        response
    }

    /// Sends a body as it is.
    fn raw(&mut self, path: &str, body: Bytes) -> Result<Vec<u8>, Refused> {
        self.runtime.block_on(async { self.send.clone().ready().await.map(drop).unwrap() });
        let response = self.request(path, body);
        self.runtime.block_on(async { read(response.await.unwrap()).await })
    }

    fn call(&mut self, call: &Call) -> Result<Answer, Refused> {
        let body = self.raw(SHOULD_RATE_LIMIT, framed(&call.encode_to_vec()))?;
        Ok(Answer::decode(&body[5..]).unwrap())
    }

    pub(super) fn ask(&mut self, domain: &str, descriptors: &[Descriptor]) -> Answer {
        let call =
            Call { domain: domain.to_owned(), descriptors: descriptors.to_vec(), hits_addend: 0 };
        self.call(&call).unwrap()
    }
}

pub(super) async fn read(response: Response<RecvStream>) -> Result<Vec<u8>, Refused> {
    assert_eq!(response.status(), 200);
    let (head, mut body) = response.into_parts();
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        bytes.extend_from_slice(&data);
    }
    let trailers = body.trailers().await.unwrap().unwrap_or(head.headers);
    outcome(&trailers, bytes)
}

fn outcome(trailers: &HeaderMap, body: Vec<u8>) -> Result<Vec<u8>, Refused> {
    let text = |name: &str| trailers.get(name).map(|value| value.to_str().unwrap().to_owned());
    let status = text("grpc-status").unwrap().parse().unwrap();
    match status {
        0 => Ok(body),
        _ => Err(Refused { status, message: text("grpc-message").unwrap_or_default() }),
    }
}

pub(super) fn image(team: &str) -> Descriptor {
    descriptor(&[("method", "POST"), ("path", "/v1/images?size=1"), ("team", team)])
}

#[test]
fn a_burst_is_answered_with_statuses_headers_and_body() {
    let daemon = Daemon::start(&[]);
    let mut client = Client::connect(daemon.rls);
    let began = Instant::now();
    for index in 0..120 {
        let answer = client.ask("media", &[image("t1")]);
        assert_eq!((answer.code, answer.statuses.len()), (OK, 1), "{index}: {answer:?}");
        let status = &answer.statuses[0];
        let limit = status.limit.as_ref().unwrap();
        // 120 units return in two minutes, for which there is no unit.
        assert_eq!((limit.requests, limit.unit, &*limit.name), (120, 0, "images_post"));
        assert_eq!(answer.header("x-ratelimit-limit"), Some("120"));
        assert!(answer.raw_body.is_empty() && answer.header("content-type").is_none());
        if began.elapsed() < Duration::from_secs(1) {
            assert_eq!(status.remaining, 119 - index);
            assert_eq!(status.until_reset.unwrap().nanos, 0);
        }
    }
    let denied = (0..60).map(|_| client.ask("media", &[image("t1")])).find(|it| it.code != OK);
    let denied = denied.expect("the bucket is never empty");
    assert_eq!((denied.code, denied.statuses[0].code), (OVER_LIMIT, OVER_LIMIT));
    assert_eq!(denied.statuses[0].until_reset, Some(Span { seconds: 1, nanos: 0 }));
    for (name, value) in [
        ("retry-after", "1"),
        ("x-ratelimit-remaining", "0"),
        ("cache-control", "no-store"),
        ("content-type", "application/json"),
    ] {
        assert_eq!(denied.header(name), Some(value), "{denied:?}");
    }
    let body = String::from_utf8(denied.raw_body.clone()).unwrap();
    assert!(body.contains("Rate limit exceeded for images_post. Retry after 1s."), "{body}");
    assert_eq!(denied.metadata("decision"), Some("deny"));
    assert_eq!(denied.metadata("limit"), Some("images_post"));
    assert_eq!((denied.metadata("status"), denied.metadata("admitted")), (Some("429"), None));
    assert_eq!(client.ask("media", &[image("t2")]).metadata("admitted"), Some("true"));
    assert!(daemon.metric("tollkeeper_requests_total{protocol=\"envoy\"}") >= 122);
    assert_eq!(daemon.metric("tollkeeper_request_errors_total{protocol=\"envoy\"}"), 0);
}

#[test]
fn descriptors_of_a_call_are_one_check() {
    let daemon = Daemon::start(&[]);
    let mut client = Client::connect(daemon.rls);
    let many =
        |team: &str, hits| Descriptor { hits_addend: Some(Number { value: hits }), ..image(team) };
    assert_eq!(client.ask("media", &[many("t1", 120)]).code, OK);
    let both = client.ask("media", &[many("t1", 5), many("t2", 7)]);
    assert_eq!((both.code, both.statuses[0].code, both.statuses[1].code), (2, 2, 1));
    // The second was not charged, since the first did not pass.
    assert_eq!(both.statuses[1].remaining, 120);
    let other = client.ask("media", &[many("t3", 20), many("t2", 7)]);
    assert_eq!((other.code, other.remaining()), (OK, vec![100, 113]));
    // One counter twice is charged for both.
    let twice = client.ask("media", &[many("t4", 60), many("t4", 61)]);
    assert_eq!(twice.code, OVER_LIMIT);
    let twice = client.ask("media", &[many("t4", 60), many("t4", 60)]);
    assert_eq!((twice.code, twice.remaining()), (OK, vec![0, 0]));
}

#[test]
fn a_descriptor_may_name_a_limit_look_give_back_and_settle() {
    let daemon = Daemon::start(&[]);
    let mut client = Client::connect(daemon.rls);
    let named = |limit: &str, more: &[(&str, &str)]| {
        descriptor(&[&[("limit", limit), ("team", "t1")], more].concat())
    };
    let hits = |value, descriptor| Descriptor { hits_addend: Some(Number { value }), ..descriptor };
    let used = client.ask("media", &[hits(100, named("images_post", &[]))]);
    assert_eq!((used.code, used.remaining()), (OK, vec![20]));
    // By name and by route it is the same counter; no hits only look.
    assert_eq!(client.ask("media", &[hits(0, image("t1"))]).remaining(), [20]);
    let back = hits(50, named("images_post", &[]));
    let back = client.ask("media", &[Descriptor { is_negative_hits: true, ..back }]);
    assert_eq!((back.code, back.statuses[0].limit.is_some()), (OK, false));
    assert_eq!(client.ask("media", &[hits(0, image("t1"))]).remaining(), [70]);
    // What was used is never refused, and who is in debt does not pass by looking.
    let settle = |units| hits(units, named("images_post", &[("settle", "true")]));
    assert_eq!(client.ask("media", &[settle(100)]).code, OK);
    assert_eq!(client.ask("media", &[hits(0, image("t1"))]).code, OVER_LIMIT);
    // The request's hits count where a descriptor has none.
    let call = Call { domain: "media".to_owned(), descriptors: vec![image("t5")], hits_addend: 7 };
    assert_eq!(client.call(&call).unwrap().remaining(), [113]);
    // A descriptor that no limit knows, and one that lacks what its limit needs, pass.
    let unknown = client.ask("media", &[descriptor(&[("method", "PUT"), ("path", "/x")])]);
    assert_eq!((unknown.code, unknown.statuses[0].limit.is_some()), (OK, false));
    let lacking = descriptor(&[("method", "GET"), ("path", "/x")]);
    let lacking = client.ask("media", &[lacking, image("t6")]);
    assert_eq!((lacking.code, lacking.remaining()), (OK, vec![0, 119]));
}

#[test]
fn what_is_wrong_is_the_callers_and_never_unknown() {
    let daemon = Daemon::start(&[]);
    let mut client = Client::connect(daemon.rls);
    let call = |domain: &str, descriptors: Vec<Descriptor>| Call {
        domain: domain.to_owned(),
        descriptors,
        hits_addend: 0,
    };
    let limit = Descriptor { limit: Some(Number { value: 1 }), ..image("t") };
    let hits = Descriptor { hits_addend: Some(Number { value: u64::MAX }), ..image("t") };
    for (wrong, words) in [
        (call("", vec![image("t")]), "domain `` is no API of the policy, allowed are media"),
        (call("x", vec![image("t")]), "domain `x` is no API"),
        (call("media", vec![]), "there are 0 descriptors, allowed are 1 to 32"),
        (call("media", vec![image("t"); 33]), "there are 33 descriptors"),
        (
            call("media", vec![image("t"), Descriptor::default()]),
            "descriptors[1]: there are 0 entries",
        ),
        (call("media", vec![descriptor(&[("a", ""); 65])]), "there are 65 entries"),
        (call("media", vec![descriptor(&[("", "x")])]), "a key has 0 bytes"),
        (call("media", vec![limit]), "it brings a limit of its own"),
        (call("media", vec![hits]), "hits_addend is 18446744073709551615"),
        (call("media", vec![descriptor(&[("limit", "x")])]), "there is no limit `x`, allowed are"),
        (call("media", vec![descriptor(&[("permit", "x")])]), "entry `permit` is `x`"),
        (
            call("media", vec![descriptor(&[("@cost.bytes", "1")])]),
            "no limit reads the meter `bytes`",
        ),
        (call("media", vec![descriptor(&[("@cost", "-1")])]), "the amount of `requests` is `-1`"),
    ] {
        let refused = client.call(&wrong).unwrap_err();
        assert!(refused.status == 3 && refused.message.contains(words), "{words}: {refused:?}");
    }
    for (body, status) in [
        (Bytes::new(), 3),
        (Bytes::from_static(&[0, 0, 0, 0, 9, 1]), 3),
        (Bytes::from_static(&[1, 0, 0, 0, 0]), 12),
        (framed(&[0xFF; 40]), 3),
        (framed(&vec![0; 256 * 1024 + 1]), 3),
    ] {
        let refused = client.raw(SHOULD_RATE_LIMIT, body).unwrap_err();
        assert_eq!(refused.status, status, "{refused:?}");
    }
    let refused = client.raw("/x.Y/Z", framed(&[])).unwrap_err();
    assert_eq!(refused.status, 12, "{refused:?}");
    // Bytes of a client that are no text are a value like others.
    let mut odd = image("");
    odd.entries[2].value = vec![0xFF, 0xFE];
    assert_eq!(client.ask("media", &[odd]).remaining(), [119]);
    assert!(daemon.metric("tollkeeper_request_errors_total{protocol=\"envoy\"}") >= 18);
    daemon.assert_serves();
}

#[test]
fn health_is_told_of_the_service_and_of_the_whole() {
    let daemon = Daemon::start(&[]);
    let mut client = Client::connect(daemon.rls);
    let check = "/grpc.health.v1.Health/Check";
    assert_eq!(client.raw(check, framed(&[])).unwrap()[5..], [8, 1]);
    let service = b"envoy.service.ratelimit.v3.RateLimitService";
    let service = [&[0x0A, service.len() as u8], &service[..]].concat();
    assert_eq!(client.raw(check, framed(&service)).unwrap()[5..], [8, 1]);
    assert_eq!(client.raw(check, framed(b"\x0A\x01x")).unwrap_err().status, 5);
}

const SLOTS: &str = "schema = 1\n[api.jobs.limit]\n\
                     running = { per = [\"user\"], concurrent = 4, lease = \"1hour\" }\n";

fn slots() -> (Daemon, std::path::PathBuf) {
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let path = path.join(format!("slots-{}-{number}.toml", std::process::id()));
    std::fs::write(&path, SLOTS).unwrap();
    (Daemon::with_policy(path.to_str().unwrap(), &[]), path)
}

#[test]
fn a_permit_is_given_back_by_what_the_answer_said() {
    let (daemon, path) = slots();
    let mut client = Client::connect(daemon.rls);
    let user = descriptor(&[("user", "u1")]);
    let permits: Vec<String> = (0..4)
        .map(|_| {
            client.ask("jobs", std::slice::from_ref(&user)).metadata("permit").unwrap().to_owned()
        })
        .collect();
    let denied = client.ask("jobs", std::slice::from_ref(&user));
    assert_eq!((denied.code, denied.metadata("permit")), (OVER_LIMIT, None));
    // Twice is once.
    for _ in 0..2 {
        let release = descriptor(&[("permit", &permits[0])]);
        assert_eq!(client.ask("jobs", &[release]).code, OK);
    }
    assert_eq!(client.ask("jobs", std::slice::from_ref(&user)).code, OK);
    assert_eq!(client.ask("jobs", &[user]).code, OVER_LIMIT);
    let _ = std::fs::remove_file(path);
}

/// A proxy whose client leaves while the check is on its way resets the stream, before the answer
/// or as it comes, and never asks for the permit's release.
#[test]
fn no_permit_is_held_by_a_call_that_was_given_up() {
    let (daemon, path) = slots();
    let mut client = Client::connect(daemon.rls);
    let call = Call {
        domain: "jobs".to_owned(),
        descriptors: vec![descriptor(&[("user", "u1")])],
        hits_addend: 0,
    };
    let body = framed(&call.encode_to_vec());
    let (began, mut answered) = (Instant::now(), 0);
    for round in 0..500_u64 {
        let mut response = client.request(SHOULD_RATE_LIMIT, body.clone());
        // From at once to after the answer has come, which is then heard.
        let heard = client.runtime.block_on(async {
            let response = tokio::select! {
                biased;
                response = &mut response => response.unwrap(),
                () = tokio::time::sleep(Duration::from_micros(round * 4)) => return None,
            };
            Some(read(response).await.unwrap())
        });
        drop(response);
        let Some(heard) = heard else { continue };
        answered += 1;
        let answer = Answer::decode(&heard[5..]).unwrap();
        if let Some(permit) = answer.metadata("permit") {
            client.ask("jobs", &[descriptor(&[("permit", permit)])]);
        }
    }
    assert!((1..500).contains(&answered), "{answered} of 500 were answered");
    // What is on its way comes to its end in no time.
    let free = |client: &mut Client| {
        let look = descriptor(&[("user", "u1")]);
        let look = Descriptor { hits_addend: Some(Number { value: 0 }), ..look };
        client.ask("jobs", &[look]).remaining()[0]
    };
    while free(&mut client) != 4 {
        assert!(began.elapsed() < Duration::from_secs(30), "{} of 4 are free", free(&mut client));
    }
    let _ = std::fs::remove_file(path);
}

#[test]
fn hostile_bytes_of_http2_get_an_end() {
    let daemon = Daemon::start(&["--max-connections", "3"]);
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    for bytes in [
        &b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"[..],
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        &[preface, &[0xFF; 64][..]].concat(),
        // Settings of a length that they cannot have.
        &[preface, &[0, 0, 5, 4, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5][..]].concat(),
    ] {
        let _ = send(daemon.rls, bytes);
    }
    // More streams than may be: those too many are refused, and the others answered.
    let mut client = Client::connect(daemon.rls);
    let body = framed(&Call::default().encode_to_vec());
    let responses: Vec<_> =
        (0..100).map(|_| client.request(SHOULD_RATE_LIMIT, body.clone())).collect();
    client.runtime.block_on(async {
        for response in responses {
            assert_eq!(response.await.unwrap().headers()["grpc-status"], "3");
        }
    });
    let held: Vec<TcpStream> = (0..2).map(|_| TcpStream::connect(daemon.rls).unwrap()).collect();
    let began = Instant::now();
    while daemon.metric("tollkeeper_connections{protocol=\"envoy\"}") < 3 {
        assert!(began.elapsed() < Duration::from_secs(20));
    }
    let refused = send(daemon.rls, b"");
    assert!(refused.ends_with('\u{b}'), "{refused:?}");
    drop(held);
    daemon.assert_serves();
}
