//! What the tests run on their clusters. This test binary is the bundle.

use std::path::PathBuf;
use std::time::Duration;

use lrts_client::{Bytes, JobContext, Service, ServiceError};
use serde::{Deserialize, Serialize};

use crate::support::Work;

lrts_client::host_services_before_main!(
    Add,
    Fail,
    Panic,
    Abort,
    Segfault,
    Exit,
    KillItself,
    Sleep,
    Echo,
    Count,
    Note,
    Print,
    Surroundings,
    Patient,
    Family,
    Hog,
    Stuck,
    Picky,
    Crowd,
    Work
);

/// Adds.
#[derive(Serialize, Deserialize)]
pub(crate) struct Add(pub(crate) i64, pub(crate) i64);

impl Service for Add {
    const NAME: &'static str = "add";
    type Output = i64;
    fn run(self, _job: &JobContext) -> Result<i64, ServiceError> {
        Ok(self.0 + self.1)
    }
}

/// Returns an error with a cause.
#[derive(Serialize, Deserialize)]
pub(crate) struct Fail(pub(crate) String);

impl Service for Fail {
    const NAME: &'static str = "fail";
    type Output = ();
    fn run(self, _job: &JobContext) -> Result<(), ServiceError> {
        let cause = std::io::Error::other("the disk is on fire");
        Err(ServiceError::new(cause).context(self.0))
    }
}

/// Panics.
#[derive(Serialize, Deserialize)]
pub(crate) struct Panic(pub(crate) String);

impl Service for Panic {
    const NAME: &'static str = "panic";
    type Output = ();
    fn run(self, _job: &JobContext) -> Result<(), ServiceError> {
        panic!("{}", self.0)
    }
}

/// Aborts after a last word on stderr.
#[derive(Serialize, Deserialize)]
pub(crate) struct Abort;

impl Service for Abort {
    const NAME: &'static str = "abort";
    type Output = ();
    fn run(self, _job: &JobContext) -> Result<(), ServiceError> {
        eprintln!("last words");
        std::process::abort()
    }
}

/// Reads where nothing is.
#[derive(Serialize, Deserialize)]
pub(crate) struct Segfault;

impl Service for Segfault {
    const NAME: &'static str = "segfault";
    type Output = u8;
    #[expect(unsafe_code, reason = "nothing safe ends in a segmentation fault")]
    fn run(self, _job: &JobContext) -> Result<u8, ServiceError> {
        let nowhere = std::hint::black_box(8 as *const u8);
        // SAFETY: none; the fault is what the test wants.
        Ok(unsafe { nowhere.read_volatile() })
    }
}

/// Exits without a result.
#[derive(Serialize, Deserialize)]
pub(crate) struct Exit(pub(crate) i32);

impl Service for Exit {
    const NAME: &'static str = "exit";
    type Output = ();
    fn run(self, _job: &JobContext) -> Result<(), ServiceError> {
        std::process::exit(self.0)
    }
}

/// Kills itself with -9.
#[derive(Serialize, Deserialize)]
pub(crate) struct KillItself;

impl Service for KillItself {
    const NAME: &'static str = "kill-itself";
    type Output = ();
    fn run(self, _job: &JobContext) -> Result<(), ServiceError> {
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL)?;
        std::thread::sleep(Duration::from_secs(60));
        Ok(())
    }
}

/// Sleeps for so many milliseconds.
#[derive(Serialize, Deserialize)]
pub(crate) struct Sleep(pub(crate) u64);

impl Service for Sleep {
    const NAME: &'static str = "sleep";
    type Output = u32;
    fn run(self, job: &JobContext) -> Result<u32, ServiceError> {
        std::thread::sleep(Duration::from_millis(self.0));
        Ok(job.attempt())
    }
}

/// Sends back what it got.
#[derive(Serialize, Deserialize)]
pub(crate) struct Echo(pub(crate) Bytes);

impl Service for Echo {
    const NAME: &'static str = "echo";
    type Output = Bytes;
    fn run(self, _job: &JobContext) -> Result<Bytes, ServiceError> {
        Ok(self.0)
    }
}

/// Counts with a bar, a millisecond a step.
#[derive(Serialize, Deserialize)]
pub(crate) struct Count {
    pub(crate) name: String,
    pub(crate) steps: u64,
}

impl Service for Count {
    const NAME: &'static str = "count";
    type Output = u64;
    fn run(self, job: &JobContext) -> Result<u64, ServiceError> {
        let bar = job.progress(self.name).total(self.steps).unit("steps").start();
        for _ in 0..self.steps {
            std::thread::sleep(Duration::from_millis(1));
            bar.inc(1);
        }
        bar.close();
        Ok(self.steps)
    }
}

/// Writes a line to a file when it begins, sleeps, writes another when it ends.
#[derive(Serialize, Deserialize)]
pub(crate) struct Note {
    pub(crate) file: PathBuf,
    pub(crate) sleep_ms: u64,
}

impl Service for Note {
    const NAME: &'static str = "note";
    type Output = u32;
    fn run(self, job: &JobContext) -> Result<u32, ServiceError> {
        use std::io::Write;
        let mut file = std::fs::File::options().create(true).append(true).open(&self.file)?;
        writeln!(file, "began {}", std::process::id())?;
        std::thread::sleep(Duration::from_millis(self.sleep_ms));
        writeln!(file, "ended {}", std::process::id())?;
        Ok(job.attempt())
    }
}

/// Prints to both outputs.
#[derive(Serialize, Deserialize)]
pub(crate) struct Print {
    pub(crate) out: String,
    pub(crate) err: String,
    pub(crate) then_sleep_ms: u64,
}

impl Service for Print {
    const NAME: &'static str = "print";
    type Output = ();
    fn run(self, _job: &JobContext) -> Result<(), ServiceError> {
        println!("{}", self.out);
        eprintln!("{}", self.err);
        std::thread::sleep(Duration::from_millis(self.then_sleep_ms));
        Ok(())
    }
}

/// What a job finds around itself.
#[derive(Serialize, Deserialize, Debug)]
pub(crate) struct Found {
    pub(crate) directory: PathBuf,
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) stdin_is_empty: bool,
    pub(crate) process_group_is_own: bool,
}

/// Looks around.
#[derive(Serialize, Deserialize)]
pub(crate) struct Surroundings;

impl Service for Surroundings {
    const NAME: &'static str = "surroundings";
    type Output = Found;
    fn run(self, _job: &JobContext) -> Result<Found, ServiceError> {
        use std::io::Read;
        std::fs::write("left-behind", "by a job")?;
        let mut input = Vec::new();
        std::io::stdin().read_to_end(&mut input)?;
        Ok(Found {
            directory: std::env::current_dir()?,
            environment: std::env::vars().collect(),
            stdin_is_empty: input.is_empty(),
            process_group_is_own: nix::unistd::getpgrp() == nix::unistd::getpid(),
        })
    }
}

/// Runs until it is cancelled, then says goodbye in a file.
#[derive(Serialize, Deserialize)]
pub(crate) struct Patient {
    pub(crate) file: PathBuf,
    pub(crate) by_hook: bool,
}

impl Service for Patient {
    const NAME: &'static str = "patient";
    type Output = ();
    fn run(self, job: &JobContext) -> Result<(), ServiceError> {
        std::fs::write(&self.file, "began")?;
        if self.by_hook {
            let file = self.file.clone();
            job.on_cancel(move || {
                // The test reads the file; there is nobody to tell of an error.
                let _ = std::fs::write(file, "cancelled by hook");
                std::process::exit(0);
            });
        }
        while !job.is_cancelled() || self.by_hook {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::fs::write(&self.file, "cancelled by flag")?;
        Ok(())
    }
}

/// Starts processes that would outlive it if they could: a child, one in a session of its own, one whose parent has ended.
/// Each writes its process id to a file.
#[derive(Serialize, Deserialize)]
pub(crate) struct Family {
    pub(crate) file: PathBuf,
    pub(crate) sleep_ms: u64,
}

/// How many processes a [`Family`] has beside the job's own.
pub(crate) const RELATIVES: usize = 3;

impl Service for Family {
    const NAME: &'static str = "family";
    type Output = ();
    fn run(self, _job: &JobContext) -> Result<(), ServiceError> {
        // Deaf to SIGTERM, so that only the whole tree's SIGKILL ends them.
        let sleeper = "trap '' TERM HUP; echo $$ >> \"$0\"; while :; do sleep 1; done";
        let file = self.file.to_str().ok_or_else(|| ServiceError::msg("paths of tests are text"))?;
        let start = |program: &str, arguments: &[&str]| {
            std::process::Command::new(program).args(arguments).args([sleeper, file]).spawn()
        };
        start("sh", &["-c"])?;
        start("setsid", &["sh", "-c"])?;
        start("sh", &["-c", "setsid sh -c \"$0\" \"$1\" & exit 0"])?.wait()?;
        std::thread::sleep(Duration::from_millis(self.sleep_ms));
        Ok(())
    }
}

/// Takes more and more memory, in a process of its own beside the job's where `in_child` says so.
#[derive(Serialize, Deserialize)]
pub(crate) struct Hog {
    pub(crate) in_child: bool,
}

impl Service for Hog {
    const NAME: &'static str = "hog";
    type Output = usize;
    fn run(self, _job: &JobContext) -> Result<usize, ServiceError> {
        if self.in_child {
            // Doubles a string every 50 ms.
            let script = "s=0123456789abcdef; while [ ${#s} -lt 2000000000 ]; do s=$s$s; sleep 0.05; done";
            std::process::Command::new("sh").args(["-c", script]).status()?;
        }
        let mut taken: Vec<Vec<u8>> = Vec::new();
        while taken.len() < 2_000 {
            taken.push(vec![1; 1 << 20]);
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(std::hint::black_box(taken).len())
    }
}

/// Moves a bar for some steps, then never again.
#[derive(Serialize, Deserialize)]
pub(crate) struct Stuck {
    pub(crate) steps: u64,
}

impl Service for Stuck {
    const NAME: &'static str = "stuck";
    type Output = ();
    fn run(self, job: &JobContext) -> Result<(), ServiceError> {
        let bar = job.progress("stuck").total(self.steps).start();
        for _ in 0..self.steps {
            std::thread::sleep(Duration::from_millis(50));
            bar.inc(1);
        }
        std::thread::sleep(Duration::from_secs(600));
        Ok(())
    }
}

/// Dies at the worker whose state directory this is.
#[derive(Serialize, Deserialize)]
pub(crate) struct Picky {
    pub(crate) dies_below: PathBuf,
}

impl Service for Picky {
    const NAME: &'static str = "picky";
    type Output = PathBuf;
    fn run(self, _job: &JobContext) -> Result<PathBuf, ServiceError> {
        let here = std::env::current_dir()?;
        if here.starts_with(&self.dies_below) {
            std::process::abort();
        }
        std::thread::sleep(Duration::from_millis(300));
        Ok(here)
    }
}

/// Moves very many bars, again and again.
#[derive(Serialize, Deserialize)]
pub(crate) struct Crowd {
    pub(crate) name: String,
    pub(crate) bars: u64,
    pub(crate) rounds: u64,
}

impl Service for Crowd {
    const NAME: &'static str = "crowd";
    type Output = ();
    fn run(self, job: &JobContext) -> Result<(), ServiceError> {
        let start = |number| job.progress(format!("{} {number}", self.name)).total(self.rounds).start();
        let bars: Vec<_> = (0..self.bars).map(start).collect();
        for _ in 0..self.rounds {
            std::thread::sleep(Duration::from_millis(10));
            bars.iter().for_each(|bar| bar.inc(1));
        }
        Ok(())
    }
}
