//! `lrts logs`.

use std::io::{self, IsTerminal, Write};

use lrts_core::protocol::codec::split_body;
use lrts_core::protocol::command::{FromCommand, ToCommand};
use lrts_core::terminal::visible_lines;

use super::session::{Answers, CommandError};
use super::table::print_json;
use crate::cli::LogsArgs;

/// Shows what a job has printed: its stdout on stdout, its stderr on stderr. A pipe or a file gets the very bytes, a terminal
/// lines and colours, and nothing that would steer it.
pub(crate) async fn logs(args: LogsArgs) -> Result<(), CommandError> {
    let (answer, body) = Answers::ask(&args.query, &FromCommand::Logs { job: args.job })?.next().await?;
    let ToCommand::Logs { bytes, note } = answer else { return Err(CommandError::Unexpected) };
    let Some((stdout, stderr)) = bytes else {
        let why = if note.is_empty() { format!("there is no job {}", args.job) } else { note };
        return Err(CommandError::Failed(why));
    };
    let parts = split_body(&body, [stdout.into(), stderr.into()]).ok_or(CommandError::Unexpected)?;
    if args.query.json {
        print_json(&serde_json::json!({
            "job_id": args.job,
            "stdout": String::from_utf8_lossy(&parts[0]),
            "stderr": String::from_utf8_lossy(&parts[1]),
            "note": note,
        }))?;
    } else {
        show(&mut io::stdout(), &parts[0])?;
        show(&mut io::stderr(), &parts[1])?;
    }
    Ok(())
}

fn show(out: &mut (impl Write + IsTerminal), printed: &[u8]) -> io::Result<()> {
    if out.is_terminal() {
        out.write_all(visible_lines(&String::from_utf8_lossy(printed)).as_bytes())
    } else {
        out.write_all(printed)
    }
}
