//! `lrts jobs`.

use lrts_core::protocol::command::{FromCommand, JobRow, ToCommand};

use super::session::{Answers, CommandError};
use super::table::{print_json, print_table};
use crate::cli::QueryArgs;

/// Lists the jobs.
pub(crate) async fn jobs(args: QueryArgs) -> Result<(), CommandError> {
    let mut answers = Answers::ask(&args, &FromCommand::Jobs)?;
    let mut table = Vec::new();
    loop {
        let (answer, _) = answers.next().await?;
        let ToCommand::Jobs { rows, last } = answer else { return Err(CommandError::Unexpected) };
        if args.json {
            rows.iter().try_for_each(print_json)?;
        } else {
            table.extend(rows);
        }
        if last {
            break;
        }
    }
    if !args.json {
        table.sort_by_key(|row| (row.application_id, row.job_id));
        let table: Vec<_> = table.into_iter().map(cells).collect();
        print_table(
            &[
                "job",
                "application",
                "user",
                "service",
                "label",
                "state",
                "attempt",
                "worker",
                "pid",
                "reason",
            ],
            &table,
        )?;
    }
    Ok(())
}

fn cells(row: JobRow) -> Vec<String> {
    let first_line = row.reason.lines().next().unwrap_or_default().to_owned();
    vec![
        row.job_id.to_string(),
        row.application_id.to_string(),
        row.user.map(|user| user.to_string()).unwrap_or_default(),
        row.service,
        row.label,
        row.state.to_string(),
        row.attempt.to_string(),
        row.worker.map(|worker| worker.to_string()).unwrap_or_default(),
        row.pid.map(|pid| pid.to_string()).unwrap_or_default(),
        first_line,
    ]
}
