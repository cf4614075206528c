//! `lrts drain`.

use std::io::{self, Write};

use lrts_core::protocol::command::{FromCommand, ToCommand};

use super::session::{Answers, CommandError};
use super::table::print_json;
use crate::cli::DrainArgs;

/// Lets a worker take nothing new until its daemon is started again. Returns at once, while the worker finishes what it has.
pub(crate) async fn drain(args: DrainArgs) -> Result<(), CommandError> {
    let DrainArgs { worker, deadline, query } = args;
    let (answer, _) = Answers::ask(&query, &FromCommand::Drain { worker, deadline })?.next().await?;
    let ToCommand::Draining { attempts } = answer else { return Err(CommandError::Unexpected) };
    let attempts =
        attempts.ok_or_else(|| CommandError::Failed(format!("the scheduler knows no worker {worker}")))?;
    if query.json {
        print_json(&serde_json::json!({ "worker": worker, "attempts": attempts }))?;
    } else {
        writeln!(
            io::stdout(),
            "{worker}  draining until its daemon is started again, {attempts} attempts left"
        )?;
    }
    Ok(())
}
