//! The door for Envoy in a cluster: whichever node is asked, all count as one.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use hyper::Request;
use prost::Message;
use tollkeeper_protocol::client::CheckArgs;
use tollkeeper_protocol::request::Form;

use crate::fleet::Fleet;

const POLICY: &str = r#"
schema = 1
[api.shop]
[api.shop.limit]
buy  = { on = "/buy", per = ["user"], bucket = "60/day burst 60", when_unavailable = "deny" }
job  = { on = "/job", per = ["user"], concurrent = 1, lease = "10min", when_unavailable = "deny" }
open = { on = "/open", per = ["user"], bucket = "60/day burst 60", when_unavailable = "allow" }
"#;

const SHOULD_RATE_LIMIT: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";
const CHECK: &str = "/grpc.health.v1.Health/Check";

const OK: i32 = 1;
const OVER_LIMIT: i32 = 2;

/// Statuses of gRPC.
const DEADLINE_EXCEEDED: u16 = 4;
const UNAVAILABLE: u16 = 14;

#[derive(Clone, PartialEq, Message)]
struct Call {
    #[prost(string, tag = "1")]
    domain: String,
    #[prost(message, repeated, tag = "2")]
    descriptors: Vec<Descriptor>,
}

#[derive(Clone, PartialEq, Message)]
struct Descriptor {
    #[prost(message, repeated, tag = "1")]
    entries: Vec<Entry>,
    #[prost(bool, tag = "4")]
    is_negative_hits: bool,
}

#[derive(Clone, PartialEq, Message)]
struct Entry {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, Message)]
struct Answer {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(message, optional, tag = "6")]
    metadata: Option<Struct>,
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

fn descriptor(entries: &[(&str, &str)]) -> Descriptor {
    let entry = |&(key, value): &(&str, &str)| Entry { key: key.into(), value: value.into() };
    Descriptor { entries: entries.iter().map(entry).collect(), is_negative_hits: false }
}

fn post(path: &str) -> Descriptor {
    descriptor(&[("method", "POST"), ("path", path), ("user", "u")])
}

/// A client of one node.
struct Node(SendRequest<Bytes>);

impl Node {
    async fn connect(fleet: &Fleet, node: usize) -> Self {
        let ready = &fleet.node(node).ready;
        let (_, rest) = ready.split_once(" rls ").unwrap_or_else(|| panic!("{ready}"));
        let address: SocketAddr = rest.split_whitespace().next().unwrap().parse().unwrap();
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let (send, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(async move { drop(connection.await) });
        Self(send)
    }

    /// What a call is answered, or the status of gRPC that it ended with.
    async fn call(&mut self, path: &str, wait: &str, message: &[u8]) -> Result<Bytes, u16> {
        self.0 = self.0.clone().ready().await.unwrap();
        let request = Request::post(format!("http://x{path}"));
        let request =
            request.header("content-type", "application/grpc").header("grpc-timeout", wait);
        let (response, mut stream) = self.0.send_request(request.body(()).unwrap(), false).unwrap();
        let mut body = vec![0];
        body.extend_from_slice(&(message.len() as u32).to_be_bytes());
        body.extend_from_slice(message);
        stream.send_data(body.into(), true).unwrap();
        let (head, mut body) = response.await.unwrap().into_parts();
        let mut bytes = Vec::new();
        while let Some(data) = body.data().await {
            bytes.extend_from_slice(&data.unwrap());
        }
        let trailers = body.trailers().await.unwrap().unwrap_or(head.headers);
        match trailers["grpc-status"].to_str().unwrap().parse().unwrap() {
            0 => Ok(Bytes::from(bytes).split_off(5)),
            status => Err(status),
        }
    }

    async fn ask(&mut self, wait: &str, descriptor: Descriptor) -> Result<Answer, u16> {
        let call = Call { domain: "shop".to_owned(), descriptors: vec![descriptor] };
        let answer = self.call(SHOULD_RATE_LIMIT, wait, &call.encode_to_vec()).await?;
        Ok(Answer::decode(answer).unwrap())
    }

    async fn passes(&mut self, descriptor: Descriptor) -> bool {
        let code = self.ask("10S", descriptor).await.unwrap().code;
        assert!([OK, OVER_LIMIT].contains(&code), "{code}");
        code == OK
    }
}

/// Three nodes count as one through this door too, and beside the others; a permit that one gave is
/// given back at another; what is too late is not even proposed; and a node that is left alone says
/// what the policy says, or UNAVAILABLE where it has nothing to say.
#[test]
fn three_nodes_answer_envoy_as_one() {
    let mut fleet = Fleet::plan("cluster-rls", POLICY, 3);
    fleet.flags = ["--rls", "127.0.0.1:0"].map(str::to_owned).to_vec();
    fleet.init(3);
    crate::cluster::run(async {
        let mut nodes = Vec::new();
        for node in 0..3 {
            nodes.push(Node::connect(&fleet, node).await);
        }
        // Whoever waits no longer is told so, and nothing is charged for it.
        for node in &mut nodes {
            let late = node.ask("1n", post("/buy")).await.unwrap_err();
            assert_eq!(late, DEADLINE_EXCEEDED);
        }
        let client = fleet.client(1).await;
        let handle = client.prepare("shop", None).await.unwrap();
        let args = CheckArgs::new().value("method", "POST").value("path", "/buy");
        let args = args.value("user", "u").form(Form::NUMBERS);
        let mut allowed = 0;
        for turn in 0..45 {
            allowed += u64::from(nodes[turn % 3].passes(post("/buy")).await);
            allowed += u64::from(client.check(&handle, &args).await.unwrap().is_allowed());
        }
        assert_eq!(allowed, 60);
        for node in &mut nodes {
            assert!(!node.passes(post("/buy")).await);
        }

        let given = nodes[0].ask("10S", post("/job")).await.unwrap();
        let permit = given.metadata.unwrap().fields["permit"].text.clone();
        assert!(!nodes[1].passes(post("/job")).await);
        let back = || descriptor(&[("permit", &permit)]);
        // However late it is: nobody would give it back again.
        assert_eq!(nodes[2].ask("1n", back()).await.unwrap().code, OK);
        assert!(nodes[1].passes(post("/job")).await);
    });

    let survivor = fleet.leader();
    for node in (0..3).filter(|&node| node != survivor) {
        fleet.kill(node);
    }
    crate::cluster::run(async {
        let mut node = Node::connect(&fleet, survivor).await;
        // What it had taken when it lost the others may be unknown; what comes later is not.
        let began = Instant::now();
        while node.call(CHECK, "1S", &[]).await.unwrap() != Bytes::from_static(&[8, 2]) {
            assert!(began.elapsed() < Duration::from_secs(20), "it still says that it serves");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(node.passes(post("/open")).await);
        assert!(!node.passes(post("/buy")).await);
        let back = Descriptor { is_negative_hits: true, ..post("/buy") };
        assert_eq!(node.ask("10S", back).await.unwrap_err(), UNAVAILABLE);
    });
}
