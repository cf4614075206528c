//! One question to the scheduler and its answer.

use std::ffi::OsString;
use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use bytes::Bytes;
use lrts_core::clock::Moment;
use lrts_core::command_line::{self, exit_code, host_and_port};
use lrts_core::keys::{KeysError, Security};
use lrts_core::protocol::codec::{self, DecodeError};
use lrts_core::protocol::command::{FromCommand, ToCommand};
use lrts_core::telemetry::{self, LogFormat, LogOf};
use lrts_core::transport::{
    Hello, Link, LinkConfig, LinkEvent, LinkReceiver, Message, Refusal, Role, SocketDir,
};

use tokio::runtime::Builder;

use crate::cli::QueryArgs;

/// Where a scheduler is looked for, unless a flag or the environment says otherwise.
const SCHEDULER: (&str, u16) = ("127.0.0.1", 5555);

/// How long it may take to find out whether anybody listens.
const KNOCK: Duration = Duration::from_secs(1);

/// Why a command has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    #[error(
        "no scheduler answered at {address} within {} ({trouble}): is it running? (--scheduler-address and --scheduler-port or \
         LRTS_SCHEDULER, --wait)",
        humantime::format_duration(*.wait)
    )]
    NoScheduler { address: String, wait: Duration, trouble: String },
    #[error("LRTS_SCHEDULER: `{0}` is no address, expected host:port, for example 127.0.0.1:5555")]
    Setting(String),
    #[error(transparent)]
    Keys(#[from] KeysError),
    #[error("the scheduler at {address} can't be used: {refusal}")]
    Refused { address: String, refusal: Refusal },
    #[error("the scheduler sent something unreadable; is it of another version?")]
    Unreadable(#[from] DecodeError),
    #[error("the scheduler sent an answer to another question; is it of another version?")]
    Unexpected,
    #[error("{0}")]
    Failed(String),
    #[error("can't print or set up sockets")]
    Io(#[from] io::Error),
}

impl command_line::CommandError for CommandError {
    fn exit_code(&self) -> u8 {
        match self {
            CommandError::NoScheduler { .. } => exit_code::NO_SCHEDULER,
            CommandError::Setting(_) => exit_code::USAGE,
            CommandError::Keys(_) | CommandError::Refused { .. } => exit_code::REFUSED,
            CommandError::Unreadable(_)
            | CommandError::Unexpected
            | CommandError::Failed(_)
            | CommandError::Io(_) => exit_code::FAILED,
        }
    }
}

/// Runs a command that asks the scheduler.
pub(crate) fn ask(command: impl Future<Output = Result<(), CommandError>>) -> Result<(), CommandError> {
    telemetry::start(LogFormat::Text, LogOf::Command);
    // zeromq's local sockets need a second thread beside the one that waits.
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    match runtime.block_on(command) {
        // Whoever reads, for example `head`, has seen enough.
        Err(CommandError::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome,
    }
}

/// An environment variable that isn't empty.
fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// Where the scheduler is: flags go before what a program's environment says.
fn address(query: &QueryArgs, variable: Option<OsString>) -> Result<String, CommandError> {
    let (host, port) = match (&query.scheduler_address, query.scheduler_port, variable) {
        (Some(host), Some(port), _) => (host.clone(), port),
        (host, port, variable) => {
            let (default_host, default_port) = match variable.map(OsString::into_string) {
                None => (SCHEDULER.0.to_owned(), SCHEDULER.1),
                Some(Ok(text)) => host_and_port(&text, SCHEDULER.1).ok_or(CommandError::Setting(text))?,
                Some(Err(text)) => return Err(CommandError::Setting(text.to_string_lossy().into_owned())),
            };
            (host.clone().unwrap_or(default_host), port.unwrap_or(default_port))
        }
    };
    match host.contains(':') && !host.starts_with('[') {
        true => Ok(format!("[{host}]:{port}")),
        false => Ok(format!("{host}:{port}")),
    }
}

/// The key to ask with. One that isn't there can still come only if its place wasn't named and no scheduler runs yet, which
/// makes keys at its first start: any other is reported at once, so that nobody takes it for a scheduler that is down.
fn security(query: &QueryArgs, address: &str) -> Result<Security, CommandError> {
    let keys = &query.keys;
    if keys.insecure || (keys.keys.is_none() && variable("LRTS_INSECURE").is_some()) {
        return Ok(Security::Insecure);
    }
    let security = Security::new(keys.path()?, Role::Admin);
    let named = keys.keys.is_some() || variable("LRTS_KEYS").is_some();
    let Security::Keys(source) = &security else { return Ok(security) };
    match source.current() {
        Err(KeysError::Missing { .. }) if !named && !somebody_listens(address) => Ok(security),
        Err(error) => Err(error.into()),
        Ok(_) => Ok(security),
    }
}

fn somebody_listens(address: &str) -> bool {
    let mut addresses = address.to_socket_addrs().into_iter().flatten();
    addresses.any(|address| TcpStream::connect_timeout(&address, KNOCK).is_ok())
}

/// A connection on which one question was asked.
pub(crate) struct Answers {
    receiver: LinkReceiver,
    question: Message,
    sender: lrts_core::transport::LinkSender,
    address: String,
    wait: Duration,
    deadline: Moment,
    /// Dropped last: the link's sockets are in it.
    _sockets: SocketDir,
}

impl Answers {
    /// Asks as soon as the scheduler is there.
    pub(crate) fn ask(query: &QueryArgs, question: &FromCommand) -> Result<Self, CommandError> {
        let address = address(query, variable("LRTS_SCHEDULER"))?;
        let security = security(query, &address)?;
        let sockets = SocketDir::create()?;
        let hello = Hello::new(Role::Admin, format!("command-{}", std::process::id()), "");
        let config = LinkConfig::new(&address, Role::Scheduler, hello, security, sockets.path());
        let (sender, receiver) = Link::open(config);
        Ok(Self {
            receiver,
            question: Message::new(codec::encode(question), Bytes::new()),
            sender,
            address,
            wait: query.wait,
            deadline: Moment::now() + query.wait,
            _sockets: sockets,
        })
    }

    /// The next answer and its body. The time limit counts anew from each answer.
    pub(crate) async fn next(&mut self) -> Result<(ToCommand, Bytes), CommandError> {
        loop {
            let event = tokio::select! {
                event = self.receiver.next() => event,
                () = lrts_core::clock::sleep_until(Some(self.deadline)) => {
                    let trouble = self.sender.trouble().unwrap_or_else(|| "no answer".to_owned());
                    let (address, wait) = (self.address.clone(), self.wait);
                    return Err(CommandError::NoScheduler { address, wait, trouble });
                }
            };
            match event {
                // A question to a scheduler that went away before it answered is asked again: all of them may be repeated.
                LinkEvent::Up { .. } => {
                    let _down_again = self.sender.send(self.question.clone()).await;
                }
                LinkEvent::Message(message) => {
                    self.deadline = Moment::now() + self.wait;
                    return Ok((codec::decode(&message.head)?, message.body));
                }
                LinkEvent::Down { .. } => {}
                LinkEvent::Refused(refusal) => {
                    return Err(CommandError::Refused { address: self.address.clone(), refusal });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    #[test]
    fn flags_go_before_the_environment_and_that_before_the_defaults() {
        let looked_for = |flags: &str, variable: Option<&str>| {
            let line = format!("lrts status{flags}");
            let Command::Status(query) = Cli::try_parse_from(line.split(' ')).unwrap().command else {
                panic!()
            };
            address(&query, variable.map(OsString::from))
        };
        let found = |flags, variable| looked_for(flags, variable).unwrap();
        assert_eq!(found("", None), "127.0.0.1:5555");
        assert_eq!(found("", Some("node7:5998")), "node7:5998");
        assert_eq!(found("", Some("node7")), "node7:5555");
        assert_eq!(found("", Some("::1")), "[::1]:5555");
        assert_eq!(found(" --scheduler-port 6000", Some("node7:5998")), "node7:6000");
        assert_eq!(found(" --scheduler-address node8", Some("node7:5998")), "node8:5998");
        assert_eq!(found(" --scheduler-address [::1] --scheduler-port 1", Some("a b")), "[::1]:1");
        let wrong = looked_for("", Some("http://node7")).unwrap_err();
        assert!(wrong.to_string().starts_with("LRTS_SCHEDULER: `http://node7`"), "{wrong}");
        assert_eq!(command_line::CommandError::exit_code(&wrong), exit_code::USAGE);
    }
}
