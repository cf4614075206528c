//! `lrts status`.

use std::time::Duration;

use lrts_core::protocol::command::{FromCommand, Status, ToCommand};

use super::session::{Answers, CommandError};
use super::table::{print_json, print_table};
use crate::cli::QueryArgs;

/// Shows how many jobs are in each state and how many workers there are.
pub(crate) async fn status(args: QueryArgs) -> Result<(), CommandError> {
    let (answer, _) = Answers::ask(&args, &FromCommand::Status)?.next().await?;
    let ToCommand::Status(status) = answer else { return Err(CommandError::Unexpected) };
    if args.json {
        print_json(&as_json(&status))?
    } else {
        print_for_people(&status)?
    }
    Ok(())
}

fn as_json(status: &Status) -> serde_json::Value {
    let jobs: serde_json::Map<String, serde_json::Value> =
        status.jobs.iter().map(|(state, count)| (state.clone(), (*count).into())).collect();
    let refused: serde_json::Map<String, serde_json::Value> =
        status.refused.iter().map(|(cause, count)| (cause.clone(), (*count).into())).collect();
    let mut json = serde_json::json!({
        "jobs": jobs,
        "workers": status.workers,
        "uptime_s": status.uptime_s,
        "refused": refused,
    });
    if !status.store_trouble.is_empty() {
        json["store_trouble"] = status.store_trouble.clone().into();
    }
    json
}

fn print_for_people(status: &Status) -> std::io::Result<()> {
    let uptime = Duration::from_secs(status.uptime_s as u64);
    let mut rows = vec![
        vec!["up".to_owned(), humantime::format_duration(uptime).to_string()],
        vec!["workers".to_owned(), status.workers.to_string()],
    ];
    if !status.store_trouble.is_empty() {
        rows.push(vec!["store".to_owned(), status.store_trouble.clone()]);
    }
    rows.extend(status.jobs.iter().map(|(state, count)| vec![format!("jobs {state}"), count.to_string()]));
    // Of what has never been, people needn't read.
    let refused = status.refused.iter().filter(|(_, count)| *count > 0);
    rows.extend(refused.map(|(cause, count)| vec![format!("refused {cause}"), count.to_string()]));
    print_table(&["what", "value"], &rows)
}
