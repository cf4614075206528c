//! What the examples share: where they run, and two services.

#![allow(dead_code, reason = "each example uses a part of it")]

use std::time::Duration;

use anyhow::bail;
use lrts::{LocalCluster, LocalConfig};
use lrts_client::{ApplicationInformation, Color, JobContext, Service, ServiceError};
use serde::{Deserialize, Serialize};

/// The cluster that an example runs on. Keep it until the application has stopped.
pub(crate) struct Cluster {
    /// The one inside this process, if that was asked for.
    local: Option<LocalCluster>,
}

impl Cluster {
    /// The cluster that the command line chooses: `--local` starts one inside this process, no argument means the one whose
    /// scheduler `LRTS_SCHEDULER` names (127.0.0.1:5555 if it is not set).
    pub(crate) fn from_arguments() -> anyhow::Result<Cluster> {
        let mut local = false;
        for argument in std::env::args_os().skip(1) {
            if argument != "--local" {
                bail!("unknown argument {argument:?}; the only one is --local");
            }
            local = true;
        }
        // Jobs that nap need no core, so three at once suit any machine.
        Cluster::choose(local.then(|| LocalConfig::default().max_jobs(3)))
    }

    /// One of this kind inside this process, or the one whose scheduler `LRTS_SCHEDULER` names.
    pub(crate) fn choose(local: Option<LocalConfig>) -> anyhow::Result<Cluster> {
        Ok(Cluster { local: local.map(LocalCluster::start).transpose()? })
    }

    /// What an application needs to connect to it.
    pub(crate) fn application_information(&self) -> ApplicationInformation {
        match &self.local {
            Some(cluster) => cluster.application_information(),
            None => ApplicationInformation::from_env(),
        }
    }
}

/// Multiplies two numbers. So little work isn't worth a trip to another machine: it shows the form and nothing else.
#[derive(Serialize, Deserialize)]
pub(crate) struct Mult {
    pub(crate) a: f64,
    pub(crate) b: f64,
}

impl Service for Mult {
    const NAME: &'static str = "mult";
    type Output = f64;

    fn run(self, _job: &JobContext) -> Result<f64, ServiceError> {
        Ok(self.a * self.b)
    }
}

/// Takes 25 to 100 short naps of random length, and shows on a bar how far it is. Gives how many naps it took.
#[derive(Serialize, Deserialize)]
pub(crate) struct Naps {
    pub(crate) name: String,
    pub(crate) color: Color,
}

impl Service for Naps {
    const NAME: &'static str = "naps";
    type Output = u64;

    fn run(self, job: &JobContext) -> Result<u64, ServiceError> {
        let naps = fastrand::u64(25..=100);
        let bar = job.progress(self.name).total(naps).unit("naps").color(self.color).leave(true).start();
        for _ in 0..naps {
            std::thread::sleep(Duration::from_millis(fastrand::u64(5..=40)));
            bar.inc(1);
        }
        Ok(naps)
    }
}
