//! How do I act on each result as soon as its service has ended, from async code?
//!
//! `cargo run --example async_as_completed -- --local` brings its own cluster; without `--local` the example uses the one
//! whose scheduler `LRTS_SCHEDULER` names. In code that isn't async, `blocking::ClientApplication::as_completed` gives an
//! ordinary iterator over the same results.

#![expect(clippy::print_stdout, reason = "an example prints its results")]

mod support;

use anyhow::ensure;
use lrts_client::ClientApplication;
use support::{Cluster, Mult};

// A plain `main` that builds the runtime itself: `host_services!` must come before any thread starts, and under
// `#[tokio::main]` threads run before the first line does.
fn main() -> anyhow::Result<()> {
    lrts_client::host_services!(Mult);

    tokio::runtime::Runtime::new()?.block_on(application())
}

async fn application() -> anyhow::Result<()> {
    let cluster = Cluster::from_arguments()?;
    let application = ClientApplication::start(cluster.application_information()).await?;

    let mut jobs = Vec::new();
    for (a, b) in [(6.0, 9.0), (1.0, 0.0), (2.0, 4.0)] {
        jobs.push(application.schedule_service(&Mult { a, b }).await?);
    }

    let mut sum = 0.0;
    let mut completed = application.as_completed(&jobs);
    while let Some(result) = completed.next().await {
        let result = result?;
        let id = result.job_id;
        let product = result.into_output()?;
        println!("Service {id} finished with result: {product}");
        sum += product;
    }
    ensure!(sum == 62.0, "54 + 0 + 8 is 62, not {sum}");

    application.stop().await?;
    Ok(())
}
