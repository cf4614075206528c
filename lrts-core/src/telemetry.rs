//! Logs: to stderr, filtered by `LRTS_LOG`.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

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
            registry.with(lines.with_ansi(colour)).try_init()
        }
        LogFormat::Json => registry.with(lines.json()).try_init(),
    };
}
