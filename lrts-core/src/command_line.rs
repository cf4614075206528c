//! What all of lrts' commands share: single dashes, durations, sizes, exit codes.

use std::error::Error;
use std::ffi::OsString;
use std::io;
#[cfg(feature = "commands")]
use std::io::Write;
use std::net::SocketAddrV6;
use std::num::NonZero;
#[cfg(feature = "commands")]
use std::path::PathBuf;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

#[cfg(feature = "commands")]
use crate::terminal::{Keep, visible};

/// Exit codes of every command.
pub mod exit_code {
    /// Done.
    pub const DONE: u8 = 0;
    /// The operation failed.
    pub const FAILED: u8 = 1;
    /// Wrong usage.
    pub const USAGE: u8 = 2;
    /// No scheduler within the time limit.
    pub const NO_SCHEDULER: u8 = 3;
    /// Refused: keys, roles, versions.
    pub const REFUSED: u8 = 4;
}

/// The runtime of a daemon: two threads, one that decides and one for what takes its time at a peer; on a single core one, since
/// two would only wait for each other's turns.
///
/// # Errors
///
/// If the system gives it no threads.
pub fn daemon_runtime() -> io::Result<Runtime> {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    Builder::new_multi_thread().worker_threads(cores.min(2)).enable_all().build()
}

/// Raises this process's soft limit of open files to the hard one, since a server's connections take three each. Must come
/// before a server is started, which asks for the limit once.
pub fn raise_open_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// Turns long flags with one dash (`-address`) into ones with two. Numbers (`-1`) and what follows `--` stay.
pub fn normalise(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut literal = false;
    arguments
        .into_iter()
        .map(|argument| {
            literal |= argument == "--";
            match argument.to_str() {
                Some(text) if !literal && is_long_flag_with_one_dash(text) => format!("-{text}").into(),
                _ => argument,
            }
        })
        .collect()
}

fn is_long_flag_with_one_dash(text: &str) -> bool {
    let mut letters = text.bytes();
    letters.next() == Some(b'-')
        && letters.next().is_some_and(|byte| byte.is_ascii_alphabetic())
        && letters.next().is_some_and(|byte| byte.is_ascii_alphabetic())
}

/// Why a command failed, with the exit code that goes with it.
pub trait CommandError: Error {
    /// One of [`exit_code`].
    fn exit_code(&self) -> u8;
}

/// Runs a program: parses its command line, calls `main`, prints an error on one line, and gives the exit code.
#[cfg(feature = "commands")]
pub fn run<C: clap::Parser, E: CommandError + 'static>(
    program: &str,
    main: impl FnOnce(C) -> Result<(), E>,
) -> std::process::ExitCode {
    let (line, code) = match C::try_parse_from(normalise(std::env::args_os())) {
        Ok(command) => match main(command) {
            Ok(()) => return exit_code::DONE.into(),
            Err(error) => (error_line(program, &error), error.exit_code()),
        },
        Err(error) if error.use_stderr() => {
            let wrong = usage_error(&error.render().to_string());
            (format!("{program}: {wrong} (--help shows what there is)"), exit_code::USAGE)
        }
        Err(help) => {
            // Nobody reads it if that fails.
            let _ = help.print();
            return exit_code::DONE.into();
        }
    };
    // As above: the exit code says it too.
    let _ = writeln!(std::io::stderr(), "{line}");
    code.into()
}

/// An error and its causes on one line, behind the program's name.
#[cfg(feature = "commands")]
fn error_line(program: &str, error: &(dyn Error + 'static)) -> String {
    // Some of it others may have said.
    visible(&format!("{program}: {}", with_causes(error)), Keep::Nothing)
}

/// An error and its causes on one line.
pub(crate) fn with_causes(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    causes.fold(error.to_string(), |line, cause| format!("{line}: {cause}"))
}

/// How a command secures its connections.
#[cfg(feature = "commands")]
#[derive(Clone, Debug, Default, clap::Args)]
pub struct KeyArgs {
    /// Directory of keys, or a single key file [default: LRTS_KEYS, else lrts/keys in the user's configuration directory]
    #[arg(long, value_name = "PATH")]
    pub keys: Option<PathBuf>,
    /// Do without keys and encryption: whoever reaches the connection can read, change and say everything
    #[arg(long, conflicts_with = "keys")]
    pub insecure: bool,
}

#[cfg(feature = "commands")]
impl KeyArgs {
    /// Where the keys are; None for `--insecure`.
    ///
    /// # Errors
    ///
    /// [`KeysError::NoHome`](crate::keys::KeysError::NoHome).
    pub fn path(&self) -> Result<Option<PathBuf>, crate::keys::KeysError> {
        if self.insecure {
            return Ok(None);
        }
        let default = || crate::keys::keys_home(|name| std::env::var_os(name));
        let path = self.keys.clone().map_or_else(default, Ok)?;
        std::path::absolute(&path).map(Some).map_err(crate::keys::KeysError::io(path))
    }
}

/// What is wrong with a command line, as one line: the first paragraph of what the parser says of it, without its usage and
/// hints.
#[cfg(any(feature = "commands", test))]
fn usage_error(rendered: &str) -> String {
    let paragraph = rendered.trim().split("\n\n").next().unwrap_or_default();
    let words: Vec<&str> = paragraph.split_whitespace().collect();
    words.join(" ").trim_start_matches("error: ").to_owned()
}

/// Reads `host:port`, `[v6]:port` or just a host, an IPv6 address with brackets or without, as in `LRTS_SCHEDULER`; None if it is
/// no such thing.
pub fn host_and_port(text: &str, default_port: u16) -> Option<(String, u16)> {
    // `Ipv6Addr` takes none with an interface, `fe80::1%2`.
    let is_v6 = |host: &str| format!("[{host}]:0").parse::<SocketAddrV6>().is_ok();
    let (host, port) = match text.strip_prefix('[') {
        Some(text) => match text.split_once(']')? {
            (host, "") => (host, None),
            (host, port) => (host, Some(port.strip_prefix(':')?)),
        },
        // A bare IPv6 address is all colons.
        None if is_v6(text) => (text, None),
        None => text.rsplit_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let port = port.map_or(Some(default_port), |port| port.parse().ok())?;
    let is_name = !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || matches!(c, '/' | ':'));
    (is_name || is_v6(host)).then(|| (host.to_owned(), port))
}

/// Parses `20s`, `1h 30m`, `250ms`; a bare number is seconds.
///
/// # Errors
///
/// A text that says what was expected.
pub fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(Duration::from_secs(seconds));
    }
    humantime::parse_duration(text).map_err(|error| format!("{error}; expected for example 20s, 5m or 24h"))
}

/// Parses `10GiB`, `512MB`, `4096`: bytes.
///
/// # Errors
///
/// A text that says what was expected.
pub fn size(text: &str) -> Result<u64, String> {
    parse_size::parse_size(text).map_err(|error| format!("{error}; expected for example 10GiB or 512MiB"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_dashes_become_double_ones() {
        let line = ["lrts", "worker", "-max-jobs", "-1", "--timeout", "1", "-h", "--", "-address"];
        let normal = normalise(line.map(OsString::from));
        assert_eq!(normal, ["lrts", "worker", "--max-jobs", "-1", "--timeout", "1", "-h", "--", "-address"]);
    }

    #[test]
    fn usage_errors_are_one_line() {
        let rendered = "error: these are missing:\n  <JOB>...\n\nUsage: lrts cancel <JOB>...\n\nFor more, try '--help'.\n";
        assert_eq!(usage_error(rendered), "these are missing: <JOB>...");
    }

    #[test]
    fn hosts_are_read_with_a_port_and_without() {
        let read = |text| host_and_port(text, 5555);
        for (text, host, port) in [
            ("node7", "node7", 5555),
            ("node7:6000", "node7", 6000),
            ("10.0.0.1", "10.0.0.1", 5555),
            ("10.0.0.1:6000", "10.0.0.1", 6000),
            ("::1", "::1", 5555),
            ("[::1]", "::1", 5555),
            ("[::1]:6000", "::1", 6000),
            ("[fe80::1%2]:6000", "fe80::1%2", 6000),
        ] {
            assert_eq!(read(text), Some((host.to_owned(), port)), "{text}");
        }
        for text in [
            "",
            ":1",
            "[]",
            "[]:1",
            "[::1",
            "::1]",
            "[::1]6000",
            "[::1]:",
            "[::1]:x",
            "a:b:1",
            "[a:b]:1",
            "[a:b]",
            "1:2:3",
            "http://node7:80",
            "a b:1",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn spans_and_sizes_are_read_as_people_write_them() {
        assert_eq!(duration("20s"), Ok(Duration::from_secs(20)));
        assert_eq!(duration("20"), Ok(Duration::from_secs(20)));
        assert_eq!(duration("1h 30m"), Ok(Duration::from_secs(5_400)));
        assert!(duration("soon").unwrap_err().contains("20s"));
        assert_eq!(size("10GiB"), Ok(10 << 30));
        assert!(size("big").unwrap_err().contains("GiB"));
    }
}
