use std::fs;
use std::path::{Path, PathBuf};

use super::Target;

/// Set to anything, it has tests write the inputs that they would begin a corpus with.
const UPDATE: &str = "LRTS_UPDATE_CORPUS";

fn directory(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target)
}

/// Runs targets on all inputs that are kept of them.
///
/// # Panics
///
/// If a target does, or has no inputs.
#[expect(clippy::print_stdout, reason = "a test that fails says at which input")]
pub fn check_corpora(targets: &[Target]) {
    for (name, run) in targets {
        let directory = directory(name);
        let entries = fs::read_dir(&directory).into_iter().flatten();
        let files: Vec<PathBuf> = entries.map(|entry| entry.expect("a readable directory").path()).collect();
        assert!(!files.is_empty(), "no inputs in {}: {UPDATE}=1 writes some", directory.display());
        for file in files {
            let input = fs::read(&file).expect("a readable input");
            // Tests show it if the target panics.
            println!("{}", file.display());
            run(&input);
        }
    }
}

/// Adds inputs to a corpus, each under a name made of its content, if the environment has `LRTS_UPDATE_CORPUS`.
///
/// # Panics
///
/// If they can't be written.
pub fn keep(target: &str, inputs: impl IntoIterator<Item = Vec<u8>>) {
    if std::env::var_os(UPDATE).is_none() {
        return;
    }
    let directory = directory(target);
    fs::create_dir_all(&directory).expect("a writable corpus");
    for input in inputs {
        let name = &blake3::hash(&input).to_hex()[..16];
        fs::write(directory.join(name), input).expect("a writable corpus");
    }
}
