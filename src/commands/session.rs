//! One question to the scheduler and its answer.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use lrts_core::clock::Moment;
use lrts_core::command_line::{self, exit_code};
use lrts_core::keys::{KeysError, Security};
use lrts_core::protocol::codec::{self, DecodeError};
use lrts_core::protocol::command::{FromCommand, ToCommand};
use lrts_core::telemetry::{self, LogFormat, LogOf};
use lrts_core::transport::{
    Hello, Link, LinkConfig, LinkEvent, LinkReceiver, Message, Refusal, Role, SocketDir,
};

use tokio::runtime::Builder;

use crate::cli::QueryArgs;

/// Why a command has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    #[error(
        "no scheduler answered at {address} within {} ({trouble}): is it running? (--scheduler-address, --scheduler-port, --wait)",
        humantime::format_duration(*.wait)
    )]
    NoScheduler { address: String, wait: Duration, trouble: String },
    #[error(transparent)]
    Keys(#[from] KeysError),
    #[error("the scheduler refused this command: {0}")]
    Refused(Refusal),
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
            CommandError::Keys(_) | CommandError::Refused(_) => exit_code::REFUSED,
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
    runtime.block_on(command)
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
        let security = Security::new(query.keys.path()?, Role::Admin);
        let sockets = SocketDir::create()?;
        let address = format!("{}:{}", query.scheduler_address, query.scheduler_port);
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
                LinkEvent::Refused(refusal) => return Err(CommandError::Refused(refusal)),
            }
        }
    }
}
