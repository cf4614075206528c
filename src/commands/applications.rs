//! `lrts applications`.

use std::time::Duration;

use lrts_core::protocol::command::{ApplicationRow, FromCommand, ToCommand};

use super::session::{Answers, CommandError};
use super::table::{print_json, print_table};
use crate::cli::QueryArgs;

/// Lists the applications that the scheduler remembers.
pub(crate) async fn applications(args: QueryArgs) -> Result<(), CommandError> {
    let mut answers = Answers::ask(&args, &FromCommand::Applications)?;
    let mut rows = Vec::new();
    loop {
        let (answer, _) = answers.next().await?;
        let ToCommand::Applications { rows: page, last } = answer else {
            return Err(CommandError::Unexpected);
        };
        rows.extend(page);
        if last {
            break;
        }
    }
    rows.sort_by_key(|row: &ApplicationRow| row.application_id);
    if args.json {
        rows.iter().try_for_each(print_json)?;
    } else {
        let rows: Vec<_> = rows.iter().map(cells).collect();
        print_table(
            &["application", "user", "connected", "queued", "running", "finished", "failed", "cancelled"],
            &rows,
        )?;
    }
    Ok(())
}

fn cells(row: &ApplicationRow) -> Vec<String> {
    let connected = match row.away_s {
        _ if row.connected => "yes".to_owned(),
        Some(away) => format!("{} ago", humantime::format_duration(Duration::from_secs(away as u64))),
        None => "no".to_owned(),
    };
    let counts = [row.queued, row.running, row.finished, row.failed, row.cancelled];
    let user = row.user.as_ref().map(ToString::to_string).unwrap_or_default();
    [row.application_id.to_string(), user, connected]
        .into_iter()
        .chain(counts.map(|count| count.to_string()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_whose_an_application_is_and_since_when_it_has_been_away() {
        let mut row = ApplicationRow {
            application_id: "nightly".parse().expect("an id"),
            user: Some("ann".parse().expect("a name")),
            connected: false,
            away_s: Some(3_661.5),
            queued: 1,
            running: 2,
            finished: 3,
            failed: 4,
            cancelled: 5,
        };
        assert_eq!(cells(&row), ["nightly", "ann", "1h 1m 1s ago", "1", "2", "3", "4", "5"]);
        (row.connected, row.away_s) = (true, None);
        assert_eq!(cells(&row)[2], "yes");
        let json = serde_json::to_string(&row).expect("it is JSON");
        let expected = r#"{"application_id":"nightly","user":"ann","connected":true,"away_s":null,"queued":1,"running":2,"finished":3,"failed":4,"cancelled":5}"#;
        assert_eq!(json, expected);
    }
}
