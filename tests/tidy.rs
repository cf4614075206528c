//! What no lint can check: engines stay pure, one crate names zeromq, every message is documented and has golden bytes,
//! every fault has a test.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// Lines of code that contain one of `words`, comments aside.
fn offending(files: &[PathBuf], words: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for file in files {
        let text = fs::read_to_string(file).unwrap();
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap();
            if words.iter().any(|word| code.contains(word)) {
                found.push(format!("{}:{}: {}", file.display(), number + 1, line.trim()));
            }
        }
    }
    found
}

#[test]
fn engines_do_no_io() {
    let engines = [
        "scheduler/src/engine",
        "worker/src/engine",
        "progress-server/src/engine",
        "lrts-client/src/application/engine",
    ];
    let files: Vec<PathBuf> = engines
        .iter()
        .map(|engine| root().join(engine))
        .flat_map(|path| if path.is_dir() { rust_files(&path) } else { vec![path.with_extension("rs")] })
        .collect();
    assert!(files.len() >= engines.len());
    let io = [
        "tokio::",
        "std::fs",
        "std::net",
        "std::process",
        "std::thread",
        "transport::",
        "Moment::now",
        "async fn",
        ".await",
    ];
    let tests_may = |line: &String| line.contains("/tests/") || line.contains("tests.rs");
    let found: Vec<String> = offending(&files, &io).into_iter().filter(|line| !tests_may(line)).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn only_the_transport_names_zeromq() {
    let files: Vec<PathBuf> =
        ["lrts-core/src", "lrts-client/src", "scheduler/src", "worker/src", "progress-server/src", "src"]
            .iter()
            .flat_map(|directory| rust_files(&root().join(directory)))
            .filter(|file| !file.starts_with(root().join("lrts-core/src/transport")))
            .collect();
    let found = offending(&files, &["zeromq::"]);
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// Every variant of the enums that travel, as `Enum::Variant`.
fn messages() -> Vec<String> {
    let mut messages = Vec::new();
    for file in rust_files(&root().join("lrts-core/src/protocol")) {
        let mut current = None;
        for line in fs::read_to_string(file).unwrap().lines() {
            if let Some(rest) = line.strip_prefix("pub enum ") {
                let name = rest.trim_end_matches(" {");
                current = (name.starts_with("From") || name.starts_with("To")).then(|| name.to_owned());
            } else if line == "}" {
                current = None;
            } else if let (Some(name), Some(rest)) = (&current, line.strip_prefix("    "))
                && rest.starts_with(|first: char| first.is_ascii_uppercase())
            {
                let variant: String = rest.chars().take_while(char::is_ascii_alphanumeric).collect();
                messages.push(format!("{name}::{variant}"));
            }
        }
    }
    messages
}

#[test]
fn every_message_is_in_the_protocol_page_and_has_golden_bytes() {
    let page = fs::read_to_string(root().join("docs/PROTOCOL.md")).unwrap();
    let golden = fs::read_to_string(root().join("lrts-core/tests/protocol.golden")).unwrap();
    let messages = messages();
    assert!(messages.len() > 50, "the messages were not found");
    for message in messages {
        let (name, variant) = message.split_once("::").unwrap();
        assert!(page.contains(&format!("`{name}`")), "docs/PROTOCOL.md lacks `{name}`");
        assert!(page.contains(&format!("`{variant}`")), "docs/PROTOCOL.md lacks `{variant}` of {name}");
        let line = format!("{message} ");
        assert!(golden.lines().any(|golden| golden.starts_with(&line)), "no golden bytes of {message}");
    }
}

/// The names of all tests of the workspace.
fn tests() -> BTreeSet<String> {
    let members = ["", "lrts-core", "lrts-client", "scheduler", "worker", "progress-server"];
    let directories =
        members.iter().flat_map(|member| ["src", "tests"].map(|part| root().join(member).join(part)));
    let mut names = BTreeSet::new();
    for file in
        directories.filter(|directory| directory.is_dir()).flat_map(|directory| rust_files(&directory))
    {
        let text = fs::read_to_string(file).unwrap();
        let mut is_test = false;
        for line in text.lines().map(str::trim) {
            if line == "#[test]" || line.starts_with("#[tokio::test") {
                is_test = true;
            } else if let Some((_, function)) = line.split_once("fn ").filter(|_| is_test) {
                names.insert(function.chars().take_while(|&c| c.is_alphanumeric() || c == '_').collect());
                is_test = false;
            }
        }
    }
    names
}

#[test]
fn every_test_of_the_fault_matrix_exists() {
    let page = fs::read_to_string(root().join("docs/OPERATING.md")).unwrap();
    let matrix = page.split("## The fault matrix").nth(1).expect("the page has a fault matrix");
    let rows: Vec<&str> = matrix.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    assert!(rows.len() > 30, "the rows were not found");
    let tests = tests();
    for row in rows {
        let shown_by = row.trim_end_matches('|').rsplit('|').next().unwrap();
        let named: Vec<&str> = shown_by.split('`').skip(1).step_by(2).collect();
        assert!(!named.is_empty(), "nothing shows that `{row}`");
        for name in named {
            assert!(tests.contains(name), "docs/OPERATING.md names `{name}`, which is no test");
        }
    }
}
