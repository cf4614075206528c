//! Programs travel to the workers, whatever happens to them on the way.

use lrts_client::blocking::ClientApplication;
use lrts_client::{Bundle, FailureKind};

use crate::services::*;
use crate::support::Cluster;

#[test]
fn a_program_that_hosts_no_services_gives_a_failure_that_says_why() {
    let mut cluster = Cluster::without_workers(&["--lost-after", "3s"]);
    cluster.add_worker(1, &[]);
    let information = cluster.information().bundle(Bundle::Executable("/bin/true".into()));
    let app = ClientApplication::start(information).unwrap();
    let job = app.schedule_service(&Add(1, 2)).unwrap();
    let failure = app.wait_for(&job).unwrap().outcome.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Bundle, "{failure}");
    assert!(failure.message.contains("host_services!"), "{failure}");
    app.stop().unwrap();
}

#[test]
fn installed_bundles_run_by_name_and_shipped_ones_can_be_refused() {
    let mut cluster = Cluster::without_workers(&["--lost-after", "3s"]);
    let own = std::env::current_exe().unwrap();
    let installed = format!("tests={}", own.display());
    cluster.add_worker(1, &["--bundle", &installed, "--bundles", "installed-only"]);

    let by_name = cluster.information().bundle(Bundle::Installed("tests".into()));
    let app = ClientApplication::start(by_name).unwrap();
    let job = app.schedule_service(&Add(20, 3)).unwrap();
    assert_eq!(app.wait_for(&job).unwrap().into_output().unwrap(), 23);
    app.stop().unwrap();

    let app = ClientApplication::start(cluster.information()).unwrap();
    let job = app.schedule_service(&Add(1, 2)).unwrap();
    let failure = app.wait_for(&job).unwrap().outcome.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Bundle, "{failure}");
    assert!(failure.message.contains("installed programs only"), "{failure}");
    app.stop().unwrap();
}

#[test]
fn a_bundle_goes_to_the_cluster_once() {
    let cluster = Cluster::start(&[1]);
    for _ in 0..2 {
        let app = ClientApplication::start(cluster.information()).unwrap();
        let job = app.schedule_service(&Add(1, 2)).unwrap();
        assert_eq!(app.wait_for(&job).unwrap().into_output().unwrap(), 3);
        app.stop().unwrap();
    }
    let uploads = cluster.scheduler.log().matches("bundle stored").count();
    assert_eq!(uploads, 1, "{}", cluster.scheduler.log());
}
