//! Stopping: clients are told, what they asked is answered, and the process ends.

use std::io::{ErrorKind, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use tollkeeper_protocol::limits::ANSWER_BYTES_MAX;
use tollkeeper_protocol::request::{Check, Form, Hello, Intent, Ping, Prepare};
use tollkeeper_protocol::response::Response;
use tollkeeper_protocol::{Code, Envelope, Request, next_frame};

use crate::support::{Daemon, PATIENCE, read_to_end};

/// What `tollkeeper serve --help` promises.
const DRAINED_WITHIN: Duration = Duration::from_secs(4);

/// A server that takes nothing for so long, twice, has stopped reading.
const QUIET: Duration = Duration::from_millis(500);

fn connect(daemon: &Daemon) -> TcpStream {
    let stream = TcpStream::connect(daemon.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn frame(call: u64, request: &Request<'_>) -> Vec<u8> {
    let mut frame = Vec::new();
    request.encode(Envelope::Call(call), &mut frame).unwrap();
    frame
}

fn hello() -> Vec<u8> {
    let hello = Hello {
        version_min: 1,
        version_max: 1,
        client: "test",
        credential_scheme: 0,
        credential: &[],
    };
    frame(1, &Request::Hello(hello))
}

fn ping(call: u64) -> Vec<u8> {
    frame(call, &Request::Ping(Ping { payload: &[] }))
}

/// Reads one answer; `bytes` keeps what came behind it.
fn read_answer<R>(
    stream: &mut TcpStream,
    bytes: &mut Vec<u8>,
    take: impl FnOnce(u64, &Response<'_>) -> R,
) -> R {
    use std::io::Read;
    loop {
        if let Some((frame, length)) = next_frame(bytes, ANSWER_BYTES_MAX).unwrap() {
            let taken = take(frame.header.call, &Response::decode(&frame.message()).unwrap());
            bytes.drain(..length);
            return taken;
        }
        let mut chunk = [0; 4096];
        let read = stream.read(&mut chunk).unwrap();
        assert!(read > 0, "the server closed the connection");
        bytes.extend_from_slice(&chunk[..read]);
    }
}

#[test]
fn a_daemon_that_is_told_to_stop_says_goodbye_and_exits_0() {
    let daemon = Daemon::start();
    let mut stream = connect(&daemon);
    let mut bytes = Vec::new();
    stream.write_all(&hello()).unwrap();
    read_answer(&mut stream, &mut bytes, |_, answer| {
        assert!(matches!(answer, Response::Hello(_)));
    });
    // What was sent before the signal is answered.
    stream.write_all(&[ping(2), ping(3)].concat()).unwrap();
    for call in [2, 3] {
        let answered = read_answer(&mut stream, &mut bytes, |call, _| call);
        assert_eq!(answered, call);
    }
    let told_at = Instant::now();
    daemon.terminate();
    read_answer(&mut stream, &mut bytes, |call, answer| {
        let Response::GoAway(goaway) = answer else { panic!("{answer:?} instead of GOAWAY") };
        assert_eq!((call, goaway.code), (0, Code::ShuttingDown));
    });
    // The server closes, whether or not the client does.
    assert_eq!(read_to_end(&mut stream), b"");
    let (status, log) = daemon.wait();
    let took = told_at.elapsed();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(took < DRAINED_WITHIN, "{took:?}");
}

#[test]
fn a_silent_connection_does_not_delay_the_end() {
    let daemon = Daemon::start();
    let _silent = connect(&daemon);
    let told_at = Instant::now();
    daemon.terminate();
    let (status, log) = daemon.wait();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(told_at.elapsed() < DRAINED_WITHIN);
}

/// Asks for answers without reading any, until the server stops reading as well.
fn never_read(daemon: &Daemon) -> TcpStream {
    let mut stream = connect(daemon);
    let mut bytes = Vec::new();
    stream.write_all(&hello()).unwrap();
    read_answer(&mut stream, &mut bytes, |_, _| ());
    stream
        .write_all(&frame(2, &Request::Prepare(Prepare { api: "media", class: Some("read") })))
        .unwrap();
    let (handle, layout) = read_answer(&mut stream, &mut bytes, |_, answer| match answer {
        Response::Prepare(prepared) => (prepared.handle, prepared.layout),
        other => panic!("{other:?} instead of a handle"),
    });
    let values = [Some(&b"t"[..])];
    let check = frame(
        3,
        &Request::Check(Check {
            intent: Intent::Peek,
            form: Form::FULL,
            tied: false,
            no_forward: false,
            handle,
            layout,
            id: None,
            deadline_nanos: None,
            costs: [][..].into(),
            values: values[..].into(),
        }),
    );
    let many = check.repeat(256);
    stream.set_write_timeout(Some(QUIET)).unwrap();
    let (mut sent, mut quiet) = (0, 0);
    while quiet < 2 {
        match stream.write(&many[sent..]) {
            Ok(written) => (sent, quiet) = ((sent + written) % many.len(), 0),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                quiet += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    stream
}

#[test]
fn a_client_that_never_reads_does_not_outlast_the_drain() {
    let daemon = Daemon::start();
    let stuck = never_read(&daemon);
    let told_at = Instant::now();
    daemon.terminate();
    let (status, log) = daemon.wait();
    let took = told_at.elapsed();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(took < DRAINED_WITHIN, "{took:?}");
    let _ = stuck.shutdown(Shutdown::Both);
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let daemon = Daemon::start();
    // Keeps the drain going for as long as it may.
    let _stuck = never_read(&daemon);
    daemon.terminate();
    // The first signal has been taken; the system may deliver two that wait as one.
    daemon.wait_for_log("draining");
    daemon.terminate();
    let (status, log) = daemon.wait();
    assert_eq!(status.code(), Some(1), "{log}");
}
