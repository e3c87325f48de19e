//! What the importer writes, says and refuses.

use proptest::prelude::*;

use super::super::super::{Policy, Source};
use super::*;
use crate::engine::key::Seed;

fn notes(text: &str) -> String {
    let imported = envoy(text).unwrap();
    compiled(&imported.policy);
    imported.notes.iter().map(|note| format!("{note}\n")).collect()
}

fn compiled(text: &str) {
    let compiled = Policy::compile(&[Source { name: "p", text }], &Seed::new([7; 16]));
    if let Err(errors) = compiled {
        panic!("{errors}\n{text}");
    }
}

#[test]
fn a_rule_is_a_limit_for_exactly_its_descriptors() {
    let text = "domain: messaging\ndescriptors:\n\
                - key: message_type\n  value: marketing\n  descriptors:\n\
                \x20 - key: to_number\n    rate_limit: { unit: day, requests_per_unit: 5 }\n\
                - key: to_number\n  rate_limit: { unit: Day, requests_per_unit: 100 }\n";
    let imported = envoy(text).unwrap();
    assert_eq!(imported.notes, []);
    let (_, limits) = imported.policy.split_once("[api.messaging.limit]\n").unwrap();
    assert_eq!(
        limits,
        "message_type_marketing_to_number = { on = { descriptor = \"message_type,to_number\", \
         message_type = \"marketing\" }, per = [\"to_number\"], fixed = \"5/day\" }\n\
         to_number = { on = { descriptor = \"to_number\" }, per = [\"to_number\"], \
         fixed = \"100/day\" }\n"
    );
    compiled(&imported.policy);
}

#[test]
fn what_has_no_equal_is_said_with_its_line() {
    let text = "domain: a.b\nunknown: 1\ndescriptors:\n\
                - key: k\n  detailed_metric: true\n  rate_limit:\n    unit: second\n\
                \x20   requests_per_unit: 1\n    replaces:\n    - name: x\n    - name: y\n\
                - key: limit\n  rate_limit: { unit: hour, requests_per_unit: 1 }\n\
                - key: ip\n  value: 10.0.0.0/8\n  rate_limit: { unlimited: true, name: y }\n";
    let found = notes(text);
    for expected in [
        "1: `a.b` cannot be the name of an API: have Envoy say domain `a_b`\n",
        "2: `unknown` has no equal\n",
        "4: `detailed_metric` has no equal",
        "`replaces` is left out: no rule is called `x`\n",
        "`replaces` has no equal: a limit here sees one descriptor",
        "held to `y` too",
        "13: left out: the key `limit`",
        "14: `10.0.0.0/8` is a network here",
    ] {
        assert!(found.contains(expected), "{expected}\n{found}");
    }
}

#[test]
fn what_is_wrong_is_said_with_what_is_allowed() {
    for (text, expected) in [
        ("descriptors: []\n", "1: `domain` is missing"),
        ("- a\n", "1: the file is no table"),
        ("domain: a\ndescriptors: 1\n", "2: `descriptors` is no list"),
        ("domain: a\ndescriptors:\n- value: x\n", "3: a descriptor without `key`"),
        ("domain: a\ndescriptors:\n- key: x\n- key: x\n", "4: key `x` comes twice with one value"),
        (
            "domain: a\ndescriptors:\n- key: x\n  rate_limit: { unit: day, replaces: x }\n",
            "4: `replaces` is no list",
        ),
        (
            "domain: a\ndescriptors:\n- key: x\n  rate_limit: { unit: day, replaces: [{}] }\n",
            "4: an entry of `replaces` without `name`",
        ),
        (
            "domain: a\ndescriptors:\n- key: x\n  rate_limit: { unit: day, name: l, replaces: [{ name: l }] }\n",
            "4: `l` cannot replace itself",
        ),
        (
            "domain: a\ndescriptors:\n- key: x\n  rate_limit: { unit: fortnight }\n",
            "4: unit is `fortnight`, allowed are second",
        ),
        (
            "domain: a\ndescriptors:\n- key: x\n  rate_limit: { unit: day, requests_per_unit: -1 }\n",
            "4: requests_per_unit is `-1`, allowed is 0 to 4294967295",
        ),
        (
            "domain: a\ndescriptors:\n- key: x\n  shadow_mode: maybe\n",
            "4: shadow_mode is `maybe`, allowed are true and false",
        ),
    ] {
        let found = envoy(text).unwrap_err().to_string();
        assert!(found.starts_with(expected), "{found}\nis not\n{expected}");
    }
}

fn key() -> impl Strategy<Value = String> {
    "(generic_key|:path|k\\.1|remote_address|class|[a-c]{1,2})"
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever the keys and values, a policy comes of it that is one.
    #[test]
    fn what_is_imported_compiles(
        rules in prop::collection::vec(
            (prop::collection::vec((key(), "[-a-z\"\\\\*/.]{0,6}"), 1..4), 0_u32..9),
            0..8,
        ),
    ) {
        let mut text = "domain: d\ndescriptors:\n".to_owned();
        if rules.is_empty() {
            text = "domain: d\n".to_owned();
        }
        for (index, (levels, units)) in rules.iter().enumerate() {
            // Each under a level of its own, so that no two are one.
            text.push_str(&format!("- key: top\n  value: \"{index}\"\n"));
            for (depth, (key, value)) in levels.iter().enumerate() {
                let pad = "  ".repeat(depth + 1);
                let value = value.replace('\\', "\\\\").replace('"', "\\\"");
                text.push_str(&format!(
                    "{pad}descriptors:\n{pad}- key: '{key}'\n{pad}  value: \"{value}\"\n"
                ));
            }
            let pad = "  ".repeat(levels.len() + 1);
            text.push_str(&format!(
                "{pad}rate_limit: {{ unit: hour, requests_per_unit: {units} }}\n"
            ));
        }
        let imported = envoy(&text).map_err(|error| TestCaseError::fail(format!("{error}\n{text}")))?;
        let source = Source { name: "p", text: &imported.policy };
        let compiled = Policy::compile(&[source], &Seed::new([7; 16]));
        prop_assert!(compiled.is_ok(), "{}\n{}", compiled.unwrap_err(), imported.policy);
    }
}
