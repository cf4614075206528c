//! A whole worker with real job hosts and job processes, against a scheduler that the tests play.

#[cfg(test)]
mod command;
#[cfg(test)]
mod jobs;
#[cfg(test)]
mod support;
