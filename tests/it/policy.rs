//! `policy check` and `policy test`.

use serde_json::json;

use crate::support::{Directory, Output, command, run};

const GOOD: &str = "schema = 1
[api.shop]
class.orders = [\"POST /orders\"]
[api.shop.limit]
orders = { on = \"orders\", per = [\"user\"], bucket = \"60/min burst 2\" }

[[test]]
name  = \"two at once\"
api   = \"shop\"
steps = [
  { send = \"POST /orders user=u\", times = 2, expect = \"allow\" },
  { send = \"POST /orders user=u\", expect = \"deny orders\", status = 429 },
]
";

fn policy(arguments: &[&str]) -> Output {
    run(command(["policy"]).args(arguments))
}

#[test]
fn the_built_in_example_compiles_and_passes_its_tests() {
    let checked = policy(&["check"]);
    assert_eq!((checked.code, checked.stderr.as_str()), (0, ""));
    assert_eq!(checked.stdout, "media: 5 classes, 5 limits (2 off), 9 tests\n");
    let tested = policy(&["test"]);
    assert_eq!((tested.code, tested.stderr.as_str()), (0, ""));
    let last = tested.stdout.lines().last().unwrap();
    assert!(last.ends_with(" passed, 0 failed"), "{last}");
    assert!(!last.starts_with("0 "), "{last}");
    let json = policy(&["test", "--json"]).json().remove(0);
    assert_eq!((&json["failed"], &json["errors"]), (&json!(0), &json!([])));
    assert_eq!(json["tests"].as_array().unwrap().len(), 9);
}

#[test]
fn a_broken_policy_is_shown_where_it_is_broken() {
    let directory = Directory::new("broken-policy");
    let path = directory.write("broken.toml", &GOOD.replace("burst 2", "brust 2"));
    for action in ["check", "test"] {
        let output = policy(&[action, &path]);
        assert_eq!(output.code, 2, "{output:?}");
        let place = format!("{path}:5:60");
        for shown in [&place, "orders = { on = \"orders\"", "^^^^^", "burst"] {
            assert!(output.stderr.contains(shown), "{shown:?} is not in {}", output.stderr);
        }
        let json = policy(&[action, &path, "--json"]);
        assert_eq!((json.code, json.stderr.as_str()), (2, ""));
        let error = json.json()[0]["errors"][0].clone();
        assert_eq!((&error["file"], &error["line"]), (&json!(path), &json!(5)));
        assert_eq!(error["column"], 60);
    }
}

#[test]
fn a_test_that_fails_says_what_was_found() {
    let directory = Directory::new("failing-test");
    let path = directory.write("failing.toml", &GOOD.replace("times = 2", "times = 3"));
    assert_eq!(policy(&["check", &path]).code, 0);
    let output = policy(&["test", &path]);
    assert_eq!(output.code, 1);
    for shown in ["FAIL", "two at once", ":11:", "(3 of 3)", "deny orders"] {
        assert!(output.stdout.contains(shown), "{shown:?} is not in {}", output.stdout);
    }
    assert_eq!(output.stdout.lines().last(), Some("2 passed, 1 failed"));
    let json = policy(&["test", &path, "--json"]).json().remove(0);
    assert_eq!(json["tests"][0]["failures"][0]["found"], "deny orders");
}

#[test]
fn a_directory_is_one_policy_and_several_arguments_are_several() {
    let directory = Directory::new("policies");
    let shop = directory.write("shop.toml", GOOD);
    directory.write("desk.toml", &GOOD.replace("shop", "desk"));
    directory.write("notes.txt", "not a policy");
    let whole = policy(&["check", directory.0.to_str().unwrap()]);
    assert_eq!(whole.stdout, "desk: 1 class, 1 limit, 1 test\nshop: 1 class, 1 limit, 1 test\n");
    let missing = directory.0.join("missing.toml");
    let both = policy(&["check", missing.to_str().unwrap(), &shop]);
    assert_eq!(both.code, 2);
    assert!(both.stderr.contains("cannot read policy") && both.stderr.contains("missing.toml"));
    assert_eq!(both.stdout, format!("{shop}: shop: 1 class, 1 limit, 1 test\n"));
    let tested = policy(&["test", &shop, directory.0.to_str().unwrap()]);
    assert_eq!((tested.code, tested.stdout.lines().last()), (0, Some("12 passed, 0 failed")));
}
