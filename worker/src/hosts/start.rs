//! Starting a host: spawn, connect, Hello and Welcome, and what to say when that fails.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use lrts_core::environment;
use lrts_core::limits::{FAILURE_OUTPUT_BYTES, FAILURE_OUTPUT_LINES};
use lrts_core::mode::{self, Mode};
use lrts_core::notices::{AsyncNoticeSocket, NoticeListener, NoticeSocket};
use lrts_core::private_dir::file_options;
use lrts_core::protocol::OLDEST_HOST_VERSION;
use lrts_core::spec::BundleRef;
use nix::errno::Errno;
use tokio::process::{Child, Command};
use tracing::{info, warn};

use super::HostNumber;
use super::introduce::{Introduced, Introduction, introduce};
use super::process::Process;
use super::record::HostRecord;
use super::supervise::Surroundings;
use crate::bundles::Program;
use crate::state_dir::StateDir;

/// How often, and how long apart, a program file is tried again that another thread's child has still open.
const BUSY_TRIES: u32 = 100;
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// A host that has said Welcome.
pub(super) struct Started {
    pub(super) child: Child,
    pub(super) introduced: Introduced,
}

/// Why there is no host.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum StartError {
    /// The program never works on this machine.
    Refused(String),
    /// It may work later.
    Unavailable(String),
}

impl From<io::Error> for StartError {
    /// Trouble with this machine, not with the program.
    fn from(error: io::Error) -> Self {
        StartError::Unavailable(error.to_string())
    }
}

/// Starts the program in host mode and waits for its Welcome, for up to `patience`. Tells `started` of its process at once.
pub(super) async fn start(
    number: HostNumber,
    program: &Program,
    bundle: &BundleRef,
    around: &Surroundings,
    patience: Duration,
    started: impl FnOnce(Process),
) -> Result<Started, StartError> {
    let state = &*around.state;
    let path = state.host_socket(number);
    let listener = NoticeListener::bind(&path)?;
    // Before the host is there: the connection waits in the listener's queue, and breaks if the program ends.
    let socket = AsyncNoticeSocket::new(NoticeSocket::connect(&path)?)?;
    let mut child = spawn(program, listener, around, number).await?;
    let pid = child.id().unwrap_or_default();
    if let Some(process) = Process::of(pid) {
        started(process);
        // Before it can have a job: the next run of the worker has to find it.
        let record = HostRecord { bundle: bundle.clone(), process, boot_id: around.boot_id.clone() };
        if let Err(error) = record.write(&state.host_record(number)) {
            process.kill();
            child.wait().await?;
            return Err(StartError::Unavailable(format!("cannot write down a job host: {error}")));
        }
    }
    // It executes by now, so that nobody can write to it any more.
    if !program.is_unchanged().unwrap_or(false) {
        child.kill().await?;
        return Err(StartError::Unavailable("the program was changed while it was verified".to_owned()));
    }
    let log = state.host_log(number);
    let result = tokio::select! {
        // A program that ends also breaks the connection; its exit status says more.
        biased;
        status = child.wait() => Err(ended_too_soon(status?, &log)),
        welcome = tokio::time::timeout(patience, introduce(socket, &path, OLDEST_HOST_VERSION, around.orphan_grace)) => match welcome {
            Ok(Ok(introduced)) => {
                let Introduced { version, forks, .. } = introduced;
                info!(pid, version, forks, program = %program.path.display(), "job host started");
                if !forks {
                    warn!("the program starts threads before `host_services!`, so each of its jobs takes a new process");
                }
                Ok(introduced)
            }
            Ok(Err(Introduction::Broken)) => {
                // The program has closed the socket; if that was its end, its status comes now.
                match tokio::time::timeout(patience, child.wait()).await {
                    Ok(status) => Err(ended_too_soon(status?, &log)),
                    Err(_) => Err(StartError::Refused(not_a_host(&log))),
                }
            }
            Ok(Err(Introduction::Wrong(reason))) => Err(StartError::Refused(reason)),
            Err(_) => Err(StartError::Refused(not_a_host(&log))),
        },
    };
    match result {
        Ok(introduced) => Ok(Started { child, introduced }),
        Err(error) => {
            let _ended_already = child.kill().await;
            Err(error)
        }
    }
}

async fn spawn(
    program: &Program,
    listener: NoticeListener,
    around: &Surroundings,
    number: HostNumber,
) -> Result<Child, StartError> {
    let state: &StateDir = &around.state;
    if program.is_fetched_script()? {
        let reason =
            "it is a script, which can't be shipped: ship the program that it starts, or have it installed";
        return Err(StartError::Refused(reason.to_owned()));
    }
    let log = file_options().append(true).open(state.host_log(number))?;
    let mut command = Command::new(program.executable());
    command
        .arg0(&program.path)
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(Stdio::from(log.try_clone()?))
        .stderr(Stdio::from(log))
        .current_dir(state.path())
        .env_clear()
        .envs(std::env::vars_os().filter(|(name, _)| !environment::is_withheld(name)))
        .env(mode::VARIABLE, Mode::Host.as_str());
    let mut tries = 0;
    loop {
        match around.family.spawn(|| command.spawn()) {
            // Some other child, forked while the file was being written, hasn't come to its own program yet.
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && tries < BUSY_TRIES => {
                tries += 1;
                tokio::time::sleep(BUSY_PAUSE).await;
            }
            Err(error) => return Err(explain_spawn(error, &program.path)),
            Ok(child) => return Ok(child),
        }
    }
}

fn explain_spawn(error: io::Error, path: &Path) -> StartError {
    let path = path.display();
    let refused = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOEXEC) => "it is no program for this machine's processor".to_owned(),
        Some(Errno::ENOENT) => format!(
            "`{path}` or the loader that it asks for isn't there: it was built for another C library or is not installed"
        ),
        Some(Errno::EACCES | Errno::EPERM) => format!(
            "`{path}` may not be executed: is it executable, and is its file system mounted with noexec?"
        ),
        _ => return StartError::Unavailable(format!("cannot start `{path}`: {error}")),
    };
    StartError::Refused(refused)
}

/// What it means that a program ended before its Welcome.
fn ended_too_soon(status: ExitStatus, log: &Path) -> StartError {
    let words = last_words(log);
    if status.signal() == Some(libc::SIGKILL) {
        // The machine was out of memory, or somebody did it by hand.
        return StartError::Unavailable(format!("the program was killed at its start{words}"));
    }
    let status = describe(status);
    StartError::Refused(if words.contains("GLIBC_") && words.contains("not found") {
        format!(
            "the program needs a newer C library than this machine has: build it on an older system, or for musl{words}"
        )
    } else if words.contains("error while loading shared libraries") {
        format!("the program needs a library that this machine doesn't have{words}")
    } else {
        format!(
            "the program ended ({status}) instead of taking jobs: does its `main` begin with `host_services!`?{words}"
        )
    })
}

fn not_a_host(log: &Path) -> String {
    let words = last_words(log);
    format!("the program doesn't take jobs: its `main` must begin with `host_services!`{words}")
}

/// `exit code 3` or `signal 9`.
pub(super) fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// What the program printed last, as the end of a sentence; empty if it printed nothing.
pub(super) fn last_words(log: &Path) -> String {
    let Ok(text) = read_end(log) else { return String::new() };
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let lines = &lines[lines.len().saturating_sub(FAILURE_OUTPUT_LINES)..];
    if lines.is_empty() { String::new() } else { format!("; it printed:\n{}", lines.join("\n")) }
}

fn read_end(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(FAILURE_OUTPUT_BYTES as u64)))?;
    let mut text = Vec::new();
    file.take(FAILURE_OUTPUT_BYTES as u64).read_to_end(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    use lrts_core::bundle::digest_file;

    use super::*;
    use crate::bundles::BundleCache;

    async fn try_program(content: &str) -> StartError {
        try_for(content, Duration::from_secs(60)).await
    }

    async fn try_for(content: &str, patience: Duration) -> StartError {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(Some(&directory.path().join("state"))).unwrap();
        let path = directory.path().join("program");
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let around = Surroundings::alone(state);
        try_start(&Program::installed(path), &around, patience).await
    }

    async fn try_start(program: &Program, around: &Surroundings, patience: Duration) -> StartError {
        let bundle = BundleRef::Installed("program".to_owned());
        let process = std::cell::Cell::new(None);
        let started = |started| process.set(Some(started));
        let result = start(1, program, &bundle, around, patience, started).await;
        assert!(process.get().is_none_or(|process| !process.is_alive()), "the program is still there");
        match result {
            Err(error) => error,
            Ok(_) => panic!("no host was there to start"),
        }
    }

    async fn refusal(content: &str) -> String {
        match try_program(content).await {
            StartError::Refused(reason) => reason,
            StartError::Unavailable(reason) => panic!("not refused for good: {reason}"),
        }
    }

    /// What becomes of a fetched program that is changed in some way between its verification and its start.
    async fn try_fetched(content: &[u8], change: impl FnOnce(&Path)) -> StartError {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(Some(&directory.path().join("state"))).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        let digest = digest_file(&file).unwrap().0;
        let path = state.bundles().join(digest.to_string());
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        let program = BundleCache::new(state.bundles(), 1 << 30).find(digest).unwrap().unwrap();
        change(&path);
        try_start(&program, &Surroundings::alone(state), Duration::from_secs(60)).await
    }

    #[tokio::test]
    async fn a_fetched_program_is_the_one_that_was_verified_or_is_not_started() {
        let program = std::fs::read("/bin/false").unwrap();
        let nothing = |_: &Path| {};
        let StartError::Refused(reason) = try_fetched(&program, nothing).await else { panic!("not refused") };
        assert!(reason.contains("exit code 1"), "{reason}");

        let replace = |path: &Path| {
            std::fs::remove_file(path).unwrap();
            std::fs::copy("/bin/true", path).unwrap();
        };
        let append = |path: &Path| {
            File::options().append(true).open(path).unwrap().write_all(b"more").unwrap();
        };
        for error in [try_fetched(&program, replace).await, try_fetched(&program, append).await] {
            let StartError::Unavailable(reason) = error else { panic!("{error:?}") };
            assert!(reason.contains("changed while it was verified"), "{reason}");
        }

        let mut writer = None;
        let open = |path: &Path| writer = Some(File::options().write(true).open(path).unwrap());
        let StartError::Unavailable(reason) = try_fetched(&program, open).await else { panic!("started") };
        assert!(reason.contains("cannot start"), "{reason}");
    }

    #[tokio::test]
    async fn a_fetched_script_is_refused_with_what_to_do() {
        let error = try_fetched(b"#!/bin/sh\nexec sleep 600\n", |_| {}).await;
        let StartError::Refused(reason) = error else { panic!("{error:?}") };
        assert!(reason.contains("ship the program that it starts"), "{reason}");
    }

    #[tokio::test]
    async fn a_program_that_ends_by_itself_is_refused_with_its_last_words() {
        let reason = refusal("#!/bin/sh\necho \"I was told: $LRTS_MODE\" >&2\nexit 3\n").await;
        assert!(reason.contains("exit code 3") && reason.contains("host_services!"), "{reason}");
        assert!(reason.ends_with("I was told: host"), "{reason}");
    }

    #[tokio::test]
    async fn a_program_that_cannot_be_loaded_is_refused_with_what_to_do() {
        assert!(refusal("#!/no/such/loader\n").await.contains("another C library"));
        assert!(refusal("\u{7f}ELF nonsense").await.contains("processor"));
        let script = "#!/bin/sh\necho \"x: /lib/libc.so.6: version \\`GLIBC_2.99' not found\" >&2\nexit 1\n";
        assert!(refusal(script).await.contains("newer C library"));
    }

    #[tokio::test]
    async fn a_program_that_does_something_else_is_refused_with_what_to_do() {
        for script in ["#!/bin/sh\nexec sleep 600\n", "#!/bin/sh\nexec 0<&-\nexec sleep 600\n"] {
            let error = try_for(script, Duration::from_millis(100)).await;
            let StartError::Refused(reason) = error else { panic!("{error:?}") };
            assert!(reason.contains("`main` must begin with `host_services!`"), "{reason}");
        }
    }

    #[tokio::test]
    async fn a_program_that_was_killed_may_work_later() {
        let error = try_program("#!/bin/sh\nkill -9 $$\n").await;
        assert!(matches!(error, StartError::Unavailable(_)), "{error:?}");
    }

    #[tokio::test]
    async fn the_workers_own_variables_stay_with_it() {
        let reason = refusal("#!/bin/sh\nenv | grep ^LRTS_\npwd\nexit 1\n").await;
        let words = reason.split("it printed:\n").nth(1).unwrap();
        let mut lines = words.lines();
        assert_eq!(lines.next(), Some("LRTS_MODE=host"));
        assert!(lines.next().unwrap().ends_with("/state"));
    }
}
