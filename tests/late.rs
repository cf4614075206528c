//! A program that calls `host_services!` inside tokio, when there are threads already: jobs are spawned instead of forked, and
//! bars are shown all the same. A program of its own, since a test harness has no say in its `main`.

use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lrts::{LocalCluster, LocalConfig};
use lrts_client::{Bar, ClientApplication, JobContext, ProgressDisplay, ProgressSink, Service, ServiceError};
use serde::{Deserialize, Serialize};

/// The name under which test runners know this program.
const NAME: &str = "late_host_services_run_jobs_and_show_bars";

/// Long enough for its bar to be seen under way.
const STEPS: u64 = 300;

/// Counts, inside a runtime of its own.
#[derive(Serialize, Deserialize)]
struct Count;

impl Service for Count {
    const NAME: &'static str = "count";
    type Output = u64;
    fn run(self, job: &JobContext) -> Result<u64, ServiceError> {
        let bar = job.progress("Counting").total(STEPS).start();
        job.block_on(async {
            for _ in 0..STEPS {
                tokio::time::sleep(Duration::from_millis(5)).await;
                bar.inc(1);
            }
        });
        Ok(STEPS)
    }
}

/// Positions of the bar, as they were shown.
#[derive(Clone, Default)]
struct Positions(Arc<Mutex<Vec<u64>>>);

impl ProgressSink for Positions {
    fn counter_updated(&mut self, bar: &Bar) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(bar.position);
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    lrts_client::host_services!(Count);
    let flag = |name: &str| std::env::args().any(|argument| argument == name);
    if flag("--list") {
        return if flag("--ignored") { Ok(()) } else { say(&format!("{NAME}: test")) };
    }
    let cluster =
        tokio::task::spawn_blocking(|| LocalCluster::start(LocalConfig::default().max_jobs(1))).await??;
    let positions = Positions::default();
    let information = cluster.application_information().progress_display(ProgressDisplay::Hidden);
    let app = ClientApplication::start(information.progress_sink(positions.clone())).await?;
    let job = app.schedule_service(&Count).await?;
    let steps = app.wait_for(&job).await?.into_output()?;
    app.stop().await?;
    tokio::task::spawn_blocking(move || drop(cluster)).await?;

    assert_eq!(steps, STEPS);
    let positions = positions.0.lock().unwrap_or_else(PoisonError::into_inner);
    let under_way = positions.iter().any(|&position| 0 < position && position < STEPS);
    assert!(under_way, "the bar was not seen before its end: {positions:?}");
    say("1 passed, 0 failed")
}

fn say(line: &str) -> Result<(), Box<dyn Error>> {
    use std::io::Write;
    writeln!(std::io::stdout(), "{line}")?;
    Ok(())
}
