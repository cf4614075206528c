//! How do I run one service on the cluster and wait for its result?
//!
//! `cargo run --example synchronous -- --local` brings its own cluster; without `--local` the example uses the one whose
//! scheduler `LRTS_SCHEDULER` names.

#![expect(clippy::print_stdout, reason = "an example prints its result")]

mod support;

use anyhow::ensure;
use lrts_client::blocking::ClientApplication;
use support::{Cluster, Mult};

fn main() -> anyhow::Result<()> {
    // First in main: a worker starts this same program to run the services that are named here.
    lrts_client::host_services!(Mult);

    let cluster = Cluster::from_arguments()?;
    // Returns at once. The scheduler need not be up yet: the application waits for it.
    let application = ClientApplication::start(cluster.application_information())?;

    let job = application.schedule_service(&Mult { a: 6.0, b: 9.0 })?;
    let result = application.wait_for(&job)?;

    let id = result.job_id;
    let product = result.into_output()?;
    println!("Service {id} finished with result: {product}");
    ensure!(product == 54.0, "6 x 9 is 54");

    // Tells the cluster that nothing of this application is needed any more.
    application.stop()?;
    Ok(())
}
