//! Real daemons for tests: started from the `lrts` command, in a directory of their own, on free ports, ended with the test.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use lrts_client::ApplicationInformation;
use lrts_core::clock::Moment;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// How long anything that must happen may take on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// Polls until `probe` returns a value; fails with the last complaint once `limit` has passed.
pub(crate) fn eventually<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Moment::now() + limit;
    loop {
        match probe() {
            Ok(value) => return value,
            Err(last) if Moment::now() >= deadline => panic!("{what}: not within {limit:?}; last: {last}"),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// The `lrts` command with these arguments.
pub(crate) fn lrts(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lrts"));
    command.args(arguments).stdin(Stdio::null());
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("LRTS_")) {
        command.env_remove(name);
    }
    command
}

/// Runs the `lrts` command to its end.
pub(crate) fn run_lrts(arguments: &[&str]) -> Output {
    lrts(arguments).output().expect("the lrts command starts")
}

/// A process that says on stdout when it is ready, and logs to a file.
pub(crate) struct Daemon {
    child: Child,
    name: String,
    log: PathBuf,
    stdout: mpsc::Receiver<String>,
}

impl Daemon {
    /// Starts a command; its stderr goes to `directory/NAME.log`, behind what is there.
    pub(crate) fn start(name: &str, mut command: Command, directory: &Path) -> Self {
        let log = directory.join(format!("{name}.log"));
        let stderr = File::options().create(true).append(true).open(&log).expect("own directory");
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let (lines, stdout) = mpsc::channel();
        let pipe = child.stdout.take().expect("was piped");
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                if lines.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, name: name.to_owned(), log, stdout }
    }

    /// The next line on stdout.
    pub(crate) fn line(&mut self) -> String {
        match self.stdout.recv_timeout(SOON) {
            Ok(line) => line,
            Err(error) => panic!("{} says nothing ({error})\n{}", self.name, self.log()),
        }
    }

    /// Waits for the line that says it is ready and returns its last word.
    pub(crate) fn ready(&mut self) -> String {
        let line = self.line();
        assert!(line.starts_with("lrts ") && line.contains(" ready "), "{}: {line}", self.name);
        line.rsplit(' ').next().expect("a last word").to_owned()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("the process is a child of this one");
    }

    /// Kills it with -9 and reaps it.
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.child.wait().expect("a child can be reaped");
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let deadline = Moment::now() + SOON;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be asked") {
                return status;
            }
            assert!(Moment::now() < deadline, "{} doesn't end\n{}", self.name, self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Everything it has logged.
    pub(crate) fn log(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        format!("--- {} ---\n{}", self.name, String::from_utf8_lossy(&text))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            // Where the test runner keeps it for failed tests; nothing more can be done if even that fails.
            let _ = writeln!(std::io::stderr(), "{}", self.log());
        }
    }
}

/// A scheduler whose state is in the test's own directory.
fn scheduler_command(directory: &Path, port: &str) -> Command {
    let mut command = lrts(&["scheduler", "--port", port, "--state-dir"]);
    command.arg(directory.join("scheduler"));
    command
}

/// Scheduler, progress server and workers as processes of their own.
pub(crate) struct Cluster {
    pub(crate) workers: Vec<Daemon>,
    pub(crate) progress_server: Daemon,
    pub(crate) scheduler: Daemon,
    pub(crate) scheduler_address: String,
    pub(crate) progress_address: String,
    started_workers: u32,
    directory: TempDir,
}

impl Cluster {
    /// A scheduler with these further flags and a progress server, no worker.
    pub(crate) fn without_workers(scheduler_flags: &[&str]) -> Self {
        let directory = TempDir::with_prefix("lrts-test-").expect("a temporary directory");
        let mut command = scheduler_command(directory.path(), "0");
        command.args(scheduler_flags);
        let mut scheduler = Daemon::start("scheduler", command, directory.path());
        let mut progress_server =
            Daemon::start("progress-server", lrts(&["progress-server", "--port", "0"]), directory.path());
        let scheduler_address = scheduler.ready();
        let progress_address = progress_server.ready();
        Self {
            workers: Vec::new(),
            progress_server,
            scheduler,
            scheduler_address,
            progress_address,
            started_workers: 0,
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
        let mut worker = self.start_worker(slots, flags);
        let id = worker.ready();
        self.workers.push(worker);
        id
    }

    /// Starts a worker without waiting.
    pub(crate) fn start_worker(&mut self, slots: u32, flags: &[&str]) -> Daemon {
        self.started_workers += 1;
        let name = format!("worker-{}", self.started_workers);
        let (address, port) = self.scheduler_address.rsplit_once(':').expect("host and port");
        let progress_port = self.progress_address.rsplit_once(':').expect("host and port").1;
        let state = self.directory.path().join(&name);
        let mut command = lrts(&["worker", "--scheduler-address", address, "--scheduler-port", port]);
        command.args(["--progress-port", progress_port, "--max-jobs", &slots.to_string()]);
        command.arg("--state-dir").arg(state).args(flags);
        Daemon::start(&name, command, self.directory.path())
    }

    /// Starts the progress server again on the port that it had.
    pub(crate) fn restart_progress_server(&mut self) {
        let port = self.progress_address.rsplit_once(':').expect("host and port").1.to_owned();
        self.progress_server = Daemon::start(
            "progress-server",
            lrts(&["progress-server", "--port", &port]),
            self.directory.path(),
        );
        self.progress_server.ready();
    }

    /// Starts the scheduler again on the port that it had.
    pub(crate) fn restart_scheduler(&mut self) {
        let port = self.scheduler_address.rsplit_once(':').expect("host and port").1.to_owned();
        self.scheduler = Daemon::start(
            "scheduler",
            scheduler_command(self.directory.path(), &port),
            self.directory.path(),
        );
        self.scheduler.ready();
    }

    /// What an application in this process needs.
    pub(crate) fn information(&self) -> ApplicationInformation {
        let split = |address: &str| {
            let (host, port) = address.rsplit_once(':').expect("host and port");
            (host.to_owned(), port.parse::<u16>().expect("a port"))
        };
        let (address, port) = split(&self.scheduler_address);
        let (progress_address, progress_port) = split(&self.progress_address);
        ApplicationInformation::new(address, port)
            .progress_server(progress_address, progress_port)
            .progress_display(lrts_client::ProgressDisplay::Hidden)
    }

    /// A directory for the test's own files.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Runs a command against this scheduler and returns its output.
    pub(crate) fn command(&self, arguments: &[&str]) -> Output {
        let (address, port) = self.scheduler_address.rsplit_once(':').expect("host and port");
        let mut command = lrts(arguments);
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
}

/// An example or helper program of this package, built beside this test.
pub(crate) fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test has an executable");
    let profile = test.parent().and_then(Path::parent).expect("target/PROFILE/deps");
    profile.join("examples").join(name)
}
