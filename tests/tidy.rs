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

/// The rows of the table under a heading of a page, each split into its cells.
fn table(page: &str, heading: &str) -> Vec<Vec<String>> {
    let text = fs::read_to_string(root().join(page)).unwrap();
    let (_, behind) = text.split_once(heading).expect("the page has this heading");
    let rows =
        behind.lines().take_while(|line| !line.starts_with("## ")).filter(|line| line.starts_with("| "));
    let cells = |row: &str| row.trim_matches('|').split('|').map(str::to_owned).collect();
    rows.skip(1).map(cells).collect()
}

/// What stands between backticks.
fn names(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// Targets of the fuzz crate.
fn fuzz_targets() -> BTreeSet<String> {
    let stem = |file: &PathBuf| file.file_stem().unwrap().to_str().unwrap().to_owned();
    rust_files(&root().join("fuzz/fuzz_targets")).iter().map(stem).collect()
}

#[test]
fn every_fault_and_every_attack_is_shown_by_a_test() {
    let mut known = tests();
    known.extend(fuzz_targets());
    for (page, heading, least) in [
        ("docs/OPERATING.md", "## The fault matrix", 30),
        ("docs/SECURITY.md", "## What attackers can try", 12),
    ] {
        let rows = table(page, heading);
        assert!(rows.len() > least, "the rows were not found");
        for row in rows {
            let named = names(row.last().unwrap());
            assert!(!named.is_empty(), "nothing shows that {row:?}");
            for name in named {
                assert!(known.contains(name), "{page} names `{name}`, which is no test");
            }
        }
    }
}

#[test]
fn the_security_page_names_limits_that_there_are() {
    let limits = fs::read_to_string(root().join("lrts-core/src/limits.rs")).unwrap();
    let rows = table("docs/SECURITY.md", "## Limits");
    assert!(rows.len() > 10, "the rows were not found");
    for name in rows.iter().flat_map(|row| names(row.last().unwrap())) {
        assert!(limits.contains(&format!("pub const {name}:")), "there is no limit `{name}`");
    }
}

#[test]
fn every_fuzz_target_is_built_explained_and_run_by_a_test() {
    let manifest = fs::read_to_string(root().join("fuzz/Cargo.toml")).unwrap();
    let page = fs::read_to_string(root().join("fuzz/README.md")).unwrap();
    let crates = ["lrts-core", "lrts-client", "scheduler", "worker", "progress-server"];
    let sources: String = crates
        .iter()
        .flat_map(|name| rust_files(&root().join(name).join("src")))
        .filter(|file| file.to_str().unwrap().contains("fuzz"))
        .map(|file| fs::read_to_string(file).unwrap())
        .collect();
    let targets = fuzz_targets();
    assert!(targets.len() > 15, "the targets were not found");
    for target in &targets {
        assert!(manifest.contains(&format!("name = \"{target}\"")), "fuzz/Cargo.toml lacks {target}");
        assert!(page.contains(&format!("`{target}`")), "fuzz/README.md lacks {target}");
        assert!(sources.contains(&format!("(\"{target}\", {target})")), "no test runs {target}");
    }
    for corpus in fs::read_dir(root().join("fuzz/corpus")).unwrap() {
        let name = corpus.unwrap().file_name().into_string().unwrap();
        assert!(targets.contains(&name), "fuzz/corpus/{name} is of no target");
    }
}

/// Several members of the workspace have commands: cargo runs none of them unless it is told which.
#[test]
fn the_readmes_way_to_run_the_command_names_one() {
    let read = |file| fs::read_to_string(root().join(file)).unwrap();
    assert!(read("README.md").contains("`cargo run --release --` in place of `lrts`"));
    assert!(read("Cargo.toml").lines().any(|line| line == "default-run = \"lrts\""));
}
