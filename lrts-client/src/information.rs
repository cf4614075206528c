//! Where the cluster is, and how this application wants to be treated.

use std::path::PathBuf;
use std::time::Duration;

use lrts_core::command_line::host_and_port;
use lrts_core::ids::ApplicationId;
use lrts_core::keys;
use lrts_core::spec::OnDisconnect;

use crate::display::{ProgressDisplay, ProgressSink};
use crate::error::ClientError;

const SCHEDULER_PORT: u16 = 5555;
const PROGRESS_PORT: u16 = 5454;
const LOCALHOST: &str = "127.0.0.1";

/// How long jobs of an application without an id of its own outlive its connection.
const CANCEL_AFTER: Duration = Duration::from_secs(3_600);

/// Everything that `start` has to know. Made by [`from_env`](Self::from_env) or [`new`](Self::new), then refined by the methods
/// named after what they set.
pub struct ApplicationInformation {
    /// A bad value is reported by `start`, so that making this never fails.
    scheduler: Result<Address, ClientError>,
    progress_server: Option<Result<Address, ClientError>>,
    application_id: Option<(&'static str, String)>,
    keys: Option<PathBuf>,
    insecure: bool,
    ends_with_program: bool,
    on_disconnect: Option<OnDisconnect>,
    progress_rtt_test_frequency: Duration,
    progress_iteration_timeout: Duration,
    communication_time_out: Option<Duration>,
    progress_display: ProgressDisplay,
    progress_sink: Option<Box<dyn ProgressSink>>,
    bundle: Bundle,
}

/// Which executable runs the jobs.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum Bundle {
    /// This program's own: it is copied to the workers that need it.
    #[default]
    CurrentExecutable,
    /// Another one, for example built for the workers' platform. It must host the services of the same names.
    Executable(PathBuf),
    /// One that the workers' operators have installed under this name (`lrts worker --bundle NAME=PATH`).
    Installed(String),
}

/// A host and a port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Address {
    host: String,
    port: u16,
}

/// An [`ApplicationInformation`] without mistakes.
pub(crate) struct Checked {
    pub(crate) scheduler: Address,
    pub(crate) progress_server: Address,
    /// None without keys.
    pub(crate) keys: Option<PathBuf>,
    pub(crate) application: ApplicationId,
    /// The id was made up here.
    pub(crate) nameless: bool,
    pub(crate) ends_with_program: bool,
    pub(crate) on_disconnect: OnDisconnect,
    pub(crate) progress_rtt_test: Duration,
    pub(crate) progress_iteration: Duration,
    pub(crate) communication_time_out: Option<Duration>,
    pub(crate) progress_display: ProgressDisplay,
    pub(crate) progress_sink: Option<Box<dyn ProgressSink>>,
    pub(crate) bundle: Bundle,
}

impl ApplicationInformation {
    /// What the environment says: `LRTS_SCHEDULER` (host:port, 127.0.0.1:5555), `LRTS_PROGRESS_SERVER` (the scheduler's host,
    /// port 5454), `LRTS_APPLICATION_ID`, `LRTS_KEYS` (as [`keys`](Self::keys)), and `LRTS_INSECURE` (not empty: as
    /// [`insecure`](Self::insecure)).
    ///
    /// Never fails; a bad value is reported by `start`.
    pub fn from_env() -> Self {
        let mut information = Self::new(LOCALHOST, SCHEDULER_PORT);
        if let Some(scheduler) = variable("LRTS_SCHEDULER") {
            information.scheduler = Address::parse("LRTS_SCHEDULER", scheduler, SCHEDULER_PORT);
        }
        information.progress_server = variable("LRTS_PROGRESS_SERVER")
            .map(|address| Address::parse("LRTS_PROGRESS_SERVER", address, PROGRESS_PORT));
        information.application_id = variable("LRTS_APPLICATION_ID")
            .map(|id| ("LRTS_APPLICATION_ID", id.unwrap_or_else(|unreadable| unreadable)));
        information.insecure = std::env::var_os("LRTS_INSECURE").is_some_and(|value| !value.is_empty());
        information
    }

    /// A cluster whose scheduler is there. A name is looked up at each attempt to connect.
    pub fn new(scheduler_address: impl Into<String>, scheduler_port: u16) -> Self {
        Self {
            scheduler: Ok(Address { host: scheduler_address.into(), port: scheduler_port }),
            progress_server: None,
            application_id: None,
            keys: None,
            insecure: false,
            ends_with_program: false,
            on_disconnect: None,
            progress_rtt_test_frequency: Duration::from_secs(10),
            progress_iteration_timeout: Duration::from_secs(2),
            communication_time_out: None,
            progress_display: ProgressDisplay::Auto,
            progress_sink: None,
            bundle: Bundle::CurrentExecutable,
        }
    }

    /// Where the progress server is, unless it is on the scheduler's host at port 5454.
    #[must_use]
    pub fn progress_server(mut self, address: impl Into<String>, port: u16) -> Self {
        self.progress_server = Some(Ok(Address { host: address.into(), port }));
        self
    }

    /// The application's name: 1 to 64 bytes of text. Without one a random name is made, and said on stderr. A newer start under
    /// the same name takes over from an older one, and comes back to its jobs.
    #[must_use]
    pub fn application_id(mut self, id: impl Into<String>) -> Self {
        self.application_id = Some(("application_id", id.into()));
        self
    }

    /// The cluster ends with this program, so that there is nothing to come back to. For `LocalCluster`.
    #[doc(hidden)]
    #[must_use]
    pub fn ends_with_program(mut self) -> Self {
        self.ends_with_program = true;
        self
    }

    /// The key to connect with: a key file, as made by `lrts keys export --role client`, or a directory of keys. Without it,
    /// `$LRTS_KEYS`, else `lrts/keys` in the user's configuration directory. If there is none yet, it is waited for.
    #[must_use]
    pub fn keys(mut self, path: impl Into<PathBuf>) -> Self {
        self.keys = Some(path.into());
        self
    }

    /// Connects to a cluster without keys (`--insecure`): nothing is encrypted, and whoever is on the network between can read and
    /// change all that is said.
    #[must_use]
    pub fn insecure(mut self) -> Self {
        self.insecure = true;
        self
    }

    /// What becomes of the jobs when the connection has ended. By default they are kept where an application id was given,
    /// and else cancelled after one hour.
    #[must_use]
    pub fn on_disconnect(mut self, on_disconnect: OnDisconnect) -> Self {
        self.on_disconnect = Some(on_disconnect);
        self
    }

    /// How often workers measure the round trip to the progress server, which decides how often bars move: 10 s unless set.
    #[must_use]
    pub fn progress_rtt_test_frequency(mut self, interval: Duration) -> Self {
        self.progress_rtt_test_frequency = interval;
        self
    }

    /// How long one round of handling progress may take, of what has come and of a sink's calls: 2 s unless set. The rest waits
    /// for the next round.
    #[must_use]
    pub fn progress_iteration_timeout(mut self, limit: Duration) -> Self {
        self.progress_iteration_timeout = limit;
        self
    }

    /// How long a wait may go without a scheduler before [`ClientError::NoScheduler`]. Unless set, for ever: a scheduler that
    /// comes back goes on where it was.
    #[must_use]
    pub fn communication_time_out(mut self, limit: Duration) -> Self {
        self.communication_time_out = Some(limit);
        self
    }

    /// How progress is shown: bars on a terminal and lines elsewhere unless set.
    #[must_use]
    pub fn progress_display(mut self, display: ProgressDisplay) -> Self {
        self.progress_display = display;
        self
    }

    /// Gives progress to a renderer or logger of one's own, beside what is displayed.
    #[must_use]
    pub fn progress_sink(mut self, sink: impl ProgressSink) -> Self {
        self.progress_sink = Some(Box::new(sink));
        self
    }

    /// Which executable runs the jobs: this program's own unless set.
    #[must_use]
    pub fn bundle(mut self, bundle: Bundle) -> Self {
        self.bundle = bundle;
        self
    }

    /// Finds mistakes and fills in what depends on other settings.
    pub(crate) fn check(self) -> Result<Checked, ClientError> {
        let scheduler = self.scheduler?.check("scheduler address")?;
        let progress_server = match self.progress_server {
            Some(address) => address?,
            None => Address { host: scheduler.host.clone(), port: PROGRESS_PORT },
        };
        let progress_server = progress_server.check("progress server address")?;
        let nameless = self.application_id.is_none();
        let application = match self.application_id {
            Some((name, id)) => {
                id.parse().map_err(|problem| ClientError::Setting { name, problem: format!("{problem}") })?
            }
            None => ApplicationId::random(),
        };
        let wrong_keys = |problem: String| ClientError::Setting { name: "keys", problem };
        let keys = match (self.insecure, self.keys) {
            (true, None) => None,
            (true, Some(_)) => {
                let problem = "both a key and insecure() or LRTS_INSECURE are set: leave one of them out";
                return Err(wrong_keys(problem.to_owned()));
            }
            (false, given) => {
                let default = || keys::keys_home(|name| std::env::var_os(name));
                let path = given.map_or_else(default, Ok).map_err(|error| wrong_keys(error.to_string()))?;
                // The program may go to another directory before it connects again.
                Some(std::path::absolute(path).map_err(|error| wrong_keys(error.to_string()))?)
            }
        };
        let default = if nameless { OnDisconnect::CancelAfter(CANCEL_AFTER) } else { OnDisconnect::Keep };
        Ok(Checked {
            scheduler,
            progress_server,
            keys,
            application,
            nameless,
            ends_with_program: self.ends_with_program,
            on_disconnect: self.on_disconnect.unwrap_or(default),
            progress_rtt_test: self.progress_rtt_test_frequency,
            progress_iteration: self.progress_iteration_timeout,
            communication_time_out: self.communication_time_out,
            progress_display: self.progress_display,
            progress_sink: self.progress_sink,
            bundle: self.bundle,
        })
    }
}

impl std::fmt::Debug for ApplicationInformation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApplicationInformation")
            .field("scheduler", &self.scheduler)
            .field("progress_server", &self.progress_server)
            .field("application_id", &self.application_id)
            .field("bundle", &self.bundle)
            .finish_non_exhaustive()
    }
}

/// An environment variable that isn't empty; as an error if it is no text.
fn variable(name: &str) -> Option<Result<String, String>> {
    let value = std::env::var_os(name).filter(|value| !value.is_empty())?;
    Some(value.into_string().map_err(|value| value.to_string_lossy().into_owned()))
}

impl Address {
    /// Reads `host:port`, `[v6]:port` or just a host.
    fn parse(
        name: &'static str,
        text: Result<String, String>,
        default_port: u16,
    ) -> Result<Self, ClientError> {
        let bad = |text: &str| ClientError::Setting {
            name,
            problem: format!(
                "`{text}` is no address, expected host:port, for example {LOCALHOST}:{default_port}"
            ),
        };
        let text = text.map_err(|unreadable| bad(&unreadable))?;
        let (host, port) = host_and_port(&text, default_port).ok_or_else(|| bad(&text))?;
        Ok(Self { host, port })
    }

    fn check(self, name: &'static str) -> Result<Self, ClientError> {
        let bad_host = self.host.is_empty() || self.host.contains(|c: char| c.is_whitespace() || c == '/');
        if bad_host || self.port == 0 {
            let problem = format!("`{self}` is no address: a host and a port other than 0 are needed");
            return Err(ClientError::Setting { name, problem });
        }
        Ok(self)
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<String, String> {
        match Address::parse("LRTS_SCHEDULER", Ok(text.to_owned()), 5555) {
            Ok(address) => Ok(address.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn addresses_are_read_as_people_write_them() {
        assert_eq!(parse("node7:6000"), Ok("node7:6000".to_owned()));
        assert_eq!(parse("node7"), Ok("node7:5555".to_owned()));
        assert_eq!(parse("[::1]:6000"), Ok("[::1]:6000".to_owned()));
        assert_eq!(parse("::1"), Ok("[::1]:5555".to_owned()));
        for bad in [":5555", "node7:many", "node7:99999", "http://node7:80", "a b:1"] {
            let error = parse(bad).unwrap_err();
            assert!(error.contains("LRTS_SCHEDULER") && error.contains(bad), "{error}");
        }
    }

    #[test]
    fn the_progress_server_is_on_the_schedulers_host_unless_said_otherwise() {
        let checked = ApplicationInformation::new("127.0.0.1", 7000).check().unwrap();
        assert_eq!(checked.progress_server.to_string(), "127.0.0.1:5454");
        let checked =
            ApplicationInformation::new("127.0.0.1", 7000).progress_server("::1", 9).check().unwrap();
        assert_eq!(checked.progress_server.to_string(), "[::1]:9");
    }

    #[test]
    fn a_name_keeps_the_jobs_and_no_name_lets_them_go() {
        let nameless = ApplicationInformation::new("localhost", 1).check().unwrap();
        assert_eq!(nameless.on_disconnect, OnDisconnect::CancelAfter(CANCEL_AFTER));
        let named = ApplicationInformation::new("localhost", 1).application_id("nightly").check().unwrap();
        assert_eq!(named.on_disconnect, OnDisconnect::Keep);
        assert_eq!(named.application.as_str(), "nightly");
    }

    #[test]
    fn keys_are_used_unless_told_otherwise() {
        let keys = |information: ApplicationInformation| information.check().unwrap().keys;
        let information = || ApplicationInformation::new("node7", 1);
        assert_eq!(keys(information().keys("/k")), Some("/k".into()));
        assert_eq!(keys(information().insecure()), None);
        assert!(information().keys("/k").insecure().check().is_err());
        assert!(keys(information()).is_some());
    }

    #[test]
    fn mistakes_are_named() {
        let error = |information: ApplicationInformation| information.check().err().unwrap().to_string();
        assert!(error(ApplicationInformation::new("localhost", 0)).contains("port"));
        assert!(error(ApplicationInformation::new("", 1)).contains("host"));
        assert!(
            error(ApplicationInformation::new("localhost", 1).application_id("")).contains("application id")
        );
    }
}
