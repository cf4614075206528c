//! `lrts cancel`.

use lrts_core::protocol::command::{FromCommand, ToCommand};

use super::session::{Answers, CommandError};
use super::table::print_json;
use crate::cli::CancelArgs;

/// Cancels jobs. Fails if one of them is unknown; one that has ended already is only mentioned.
pub(crate) async fn cancel(args: CancelArgs) -> Result<(), CommandError> {
    let question = FromCommand::Cancel { jobs: args.jobs.clone() };
    let (answer, _) = Answers::ask(&args.query, &question)?.next().await?;
    let ToCommand::Cancelled { unknown, ended } = answer else { return Err(CommandError::Unexpected) };
    for job in &args.jobs {
        let outcome = if unknown.contains(job) {
            "unknown"
        } else if ended.contains(job) {
            "ended"
        } else {
            "cancelling"
        };
        if args.query.json {
            print_json(&serde_json::json!({ "job_id": job, "outcome": outcome }))?;
        } else {
            use std::io::Write;
            writeln!(std::io::stdout(), "{job}  {outcome}")?;
        }
    }
    if unknown.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = unknown.iter().map(ToString::to_string).collect();
    Err(CommandError::Failed(format!("the scheduler knows no job {}", names.join(", "))))
}
