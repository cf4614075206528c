//! Full and slow disks.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use lrts_client::blocking::ClientApplication;
use lrts_client::{ClientError, JobHandle, ServiceStatus};

use crate::support::{Cluster, Disk, Done, Mark, SOON, Work, eventually};

/// A cluster whose scheduler has a disk of its own. Its one worker has the program, so that the disk is for jobs alone.
fn cluster_on(make_disk: impl FnOnce(&std::path::Path) -> Option<Disk>, flags: &[&str]) -> Option<Cluster> {
    let directory = Cluster::new_directory();
    let disk = make_disk(&Cluster::scheduler_directory(directory.path()))?;
    let mut cluster = Cluster::in_directory(directory, vec![disk], flags);
    cluster.add_worker_with_program(4);
    Some(cluster)
}

/// Jobs that run until they are told to end.
fn run(cluster: &Cluster, app: &ClientApplication, body: usize) -> (Vec<PathBuf>, Vec<JobHandle<Done>>) {
    let files: Vec<PathBuf> = (0..3).map(|number| cluster.file(&format!("job-{number}"))).collect();
    let go = cluster.file("go");
    let works = files.iter().map(|file| Work::until(file, &go).body(body));
    let jobs = app.schedule_services(works).unwrap();
    files.iter().for_each(|file| {
        Mark::wait_for_beginning(file, 1);
    });
    (files, jobs)
}

fn end(cluster: &Cluster, files: &[PathBuf]) {
    std::fs::write(cluster.file("go"), "").unwrap();
    for file in files {
        Mark::wait(file, "the job comes to its end", |mark| mark.what == "ended");
    }
}

fn wait_for_full_disk(cluster: &Cluster) {
    eventually("the scheduler says that its disk is full", SOON, || {
        let log = cluster.scheduler.log();
        if log.contains("nothing is acknowledged") { Ok(()) } else { Err(log) }
    });
}

/// Schedules jobs of a megabyte each until one is refused. How many were taken, and the reason.
fn submit_until_refused(cluster: &Cluster, app: &ClientApplication) -> (Vec<JobHandle<Done>>, String) {
    let mut taken = Vec::new();
    // More than the disk holds.
    for number in 0..200 {
        let file = cluster.file(&format!("more-{number}"));
        let job = app.schedule_service(&Work::new(file, 0).ballast(1 << 20)).unwrap();
        match app.flush() {
            Ok(()) => taken.push(job),
            Err(ClientError::Refused { job: refused, reason }) => {
                assert_eq!(refused, job.id());
                let again = app.wait_for(&job).unwrap_err();
                assert!(matches!(again, ClientError::Refused { .. }), "{again}");
                return (taken, reason);
            }
            Err(other) => panic!("{other}"),
        }
    }
    panic!("a full disk takes everything\n{}", cluster.scheduler.log())
}

#[test]
fn a_full_disk_refuses_submits_and_keeps_room_for_the_results_of_running_jobs() {
    let Some(mut cluster) = cluster_on(|path| Disk::small(path, 64), &[]) else { return };
    let app = ClientApplication::start(cluster.information_of_installed()).unwrap();
    let (files, jobs) = run(&cluster, &app, 10_000);
    // So that what is taken stays queued.
    let blocker = block(&cluster, &app);
    let (taken, reason) = submit_until_refused(&cluster, &app);
    assert!(reason.contains("disk"), "{reason}");
    assert!(!taken.is_empty());

    end(&cluster, &files);
    for job in &jobs {
        assert_eq!(app.wait_for(job).unwrap().status(), ServiceStatus::Finished);
    }
    drop(blocker);
    for job in &taken {
        assert_eq!(app.wait_for(job).unwrap().status(), ServiceStatus::Finished);
    }
    // What they took is free again.
    let job = app.schedule_service(&Work::new(cluster.file("last"), 0).ballast(1 << 20)).unwrap();
    assert_eq!(app.wait_for(&job).unwrap().status(), ServiceStatus::Finished);
    assert!(!cluster.scheduler.has_ended());
    app.stop().unwrap();
}

/// Takes the slot that [`run`] leaves, until dropped.
struct Blocker(PathBuf);

impl Drop for Blocker {
    fn drop(&mut self) {
        std::fs::write(&self.0, "").unwrap();
    }
}

fn block(cluster: &Cluster, app: &ClientApplication) -> Blocker {
    let (file, go) = (cluster.file("blocker"), cluster.file("blocker-go"));
    app.schedule_service(&Work::until(&file, &go)).unwrap();
    Mark::wait_for_beginning(&file, 1);
    Blocker(go)
}

#[test]
fn results_wait_until_a_disk_without_any_room_has_some_again() {
    let Some(mut cluster) = cluster_on(|path| Disk::small(path, 64), &[]) else { return };
    let app = ClientApplication::start(cluster.information_of_installed()).unwrap();
    let (files, jobs) = run(&cluster, &app, 2 << 20);
    let ballast = cluster.disks[0].fill_but(0);
    end(&cluster, &files);
    wait_for_full_disk(&cluster);
    let refused = app.schedule_service(&Work::new(cluster.file("refused"), 0)).unwrap();
    let error = app.wait_for(&refused).unwrap_err();
    assert!(matches!(&error, ClientError::Refused { reason, .. } if reason.contains("disk")), "{error}");
    assert!(jobs.iter().all(|job| app.wait_for_timeout(job, Duration::ZERO).unwrap().is_none()));

    drop(ballast);
    for (job, file) in jobs.iter().zip(&files) {
        let result = app.wait_for(job).unwrap();
        assert_eq!((result.status(), result.attempts), (ServiceStatus::Finished, 1));
        assert_eq!(Mark::began(file).len(), 1);
    }
    let job = app.schedule_service(&Work::new(cluster.file("last"), 0)).unwrap();
    assert_eq!(app.wait_for(&job).unwrap().status(), ServiceStatus::Finished);
    assert!(!cluster.scheduler.has_ended());
    app.stop().unwrap();
}

#[test]
fn a_scheduler_killed_with_a_full_disk_starts_again_once_there_is_room() {
    let Some(mut cluster) = cluster_on(|path| Disk::small(path, 64), &[]) else { return };
    let app = ClientApplication::start(cluster.information_of_installed()).unwrap();
    let (files, jobs) = run(&cluster, &app, 100_000);
    let ballast = cluster.disks[0].fill_but(0);
    end(&cluster, &files);
    wait_for_full_disk(&cluster);
    cluster.scheduler.kill();
    drop(ballast);
    cluster.restart_scheduler();
    for job in &jobs {
        let result = app.wait_for(job).unwrap();
        assert_eq!((result.status(), result.attempts), (ServiceStatus::Finished, 1));
    }
    app.stop().unwrap();
}

#[test]
fn a_full_spool_makes_a_job_wait_and_not_fail() {
    let directory = Cluster::new_directory();
    let Some(disk) = Disk::small(&directory.path().join("worker-1"), 64) else { return };
    let mut cluster = Cluster::in_directory(directory, vec![disk], &[]);
    cluster.add_worker_with_program(4);
    let app = ClientApplication::start(cluster.information_of_installed()).unwrap();
    let (files, jobs) = run(&cluster, &app, 8 << 20);
    let ballast = cluster.disks[0].fill_but(1 << 20);
    end(&cluster, &files);
    // Other jobs of the worker go on meanwhile.
    let small = app.schedule_service(&Work::new(cluster.file("small"), 10)).unwrap();
    assert_eq!(app.wait_for(&small).unwrap().status(), ServiceStatus::Finished);
    assert!(jobs.iter().all(|job| app.wait_for_timeout(job, Duration::ZERO).unwrap().is_none()));
    cluster.wait_for_jobs("running", 3);

    drop(ballast);
    for job in &jobs {
        let result = app.wait_for(job).unwrap();
        assert_eq!((result.status(), result.attempts), (ServiceStatus::Finished, 1));
        assert_eq!(result.into_output().unwrap().body.len(), 8 << 20);
    }
    app.stop().unwrap();
}

#[test]
fn a_disk_that_stalls_makes_acknowledgements_late_and_no_worker_suspect() {
    let flags = ["--heartbeat", "500ms", "--lost-after", "2s"];
    let Some(cluster) = cluster_on(Disk::freezable, &flags) else { return };
    let app = ClientApplication::start(cluster.information_of_installed()).unwrap();
    let mut jobs = Vec::new();
    for round in 0..3 {
        let frozen = cluster.disks[0].freeze();
        let files = (0..10).map(|number| cluster.file(&format!("job-{round}-{number}")));
        jobs.extend(app.schedule_services(files.map(|file| Work::new(file, 1))).unwrap());
        let flushing = app.clone();
        let flush = thread::spawn(move || flushing.flush());
        // How long the disk stalls, and commands are answered meanwhile.
        thread::sleep(Duration::from_secs(2));
        assert_eq!(cluster.json(&["workers"])[0]["state"], "ready");
        assert!(!flush.is_finished(), "acknowledged without a write");
        drop(frozen);
        flush.join().unwrap().unwrap();
    }
    for result in app.wait_for_multi(&jobs).unwrap() {
        assert_eq!((result.status(), result.attempts), (ServiceStatus::Finished, 1));
    }
    let log = cluster.scheduler.log();
    assert!(!log.contains("lost") && !log.contains("suspect"), "{log}");
    app.stop().unwrap();
}
