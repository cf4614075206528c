//! `lrts workers`.

use lrts_core::protocol::command::{FromCommand, ToCommand, WorkerRow};

use super::session::{Answers, CommandError};
use super::table::{print_json, print_table};
use crate::cli::QueryArgs;

/// Lists the workers.
pub(crate) async fn workers(args: QueryArgs) -> Result<(), CommandError> {
    let mut answers = Answers::ask(&args, &FromCommand::Workers)?;
    let mut table = Vec::new();
    loop {
        let (answer, _) = answers.next().await?;
        let ToCommand::Workers { rows, last } = answer else { return Err(CommandError::Unexpected) };
        if args.json {
            rows.iter().try_for_each(|row| print_json(&object(row)))?;
        } else {
            table.extend(rows.iter().map(cells));
        }
        if last {
            break;
        }
    }
    if !args.json {
        print_table(&["worker", "host", "pid", "slots", "running", "state", "heard"], &table)?;
    }
    Ok(())
}

fn object(row: &WorkerRow) -> serde_json::Value {
    serde_json::json!({
        "worker": row.worker,
        "host": row.host,
        "pid": row.pid,
        "slots": row.slots,
        "running": row.running,
        "state": row.state,
        "silent_s": row.silent.as_secs_f64(),
    })
}

fn cells(row: &WorkerRow) -> Vec<String> {
    let state = serde_json::to_value(row.state).ok();
    vec![
        row.worker.to_string(),
        row.host.clone(),
        row.pid.to_string(),
        row.slots.to_string(),
        row.running.to_string(),
        state.as_ref().and_then(|state| state.as_str()).unwrap_or_default().to_owned(),
        format!("{:.1} s ago", row.silent.as_secs_f64()),
    ]
}
