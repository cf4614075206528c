//! How do I run several services at the same time and wait until all of them have ended?
//!
//! `cargo run --example synchronous_multi -- --local` brings its own cluster; without `--local` the example uses the one
//! whose scheduler `LRTS_SCHEDULER` names.

#![expect(clippy::print_stdout, reason = "an example prints its results")]

mod support;

use anyhow::ensure;
use lrts_client::blocking::ClientApplication;
use support::{Cluster, Mult};

fn main() -> anyhow::Result<()> {
    lrts_client::host_services!(Mult);

    let cluster = Cluster::from_arguments()?;
    let application = ClientApplication::start(cluster.application_information())?;

    // Scheduling doesn't wait for the service to run, so the two run side by side.
    let job_a = application.schedule_service(&Mult { a: 6.0, b: 9.0 })?;
    let job_b = application.schedule_service(&Mult { a: 1.0, b: 0.0 })?;

    // Returns once both have ended, with the results in the order of the jobs.
    let results = application.wait_for_multi(&[job_a, job_b])?;

    let mut products = Vec::new();
    for result in results {
        let id = result.job_id;
        let product = result.into_output()?;
        println!("Service {id} finished with result: {product}");
        products.push(product);
    }
    ensure!(products == [54.0, 0.0], "these are not the products in order: {products:?}");

    application.stop()?;
    Ok(())
}
