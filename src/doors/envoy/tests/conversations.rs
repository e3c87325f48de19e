//! Connections with their clients, in one thread: ages, deadlines, watches, and calls that are
//! given up.

use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::client::{ResponseFuture, SendRequest};
use hyper::header::HeaderMap;
use hyper::{Request, Response};
use prost::Message;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, LocalSet, spawn_local, yield_now};

use super::super::grpc::{Code as Status, decode, framed, unframed};
use super::super::proto::{HealthCheckRequest, HealthCheckResponse, RateLimitResponse};
use super::super::{WATCHES_MAX, connection};
use super::{POLICY, RateLimitRequest, Side, UInt64Value, descriptor, metadata};
use crate::doors::threads::Accepted;
use crate::engine::mutant::{Mutant, plant};

const SHOULD_RATE_LIMIT: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";
const CHECK: &str = "/grpc.health.v1.Health/Check";
const WATCH: &str = "/grpc.health.v1.Health/Watch";

/// An hour: longer than any of these.
const LONG: Duration = Duration::from_secs(3600);

/// A client's side of a connection.
struct Talk {
    send: SendRequest<Bytes>,
    /// The connection itself, which comes to its end when it is closed.
    ended: JoinHandle<Result<(), h2::Error>>,
    /// Closes the door.
    stop: watch::Sender<bool>,
}

/// Runs a client of a connection that lives for `age`.
fn talk<R, F: Future<Output = R>>(side: &Side, age: Duration, run: impl FnOnce(Talk) -> F) -> R {
    let talk = async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let client = TcpStream::connect(address).await.unwrap();
        let (stream, peer) = listener.accept().await.unwrap();
        let (stop, stopped) = watch::channel(false);
        let serve = connection::serve(side.desk.clone(), age);
        spawn_local(serve(Accepted { stream, peer, stopped }));
        let (send, connection) = h2::client::handshake(client).await.unwrap();
        run(Talk { send, ended: spawn_local(connection), stop }).await
    };
    let talk = async { tokio::time::timeout(Duration::from_secs(30), talk).await.unwrap() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, talk)
}

impl Talk {
    /// Begins a call.
    async fn begin(&mut self, path: &str, wait: &str, message: &impl Message) -> ResponseFuture {
        std::future::poll_fn(|context| self.send.poll_ready(context)).await.unwrap();
        let request = Request::post(format!("http://x{path}"));
        let request = request.header("content-type", "application/grpc");
        let request = match wait {
            "" => request,
            wait => request.header("grpc-timeout", wait),
        };
        let (response, mut body) =
            self.send.send_request(request.body(()).unwrap(), false).unwrap();
        body.send_data(Bytes::from(framed(message)), true).unwrap();
        response
    }

    async fn call(&mut self, path: &str, wait: &str, message: &impl Message) -> (u16, Vec<u8>) {
        let response = self.begin(path, wait, message).await;
        read(response.await.unwrap()).await
    }
}

/// The status that a call ended with, and its message.
async fn read(response: Response<RecvStream>) -> (u16, Vec<u8>) {
    let (head, mut body) = response.into_parts();
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        bytes.extend_from_slice(&data.unwrap());
    }
    (status_of(&body.trailers().await.unwrap().unwrap_or(head.headers)), bytes)
}

fn status_of(trailers: &HeaderMap) -> u16 {
    trailers["grpc-status"].to_str().unwrap().parse().unwrap()
}

fn of_team(team: &str) -> RateLimitRequest {
    let descriptors = vec![descriptor(&[("team", team)])];
    RateLimitRequest { domain: "a".to_owned(), descriptors, hits_addend: 0 }
}

/// A proxy keeps its connections for good; one that is old enough is told to come again, and what
/// was asked on it is answered.
#[test]
fn a_connection_ends_at_its_age() {
    talk(&Side::new(POLICY), Duration::from_millis(100), async |mut talk| {
        let (status, _) = talk.call(CHECK, "", &HealthCheckRequest::default()).await;
        assert_eq!(status, 0);
        // It ends by itself, though its client would go on.
        talk.ended.await.unwrap().unwrap();
        assert!(talk.send.ready().await.is_err());
    });
}

/// A call that is too late is not decided, and so costs nothing; what comes after the fact is done
/// however late.
#[test]
fn a_deadline_that_has_passed_leaves_everything_as_it_was() {
    talk(&Side::new(POLICY), LONG, async |mut talk| {
        let left = |body: &[u8]| {
            let answer: RateLimitResponse = decode(unframed(body).unwrap()).unwrap();
            answer.statuses[0].limit_remaining
        };
        let (status, body) = talk.call(SHOULD_RATE_LIMIT, "20S", &of_team("t")).await;
        assert_eq!((status, left(&body)), (0, 4));
        let (status, _) = talk.call(SHOULD_RATE_LIMIT, "0m", &of_team("t")).await;
        assert_eq!(status, Status::DeadlineExceeded as u16);
        let (status, _) = talk.call(SHOULD_RATE_LIMIT, "soon", &of_team("t")).await;
        assert_eq!(status, Status::InvalidArgument as u16);
        let mut back = of_team("t");
        back.descriptors[0].is_negative_hits = true;
        assert_eq!(talk.call(SHOULD_RATE_LIMIT, "0m", &back).await.0, 0);
        let (status, body) = talk.call(SHOULD_RATE_LIMIT, "", &of_team("t")).await;
        assert_eq!((status, left(&body)), (0, 4));
    });
}

/// Who watches is told how it is, and again when it changes; there are only so many who may.
#[test]
fn health_is_watched_until_the_door_closes() {
    let side = Side::new(POLICY);
    talk(&side, LONG, async |mut talk| {
        let health = |data: Option<Result<Bytes, h2::Error>>| {
            let data = data.unwrap().unwrap();
            decode::<HealthCheckResponse>(unframed(&data).unwrap()).unwrap().status
        };
        let asked = |service: &str| HealthCheckRequest { service: service.to_owned() };
        let mut watching = Vec::new();
        for place in 0..WATCHES_MAX {
            let (service, expected) = if place == 0 { ("x", 3) } else { ("", 1) };
            let response = talk.begin(WATCH, "", &asked(service)).await.await.unwrap();
            let mut body = response.into_body();
            assert_eq!(health(body.data().await), expected);
            watching.push(body);
        }
        let (status, _) = talk.call(WATCH, "", &asked("")).await;
        assert_eq!(status, Status::ResourceExhausted as u16);
        // One that goes makes room for another.
        watching.pop();
        let again = loop {
            let response = talk.begin(WATCH, "", &asked("")).await.await.unwrap();
            if !response.headers().contains_key("grpc-status") {
                break response;
            }
        };
        let mut again = again.into_body();
        assert_eq!(health(again.data().await), 1);
        watching.push(again);
        side.desk.with(|desk| desk.instance.drain());
        for watched in &mut watching[1..] {
            assert_eq!(health(watched.data().await), 2);
        }
        talk.stop.send_replace(true);
        for mut watched in watching {
            assert!(watched.data().await.is_none());
            let trailers = watched.trailers().await.unwrap().unwrap();
            assert_eq!(status_of(&trailers), 14);
        }
    });
}

const SLOTS: &str = "schema = 1\n[api.a.limit]\n\
                     slots = { per = ['team'], concurrent = 4, lease = '1hour' }\n";

/// Calls that are given up at any moment, from before they are read to when their answer is there.
/// Returns how many were answered, and how many of four slots nobody holds and nobody can have.
fn give_up() -> (u32, u32) {
    talk(&Side::new(SLOTS), LONG, async |mut talk| {
        let (call, mut answered) = (of_team("t"), 0);
        for round in 0..400 {
            let mut response = talk.begin(SHOULD_RATE_LIMIT, "", &call).await;
            for _ in 0..round % 40 {
                yield_now().await;
            }
            let heard = tokio::select! {
                biased;
                response = &mut response => response.unwrap(),
                () = std::future::ready(()) => continue,
            };
            answered += 1;
            let (_, body) = read(heard).await;
            let answer: RateLimitResponse = decode(unframed(&body).unwrap()).unwrap();
            if let Some(permit) = metadata(&answer).get("permit") {
                let descriptors = vec![descriptor(&[("permit", permit)])];
                let release = RateLimitRequest { descriptors, ..of_team("t") };
                assert_eq!(talk.call(SHOULD_RATE_LIMIT, "", &release).await.0, 0);
            }
        }
        let mut look = of_team("t");
        look.descriptors[0].hits_addend = Some(UInt64Value { value: 0 });
        // What is on its way comes to its end meanwhile.
        let mut free = 0;
        for _ in 0..100 {
            let (_, body) = talk.call(SHOULD_RATE_LIMIT, "", &look).await;
            let answer: RateLimitResponse = decode(unframed(&body).unwrap()).unwrap();
            free = answer.statuses[0].limit_remaining;
        }
        (answered, 4 - free)
    })
}

#[test]
fn calls_that_are_given_up_hold_nothing() {
    let (answered, lost) = give_up();
    assert!((1..400).contains(&answered), "{answered} of 400 were answered");
    assert_eq!(lost, 0);
}

mod mutants {
    #![allow(clippy::print_stdout, reason = "which test found which bug is for people to read")]

    use super::*;

    /// Without the look at resets slots are lost, so that the test above tests it.
    #[test]
    fn calls_that_are_given_up_hold_slots_if_nobody_looks_for_resets() {
        let (answered, lost) = plant(Mutant::ResetsUnseen, give_up);
        println!("ResetsUnseen: {lost} of 4 slots lost, {answered} of 400 calls were answered");
        assert!(lost > 0, "no slot was lost, {answered} of 400 calls were answered");
    }
}
