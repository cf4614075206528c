//! Scheduler, progress server and workers as processes of their own.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use lrts_client::{ApplicationInformation, Bundle};
use tempfile::TempDir;

use super::{Daemon, Disk, Part, SOON, eventually, keys, lrts_with};

/// A scheduler, a progress server and workers in one directory. All that came from them ends with this, job hosts too.
pub(crate) struct Cluster {
    pub(crate) workers: Vec<Daemon>,
    pub(crate) progress_server: Daemon,
    pub(crate) scheduler: Daemon,
    pub(crate) scheduler_address: String,
    pub(crate) progress_address: String,
    scheduler_flags: Vec<String>,
    started_workers: u32,
    /// Disks below the directory, unmounted before it is removed.
    pub(crate) disks: Vec<Disk>,
    /// Keys of all parts; none if they do without.
    keys: Option<PathBuf>,
    directory: TempDir,
}

impl Cluster {
    /// A scheduler with these further flags and a progress server, no worker.
    pub(crate) fn without_workers(scheduler_flags: &[&str]) -> Self {
        Self::in_directory(Self::new_directory(), Vec::new(), scheduler_flags)
    }

    /// A directory for a cluster that is yet to be started.
    pub(crate) fn new_directory() -> TempDir {
        TempDir::with_prefix("lrts-test-").expect("a temporary directory")
    }

    /// The scheduler's state directory, in a cluster's.
    pub(crate) fn scheduler_directory(directory: &Path) -> PathBuf {
        directory.join("scheduler")
    }

    /// As [`Cluster::without_workers`], in a directory that was prepared, disks mounted below it.
    pub(crate) fn in_directory(directory: TempDir, disks: Vec<Disk>, scheduler_flags: &[&str]) -> Self {
        Self::with_keys(Some(keys()), directory, disks, scheduler_flags)
    }

    /// The same with these keys, which the scheduler makes if they aren't there, or without any.
    pub(crate) fn with_keys(
        keys: Option<PathBuf>,
        directory: TempDir,
        disks: Vec<Disk>,
        scheduler_flags: &[&str],
    ) -> Self {
        let flags: Vec<String> = scheduler_flags.iter().map(|&flag| flag.to_owned()).collect();
        let command = scheduler_command(keys.as_deref(), directory.path(), "0", &flags);
        let mut scheduler = Daemon::start("scheduler", command, directory.path());
        let command = lrts_with(keys.as_deref(), &["progress-server", "--port", "0"]);
        let mut progress_server = Daemon::start("progress-server", command, directory.path());
        let scheduler_address = scheduler.ready();
        let progress_address = progress_server.ready();
        Self {
            workers: Vec::new(),
            progress_server,
            scheduler,
            scheduler_address,
            progress_address,
            scheduler_flags: flags,
            started_workers: 0,
            disks,
            keys,
            directory,
        }
    }

    /// The same with workers of this many slots each, all ready.
    pub(crate) fn start(slots: &[u32]) -> Self {
        let mut cluster = Self::without_workers(&[]);
        for &slots in slots {
            cluster.add_worker(slots, &[]);
        }
        cluster
    }

    /// Starts a worker, waits until it is ready, returns its id.
    pub(crate) fn add_worker(&mut self, slots: u32, flags: &[&str]) -> String {
        let address = self.scheduler_address.clone();
        self.add_worker_at(&address, slots, flags)
    }

    /// Starts a worker on which this test binary is installed, for [`Cluster::information_of_installed`].
    pub(crate) fn add_worker_with_program(&mut self, slots: u32) -> String {
        let address = self.scheduler_address.clone();
        self.add_worker_with_program_at(&address, slots)
    }

    /// The same with a scheduler that is reached at another address.
    pub(crate) fn add_worker_with_program_at(&mut self, scheduler_address: &str, slots: u32) -> String {
        let program = std::env::current_exe().expect("a test has an executable");
        let bundle = format!("tests={}", program.display());
        self.add_worker_at(scheduler_address, slots, &["--bundle", &bundle])
    }

    /// As [`Cluster::add_worker`] with a scheduler that is reached at another address.
    pub(crate) fn add_worker_at(&mut self, scheduler_address: &str, slots: u32, flags: &[&str]) -> String {
        let mut worker = self.start_worker_at(scheduler_address, slots, flags);
        let id = worker.ready();
        self.workers.push(worker);
        id
    }

    /// Starts a worker without waiting.
    pub(crate) fn start_worker(&mut self, slots: u32, flags: &[&str]) -> Daemon {
        let address = self.scheduler_address.clone();
        self.start_worker_at(&address, slots, flags)
    }

    fn start_worker_at(&mut self, scheduler_address: &str, slots: u32, flags: &[&str]) -> Daemon {
        self.started_workers += 1;
        let name = format!("worker-{}", self.started_workers);
        let (address, port) = host_and_port(scheduler_address);
        let progress_port = host_and_port(&self.progress_address).1;
        let mut command = self.lrts(&["worker", "--scheduler-address", address, "--scheduler-port", port]);
        command.args(["--progress-port", progress_port, "--max-jobs", &slots.to_string()]);
        command.arg("--state-dir").arg(self.directory.path().join(&name)).args(flags);
        // Hosts of a test that was itself killed go by themselves.
        if !flags.contains(&"--orphan-grace") {
            command.args(["--orphan-grace", "60s"]);
        }
        Daemon::start(&name, command, self.directory.path())
    }

    /// Starts the progress server again on the port that it had.
    pub(crate) fn restart_progress_server(&mut self) {
        let port = host_and_port(&self.progress_address).1.to_owned();
        let command = self.lrts(&["progress-server", "--port", &port]);
        self.progress_server = Daemon::start("progress-server", command, self.directory.path());
        self.progress_server.ready();
    }

    /// Starts the scheduler again on the port that it had.
    pub(crate) fn restart_scheduler(&mut self) {
        let port = host_and_port(&self.scheduler_address).1.to_owned();
        let command = scheduler_command(self.keys(), self.directory.path(), &port, &self.scheduler_flags);
        self.scheduler = Daemon::start("scheduler", command, self.directory.path());
        self.scheduler.ready();
    }

    /// The command line of a second scheduler on the first one's state, on a port of its own.
    pub(crate) fn second_scheduler(&self) -> Command {
        scheduler_command(self.keys(), self.directory.path(), "0", &self.scheduler_flags)
    }

    /// What an application in this process needs.
    pub(crate) fn information(&self) -> ApplicationInformation {
        self.information_at(&self.scheduler_address)
    }

    /// The same with a scheduler that is reached at another address.
    fn information_at(&self, scheduler_address: &str) -> ApplicationInformation {
        let split = |address: &str| {
            let (host, port) = host_and_port(address);
            (host.to_owned(), port.parse::<u16>().expect("a port"))
        };
        let (address, port) = split(scheduler_address);
        let (progress_address, progress_port) = split(&self.progress_address);
        let information = ApplicationInformation::new(address, port)
            .progress_server(progress_address, progress_port)
            .progress_display(lrts_client::ProgressDisplay::Hidden);
        match &self.keys {
            Some(keys) => information.keys(keys),
            None => information.insecure(),
        }
    }

    /// The same for an application that ships nothing.
    pub(crate) fn information_of_installed(&self) -> ApplicationInformation {
        self.information_of_installed_at(&self.scheduler_address)
    }

    /// The same with a scheduler that is reached at another address.
    pub(crate) fn information_of_installed_at(&self, scheduler_address: &str) -> ApplicationInformation {
        self.information_at(scheduler_address).bundle(Bundle::Installed("tests".to_owned()))
    }

    /// Keys of all parts; none if they do without.
    pub(crate) fn keys(&self) -> Option<&Path> {
        self.keys.as_deref()
    }

    /// The `lrts` command with the cluster's keys.
    fn lrts(&self, arguments: &[&str]) -> Command {
        lrts_with(self.keys(), arguments)
    }

    /// A directory for the test's own files.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A path for one of the test's own files.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Runs a command against this scheduler and returns its output.
    pub(crate) fn command(&self, arguments: &[&str]) -> Output {
        self.command_at(&self.scheduler_address, arguments)
    }

    /// The same against a scheduler that is reached at another address.
    pub(crate) fn command_at(&self, scheduler_address: &str, arguments: &[&str]) -> Output {
        let (address, port) = host_and_port(scheduler_address);
        let mut command = self.lrts(arguments);
        command.args(["--scheduler-address", address, "--scheduler-port", port]);
        command.output().expect("the lrts command starts")
    }

    /// Runs a command with `--json` and returns its lines as values.
    pub(crate) fn json(&self, arguments: &[&str]) -> Vec<serde_json::Value> {
        let mut arguments = arguments.to_vec();
        arguments.push("--json");
        let output = self.command(&arguments);
        let text = String::from_utf8(output.stdout).expect("JSON is UTF-8");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        text.lines().map(|line| serde_json::from_str(line).expect("a JSON object a line")).collect()
    }

    /// Waits until as many jobs are in a state as wanted.
    pub(crate) fn wait_for_jobs(&self, state: &str, count: u64) {
        eventually(&format!("{count} jobs are {state}"), SOON, || {
            let status = &self.json(&["status"])[0];
            if status["jobs"][state] == count { Ok(()) } else { Err(status.to_string()) }
        });
    }

    /// Waits until as many workers are connected.
    pub(crate) fn wait_for_workers(&self, count: u64) {
        eventually(&format!("{count} workers are connected"), SOON, || {
            let status = &self.json(&["status"])[0];
            if status["workers"] == count { Ok(()) } else { Err(status.to_string()) }
        });
    }

    /// Waits until `lrts workers` shows this worker in this state; `None`: not at all.
    pub(crate) fn wait_for_worker(&self, worker: &str, state: Option<&str>) {
        eventually(&format!("worker {worker} is {state:?}"), SOON, || {
            let rows = self.json(&["workers"]);
            let row = rows.iter().find(|row| row["worker"] == worker);
            let found = row.map(|row| row["state"].as_str().expect("a state"));
            if found == state { Ok(()) } else { Err(format!("{rows:?}")) }
        });
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        Part::all(self.directory.path()).kill();
    }
}

/// A scheduler whose state is in the test's own directory.
fn scheduler_command(keys: Option<&Path>, directory: &Path, port: &str, flags: &[String]) -> Command {
    let mut command = lrts_with(keys, &["scheduler", "--port", port]);
    command.arg("--state-dir").arg(Cluster::scheduler_directory(directory)).args(flags);
    command
}

fn host_and_port(address: &str) -> (&str, &str) {
    address.rsplit_once(':').expect("host and port")
}
