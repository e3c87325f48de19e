//! The door for Envoy at its maxima: what a client sees that comes to one, and that others go on.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use h2::Reason;
use hyper::Request;
use prost::Message;

use super::Daemon;
use super::rls::{Call, Client, OK, SHOULD_RATE_LIMIT, framed, image, read};

/// Calls at one time that a connection may have (`STREAMS_MAX`).
const STREAMS_MAX: u32 = 1024;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// A client that writes frames as it likes; libraries hold back what the server said is too much.
struct Raw(TcpStream);

#[derive(Debug)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Raw {
    fn connect(address: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        let mut raw = Self(stream);
        raw.write(SETTINGS, 0, 0, &[]);
        raw
    }

    fn write(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        bytes.extend_from_slice(&[kind, flags]);
        bytes.extend_from_slice(&stream.to_be_bytes());
        bytes.extend_from_slice(payload);
        self.0.write_all(&bytes).unwrap();
    }

    /// Begins a call and keeps its body back.
    fn begin(&mut self, stream: u32) {
        // `:method POST` and `:scheme http` of the table that all know, then names of it with values.
        let mut head = vec![0x83, 0x86, 0x04, SHOULD_RATE_LIMIT.len() as u8];
        head.extend_from_slice(SHOULD_RATE_LIMIT.as_bytes());
        head.extend_from_slice(b"\x01\x01x\x0f\x10\x10application/grpc");
        self.write(HEADERS, END_HEADERS, stream, &head);
    }

    fn end(&mut self, stream: u32, team: &str) {
        self.write(DATA, END_STREAM, stream, &call(team));
    }

    /// The next frame of which this is true, of those that are not about the connection itself.
    fn until(&mut self, mut is_it: impl FnMut(&Frame) -> bool) -> Frame {
        loop {
            let mut head = [0; 9];
            self.0.read_exact(&mut head).unwrap();
            let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = head;
            let mut payload = vec![0; u32::from_be_bytes([0, l0, l1, l2]) as usize];
            self.0.read_exact(&mut payload).unwrap();
            let stream = u32::from_be_bytes([s0, s1, s2, s3]);
            let frame = Frame { kind, flags, stream, payload };
            assert_ne!(frame.kind, GOAWAY, "{frame:?}");
            if is_it(&frame) {
                return frame;
            }
        }
    }

    /// Reads a call's answer, up to the last frame of its stream.
    fn answered(&mut self, stream: u32) -> Vec<u8> {
        let mut message = Vec::new();
        self.until(|frame| {
            assert!(frame.stream != stream || frame.kind != RST_STREAM, "{frame:?}");
            if frame.stream == stream && frame.kind == DATA {
                message.extend_from_slice(&frame.payload);
            }
            frame.stream == stream && frame.flags & END_STREAM != 0
        });
        message
    }
}

fn call(team: &str) -> Vec<u8> {
    let descriptors = vec![image(team)];
    let call = Call { domain: "media".to_owned(), descriptors, hits_addend: 0 };
    framed(&call.encode_to_vec()).to_vec()
}

/// The first byte pair of an answer that lets a call pass: the overall code is OK.
fn assert_passed(message: &[u8]) {
    assert_eq!(message.get(5..7), Some(&[8, OK as u8][..]), "{message:?}");
}

#[test]
fn a_call_past_the_maximum_is_refused_and_the_others_go_on() {
    let daemon = Daemon::start(&[]);
    let mut other = Client::connect(daemon.rls);
    let mut raw = Raw::connect(daemon.rls);
    for place in 0..STREAMS_MAX {
        raw.begin(2 * place + 1);
    }
    let past = 2 * STREAMS_MAX + 1;
    raw.begin(past);
    // It may be sent again elsewhere: a proxy knows by the reason that nothing was begun.
    let refused = raw.until(|frame| frame.kind == RST_STREAM);
    assert_eq!((refused.stream, &*refused.payload), (past, &[0, 0, 0, 7][..]));
    // Other connections are not touched, nor is what this one had begun.
    assert_eq!(other.ask("media", &[image("other")]).code, OK);
    raw.end(1, "first");
    assert_passed(&raw.answered(1));
    // Its end made room for one more.
    raw.begin(past + 2);
    raw.end(past + 2, "late");
    assert_passed(&raw.answered(past + 2));
    raw.end(3, "second");
    assert_passed(&raw.answered(3));
    daemon.assert_serves();
}

/// A client that heeds what it was told waits, and is answered once a call of its own has ended.
#[test]
fn a_client_that_heeds_the_maximum_waits() {
    let daemon = Daemon::start(&[]);
    let mut client = Client::connect(daemon.rls);
    // From its answer on the client knows the maximum.
    assert_eq!(client.ask("media", &[image("t")]).code, OK);
    let Client { runtime, send } = &mut client;
    let begin = |send: &mut h2::client::SendRequest<bytes::Bytes>| {
        let request = Request::post(format!("http://x{SHOULD_RATE_LIMIT}"))
            .header("content-type", "application/grpc")
            .body(())
            .unwrap();
        send.send_request(request, false).unwrap()
    };
    runtime.block_on(async {
        let mut held = Vec::new();
        for _ in 0..STREAMS_MAX {
            *send = send.clone().ready().await.unwrap();
            held.push(begin(send));
        }
        *send = send.clone().ready().await.unwrap();
        let (mut waits, mut body) = begin(send);
        body.send_data(call("t").into(), true).unwrap();
        let early = tokio::time::timeout(Duration::from_millis(200), &mut waits).await;
        assert!(early.is_err(), "{early:?}");
        let (first, mut body) = held.swap_remove(0);
        body.send_data(call("t").into(), true).unwrap();
        assert_passed(&read(first.await.unwrap()).await.unwrap());
        assert_passed(&read(waits.await.unwrap()).await.unwrap());
    });
}

#[test]
fn a_connection_past_the_maximum_is_told_to_go_and_the_others_go_on() {
    let daemon = Daemon::start(&["--max-connections", "3"]);
    let mut clients: Vec<Client> = (0..3).map(|_| Client::connect(daemon.rls)).collect();
    for client in &mut clients {
        assert_eq!(client.ask("media", &[image("t")]).code, OK);
    }
    // It gets a reason, and then its end.
    let bytes = super::send(daemon.rls, b"");
    let goaway = [0, 0, 8, GOAWAY, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 11];
    assert!(bytes.as_bytes().ends_with(&goaway), "{bytes:?}");
    let mut refused = Client::connect(daemon.rls);
    let response = refused.request(SHOULD_RATE_LIMIT, call("t").into());
    let error = refused.runtime.block_on(response).unwrap_err();
    // Its own writes may fail first, on a socket that is closed at the other end.
    assert!(error.reason() == Some(Reason::ENHANCE_YOUR_CALM) || error.is_io(), "{error:?}");
    for client in &mut clients {
        assert_eq!(client.ask("media", &[image("t")]).code, OK);
    }
    // One that goes makes room.
    drop(clients.pop());
    let began = Instant::now();
    while daemon.metric("tollkeeper_connections{protocol=\"envoy\"}") > 2 {
        assert!(began.elapsed() < Duration::from_secs(20));
    }
    let mut next = Client::connect(daemon.rls);
    assert_eq!(next.ask("media", &[image("t")]).code, OK);
    daemon.assert_serves();
}
