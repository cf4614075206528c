//! What does a whole application look like, from one service to several with progress bars?
//!
//! `cargo run --example example_application -- --local` brings its own cluster; without `--local` the example uses the one
//! whose scheduler `LRTS_SCHEDULER` names.

#![expect(clippy::print_stdout, reason = "an example prints its results")]

mod support;

use anyhow::ensure;
use lrts_client::Color;
use lrts_client::blocking::ClientApplication;
use support::{Cluster, Mult, Naps};

fn main() -> anyhow::Result<()> {
    // Every service of the application is named here.
    lrts_client::host_services!(Mult, Naps);

    let cluster = Cluster::from_arguments()?;
    let application = ClientApplication::start(cluster.application_information())?;

    application.set_stage("One service");
    let job = application.schedule_service(&Mult { a: 6.0, b: 9.0 })?;
    let product = application.wait_for(&job)?.into_output()?;
    println!("One service: 6 x 9 = {product}");
    ensure!(product == 54.0, "6 x 9 is 54");

    application.set_stage("Three services together");
    let factors = [(6.0, 9.0), (1.0, 0.0), (2.0, 4.0)];
    let jobs = application.schedule_services(&factors.map(|(a, b)| Mult { a, b }))?;
    for ((a, b), result) in factors.into_iter().zip(application.wait_for_multi(&jobs)?) {
        let product = result.into_output()?;
        println!("Three together: {a} x {b} = {product}");
        ensure!(product == a * b, "{a} x {b} is not {product}");
    }

    application.set_stage("Three services with progress bars");
    let nappers = [("Cat", Color::Yellow), ("Dog", Color::Green), ("Owl", Color::Cyan)];
    let services = nappers.map(|(name, color)| Naps { name: name.to_owned(), color });
    let jobs = application.schedule_services(&services)?;
    let mut naps_in_all = 0;
    for result in application.as_completed(&jobs) {
        let result = result?;
        let seconds = result.ran.as_secs_f64();
        let naps = result.into_output()?;
        println!("With progress: {naps} naps in {seconds:.1} s");
        naps_in_all += naps;
    }
    ensure!((75..=300).contains(&naps_in_all), "3 x 25 to 3 x 100 naps were asked for");

    application.stop()?;
    Ok(())
}
