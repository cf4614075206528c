//! How do I send progress to my own user interface or log instead of to lrts's bars?
//!
//! `cargo run --example own_renderer -- --local` brings its own cluster; without `--local` the example uses the one whose
//! scheduler `LRTS_SCHEDULER` names. It prints a plain log: a line when a counter appears, at each quarter of its way, and
//! when it is done.

#![expect(clippy::print_stdout, reason = "the renderer of this example prints lines")]

mod support;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::ensure;
use lrts_client::blocking::ClientApplication;
use lrts_client::{Bar, Color, LogLevel, ProgressDisplay, ProgressSink};
use support::{Cluster, Naps};

/// Where counters ended, by their description. The program reads it while the renderer, on its own thread, writes it.
type Finals = Arc<Mutex<BTreeMap<String, u64>>>;

/// Prints everything it is told as lines of a log. Its methods are called one at a time, on a thread of their own: they may
/// take their time, since no job and no result waits for them.
struct Logger {
    /// Lines below it are not printed.
    level: LogLevel,
    /// How many quarters of its way each open counter has been reported at.
    quarters: BTreeMap<lrts_client::BarId, u64>,
    finals: Finals,
}

impl ProgressSink for Logger {
    /// What the library itself has to say, from `Trace` to `Critical`.
    fn log(&mut self, level: LogLevel, text: &str) {
        if level >= self.level {
            println!("{:<8} {text}", level.as_str());
        }
    }

    /// The program has called `ClientApplication::set_stage`.
    fn set_stage(&mut self, stage: &str) {
        self.log(LogLevel::Info, &format!("stage: {stage}"));
    }

    fn counter_created(&mut self, bar: &Bar) {
        let total = bar.total.map_or_else(|| "an unknown number of".to_owned(), |total| total.to_string());
        self.log(LogLevel::Info, &format!("{} begins: {total} {}", bar.description, bar.unit));
    }

    /// Updates that come faster than they are handled are merged, so a counter may skip some of its way.
    fn counter_updated(&mut self, bar: &Bar) {
        let Some(total) = bar.total.filter(|total| *total > 0) else { return };
        let quarters = bar.position.saturating_mul(4) / total;
        if self.quarters.insert(bar.id, quarters).unwrap_or(0) < quarters {
            self.log(
                LogLevel::Info,
                &format!("{}: {} of {total} {}", bar.description, bar.position, bar.unit),
            );
        }
    }

    /// The last call for a counter, with its true final numbers.
    fn counter_closed(&mut self, bar: &Bar) {
        self.quarters.remove(&bar.id);
        let seconds = bar.elapsed.as_secs_f64();
        let text = format!("{} ends: {} {} in {seconds:.1} s", bar.description, bar.position, bar.unit);
        self.log(LogLevel::Success, &text);
        let mut finals = self.finals.lock().unwrap_or_else(PoisonError::into_inner);
        finals.insert(bar.description.clone(), bar.position);
    }
}

fn main() -> anyhow::Result<()> {
    lrts_client::host_services!(Naps);

    let cluster = Cluster::from_arguments()?;
    let finals = Finals::default();
    let logger = Logger { level: LogLevel::Info, quarters: BTreeMap::new(), finals: Arc::clone(&finals) };
    let information = cluster
        .application_information()
        .progress_sink(logger)
        // No bars beside the log.
        .progress_display(ProgressDisplay::Hidden);
    let application = ClientApplication::start(information)?;

    application.set_stage("Initializing");
    let nappers = [("Cat", Color::Yellow), ("Dog", Color::Green), ("Owl", Color::Cyan)];
    let services = nappers.map(|(name, color)| Naps { name: name.to_owned(), color });
    let jobs = application.schedule_services(&services)?;
    application.set_stage("Waiting For Results");
    let results = application.wait_for_multi(&jobs)?;
    // Returns once the renderer has been told everything.
    application.stop()?;

    let finals = finals.lock().unwrap_or_else(PoisonError::into_inner);
    for ((name, _), result) in nappers.iter().zip(results) {
        let naps = result.into_output()?;
        ensure!(finals.get(*name) == Some(&naps), "{name} took {naps} naps, its counter says {finals:?}");
    }
    println!("every counter ended where its service did");
    Ok(())
}
