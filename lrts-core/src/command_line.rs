//! What all of lrts' commands share: single dashes, durations, sizes, exit codes.

use std::error::Error;
use std::ffi::OsString;
use std::time::Duration;

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

/// An error and its causes on one line, behind the program's name.
pub fn error_line(program: &str, error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    causes.fold(format!("{program}: {error}"), |line, cause| format!("{line}: {cause}"))
}

/// What is wrong with a command line, as one line: the first paragraph of what the parser says of it, without its usage and
/// hints.
pub fn usage_error(rendered: &str) -> String {
    let paragraph = rendered.trim().split("\n\n").next().unwrap_or_default();
    let words: Vec<&str> = paragraph.split_whitespace().collect();
    words.join(" ").trim_start_matches("error: ").to_owned()
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
    fn spans_and_sizes_are_read_as_people_write_them() {
        assert_eq!(duration("20s"), Ok(Duration::from_secs(20)));
        assert_eq!(duration("20"), Ok(Duration::from_secs(20)));
        assert_eq!(duration("1h 30m"), Ok(Duration::from_secs(5_400)));
        assert!(duration("soon").unwrap_err().contains("20s"));
        assert_eq!(size("10GiB"), Ok(10 << 30));
        assert!(size("big").unwrap_err().contains("GiB"));
    }
}
