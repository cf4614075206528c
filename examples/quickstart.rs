//! What is lrts? Twelve jobs with progress bars, on a cluster that lives inside this program.
//!
//! `cargo run --example quickstart` is all there is to do: nothing else needs to be installed or started.

#![expect(clippy::print_stdout, reason = "an example prints its results")]

use std::thread::sleep;
use std::time::Duration;

use lrts::{LocalCluster, LocalConfig};
use lrts_client::blocking::ClientApplication;
use lrts_client::{Color, JobContext, JobOptions, Service, ServiceError};
use serde::{Deserialize, Serialize};

/// A service is a type that holds what a job needs to know. It travels to the machine that runs the job.
#[derive(Serialize, Deserialize)]
struct Chore {
    title: String,
    unit: String,
    color: Color,
    steps: u64,
    milliseconds_a_step: u64,
}

impl Service for Chore {
    const NAME: &'static str = "chore";

    /// What a job gives back. It can be anything that serde can write and read.
    type Output = u64;

    /// The work itself. It runs in a process of its own, on whichever machine of the cluster has room.
    fn run(self, job: &JobContext) -> Result<u64, ServiceError> {
        let bar =
            job.progress(self.title).total(self.steps).unit(&self.unit).color(self.color).leave(true).start();
        let mut done = 0;
        for _ in 0..self.steps {
            sleep(Duration::from_millis(self.milliseconds_a_step)); // Real work would go here.
            done += 1;
            bar.inc(1); // About a nanosecond, so it may stand in the innermost loop.
        }
        Ok(done)
    }
}

fn main() -> anyhow::Result<()> {
    // 1. First in main: for each job this same program is started again, and this line runs the job there.
    lrts_client::host_services!(Chore);

    // 2. A scheduler, a progress server and a worker. A real cluster has them on many machines (`lrts scheduler`,
    //    `lrts progress-server`, `lrts worker`), and the application connects with `ApplicationInformation::from_env()`.
    let cluster = LocalCluster::start(LocalConfig::default())?;
    let application = ClientApplication::start(cluster.application_information())?;

    // 3. Schedule the jobs. As many of them run at a time as this machine has cores.
    application.set_stage("Scheduling");
    let chores = [
        ("Rendering a film", "frames", Color::Cyan, 120, 12),
        ("Indexing a library", "pages", Color::Green, 300, 5),
        ("Training a model", "epochs", Color::Magenta, 30, 50),
        ("Backing up photos", "files", Color::Yellow, 500, 2),
        ("Sequencing a genome", "reads", Color::Red, 1_000, 1),
        ("Mapping the sky", "stars", Color::Blue, 200, 6),
        ("Folding proteins", "proteins", Color::Cyan, 20, 60),
        ("Crawling a site", "links", Color::Green, 90, 15),
        ("Compressing logs", "MB", Color::Magenta, 256, 4),
        ("Forecasting weather", "hours", Color::Yellow, 72, 20),
        ("Pricing options", "options", Color::Red, 400, 2),
        ("Brewing tea", "cups", Color::White, 4, 250),
    ];
    let mut jobs = Vec::new();
    for (title, unit, color, steps, milliseconds_a_step) in chores {
        let chore =
            Chore { title: title.to_owned(), unit: unit.to_owned(), color, steps, milliseconds_a_step };
        // The label names the job wherever jobs are listed. Without options: `schedule_service(&chore)`.
        jobs.push(application.schedule_service_with(&chore, JobOptions::new().label(title))?);
    }

    // 4. Wait for all of them; their bars move meanwhile.
    application.set_stage("Waiting for results");
    let results = application.wait_for_multi(&jobs)?;

    // 5. Nothing of this application is needed any more.
    application.stop()?;

    for ((title, unit, _, steps, _), result) in chores.into_iter().zip(results) {
        let seconds = result.ran.as_secs_f64();
        let done = result.into_output()?; // An error says why the job failed.
        println!("{title:<20} {done:>5} {unit:<9} in {seconds:.1} s");
        anyhow::ensure!(done == steps, "{title} did {done} of {steps} {unit}");
    }
    println!("{} jobs done", jobs.len());
    Ok(())
}
