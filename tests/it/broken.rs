//! Broken policies, one for each error code, and what is said of them: `tests/fixtures/policies`
//! has each `CODE.toml` beside the `CODE.txt` that `policy check` prints.

use std::collections::BTreeSet;
use std::path::Path;

use crate::support::{Directory, command, run};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/policies");

fn codes() -> BTreeSet<String> {
    let files = std::fs::read_dir(FIXTURES).unwrap().map(|entry| entry.unwrap().path());
    let policies = files.filter(|path| path.extension().is_some_and(|is| is == "toml"));
    policies.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect()
}

#[test]
fn each_broken_policy_is_refused_with_its_pointed_message() {
    for code in codes() {
        let file = format!("{code}.toml");
        let output = run(command(["policy", "check", &file]).current_dir(FIXTURES));
        let expected = std::fs::read_to_string(Path::new(FIXTURES).join(format!("{code}.txt")));
        assert_eq!((output.code, output.stdout.as_str()), (2, ""), "{code}");
        assert_eq!(output.stderr, expected.unwrap(), "{code}");
        assert!(output.stderr.starts_with(&format!("error[{code}]: ")), "{}", output.stderr);
        assert!(output.stderr.contains(&format!("--> {file}:")), "{}", output.stderr);
    }
}

/// The reference lists every code (`policy/code.rs` proves it), and each has its broken policy.
#[test]
fn every_code_has_its_broken_policy() {
    let reference = concat!(env!("CARGO_MANIFEST_DIR"), "/src/policy/LANGUAGE.md");
    let reference = std::fs::read_to_string(reference).unwrap();
    let (_, errors) = reference.split_once("\n## Errors\n").unwrap();
    let (errors, _) = errors.split_once("\n## ").unwrap();
    let listed = errors.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let listed: BTreeSet<String> = listed.map(str::to_owned).collect();
    assert_eq!(codes(), listed);
    assert!(listed.len() >= 40);
}

/// One broken file among good ones, and nothing of them is loaded.
#[test]
fn nothing_is_half_loaded() {
    let directory = Directory::new("half-loaded");
    let good = "schema = 1\n[api.good.limit]\nl = { per = ['user'], bucket = '60/min' }\n";
    directory.write("good.toml", good);
    for code in codes() {
        let broken = std::fs::read_to_string(format!("{FIXTURES}/{code}.toml")).unwrap();
        directory.write("broken.toml", &broken);
        let path = directory.0.to_str().unwrap();
        let served = run(&mut command([
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--admin",
            "127.0.0.1:0",
            "--policy",
            path,
        ]));
        assert_eq!((served.code, served.stdout.as_str()), (2, ""), "{code}");
        assert!(served.stderr.contains(&format!("error[{code}]: ")), "{}", served.stderr);
    }
}
