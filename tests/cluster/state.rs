//! The scheduler's state directory: whose it is, and what is in it.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use lrts_client::blocking::ClientApplication;
use lrts_client::{Bytes, ServiceStatus};

use crate::services::*;
use crate::support::{Cluster, lrts, said};

/// Larger than what stands in the database itself.
const LARGE: usize = 3 << 20;

/// A scheduler that must not start: it says why on one line.
fn refused(mut command: Command) -> String {
    let output = command.output().unwrap();
    let said = said(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.lines().filter(|line| line.starts_with("lrts: ")).count(), 1, "{said}");
    said
}

fn scheduler_in(directory: &Path) -> Command {
    let mut command = lrts(&["scheduler", "--port", "0", "--state-dir"]);
    command.arg(directory);
    command
}

#[test]
fn a_second_scheduler_on_the_same_directory_is_refused() {
    let cluster = Cluster::start(&[1]);
    let said = refused(cluster.second_scheduler());
    assert!(said.contains("is running") && said.contains("another directory"), "{said}");
    // The first one has noticed nothing.
    let app = ClientApplication::start(cluster.information()).unwrap();
    let job = app.schedule_service(&Add(1, 2)).unwrap();
    assert_eq!(app.wait_for(&job).unwrap().into_output().unwrap(), 3);
    app.stop().unwrap();
}

#[test]
fn a_directory_of_something_else_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("thesis.tex"), "years of work").unwrap();
    let said = refused(scheduler_in(directory.path()));
    assert!(said.contains("something else") && said.contains("empty directory"), "{said}");
    let names: Vec<_> =
        std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["thesis.tex"]);
}

#[test]
fn files_of_daemons_are_for_their_user_alone() {
    let mut cluster = Cluster::start(&[1]);
    let app = ClientApplication::start(cluster.information().application_id("files")).unwrap();
    let job = app.schedule_service(&Echo(Bytes::from(vec![7; LARGE]))).unwrap();
    app.wait_for(&job).unwrap();
    app.detach().unwrap();
    cluster.workers[0].end();
    cluster.scheduler.end();
    let is_state = |path: &PathBuf| {
        path.components().any(|part| part.as_os_str() == "scheduler" || part.as_os_str() == "worker-1")
    };
    let state: Vec<_> = files(cluster.directory()).into_iter().filter(is_state).collect();
    assert!(state.iter().any(|path| path.ends_with("records.redb")), "{state:?}");
    for path in state {
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        assert!(
            !metadata.is_file() || metadata.mode() & 0o077 == 0,
            "{}: {:o}",
            path.display(),
            metadata.mode()
        );
    }
}

/// All files below a directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let (directories, mut files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    files.extend(directories.iter().flat_map(|directory| self::files(directory)));
    files
}

/// Where these bytes are, in which file.
fn find(files: &[PathBuf], needle: &[u8]) -> (PathBuf, u64) {
    let found = files.iter().find_map(|file| {
        let content = std::fs::read(file).unwrap();
        let at = content.windows(needle.len()).position(|window| window == needle)?;
        Some((file.clone(), at as u64))
    });
    found.expect("what was acknowledged is on the disk")
}

fn flip_bit(file: &Path, offset: u64) {
    let file = std::fs::File::options().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
}

#[test]
fn a_flipped_bit_in_a_large_payload_fails_its_job_with_the_place_and_no_other() {
    let mut cluster = Cluster::without_workers(&[]);
    let app = ClientApplication::start(cluster.information()).unwrap();
    let body = |byte: u8| Echo(Bytes::from(vec![byte; LARGE]));
    let damaged = app.schedule_service(&body(0xA5)).unwrap();
    let whole = app.schedule_service(&body(0x5A)).unwrap();
    app.flush().unwrap();
    cluster.scheduler.kill();
    let store = Cluster::scheduler_directory(cluster.directory()).join("store");
    let (file, offset) = find(&files(&store), &[0xA5; 4_096]);
    flip_bit(&file, offset + 1_000_000);

    cluster.restart_scheduler();
    cluster.add_worker(1, &[]);
    let result = app.wait_for(&damaged).unwrap();
    assert_eq!(result.status(), ServiceStatus::Failed);
    let failure = result.outcome.unwrap_err();
    let name = file.file_name().unwrap().to_str().unwrap();
    assert!(failure.message.contains(name) && failure.message.contains("offset"), "{failure}");
    assert!(app.wait_for(&whole).unwrap().into_output().unwrap() == Bytes::from(vec![0x5A; LARGE]));
    app.stop().unwrap();
}

#[test]
fn a_flipped_bit_in_the_database_is_refused_with_the_place() {
    let mut cluster = Cluster::without_workers(&[]);
    let app = ClientApplication::start(cluster.information()).unwrap();
    app.schedule_service(&Note { file: "a-word-to-be-found".into(), sleep_ms: 0 }).unwrap();
    app.flush().unwrap();
    drop(app);
    cluster.scheduler.kill();
    let store = Cluster::scheduler_directory(cluster.directory()).join("store");
    let (file, offset) = find(&files(&store), b"a-word-to-be-found");
    flip_bit(&file, offset + 3);

    let said = refused(cluster.second_scheduler());
    assert!(said.contains("damaged") && said.contains("restore it from a copy"), "{said}");
    assert!(said.contains("table") || said.contains(file.to_str().unwrap()), "{said}");
}

#[test]
fn a_torn_tail_of_a_segment_is_cut_and_nothing_is_lost() {
    let mut cluster = Cluster::without_workers(&[]);
    let app = ClientApplication::start(cluster.information()).unwrap();
    let body = || Bytes::from(vec![0xA5; LARGE]);
    let first = app.schedule_service(&Echo(body())).unwrap();
    app.flush().unwrap();
    cluster.scheduler.kill();
    let store = Cluster::scheduler_directory(cluster.directory()).join("store");
    let (segment, _) = find(&files(&store), &[0xA5; 4_096]);
    // What a write leaves that was under way when the machine went down.
    let mut file = std::fs::File::options().append(true).open(&segment).unwrap();
    std::io::Write::write_all(&mut file, &[0xEE; 100_000]).unwrap();

    cluster.restart_scheduler();
    let second = app.schedule_service(&Echo(body())).unwrap();
    cluster.add_worker(1, &[]);
    for job in [first, second] {
        assert!(app.wait_for(&job).unwrap().into_output().unwrap() == body());
    }
    app.stop().unwrap();
}
