//! How do I watch what my services are doing?
//!
//! `cargo run --example detailed_progress_bars -- --local` brings its own cluster; without `--local` the example uses the one
//! whose scheduler `LRTS_SCHEDULER` names. In a terminal there is a bar for each service below a line that names the stage;
//! elsewhere (in a file, under CI) a line is printed now and then.

#![expect(clippy::print_stdout, reason = "an example prints its results")]

mod support;

use anyhow::ensure;
use lrts_client::Color;
use lrts_client::blocking::ClientApplication;
use support::{Cluster, Naps};

fn main() -> anyhow::Result<()> {
    lrts_client::host_services!(Naps);

    let cluster = Cluster::from_arguments()?;
    let application = ClientApplication::start(cluster.application_information())?;

    // The text of the status line above the bars: what the application itself is about.
    application.set_stage("Initializing");
    let nappers = [("Cat", Color::Yellow), ("Dog", Color::Green), ("Owl", Color::Cyan)];
    let services = nappers.map(|(name, color)| Naps { name: name.to_owned(), color });
    let jobs = application.schedule_services(&services)?;

    // The bars come by themselves: a service starts them, see `Naps::run`.
    application.set_stage("Waiting For Results");
    let results = application.wait_for_multi(&jobs)?;

    // Ends the display too, so what follows stands below the bars.
    application.stop()?;

    for ((name, _), result) in nappers.iter().zip(results) {
        let naps = result.into_output()?;
        println!("{name} took {naps} naps");
        ensure!((25..=100).contains(&naps), "25 to 100 naps were asked for");
    }
    Ok(())
}
