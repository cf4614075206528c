//! What an application sees of its jobs' bars, through a renderer of its own.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use lrts_client::blocking::ClientApplication;
use lrts_client::{ApplicationInformation, Bar, BarId, ProgressSink};

use crate::services::*;
use crate::support::{Cluster, SOON, eventually};

/// The newest state of every bar that was shown.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<BTreeMap<BarId, Bar>>>);

impl Recorder {
    fn note(&self, bar: &Bar) {
        self.0.lock().unwrap().insert(bar.id, bar.clone());
    }

    fn bars(&self) -> Vec<Bar> {
        self.0.lock().unwrap().values().cloned().collect()
    }

    /// The same settings, shown by this.
    fn watch(&self, information: ApplicationInformation) -> ApplicationInformation {
        information.progress_sink(self.clone())
    }
}

impl ProgressSink for Recorder {
    fn counter_created(&mut self, bar: &Bar) {
        self.note(bar);
    }

    fn counter_updated(&mut self, bar: &Bar) {
        self.note(bar);
    }

    fn counter_closed(&mut self, bar: &Bar) {
        self.note(bar);
    }
}

fn count(number: u64, steps: u64) -> Count {
    Count { name: format!("count {number}"), steps }
}

#[test]
fn every_bar_that_finished_shows_its_total() {
    let cluster = Cluster::start(&[2, 2]);
    let recorder = Recorder::default();
    let app = ClientApplication::start(recorder.watch(cluster.information())).unwrap();
    let jobs = app.schedule_services((0..60).map(|number| count(number, 1 + number % 40))).unwrap();
    app.wait_for_multi(&jobs).unwrap();
    app.stop().unwrap();
    let bars = recorder.bars();
    assert_eq!(bars.len(), 60);
    for bar in bars {
        assert!(bar.closed && Some(bar.position) == bar.total, "{bar:?}");
    }
}

#[test]
fn bars_end_true_without_a_progress_server() {
    let mut cluster = Cluster::start(&[2]);
    cluster.progress_server.kill();
    let recorder = Recorder::default();
    let app = ClientApplication::start(recorder.watch(cluster.information())).unwrap();
    let jobs = app.schedule_services((0..4).map(|number| count(number, 50))).unwrap();
    app.wait_for_multi(&jobs).unwrap();
    app.stop().unwrap();
    let bars = recorder.bars();
    assert_eq!(bars.iter().filter(|bar| bar.closed && bar.position == 50).count(), 4, "{bars:?}");
}

#[test]
fn bars_catch_up_when_the_progress_server_returns() {
    let mut cluster = Cluster::start(&[1]);
    let recorder = Recorder::default();
    let app = ClientApplication::start(recorder.watch(cluster.information())).unwrap();
    let job = app.schedule_service(&count(0, 600_000)).unwrap();
    let position = || recorder.bars().first().map_or(0, |bar| bar.position);
    let moves_on =
        |what: &str, from: u64| {
            eventually(what, SOON, || {
                if position() > from { Ok(position()) } else { Err(position().to_string()) }
            })
        };
    moves_on("the bar is shown", 0);
    cluster.progress_server.kill();
    let before = position();
    cluster.restart_progress_server();
    moves_on("the bar moves on", before);
    app.cancel(&job).unwrap();
    app.wait_for(&job).unwrap();
    app.stop().unwrap();
}
