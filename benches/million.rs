//! A million queued jobs, and a scheduler that is killed with -9 and started again.
//!
//! `cargo bench --bench million` prints how long submitting them takes until all are durable, what the scheduler then holds in
//! memory and on disk, how long it takes from its start to its readiness after the kill, and what it holds then. It fails if a
//! job is missing, or if the start takes more than three seconds.

use std::error::Error;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use lrts_client::blocking::ClientApplication;
use lrts_client::{JobContext, Service, ServiceError};
use lrts_core::clock::Moment;
use serde::{Deserialize, Serialize};

#[path = "../tests/support/mod.rs"]
#[allow(clippy::unwrap_used, clippy::print_stderr, reason = "made for tests")]
mod support;

use support::{Cluster, status_kib};

/// As much as a job's parameters are in practice.
#[derive(Serialize, Deserialize)]
struct Nothing {
    number: u64,
    name: String,
}

impl Service for Nothing {
    const NAME: &'static str = "nothing";
    type Output = ();
    fn run(self, _job: &JobContext) -> Result<(), ServiceError> {
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    lrts_client::host_services!(Nothing);
    // `cargo test` runs benches too, without this flag, where it wants a quick look only.
    let jobs = if std::env::args().any(|argument| argument == "--bench") { 1_000_000 } else { 10_000 };
    let mut out = std::io::stdout().lock();
    let mut cluster = Cluster::without_workers(&[]);
    let app = ClientApplication::start(cluster.information())?;

    let start = Moment::now();
    let job = |number| Nothing { number, name: format!("job {number}") };
    let handles = app.schedule_services((0..jobs).map(job))?;
    app.flush()?;
    writeln!(out, "jobs                           {jobs:8}")?;
    writeln!(out, "submitted and durable          {:8.2} s", start.elapsed().as_secs_f64())?;
    print_size(&mut out, &cluster)?;
    drop(handles);

    cluster.scheduler.kill();
    let start = Moment::now();
    cluster.restart_scheduler();
    let restart = start.elapsed();
    writeln!(out, "killed, started, ready         {:8.2} s", restart.as_secs_f64())?;
    let status = &cluster.json(&["status"])[0];
    writeln!(out, "queued after that              {:8}", status["jobs"]["queued"])?;
    print_size(&mut out, &cluster)?;
    app.stop()?;
    if status["jobs"]["queued"] != jobs {
        return Err(format!("jobs are missing: {status}").into());
    }
    if restart > Duration::from_secs(3) {
        return Err(format!("the scheduler was ready after {restart:?}, not within 3 s").into());
    }
    Ok(())
}

fn print_size(out: &mut impl Write, cluster: &Cluster) -> Result<(), Box<dyn Error>> {
    let resident = status_kib(cluster.scheduler.pid(), "VmRSS") as f64 / 1024.0;
    let store = Cluster::scheduler_directory(cluster.directory()).join("store");
    writeln!(out, "scheduler's memory             {resident:8.1} MiB")?;
    writeln!(
        out,
        "its store                      {:8.1} MiB",
        disk_use(&store)? as f64 / f64::from(1 << 20)
    )?;
    Ok(())
}

/// Bytes that the files of a directory take on the disk.
fn disk_use(directory: &Path) -> std::io::Result<u64> {
    std::fs::read_dir(directory)?.try_fold(0, |sum, entry| {
        let entry = entry?;
        let metadata = entry.metadata()?;
        let bytes = if metadata.is_dir() { disk_use(&entry.path())? } else { metadata.blocks() * 512 };
        Ok(sum + bytes)
    })
}
