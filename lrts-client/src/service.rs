//! Services: what a program can run on a cluster, and the entry through which it runs them.

use std::any::TypeId;
use std::io::Write;
use std::sync::OnceLock;

use lrts_core::limits::{SERVICE_NAME_BYTES, SERVICES_PER_BUNDLE};
use lrts_core::mode::{self, Mode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::context::JobContext;
use crate::encoding::{self, DecodeError, EncodeError};
use crate::host;

/// What [`Service::run`] returns when it fails: any error, with its causes. Of a text [`ServiceError::msg`] makes one.
pub use anyhow::Error as ServiceError;

/// Exit code of a process whose program is put together wrongly, as for wrong usage.
const WRONG_PROGRAM: i32 = 2;

/// Most bytes of a program's service names in all.
const NAMES_BYTES: usize = 64 * 1024;

/// Something that runs on a cluster: a value that travels there, and what is to be done with it.
///
/// The value is encoded with its field names, sent to a worker, and decoded there in a process of its own for each attempt.
///
/// ```
/// use lrts_client::{JobContext, Service, ServiceError};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct Mult { a: f64, b: f64 }
///
/// impl Service for Mult {
///     const NAME: &'static str = "mult";
///     type Output = f64;
///     fn run(self, _job: &JobContext) -> Result<f64, ServiceError> { Ok(self.a * self.b) }
/// }
///
/// let product = Mult { a: 6.0, b: 9.0 }.run(&JobContext::detached()).unwrap();
/// assert_eq!(product, 54.0);
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a service, so it can't be run on a cluster",
    label = "needs `impl Service`",
    note = "a service is a type with `#[derive(Serialize, Deserialize)]` and `impl lrts_client::Service`",
    note = "closures and references can't travel to another machine: put what the job needs into the fields of a type"
)]
pub trait Service: Serialize + DeserializeOwned + Send + 'static {
    /// The service's name, the same in every version of the program: 1 to 128 bytes, unique within a program.
    const NAME: &'static str;

    /// What a job of this service gives back.
    type Output: Serialize + DeserializeOwned + Send + 'static;

    /// Does the work, in a process of its own.
    ///
    /// # Errors
    ///
    /// Whatever makes the job fail. The error and its causes become the [`Failure`](lrts_core::status::Failure)'s message.
    fn run(self, job: &JobContext) -> Result<Self::Output, ServiceError>;
}

/// The services of a program. Made by [`host_services!`](crate::host_services), or by hand where crates share theirs:
/// `pub fn services() -> Services`, joined by [`merge`](Self::merge).
#[derive(Debug, Default)]
#[must_use = "services are run only after `.host()`"]
pub struct Services {
    entries: Vec<Entry>,
}

/// One service without its type.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    name: &'static str,
    type_id: TypeId,
    type_name: &'static str,
    output: TypeId,
    run: fn(&[u8], &JobContext) -> Result<Vec<u8>, RunError>,
}

/// What an application knows of a service that its program runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hosted {
    pub(crate) name: &'static str,
    /// The type of its outputs.
    pub(crate) output: TypeId,
}

/// Why a service gave no output.
#[derive(Debug)]
pub(crate) enum RunError {
    /// The payload isn't this service.
    Payload(DecodeError),
    /// `run` returned it.
    Returned(ServiceError),
    /// The output can't be written.
    Output(EncodeError),
}

impl Entry {
    /// Decodes the service, runs it, encodes its output.
    pub(crate) fn run(&self, payload: &[u8], job: &JobContext) -> Result<Vec<u8>, RunError> {
        (self.run)(payload, job)
    }
}

fn run<S: Service>(payload: &[u8], job: &JobContext) -> Result<Vec<u8>, RunError> {
    let service: S = encoding::decode(payload).map_err(RunError::Payload)?;
    let output = service.run(job).map_err(RunError::Returned)?;
    encoding::encode(&output).map_err(RunError::Output)
}

impl Services {
    /// No services.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a service. A name that is empty or too long doesn't compile.
    ///
    /// # Panics
    ///
    /// If another service has the same name, or there are over 1,024 services or 64 KiB of names.
    #[track_caller]
    pub fn add<S: Service>(mut self) -> Self {
        const {
            assert!(!S::NAME.is_empty(), "a service's name is empty");
            assert!(S::NAME.len() <= SERVICE_NAME_BYTES, "a service's name is longer than 128 bytes");
        }
        self.push(Entry {
            name: S::NAME,
            type_id: TypeId::of::<S>(),
            type_name: std::any::type_name::<S>(),
            output: TypeId::of::<S::Output>(),
            run: run::<S>,
        });
        self
    }

    /// Adds all of another crate's services. The same service twice is fine.
    ///
    /// # Panics
    ///
    /// If two different services have the same name, or there are over 1,024 services or 64 KiB of names.
    #[track_caller]
    pub fn merge(mut self, others: Services) -> Self {
        for entry in others.entries {
            self.push(entry);
        }
        self
    }

    #[track_caller]
    fn push(&mut self, entry: Entry) {
        match self.find(entry.name) {
            Some(there) if there.type_id == entry.type_id => {}
            Some(there) => panic!(
                "two services have the name `{}`: {} and {}",
                entry.name, there.type_name, entry.type_name
            ),
            None => self.entries.push(entry),
        }
        // They travel to the worker in one notice.
        let bytes: usize = self.entries.iter().map(|entry| entry.name.len()).sum();
        assert!(
            self.entries.len() <= SERVICES_PER_BUNDLE && bytes <= NAMES_BYTES,
            "{} services with names of {bytes} bytes in all: a program can have {SERVICES_PER_BUNDLE} with {NAMES_BYTES}",
            self.entries.len()
        );
    }

    pub(crate) fn find(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.name == name)
    }

    pub(crate) fn names(&self) -> Vec<&'static str> {
        self.entries.iter().map(|entry| entry.name).collect()
    }

    pub(crate) fn hosted(&self) -> Vec<Hosted> {
        self.entries.iter().map(|entry| Hosted { name: entry.name, output: entry.output }).collect()
    }

    /// Runs jobs if a worker has started this process for that, and then never returns. Else remembers which services the
    /// program has and returns.
    ///
    /// Belongs at the very beginning of `main`: once the process has a second thread (as under `#[tokio::main]`) it can't be
    /// forked safely any more, so each job's program is started anew, and a line on stderr says so.
    pub fn host(self) {
        let mode = mode::take();
        let threads = host::threads();
        let forks = threads == 1;
        // What a job prints is the job's own, so its process stays silent.
        if !forks && matches!(mode, Mode::Application | Mode::Host) {
            say(&format!(
                "lrts: host_services! was called while {threads} threads were running: each job will be started as a new \
                 program instead of a fork, which takes longer. Call it first in a plain `fn main`"
            ));
        }
        match mode {
            Mode::Application => register(self),
            Mode::Host => host::run_host(self, forks),
            Mode::Job => host::run_job(self),
            Mode::Progress => run_progress(),
        }
    }
}

/// Runs the progress subprocess on a thread of its own: this one may be inside a runtime, where another one can't run.
fn run_progress() -> ! {
    let ended = std::thread::spawn(|| lrts_core::progress::run_progress_mode()).join();
    match ended {
        Ok(never) => never,
        // The panic hook has reported it.
        Err(_) => std::process::exit(1),
    }
}

/// What [`Services::host`] was called with.
static REGISTERED: OnceLock<Vec<Hosted>> = OnceLock::new();

fn register(services: Services) {
    let registered = REGISTERED.get_or_init(|| services.hosted());
    let is_known = |name: &str| registered.iter().any(|service| service.name == name);
    // A job host never gets past the first call.
    for name in services.names().into_iter().filter(|name| !is_known(name)) {
        say(&format!(
            "lrts: service `{name}` is named in a second host_services!, where job hosts never come"
        ));
    }
}

/// The services that this program runs; none if it has not called `host_services!`.
pub(crate) fn registered() -> Option<&'static [Hosted]> {
    REGISTERED.get().map(Vec::as_slice)
}

/// Ends this process if a worker has started it to run jobs and it has come past its `main`'s beginning nonetheless.
///
/// A program that forgets `host_services!` would else start its whole self again for every job.
#[doc(hidden)]
pub fn refuse_foreign_mode() {
    if let Some(mode) = mode::ignored() {
        say(&format!(
            "lrts: this process was started in {} mode, but its program has not called host_services!. \
             host_services! must come first in main",
            mode.as_str()
        ));
        std::process::exit(WRONG_PROGRAM);
    }
}

/// A line on stderr, where nobody else can be told.
pub(crate) fn say(line: &str) {
    // A closed stderr is no reason to stop.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Whether all names differ; for `host_services!`, so that two services of one name don't compile.
#[doc(hidden)]
pub const fn names_differ(names: &[&str]) -> bool {
    let mut first = 0;
    while first < names.len() {
        let mut second = first + 1;
        while second < names.len() {
            if same(names[first].as_bytes(), names[second].as_bytes()) {
                return false;
            }
            second += 1;
        }
        first += 1;
    }
    true
}

const fn same(left: &[u8], right: &[u8]) -> bool {
    if left.len() != right.len() {
        return false;
    }
    let mut index = 0;
    while index < left.len() {
        if left[index] != right[index] {
            return false;
        }
        index += 1;
    }
    true
}

/// Runs this program's jobs: `host_services!(Mult, Add);` comes first in `main`.
///
/// In a process that a worker has started it never returns. In the program itself it only remembers the names. Two services
/// of one name don't compile:
///
/// ```compile_fail
/// # use lrts_client::{JobContext, Service, ServiceError};
/// # #[derive(serde::Serialize, serde::Deserialize)]
/// struct One;
/// # #[derive(serde::Serialize, serde::Deserialize)]
/// struct Other;
/// impl Service for One {
///     const NAME: &'static str = "name";
///     type Output = ();
///     fn run(self, _job: &JobContext) -> Result<(), ServiceError> { Ok(()) }
/// }
/// impl Service for Other {
///     const NAME: &'static str = "name";
///     type Output = ();
///     fn run(self, _job: &JobContext) -> Result<(), ServiceError> { Ok(()) }
/// }
/// lrts_client::host_services!(One, Other);
/// ```
#[macro_export]
macro_rules! host_services {
    ($($service:ty),+ $(,)?) => {{
        const _: () = assert!(
            $crate::service::names_differ(&[$(<$service as $crate::Service>::NAME),+]),
            "two services in host_services! have the same NAME"
        );
        $crate::Services::new()$(.add::<$service>())+.host();
    }};
}

/// [`host_services!`](crate::host_services) for test binaries, whose `main` is not theirs: stands at module level and runs
/// before `main`.
#[macro_export]
macro_rules! host_services_before_main {
    ($($service:ty),+ $(,)?) => {
        const _: () = {
            extern "C" fn host_services_before_main() {
                $crate::host_services!($($service),+);
            }
            #[used]
            #[allow(unsafe_code, reason = "code runs before main only from this section")]
            #[unsafe(link_section = ".init_array")]
            static BEFORE_MAIN: extern "C" fn() = host_services_before_main;
        };
    };
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Serialize, Deserialize)]
    struct Add(u8, u8);

    impl Service for Add {
        const NAME: &'static str = "add";
        type Output = u8;

        fn run(self, _job: &JobContext) -> Result<u8, ServiceError> {
            self.0.checked_add(self.1).ok_or_else(|| anyhow::anyhow!("no room").context("adding"))
        }
    }

    #[derive(Serialize, Deserialize)]
    struct Impostor;

    impl Service for Impostor {
        const NAME: &'static str = "add";
        type Output = ();

        fn run(self, _job: &JobContext) -> Result<(), ServiceError> {
            Ok(())
        }
    }

    #[test]
    fn entries_decode_run_and_encode() {
        let services = Services::new().add::<Add>();
        let job = JobContext::detached();
        let entry = services.find("add").unwrap();
        let payload = encoding::encode(&Add(2, 3)).unwrap();
        assert_eq!(encoding::decode::<u8>(&entry.run(&payload, &job).unwrap()).unwrap(), 5);
        let payload = encoding::encode(&Add(200, 100)).unwrap();
        match entry.run(&payload, &job) {
            Err(RunError::Returned(error)) => assert_eq!(format!("{error:#}"), "adding: no room"),
            other => panic!("{other:?}"),
        }
        assert!(matches!(entry.run(b"\xc1", &job), Err(RunError::Payload(_))));
        assert!(services.find("mult").is_none());
    }

    #[test]
    fn the_same_service_twice_is_one() {
        let shared = || Services::new().add::<Add>();
        assert_eq!(shared().merge(shared()).names(), ["add"]);
    }

    #[test]
    #[should_panic(expected = "two services have the name `add`")]
    fn two_services_of_one_name_are_refused() {
        let _ = Services::new().add::<Add>().merge(Services::new().add::<Impostor>());
    }

    #[test]
    fn a_program_that_forgets_host_services_does_not_start_itself_for_every_job() {
        // The inner one of the two processes.
        refuse_foreign_mode();
        let name = "service::tests::a_program_that_forgets_host_services_does_not_start_itself_for_every_job";
        let inner = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(mode::VARIABLE, Mode::Job.as_str())
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&inner.stderr);
        assert_eq!(inner.status.code(), Some(WRONG_PROGRAM), "{stderr}");
        assert!(stderr.contains("started in job mode"), "{stderr}");
        assert!(stderr.contains("host_services! must come first in main"), "{stderr}");
    }

    #[test]
    fn names_are_compared_before_the_program_runs() {
        assert!(names_differ(&["a", "b", "ab", ""]));
        assert!(!names_differ(&["a", "b", "a"]));
    }
}
