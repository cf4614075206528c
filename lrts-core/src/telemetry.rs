//! Logs: to stderr, filtered by `LRTS_LOG`.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::debug_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::terminal::{Keep, visible};

/// How log lines look.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl std::str::FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            _ => Err("expected `text` or `json`".to_owned()),
        }
    }
}

/// Whose log it is: what is shown where `LRTS_LOG` doesn't say otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum LogOf {
    /// A daemon: `info` and above of lrts, warnings of everything else.
    Daemon,
    /// A process that shares somebody else's terminal: warnings.
    Subprocess,
    /// A command, whose own errors say it all: nothing.
    Command,
}

impl LogOf {
    fn filter(self) -> &'static str {
        match self {
            LogOf::Daemon => {
                "warn,lrts=info,lrts_core=info,lrts_scheduler=info,lrts_worker=info,lrts_progress_server=info"
            }
            LogOf::Subprocess => "warn",
            LogOf::Command => "off",
        }
    }
}

/// Values as they are, but each on the event's own line and without anything that steers a terminal: peers and jobs have
/// written some of them.
fn fields() -> impl for<'writer> FormatFields<'writer> + 'static {
    debug_fn(|writer, field, value| {
        let text = visible(&format!("{value:?}"), Keep::Nothing);
        match field.name() {
            "message" => write!(writer, "{text}"),
            name => write!(writer, "{name}={text}"),
        }
    })
    .delimited(" ")
}

/// Starts logging to stderr. `LRTS_LOG` filters as `RUST_LOG` does elsewhere (`debug`, `lrts_scheduler=trace,warn`). A second
/// call does nothing.
pub fn start(format: LogFormat, of: LogOf) {
    let filter = std::env::var("LRTS_LOG").ok().and_then(|text| EnvFilter::try_new(text).ok());
    let filter = filter.unwrap_or_else(|| EnvFilter::new(of.filter()));
    let registry = tracing_subscriber::registry().with(filter);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let _already_started = match format {
        LogFormat::Text => {
            let colour = std::io::IsTerminal::is_terminal(&std::io::stderr());
            registry.with(lines.with_ansi(colour).fmt_fields(fields())).try_init()
        }
        LogFormat::Json => registry.with(lines.json()).try_init(),
    };
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("nobody panics with it").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_peers_say_stays_on_its_line() {
        let lines = Lines::default();
        let writer = lines.clone();
        let layer = tracing_subscriber::fmt::layer().with_ansi(false).without_time();
        let layer = layer.fmt_fields(fields()).with_writer(move || writer.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let reason = "gone\x1b[2J\n2026-01-01 ERROR forged";
            let _span = tracing::info_span!("host", name = %"a\nb").entered();
            tracing::info!(%reason, quoted = "a\tb", number = 7, "worker said");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains("host{name=a b}"), "{text}");
        assert!(
            text.contains("worker said reason=gone 2026-01-01 ERROR forged quoted=\"a\\tb\" number=7"),
            "{text}"
        );
    }
}
