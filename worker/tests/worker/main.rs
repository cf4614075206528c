//! A whole worker with real job hosts and job processes, against a scheduler that the tests play.

#[cfg(test)]
mod adoption;
#[cfg(test)]
mod command;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod found;
#[cfg(test)]
mod inheritance;
#[cfg(test)]
mod jobs;
#[cfg(test)]
mod kept;
#[cfg(test)]
mod support;
