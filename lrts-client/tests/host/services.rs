//! What the jobs of these tests run.

use std::io::Write;
use std::process::Command;
use std::time::Duration;

use lrts_client::{Bytes, JobContext, Service, ServiceError};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
pub(crate) struct Echo(pub(crate) String);

impl Service for Echo {
    const NAME: &'static str = "echo";
    type Output = (String, u32);

    fn run(self, job: &JobContext) -> Result<Self::Output, ServiceError> {
        Ok((self.0, job.attempt()))
    }
}

/// Ends in all sorts of ways.
#[derive(Serialize, Deserialize)]
pub(crate) enum Act {
    Error,
    Panic,
    PanicElsewhere,
    CatchPanic,
    PanicTwice,
    Exit(i32),
    Abort,
    SegmentationFault,
    StackOverflow,
    KillItself,
    Surroundings,
    Runtime,
    Bars,
    Fork,
}

impl Service for Act {
    const NAME: &'static str = "act";
    type Output = String;

    fn run(self, job: &JobContext) -> Result<String, ServiceError> {
        match self {
            Act::Error => {
                let cause = std::io::Error::other("disk on fire");
                return Err(ServiceError::new(cause).context("reading rows").context("loading"));
            }
            Act::Panic => panic!("row {} is odd", 7),
            Act::PanicElsewhere => {
                let thread = std::thread::spawn(|| panic!("not the job's thread"));
                assert!(thread.join().is_err());
            }
            Act::CatchPanic => assert!(std::panic::catch_unwind(|| panic!("caught")).is_err()),
            // The second one can't be unwound, which ends the process as `panic = "abort"` does.
            Act::PanicTwice => {
                let _panics = PanicsOnDrop;
                panic!("first");
            }
            Act::Exit(code) => {
                eprintln!("leaving early");
                std::process::exit(code)
            }
            Act::Abort => std::process::abort(),
            // As a wild pointer would; a debug build checks pointers before it uses them.
            Act::SegmentationFault => nix::sys::signal::raise(Signal::SIGSEGV)?,
            Act::StackOverflow => return Ok(recurse(1).to_string()),
            Act::KillItself => kill(Pid::this(), Signal::SIGKILL)?,
            Act::Surroundings => {
                let ours =
                    std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("LRTS_"));
                let mut input = String::new();
                std::io::Read::read_to_string(&mut std::io::stdin(), &mut input)?;
                let open = std::fs::read_dir("/proc/self/fd")?.count() - 1;
                let (core, _) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_CORE)?;
                let leads = nix::unistd::getpgrp() == Pid::this();
                return Ok(format!(
                    "{} {} lrts:{} stdin:{} open:{open} core:{core} leads:{leads} blocked:{}",
                    std::env::current_dir()?.display(),
                    std::env::var("GREETING")?,
                    ours.count(),
                    input.len(),
                    nix::sys::signal::SigSet::thread_get_mask()?.iter().count(),
                ));
            }
            Act::Runtime => {
                let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
                let first = runtime.block_on(async { tokio::spawn(async { 20 }).await })?;
                return Ok((first + job.block_on(async { 22 })).to_string());
            }
            Act::Fork => {
                // SAFETY: the copy only returns, and the job has no other thread.
                #[expect(unsafe_code, reason = "a service may fork")]
                match unsafe { nix::unistd::fork() }? {
                    nix::unistd::ForkResult::Child => {}
                    nix::unistd::ForkResult::Parent { child } => {
                        nix::sys::wait::waitpid(child, None)?;
                        std::process::exit(7);
                    }
                }
            }
            Act::Bars => {
                let bar = job.progress("Doing work").total(10).unit("rows").start();
                bar.inc(7);
                // Not closed: the process ends first.
                std::mem::forget(bar);
            }
        }
        Ok("done".to_owned())
    }
}

struct PanicsOnDrop;

impl Drop for PanicsOnDrop {
    fn drop(&mut self) {
        panic!("second");
    }
}

#[inline(never)]
fn recurse(depth: u64) -> u64 {
    let room = std::hint::black_box([depth; 64]);
    if depth == u64::MAX { 0 } else { recurse(depth + 1) + room[63] }
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Blob {
    pub(crate) input: Bytes,
    pub(crate) output_bytes: usize,
}

impl Service for Blob {
    const NAME: &'static str = "blob";
    type Output = Vec<u8>;

    fn run(self, _job: &JobContext) -> Result<Vec<u8>, ServiceError> {
        let sum = self.input.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        Ok(vec![sum; self.output_bytes])
    }
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Print {
    pub(crate) stdout_bytes: usize,
    pub(crate) stderr: String,
}

impl Service for Print {
    const NAME: &'static str = "print";
    type Output = ();

    fn run(self, _job: &JobContext) -> Result<(), ServiceError> {
        let mut stdout = std::io::stdout();
        stdout.write_all(&vec![b'x'; self.stdout_bytes])?;
        stdout.write_all(b"end")?;
        eprint!("{}", self.stderr);
        Ok(())
    }
}

/// Waits, in the way that its fields say, and tells where it is by writing files into its directory.
#[derive(Serialize, Deserialize, Default, Clone, Copy)]
pub(crate) struct Wait {
    /// Starts a process in the same group, one in a session of its own, and one in a session of its own whose parent ends.
    pub(crate) children: bool,
    pub(crate) hook: bool,
    pub(crate) look: bool,
    /// Goes on for ever nonetheless.
    pub(crate) stubborn: bool,
    /// Returns at once, leaving its children.
    pub(crate) leave: bool,
    /// Starts a process in a session of its own that writes the file `told` on SIGTERM, and returns once it has.
    pub(crate) teach: bool,
    /// Moves its process into the host's group.
    pub(crate) wander: bool,
}

impl Service for Wait {
    const NAME: &'static str = "wait";
    type Output = String;

    fn run(self, job: &JobContext) -> Result<String, ServiceError> {
        if self.children {
            let near = Command::new("sleep").arg("600").spawn()?;
            let far = Command::new("setsid").args(["sleep", "600"]).spawn()?;
            let orphan =
                Command::new("sh").args(["-c", "setsid sleep 600 >/dev/null 2>&1 & echo $!"]).output()?;
            let orphan = String::from_utf8(orphan.stdout)?;
            std::fs::write("children.part", format!("{} {} {}", near.id(), far.id(), orphan.trim()))?;
            std::fs::rename("children.part", "children")?;
        }
        if self.wander {
            nix::unistd::setpgid(Pid::this(), nix::unistd::getpgid(Some(Pid::parent()))?)?;
        }
        let (sender, told) = std::sync::mpsc::channel();
        if self.hook {
            let hook = sender.clone();
            job.on_cancel(move || hook.send("hook").expect("the job waits"));
        }
        if self.look {
            job.is_cancelled();
        }
        if self.teach {
            job.is_cancelled();
            let script = "trap 'echo > told; exit' TERM; echo > taught; while :; do sleep 0.01; done";
            Command::new("setsid").args(["sh", "-c", script]).spawn()?;
            while !std::path::Path::new("taught").exists() {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        std::fs::write("ready", "")?;
        if self.leave {
            return Ok("left".to_owned());
        }
        loop {
            if let Ok(word) = told.recv_timeout(Duration::from_millis(5))
                && !self.stubborn
            {
                return Ok(word.to_owned());
            }
            if self.teach && std::path::Path::new("told").exists() {
                return Ok("told".to_owned());
            }
            if self.look && job.is_cancelled() && !self.stubborn {
                anyhow::bail!("looked");
            }
        }
    }
}

/// Prints, then waits for a file named `go` in its directory, as nobody stops it from.
#[derive(Serialize, Deserialize)]
pub(crate) struct Await;

impl Service for Await {
    const NAME: &'static str = "await";
    type Output = String;

    fn run(self, job: &JobContext) -> Result<String, ServiceError> {
        let bar = job.progress("Waiting").total(2).start();
        bar.inc(1);
        println!("waits");
        std::fs::write("ready", "")?;
        while !std::path::Path::new("go").exists() {
            std::thread::sleep(Duration::from_millis(2));
        }
        bar.inc(1);
        Ok("went".to_owned())
    }
}

/// Makes progress some times, then stands still.
#[derive(Serialize, Deserialize)]
pub(crate) struct Beat {
    pub(crate) times: u32,
    pub(crate) interval: Duration,
    /// By checkpoints instead of a bar.
    pub(crate) checkpoints: bool,
}

impl Service for Beat {
    const NAME: &'static str = "beat";
    type Output = ();

    fn run(self, job: &JobContext) -> Result<(), ServiceError> {
        let bar = job.progress("Beating").start();
        for time in 1..=self.times {
            std::thread::sleep(self.interval);
            if self.checkpoints {
                job.checkpoint(&time)?;
            } else {
                bar.inc(1);
            }
        }
        loop {
            std::thread::park();
        }
    }
}

/// Takes memory, itself or in a child that has left its session, and keeps it.
#[derive(Serialize, Deserialize)]
pub(crate) struct Grow {
    pub(crate) bytes: usize,
    pub(crate) in_child: bool,
    /// Has so many copies of itself.
    pub(crate) copies: u32,
}

impl Service for Grow {
    const NAME: &'static str = "grow";
    type Output = ();

    fn run(self, _job: &JobContext) -> Result<(), ServiceError> {
        let grow = || {
            let _kept = std::hint::black_box(vec![1u8; self.bytes]);
            for _ in 0..self.copies {
                // SAFETY: the job has no other thread.
                #[expect(unsafe_code, reason = "a service may fork")]
                if let nix::unistd::ForkResult::Child = unsafe { nix::unistd::fork() }? {
                    break;
                }
            }
            std::fs::write("ready", "")?;
            loop {
                std::thread::park();
            }
        };
        if self.in_child {
            // SAFETY: the job has no other thread.
            #[expect(unsafe_code, reason = "a service may fork")]
            if let nix::unistd::ForkResult::Child = unsafe { nix::unistd::fork() }? {
                nix::unistd::setsid()?;
                return grow();
            }
            loop {
                std::thread::park();
            }
        }
        grow()
    }
}

/// Makes checkpoints.
#[derive(Serialize, Deserialize)]
pub(crate) enum Keep {
    /// Returns what an earlier attempt has left.
    Last,
    /// Counts so far, keeping each number.
    Count(u64),
    /// Keeps a state and dies at once.
    Die(String),
    /// Keeps one state of this many bytes, then waits for ever.
    Large(usize),
    /// Keeps the number in the file `state` whenever that changes, and then says so in the file `kept`.
    Follow,
}

impl Service for Keep {
    const NAME: &'static str = "keep";
    type Output = Option<String>;

    fn run(self, job: &JobContext) -> Result<Option<String>, ServiceError> {
        match self {
            Keep::Last => return Ok(job.last_checkpoint()?),
            Keep::Count(count) => {
                for number in 1..=count {
                    job.checkpoint(&number)?;
                }
                return Ok(job.last_checkpoint::<u64>()?.map(|number| number.to_string()));
            }
            Keep::Die(state) => {
                job.checkpoint(&state)?;
                kill(Pid::this(), Signal::SIGKILL)?;
            }
            Keep::Large(bytes) => job.checkpoint(&Bytes::from(vec![7; bytes]))?,
            Keep::Follow => {
                let mut last = 0;
                loop {
                    let text = std::fs::read_to_string("state").unwrap_or_default();
                    if let Ok(number) = text.parse::<u64>()
                        && number != last
                    {
                        job.checkpoint(&number)?;
                        std::fs::write("kept", text)?;
                        last = number;
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
        }
        loop {
            std::thread::park();
        }
    }
}

/// Says what it has got from those who have started it.
#[derive(Serialize, Deserialize)]
pub(crate) struct Look;

/// What a process has got.
#[derive(Serialize, Deserialize)]
pub(crate) struct Inherited {
    pub(crate) environment: Vec<(String, String)>,
    /// The job's open descriptors, and what they lead to.
    pub(crate) descriptors: Vec<(i32, String)>,
    /// The same of a program that it starts.
    pub(crate) of_program: Vec<(i32, String)>,
    pub(crate) command_line: String,
}

impl Service for Look {
    const NAME: &'static str = "look";
    type Output = Inherited;

    fn run(self, _job: &JobContext) -> Result<Inherited, ServiceError> {
        let mut program = Command::new("sleep").arg("600").spawn()?;
        // It is there only once the exec is done.
        let of_program = descriptors(Pid::from_raw(program.id().cast_signed()));
        program.kill()?;
        program.wait()?;
        Ok(Inherited {
            environment: std::env::vars().collect(),
            descriptors: descriptors(Pid::this()),
            of_program,
            command_line: std::fs::read_to_string("/proc/self/cmdline")?,
        })
    }
}

/// The open descriptors of a process, and what they lead to; not the one that looks.
pub(crate) fn descriptors(of: Pid) -> Vec<(i32, String)> {
    let entries = std::fs::read_dir(format!("/proc/{of}/fd")).unwrap();
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            let entry = entry.unwrap();
            let target = std::fs::read_link(entry.path()).ok()?.display().to_string();
            Some((entry.file_name().to_str()?.parse().ok()?, target))
        })
        .filter(|(_, target)| !(target.starts_with("/proc/") && target.ends_with("/fd")))
        .collect();
    found.sort_unstable();
    found
}
