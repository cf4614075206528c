//! A cluster at work while it is attacked, and what must be true of it then.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use lrts_client::JobHandle;
use lrts_client::blocking::ClientApplication;
use lrts_core::command_line::raise_open_file_limit;
use lrts_core::protocol::codec;
use lrts_core::protocol::progress::{FromReporter, ToReporter};
use lrts_core::transport::Role;
use tempfile::TempDir;

use crate::attack::{Stage, Target};
use crate::support::{
    Cluster, Daemon, Done, Mark, SOON, Work, descriptors, eventually, forget_peak, keys, status_kib,
};

/// Most that a daemon's memory may grow at any time of an attack.
const GROWTH_KIB: u64 = 64 * 1024;

/// Descriptors that a daemon may have more than before: of connections that honest parties made meanwhile.
const MORE_DESCRIPTORS: usize = 12;

/// Jobs that run through the whole attack, and jobs that end in it.
const LONG: u64 = 2;
const SHORT: u64 = 4;

/// A cluster with a worker, an application and its jobs.
pub(crate) struct Site {
    pub(crate) cluster: Cluster,
    app: ClientApplication,
    jobs: Vec<JobHandle<Done>>,
    numbers: AtomicU64,
    before: Vec<Figures>,
}

/// A daemon before the attack.
struct Figures {
    resident_kib: u64,
    descriptors: usize,
}

impl Site {
    /// One whose parts have keys.
    pub(crate) fn new() -> Self {
        Self::with_keys(Some(keys()), Cluster::new_directory())
    }

    /// One with keys of its own.
    pub(crate) fn with_own_keys() -> Self {
        let directory = Cluster::new_directory();
        Self::with_keys(Some(directory.path().join("keys")), directory)
    }

    /// One that does without.
    pub(crate) fn insecure() -> Self {
        Self::with_keys(None, Cluster::new_directory())
    }

    fn with_keys(keys: Option<PathBuf>, directory: TempDir) -> Self {
        raise_open_file_limit();
        let mut cluster = Cluster::with_keys(keys, directory, Vec::new(), &[]);
        cluster.add_worker_with_program(LONG as u32 + 2);
        let app = ClientApplication::start(cluster.information_of_installed()).unwrap();
        let mut site =
            Self { cluster, app, jobs: Vec::new(), numbers: AtomicU64::new(0), before: Vec::new() };
        for _ in 0..LONG {
            let number = site.number();
            let work = Work::until(site.marks(number), site.end_of_attack());
            site.jobs.push(site.app.schedule_service(&work.number(number)).unwrap());
        }
        for number in 0..LONG {
            Mark::wait_for_beginning(&site.marks(number), 1);
        }
        site.serves_newcomers();
        for _ in 0..SHORT {
            site.schedule();
        }
        site.before = site.daemons().map(Figures::of).into();
        site
    }

    pub(crate) fn scheduler(&self) -> Target {
        self.target(&self.cluster.scheduler_address, Role::Scheduler)
    }

    pub(crate) fn progress_server(&self) -> Target {
        self.target(&self.cluster.progress_address, Role::ProgressServer)
    }

    /// Both servers, each with the roles that it takes.
    pub(crate) fn servers(&self) -> [(Target, &'static [Role]); 2] {
        [
            (self.scheduler(), &[Role::Client, Role::Worker, Role::Admin]),
            (self.progress_server(), &[Role::Client, Role::Worker]),
        ]
    }

    fn target(&self, address: &str, role: Role) -> Target {
        let keys = self.cluster.keys().map(PathBuf::from);
        Target { address: address.to_owned(), role, keys, from: None }
    }

    fn daemons(&self) -> [&Daemon; 3] {
        [&self.cluster.scheduler, &self.cluster.progress_server, &self.cluster.workers[0]]
    }

    fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    fn marks(&self, number: u64) -> PathBuf {
        self.cluster.file(&format!("job-{number}"))
    }

    fn end_of_attack(&self) -> PathBuf {
        self.cluster.file("the-attack-is-over")
    }

    /// One more job of the application.
    fn schedule(&mut self) {
        let number = self.number();
        let job = self.app.schedule_service(&Work::new(self.marks(number), 2).number(number));
        self.jobs.push(job.unwrap());
    }

    /// An application, a command and a reporter of bars that come now, from this same address, are served.
    pub(crate) fn serves_newcomers(&self) {
        let app = ClientApplication::start(self.cluster.information_of_installed()).unwrap();
        let number = self.number();
        let job = app.schedule_service(&Work::new(self.marks(number), 1).number(number)).unwrap();
        let result = app.wait_for_timeout(&job, SOON).unwrap().expect("a newcomer's job ends");
        assert_eq!(result.into_output().unwrap().number, number);
        app.stop().unwrap();
        // Commands give up after some seconds, which a crowded door may take.
        let status = self.cluster.json(&["status", "--wait", "60s"]);
        assert_eq!(status[0]["jobs"]["running"].as_u64().map(|running| running >= LONG), Some(true));
        eventually("the progress server answers", SOON, || {
            let pong = self.progress_server().enter(Stage::Joined, Role::Worker).and_then(|mut reporter| {
                reporter.say(&codec::encode(&FromReporter::Ping { number }), b"")?;
                reporter.answer::<ToReporter>()
            });
            let pong = pong.map_err(|error| error.to_string())?;
            if pong == (ToReporter::Pong { number }) { Ok(()) } else { Err(format!("{pong:?}")) }
        });
    }

    /// Waits until the scheduler has counted so many peers that it turned away for this cause.
    pub(crate) fn turned_away(&self, cause: &str, count: u64) {
        eventually(&format!("{count} were turned away for `{cause}`"), SOON, || {
            let status = &self.cluster.json(&["status", "--wait", "60s"])[0];
            let counted = status["refused"][cause].as_u64().ok_or_else(|| status.to_string())?;
            if counted >= count { Ok(()) } else { Err(status["refused"].to_string()) }
        });
    }

    /// Every job has its one result, and every daemon is the same process as before, no larger than it may be.
    pub(crate) fn assert_unharmed(mut self) {
        self.serves_newcomers();
        self.schedule();
        std::fs::write(self.end_of_attack(), "").unwrap();
        let results = self.app.wait_for_multi(&self.jobs).unwrap();
        for (result, job) in results.into_iter().zip(&self.jobs) {
            assert_eq!((result.job_id, result.attempts), (job.id(), 1));
            let done = result.into_output().unwrap();
            assert_eq!(Mark::began(&self.marks(done.number)), [done.pid], "job {} ran once", done.number);
        }
        self.app.stop().unwrap();
        for (daemon, before) in self.daemons().into_iter().zip(&self.before) {
            let pid = daemon.pid();
            let peak = status_kib(pid, "VmHWM");
            let grown = peak.saturating_sub(before.resident_kib);
            assert!(grown < GROWTH_KIB, "{}\ngrew by {grown} KiB to {peak} KiB", daemon.log());
            eventually("a daemon's connections are closed", SOON, || {
                let (now, before) = (descriptors(pid), before.descriptors);
                if now <= before + MORE_DESCRIPTORS { Ok(()) } else { Err(format!("{before} -> {now}")) }
            });
        }
        assert!(self.cluster.workers.iter_mut().all(|worker| !worker.has_ended()), "a worker has ended");
        let Cluster { scheduler, progress_server, .. } = &mut self.cluster;
        assert!(![scheduler, progress_server].into_iter().any(Daemon::has_ended), "a daemon has ended");
    }
}

impl Figures {
    fn of(daemon: &Daemon) -> Self {
        forget_peak(daemon.pid());
        let resident_kib = status_kib(daemon.pid(), "VmRSS");
        Self { resident_kib, descriptors: descriptors(daemon.pid()) }
    }
}
