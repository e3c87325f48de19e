//! Calls on simulated time: against a plain model, against what the reference service says of its
//! examples, and with bytes that nobody should send.

mod conversations;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use prost::Message;

use super::answer::{self, Place};
use super::grpc::{decode, framed, unframed};
use super::proto::{
    Code, Entry, RateLimitDescriptor, RateLimitOverride, RateLimitRequest, RateLimitResponse,
    Texts, UInt64Value,
};
use super::request::{self, Act};
use super::service;
use crate::clock::Clock;
use crate::doors::{Batch, Instance, Intent, Loaded, SharedDesk};
use crate::engine::key::Seed;
use crate::engine::table::Stamp;
use crate::engine::time::{Now, Timestamp, UtcTime};
use crate::metrics::cells::Protocol;
use crate::policy::{Part, Policy, Source};

/// A daemon of one thread whose time stands still unless it is told.
struct Side {
    desk: Arc<SharedDesk>,
    nanos: u64,
}

impl Side {
    fn new(text: &str) -> Self {
        let seed = Seed::new([7; 16]);
        let policy = match Policy::compile(&[Source { name: "p", text }], &seed) {
            Ok(policy) => policy,
            Err(errors) => panic!("{errors}\n{text}"),
        };
        let loaded = Loaded::new(policy, "a test".to_owned(), UtcTime::from_nanos(0));
        let instance = Instance::new(10_000, 10, [9; 16], &seed, Clock::start(), loaded).unwrap();
        Self { desk: SharedDesk::new(Protocol::Envoy, &instance), nanos: 1_000_000_000 }
    }

    /// What a call is answered, at this side's moment.
    fn call(&self, message: &RateLimitRequest) -> RateLimitResponse {
        let mut batch = Batch::new(&self.desk);
        let loaded = Arc::clone(batch.loaded());
        let call = request::read(message, &loaded.policy).unwrap();
        let values: Vec<_> = call.descriptors.iter().map(request::Descriptor::values).collect();
        let parts: Vec<Part<'_>> =
            call.descriptors.iter().zip(&values).map(|(it, values)| it.part(values)).collect();
        assert!(call.descriptors.iter().all(|descriptor| descriptor.act == Act::Check));
        let check = batch.check_together(call.handle, &parts, Intent::Charge);
        let now = Now {
            time: Timestamp::from_nanos(self.nanos),
            utc: UtcTime::from_nanos(1_714_752_000_000_000_000 + self.nanos),
        };
        batch.decide_at(&mut Stamp::new(|| now));
        let places: Vec<Place> = (0..parts.len()).map(Place::Part).collect();
        answer::answer(&batch, call.handle, Some(check), &places).unwrap().response
    }

    /// Whether each descriptor passed, after how the whole did.
    fn ask(&self, domain: &str, descriptors: &[&[(&str, &str)]]) -> Vec<bool> {
        let descriptors = descriptors.iter().map(|entries| descriptor(entries)).collect();
        let message = RateLimitRequest { domain: domain.to_owned(), descriptors, hits_addend: 0 };
        let response = self.call(&message);
        let all = [response.overall_code].into_iter();
        let codes = all.chain(response.statuses.iter().map(|status| status.code));
        codes.map(|code| code == Code::Ok as i32).collect()
    }

    /// How often a descriptor passes before it is denied, of so many times.
    fn passes(&self, domain: &str, entries: &[(&str, &str)], times: usize) -> usize {
        (0..times).filter(|_| self.ask(domain, &[entries])[0]).count()
    }
}

fn descriptor(entries: &[(&str, &str)]) -> RateLimitDescriptor {
    let entry = |(key, value): &(&str, &str)| Entry {
        key: (*key).to_owned(),
        value: Bytes::copy_from_slice(value.as_bytes()),
    };
    RateLimitDescriptor { entries: entries.iter().map(entry).collect(), ..Default::default() }
}

fn imported(yaml: &str) -> Side {
    let imported = crate::policy::import::envoy(yaml).unwrap();
    Side::new(&imported.policy)
}

/// The decisions that the reference service's own page gives of its examples.
mod reference {
    use super::*;

    #[test]
    fn one_and_two_rates_by_value_and_nested() {
        let side = imported(
            "domain: mongo_cps\ndescriptors:\n\
             - {key: database, value: users, rate_limit: {unit: second, requests_per_unit: 500}}\n\
             - {key: database, value: default, rate_limit: {unit: second, requests_per_unit: 500}}\n",
        );
        assert_eq!(side.passes("mongo_cps", &[("database", "users")], 520), 500);
        assert_eq!(side.passes("mongo_cps", &[("database", "default")], 520), 500);
        // What no rule knows is not limited.
        assert_eq!(side.passes("mongo_cps", &[("database", "other")], 520), 520);

        let side = imported(
            "domain: messaging\ndescriptors:\n\
             - key: message_type\n  value: marketing\n  descriptors:\n\
             \x20 - {key: to_number, rate_limit: {unit: day, requests_per_unit: 5}}\n\
             - {key: to_number, rate_limit: {unit: day, requests_per_unit: 100}}\n",
        );
        let marketing = |number| [("message_type", "marketing"), ("to_number", number)];
        assert_eq!(side.passes("messaging", &marketing("2061111111"), 9), 5);
        assert_eq!(side.passes("messaging", &marketing("2062222222"), 9), 5);
        assert_eq!(side.passes("messaging", &[("to_number", "2061111111")], 120), 100);
        // Both in one call: the answer is over where one of them is.
        let number = [("to_number", "2062222222")];
        let both: [&[(&str, &str)]; 2] = [&marketing("2062222222"), &number];
        assert_eq!(side.ask("messaging", &both), [false, false, true]);
        let both: [&[(&str, &str)]; 2] = [&marketing("3"), &[("to_number", "3")]];
        assert_eq!(side.ask("messaging", &both), [true, true, true]);
    }

    #[test]
    fn three_and_four_the_best_fit_of_the_same_depth() {
        let side = imported(
            "domain: edge_proxy_per_ip\ndescriptors:\n\
             - {key: remote_address, rate_limit: {unit: second, requests_per_unit: 10}}\n\
             - {key: remote_address, value: 50.0.0.5, rate_limit: {unit: second, requests_per_unit: 0}}\n",
        );
        let ip = |ip| [("remote_address", ip)];
        assert_eq!(side.passes("edge_proxy_per_ip", &ip("50.0.0.1"), 20), 10);
        assert_eq!(side.passes("edge_proxy_per_ip", &ip("50.0.0.2"), 20), 10);
        assert_eq!(side.passes("edge_proxy_per_ip", &ip("50.0.0.5"), 20), 0);

        let deep = [("key", "value"), ("subkey", "subvalue")];
        let side = imported(
            "domain: example4\ndescriptors:\n\
             - {key: key, value: value, rate_limit: {unit: second, requests_per_unit: 300}}\n",
        );
        assert_eq!(side.passes("example4", &deep, 320), 320);
        assert_eq!(side.passes("example4", &deep[..1], 320), 300);
        let side = imported(
            "domain: example4\ndescriptors:\n- key: key\n  value: value\n  descriptors:\n\
             \x20 - {key: subkey, rate_limit: {unit: second, requests_per_unit: 300}}\n",
        );
        assert_eq!(side.passes("example4", &deep, 320), 300);
        assert_eq!(side.passes("example4", &deep[..1], 320), 320);
    }

    #[test]
    fn five_and_six_unlimited_and_shadow() {
        let side = imported(
            "domain: internal\ndescriptors:\n\
             - {key: ldap, rate_limit: {unlimited: true}}\n\
             - {key: azure, rate_limit: {unit: minute, requests_per_unit: 100}}\n",
        );
        let call = |key| RateLimitRequest {
            domain: "internal".to_owned(),
            descriptors: vec![descriptor(&[(key, "x")])],
            hits_addend: 0,
        };
        let status = side.call(&call("ldap")).statuses.remove(0);
        assert_eq!((status.code, status.limit_remaining), (Code::Ok as i32, u32::MAX));
        assert_eq!(side.passes("internal", &[("azure", "x")], 120), 100);
        // One that does not exist has neither a limit nor that number.
        let status = side.call(&call("nobody")).statuses.remove(0);
        assert_eq!((status.limit_remaining, status.current_limit), (0, None));

        let side = imported(
            "domain: example6\ndescriptors:\n- key: service\n  descriptors:\n\
             \x20 - {key: user, value: user-a, shadow_mode: true, rate_limit: {unit: second, requests_per_unit: 10}}\n\
             \x20 - {key: user, value: user-b, rate_limit: {unit: second, requests_per_unit: 20}}\n",
        );
        let user = |user| [("service", "auth-service"), ("user", user)];
        assert_eq!(side.passes("example6", &user("user-a"), 50), 50);
        assert_eq!(side.passes("example6", &user("user-b"), 50), 20);
    }

    #[test]
    fn seven_to_nine_names_values_and_patterns() {
        let yaml = "domain: example7\ndescriptors:\n\
             - key: key_1\n  value: value_1\n  descriptors:\n\
             \x20 - {key: user, value: bkthomps, rate_limit: {name: specific_limit, unit: second, requests_per_unit: 5}}\n\
             - key: key_2\n  value: value_2\n  descriptors:\n\
             \x20 - key: user\n    value: bkthomps\n    rate_limit: {replaces: [{name: specific_limit}], unit: second, requests_per_unit: 10}\n";
        let side = imported(yaml);
        let one = [("key_1", "value_1"), ("user", "bkthomps")];
        let two = [("key_2", "value_2"), ("user", "bkthomps")];
        assert_eq!(side.passes("example7", &one, 20), 5);
        assert_eq!(side.passes("example7", &two, 20), 10);
        // That the second takes the first's place in a call of both is what has no equal: there the
        // first is not looked at, here it denies.
        let call: [&[(&str, &str)]; 2] = [&one, &two];
        assert_eq!(side.ask("example7", &call), [false, false, false]);
        let side = imported(yaml);
        for index in 0..6 {
            assert_eq!(side.ask("example7", &call)[0], index < 5, "{index}");
        }
        let notes = crate::policy::import::envoy(yaml).unwrap().notes;
        assert!(notes.len() == 1 && notes[0].text.contains("`replaces` has no equal"));

        let side = imported(
            "domain: example8\ndescriptors:\n\
             - {key: key1, detailed_metric: true, rate_limit: {unit: minute, requests_per_unit: 10}}\n\
             - {key: key1, value: value1, rate_limit: {unit: minute, requests_per_unit: 20}}\n",
        );
        assert_eq!(side.passes("example8", &[("key1", "unspecified_value")], 30), 10);
        assert_eq!(side.passes("example8", &[("key1", "unspecified_value2")], 30), 10);
        assert_eq!(side.passes("example8", &[("key1", "value1")], 30), 20);

        let mut side = imported(
            "domain: example9\ndescriptors:\n\
             - {key: key1, value: value*, rate_limit: {unit: minute, requests_per_unit: 20}}\n",
        );
        assert_eq!(side.passes("example9", &[("key1", "value_1")], 30), 20);
        assert_eq!(side.passes("example9", &[("key1", "value_2")], 30), 20);
        assert_eq!(side.passes("example9", &[("key1", "other")], 30), 30);
        side.nanos += 60_000_000_000;
        assert_eq!(side.passes("example9", &[("key1", "value_1")], 30), 20);
    }
}

const POLICY: &str = "schema = 1
[api.a]
deny = [{ when = { team = 'banned' }, status = 403, code = 'banned' }]
[api.a.limit]
teams = { per = ['team'], fixed = '5/hour', missing = 'skip' }
users = { per = ['user'], fixed = '3/hour', missing = 'skip' }
";

/// One descriptor of a generated call: a team, a user, hits.
type Ask = (Option<u8>, Option<u8>, Option<u64>);

fn ask() -> impl Strategy<Value = Ask> {
    (prop::option::of(0_u8..4), prop::option::of(0_u8..3), prop::option::of(0_u64..4))
}

/// Units used of each counter; calls that pass are added, others leave no trace.
#[derive(Default)]
struct Model(BTreeMap<(&'static str, u8), u64>);

impl Model {
    /// Whether each descriptor passed, after how the whole did.
    fn call(&mut self, call: &[Ask]) -> Vec<bool> {
        let mut asked: BTreeMap<(&'static str, u8), u64> = BTreeMap::new();
        let of = |&(team, user, hits): &Ask| {
            let team = team.map(|team| (("teams", team), hits.unwrap_or(1)));
            let user = user.map(|user| (("users", user), hits.unwrap_or(1)));
            [team, user]
        };
        for (counter, hits) in call.iter().flat_map(of).flatten() {
            *asked.entry(counter).or_default() += hits;
        }
        let most = |counter: &(&str, u8)| if counter.0 == "teams" { 5 } else { 3 };
        let fits = |counter: &(&'static str, u8)| {
            let used = self.0.get(counter).copied().unwrap_or_default();
            used + asked[counter] <= most(counter)
        };
        // Team 3 is banned by a rule, which comes before all limits and looks at none of them.
        let banned = |ask: &Ask| ask.0 == Some(3);
        let any_banned = call.iter().any(banned);
        let passes = |ask: &Ask| match any_banned {
            true => !banned(ask),
            false => of(ask).into_iter().flatten().all(|(counter, _)| fits(&counter)),
        };
        let each: Vec<bool> = call.iter().map(passes).collect();
        let all = each.iter().all(|passes| *passes);
        if all {
            for (counter, hits) in asked {
                *self.0.entry(counter).or_default() += hits;
            }
        }
        [all].into_iter().chain(each).collect()
    }
}

fn message(call: &[Ask]) -> RateLimitRequest {
    let descriptors = call.iter().map(|(team, user, hits)| {
        let teams = ["t0", "t1", "t2", "banned"];
        let users = ["u0", "u1", "u2"];
        let mut entries = vec![("other", "x")];
        entries.extend(team.map(|team| ("team", teams[usize::from(team)])));
        entries.extend(user.map(|user| ("user", users[usize::from(user)])));
        let hits_addend = hits.map(|value| UInt64Value { value });
        RateLimitDescriptor { hits_addend, ..descriptor(&entries) }
    });
    RateLimitRequest { domain: "a".to_owned(), descriptors: descriptors.collect(), hits_addend: 0 }
}

fn cases(default: u32) -> ProptestConfig {
    let dose = std::env::var("TOLLKEEPER_FUZZ_CASES").ok().and_then(|dose| dose.parse().ok());
    ProptestConfig { cases: dose.unwrap_or(default), ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(128))]

    /// Descriptors of a call pass and are charged together, or not at all.
    #[test]
    fn calls_are_what_a_plain_model_says(
        calls in prop::collection::vec(prop::collection::vec(ask(), 1..5), 1..20),
    ) {
        let (side, mut model) = (Side::new(POLICY), Model::default());
        for call in &calls {
            let response = side.call(&message(call));
            let codes = response.statuses.iter().map(|status| status.code);
            let codes = [response.overall_code].into_iter().chain(codes);
            let found: Vec<bool> = codes.map(|code| code == Code::Ok as i32).collect();
            prop_assert_eq!(&found, &model.call(call), "{:?}", call);
        }
    }
}

/// `google.protobuf.Struct`, as far as it holds texts.
#[derive(Clone, PartialEq, Message)]
struct Struct {
    #[prost(btree_map = "string, message", tag = "1")]
    fields: BTreeMap<String, Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "3")]
    text: String,
}

fn metadata(response: &RateLimitResponse) -> BTreeMap<String, String> {
    let texts: Struct = decode(response.dynamic_metadata.as_deref().unwrap_or_default()).unwrap();
    texts.fields.into_iter().map(|(name, value)| (name, value.text)).collect()
}

proptest! {
    #[test]
    fn texts_are_read_as_they_were_put(
        texts in prop::collection::btree_map(".{0,9}", ".{0,200}", 0..6),
    ) {
        let mut put = Texts::default();
        texts.iter().for_each(|(name, text)| put.put(name, text));
        let dynamic_metadata = Some(put.into_bytes());
        prop_assert_eq!(metadata(&RateLimitResponse { dynamic_metadata, ..Default::default() }), texts);
    }
}

/// A call with everything that may be in one.
fn whole() -> Vec<u8> {
    let mut call = message(&[(Some(0), Some(1), Some(2)), (Some(2), None, None)]);
    call.hits_addend = 3;
    call.descriptors[0].limit = Some(RateLimitOverride {});
    call.descriptors[1].is_negative_hits = true;
    call.encode_to_vec()
}

proptest! {
    #![proptest_config(cases(512))]

    /// Bytes that nobody should send are answered or refused, and the next call is answered.
    #[test]
    fn any_bytes_are_answered_or_refused(
        random in prop::collection::vec(any::<u8>(), 0..200),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
        is_framed in any::<bool>(),
        method in 0_usize..3,
    ) {
        let mut changed = whole();
        for (place, byte) in &changes {
            let place = place.index(changed.len());
            changed[place] = *byte;
        }
        changed.truncate(cut.index(changed.len() + 1));
        let side = Side::new(POLICY);
        let paths = [
            "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit",
            "/grpc.health.v1.Health/Check",
            "/",
        ];
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for message in [random, changed, whole()] {
            let mut body = vec![0];
            if is_framed {
                body.extend_from_slice(&(message.len() as u32).to_be_bytes());
            }
            body.extend_from_slice(&message);
            let answered = runtime.block_on(service::answer(&side.desk, paths[method], &body.into(), None));
            if let Ok(reply) = answered
                && method == 0
            {
                let response: RateLimitResponse = decode(unframed(&reply.body).unwrap()).unwrap();
                prop_assert_ne!(response.overall_code, Code::Unknown as i32);
                prop_assert_eq!(framed(&response), reply.body);
            }
        }
        let next = side.call(&message(&[(Some(1), None, Some(0))]));
        prop_assert_eq!(next.statuses.len(), 1);
    }
}
