//! What a job costs beyond its own work: no-op jobs, a process each, beside the plain cost of starting processes.
//!
//! `cargo bench --bench overhead` prints medians of pairs from one run: jobs per second from submit to result in hand, processes
//! per second of `xargs -P2 -n1 true`, their ratio, and the round trip of a single job on an idle cluster.

use std::error::Error;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use lrts::{LocalCluster, LocalConfig};
use lrts_client::blocking::ClientApplication;
use lrts_client::{JobContext, ProgressDisplay, Service, ServiceError};
use lrts_core::clock::Moment;
use serde::{Deserialize, Serialize};

const JOBS: u32 = 2_000;
const ROUNDS: usize = 5;

#[derive(Serialize, Deserialize)]
struct Nothing;

impl Service for Nothing {
    const NAME: &'static str = "nothing";
    type Output = ();
    fn run(self, _job: &JobContext) -> Result<(), ServiceError> {
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    lrts_client::host_services!(Nothing);
    // `cargo test` runs benches too, with this flag where it wants a quick look only.
    let (jobs, rounds) =
        if std::env::args().any(|argument| argument == "--bench") { (JOBS, ROUNDS) } else { (20, 1) };
    let cluster = LocalCluster::start(LocalConfig::default().max_jobs(2))?;
    let information = cluster.application_information().progress_display(ProgressDisplay::Hidden);
    let app = ClientApplication::start(information)?;
    run_jobs(&app, 20)?;

    let (mut floors, mut rates, mut ratios, mut trips) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let floor = f64::from(jobs) / spawn_processes(jobs)?.as_secs_f64();
        let rate = f64::from(jobs) / run_jobs(&app, jobs)?.as_secs_f64();
        floors.push(floor);
        rates.push(rate);
        ratios.push(rate / floor);
        for _ in 0..50 {
            trips.push(run_jobs(&app, 1)?.as_secs_f64() * 1e3);
        }
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "no-op jobs, a process each     {:8.0} /s", median(&mut rates))?;
    writeln!(out, "xargs -P2 -n1 true             {:8.0} /s", median(&mut floors))?;
    writeln!(out, "ratio                          {:8.2}", median(&mut ratios))?;
    writeln!(out, "one job on an idle cluster     {:8.2} ms", median(&mut trips))?;
    app.stop()?;
    Ok(())
}

fn run_jobs(app: &ClientApplication, jobs: u32) -> Result<Duration, Box<dyn Error>> {
    let start = Moment::now();
    let handles = app.schedule_services((0..jobs).map(|_| Nothing))?;
    for result in app.wait_for_multi(&handles)? {
        result.into_output()?;
    }
    Ok(start.elapsed())
}

fn spawn_processes(count: u32) -> Result<Duration, Box<dyn Error>> {
    let start = Moment::now();
    let mut xargs = Command::new("xargs").args(["-P2", "-n1", "true"]).stdin(Stdio::piped()).spawn()?;
    let mut input = xargs.stdin.take().ok_or("xargs has an input")?;
    for number in 0..count {
        writeln!(input, "{number}")?;
    }
    drop(input);
    if !xargs.wait()?.success() {
        return Err("xargs failed".into());
    }
    Ok(start.elapsed())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
