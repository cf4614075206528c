//! `lrts cancel`.

use std::io::{self, Write};

use lrts_core::ids::{ApplicationId, JobId, UserName};
use lrts_core::protocol::command::{FromCommand, ToCommand};

use super::session::{Answers, CommandError};
use super::table::print_json;
use crate::cli::{CancelArgs, QueryArgs};

/// Cancels jobs, or all of an application's or of a user's.
pub(crate) async fn cancel(args: CancelArgs) -> Result<(), CommandError> {
    match (args.application, args.user) {
        (Some(application), _) => cancel_application(application, &args.query).await,
        (None, Some(user)) => cancel_user(user, &args.query).await,
        (None, None) => cancel_jobs(&args.jobs, &args.query).await,
    }
}

/// Fails if one of them is unknown; one that has ended already is only mentioned.
async fn cancel_jobs(jobs: &[JobId], query: &QueryArgs) -> Result<(), CommandError> {
    let question = FromCommand::Cancel { jobs: jobs.to_vec() };
    let (answer, _) = Answers::ask(query, &question)?.next().await?;
    let ToCommand::Cancelled { unknown, ended } = answer else { return Err(CommandError::Unexpected) };
    for job in jobs {
        let outcome = if unknown.contains(job) {
            "unknown"
        } else if ended.contains(job) {
            "ended"
        } else {
            "cancelling"
        };
        if query.json {
            print_json(&serde_json::json!({ "job_id": job, "outcome": outcome }))?;
        } else {
            writeln!(io::stdout(), "{job}  {outcome}")?;
        }
    }
    if unknown.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = unknown.iter().map(ToString::to_string).collect();
    Err(CommandError::Failed(format!("the scheduler knows no job {}", names.join(", "))))
}

async fn cancel_application(application: ApplicationId, query: &QueryArgs) -> Result<(), CommandError> {
    let question = FromCommand::CancelApplication { application };
    let (answer, _) = Answers::ask(query, &question)?.next().await?;
    let ToCommand::ApplicationCancelled { jobs } = answer else { return Err(CommandError::Unexpected) };
    let jobs = jobs
        .ok_or_else(|| CommandError::Failed(format!("the scheduler knows no application {application}")))?;
    if query.json {
        print_json(&serde_json::json!({ "application_id": application, "jobs": jobs }))?;
    } else {
        writeln!(io::stdout(), "{application}  cancelling {jobs} jobs")?;
    }
    Ok(())
}

async fn cancel_user(user: UserName, query: &QueryArgs) -> Result<(), CommandError> {
    let question = FromCommand::CancelUser { user: user.clone() };
    let (answer, _) = Answers::ask(query, &question)?.next().await?;
    let ToCommand::UserCancelled { applications, jobs } = answer else {
        return Err(CommandError::Unexpected);
    };
    if applications == 0 {
        return Err(CommandError::Failed(format!("the scheduler knows no application of user {user}")));
    }
    if query.json {
        print_json(&serde_json::json!({ "user": user, "applications": applications, "jobs": jobs }))?;
    } else {
        writeln!(io::stdout(), "{user}  cancelling {jobs} jobs of {applications} applications")?;
    }
    Ok(())
}
