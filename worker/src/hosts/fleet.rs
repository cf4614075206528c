//! All job hosts of the worker: where their programs come from, and which commands go to which.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use lrts_core::ids::{AttemptId, BundleDigest};
use lrts_core::spec::BundleRef;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tracing::{info, warn};

use super::identify::identify;
use super::process::Process;
use super::record::{HostRecord, find_hosts, remove_files};
use super::session::kill_session;
use super::supervise::{HostTask, Origin, Surroundings, run_host};
use super::{Command, Family, HeldJob, HostEnded, HostEvent, HostNumber, Leftovers};
use crate::bundles::{BadPiece, BundleCache, Fetch, FetchError, Program};
use crate::config::Config;
use crate::machine::Machine;
use crate::state_dir::StateDir;

/// Events of hosts that wait for the event loop; beyond it, hosts wait.
const EVENTS: usize = 1_024;

/// How long hosts may take to end with their worker, their jobs included.
const END_TIME: Duration = Duration::from_secs(5);

/// How long a leaving worker's last words to hosts that go on may take.
const LEAVE_TIME: Duration = Duration::from_secs(1);

/// What the event loop is to know.
#[derive(Debug)]
pub(crate) enum FleetEvent {
    /// This bundle must be fetched; its pieces go to [`Fleet::take_piece`].
    BundleWanted(BundleDigest),
    /// A bundle's host takes attempts.
    Ready {
        /// Which bundle.
        bundle: BundleRef,
        /// Which host.
        host: HostNumber,
        /// Its progress records.
        arena: OwnedFd,
        /// What it has from an earlier run of the worker.
        held: Vec<HeldJob>,
    },
    /// A host has another connection than before.
    Resumed {
        /// Which host.
        host: HostNumber,
    },
    /// All hosts of an earlier run have answered or are gone. Comes once, whether or not there were any.
    EarlierRun(Leftovers),
    /// A bundle can't start here.
    Refused {
        /// Which bundle.
        bundle: BundleRef,
        /// Why.
        reason: String,
    },
    /// A bundle's host is gone, or couldn't be started for reasons that may pass.
    Died {
        /// Which bundle.
        bundle: BundleRef,
        /// Which host, if there was one.
        host: Option<HostNumber>,
        /// What happened.
        reason: String,
    },
    /// An attempt's process runs.
    Began {
        /// Where.
        host: HostNumber,
        /// Which.
        attempt: AttemptId,
        /// Its process.
        pid: u32,
        /// Its region of the host's arena.
        region: u32,
    },
    /// An attempt has kept a checkpoint.
    Checkpoint {
        /// Which.
        attempt: AttemptId,
        /// The state.
        state: Bytes,
    },
    /// An attempt has ended.
    Ended {
        /// Where.
        host: HostNumber,
        /// Which, and how.
        ended: Box<HostEnded>,
    },
    /// What an attempt has printed; none if its host doesn't have it.
    OutputRead {
        /// Which.
        attempt: AttemptId,
        /// Its stdout and stderr.
        texts: Option<(Vec<u8>, Vec<u8>)>,
    },
}

/// What became of the search for a bundle's program.
#[derive(Debug)]
enum Search {
    Found(Program),
    /// Not in the cache.
    Lacking(BundleDigest),
    Refused(String),
    Unavailable(String),
    Abandoned,
}

#[derive(Debug)]
struct Host {
    bundle: BundleRef,
    commands: mpsc::UnboundedSender<Command>,
    process: Arc<OnceLock<Process>>,
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Fleet {
    around: Arc<Surroundings>,
    cache: Arc<BundleCache>,
    installed: BTreeMap<String, PathBuf>,
    ships_bundles: bool,
    fetches: BTreeMap<BundleDigest, Fetch>,
    hosts: BTreeMap<HostNumber, Host>,
    /// Hosts of an earlier run that haven't answered.
    asked: BTreeSet<HostNumber>,
    /// Searches for those of them whose record can't be read.
    unknown: JoinSet<(HostNumber, Option<HostRecord>)>,
    /// What such hosts have left, once it is looked for.
    leftovers: Option<JoinHandle<Leftovers>>,
    last_number: HostNumber,
    tasks: JoinSet<()>,
    /// Not bounded by itself: there is one search per bundle at a time.
    search_results: mpsc::UnboundedSender<(BundleRef, Search)>,
    searches: mpsc::UnboundedReceiver<(BundleRef, Search)>,
    event_sender: mpsc::Sender<(HostNumber, HostEvent)>,
    events: mpsc::Receiver<(HostNumber, HostEvent)>,
}

impl Fleet {
    /// Looks for the hosts of an earlier run. Waits for the disk.
    pub(crate) fn new(config: &Config, machine: &Machine, state: Arc<StateDir>) -> Self {
        let (search_results, searches) = mpsc::unbounded_channel();
        let (event_sender, events) = mpsc::channel(EVENTS);
        let found = find_hosts(&state, &machine.boot_id).unwrap_or_else(|error| {
            warn!(%error, "cannot look for job hosts of an earlier run");
            BTreeMap::new()
        });
        let mut fleet = Self {
            cache: BundleCache::new(state.bundles(), config.bundle_cache_bytes),
            around: Arc::new(Surroundings {
                state,
                family: Family::new(config.owns_process),
                boot_id: machine.boot_id.clone(),
                grace: config.grace,
                orphan_grace: config.orphan_grace,
            }),
            installed: config.installed.clone(),
            ships_bundles: config.ships_bundles,
            fetches: BTreeMap::new(),
            hosts: BTreeMap::new(),
            asked: found.keys().copied().collect(),
            unknown: JoinSet::new(),
            leftovers: None,
            last_number: found.keys().next_back().copied().unwrap_or_default(),
            tasks: JoinSet::new(),
            search_results,
            searches,
            event_sender,
            events,
        };
        for (number, record) in found {
            match record {
                Some(record) => fleet.find_host(number, record),
                None => fleet.identify_host(number),
            }
        }
        fleet.look_for_leftovers();
        fleet
    }

    /// Gets a bundle and starts a host of it. Ends in `Ready`, `Refused` or `Died`.
    pub(crate) fn prepare(&mut self, bundle: &BundleRef) {
        match bundle {
            BundleRef::Installed(name) => match self.installed.get(name) {
                Some(path) => {
                    let program = Program::installed(path.clone());
                    self.start_host(bundle, program);
                }
                None => {
                    let reason =
                        format!("no program is installed as `{name}`: start it with --bundle {name}=PATH");
                    self.conclude_search(bundle, Search::Refused(reason));
                }
            },
            BundleRef::Shipped(_) if !self.ships_bundles => {
                let reason = "it runs installed programs only (--bundles installed-only)".to_owned();
                self.conclude_search(bundle, Search::Refused(reason));
            }
            &BundleRef::Shipped(digest) => {
                let cache = self.cache.clone();
                self.search(bundle, move || match cache.find(digest) {
                    Ok(Some(program)) => Search::Found(program),
                    Ok(None) => Search::Lacking(digest),
                    Err(error) => Search::Unavailable(format!("cannot read the bundle cache: {error}")),
                });
            }
        }
    }

    /// Ends a host, which has nothing to do.
    pub(crate) fn end_host(&mut self, number: HostNumber) {
        if let Some(host) = self.hosts.remove(&number) {
            info!(host = number, "idle job host ends");
            // A task that is gone has sent `Died`.
            let _ = host.commands.send(Command::End);
        }
    }

    /// Sends a command to this host, if it is still there.
    pub(crate) fn command_host(&self, host: HostNumber, command: Command) {
        if let Some(host) = self.hosts.get(&host) {
            // A task that is gone has sent `Died`.
            let _ = host.commands.send(command);
        }
    }

    /// How many hosts of an earlier run haven't said what they have.
    pub(crate) fn unheard(&self) -> usize {
        self.asked.len()
    }

    /// The bundles that are being fetched, and from which offset on they are lacking.
    pub(crate) fn wanted(&self) -> impl Iterator<Item = (BundleDigest, u64)> {
        self.fetches.iter().map(|(&digest, fetch)| (digest, fetch.next_offset()))
    }

    /// A piece of a bundle has come.
    pub(crate) fn take_piece(
        &mut self,
        digest: BundleDigest,
        offset: u64,
        bytes: u32,
        total: u64,
        body: Bytes,
    ) {
        let Some(fetch) = self.fetches.get_mut(&digest) else { return };
        if let Err(error) = fetch.accept(offset, bytes, total, body) {
            self.fetches.remove(&digest);
            let reason = error.to_string();
            let search = match error {
                BadPiece::TooLarge { .. } => Search::Refused(reason),
                BadPiece::Wrong { .. } => Search::Unavailable(reason),
            };
            self.conclude_search(&BundleRef::Shipped(digest), search);
        }
    }

    /// The scheduler doesn't have the bundle. Returns whether it was wanted.
    pub(crate) fn give_up_fetch(&mut self, digest: BundleDigest) -> bool {
        self.fetches.remove(&digest).is_some()
    }

    /// The next event. Safe to cancel: nothing is lost.
    pub(crate) async fn next(&mut self) -> FleetEvent {
        loop {
            let event = tokio::select! {
                Some((bundle, search)) = self.searches.recv() => self.on_search(bundle, search),
                Some((host, event)) = self.events.recv() => self.on_host(host, event),
                leftovers = found(&mut self.leftovers) => Some(FleetEvent::EarlierRun(leftovers)),
                Some(result) = self.unknown.join_next() => {
                    let (number, record) = result.expect("looking for a host doesn't panic");
                    self.on_identified(number, record);
                    None
                }
                Some(result) = self.tasks.join_next() => {
                    if let Err(error) = result && error.is_panic() {
                        std::panic::resume_unwind(error.into_panic());
                    }
                    None
                }
            };
            if let Some(event) = event {
                return event;
            }
        }
    }

    /// Ends all hosts, and with them their jobs. Those that don't end by themselves are killed.
    pub(crate) async fn end(&mut self) {
        self.fetches.clear();
        self.events.close();
        for host in self.hosts.values() {
            let _gone_already = host.commands.send(Command::End);
        }
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(END_TIME, all).await.is_err() {
            warn!("job hosts don't end by themselves and are killed");
        }
        self.kill().await;
    }

    /// Kills all hosts, and with them their jobs.
    pub(crate) async fn kill(&mut self) {
        self.tasks.shutdown().await;
        let processes: Vec<_> = self.hosts.values().filter_map(|host| host.process.get().copied()).collect();
        let around = self.around.clone();
        let kill = move || {
            for &process in &processes {
                process.kill();
            }
            for process in processes {
                around.family.remove(process.pid);
                kill_session(process);
            }
            around.family.kill_orphans();
        };
        let _ended_with_the_runtime = tokio::task::spawn_blocking(kill).await;
    }

    /// Leaves a host alone.
    pub(crate) fn leave_host(&mut self, number: HostNumber) {
        self.hosts.remove(&number);
    }

    /// Leaves all hosts and their jobs alone, once they have heard what was said.
    pub(crate) async fn leave(&mut self) {
        self.hosts.clear();
        self.fetches.clear();
        self.events.close();
        let all = async { while self.tasks.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(LEAVE_TIME, all).await;
        self.tasks.shutdown().await;
    }

    fn search(&mut self, bundle: &BundleRef, search: impl FnOnce() -> Search + Send + 'static) {
        let (bundle, results) = (bundle.clone(), self.search_results.clone());
        tokio::task::spawn_blocking(move || {
            // A worker that has ended doesn't listen any more.
            let _ = results.send((bundle, search()));
        });
    }

    fn conclude_search(&self, bundle: &BundleRef, search: Search) {
        let _ = self.search_results.send((bundle.clone(), search));
    }

    fn on_search(&mut self, bundle: BundleRef, search: Search) -> Option<FleetEvent> {
        match search {
            Search::Found(program) => {
                if let BundleRef::Shipped(digest) = &bundle {
                    self.fetches.remove(digest);
                }
                self.start_host(&bundle, program);
                None
            }
            Search::Lacking(digest) => {
                let (fetch, pieces) = Fetch::new();
                self.fetches.insert(digest, fetch);
                let cache = self.cache.clone();
                self.search(&bundle, move || match cache.receive(digest, &pieces) {
                    Ok(program) => Search::Found(program),
                    Err(FetchError::Abandoned) => Search::Abandoned,
                    Err(FetchError::Io(error)) => {
                        Search::Unavailable(format!("cannot keep the fetched bundle: {error}"))
                    }
                    Err(error @ FetchError::Damaged(_)) => Search::Unavailable(error.to_string()),
                });
                Some(FleetEvent::BundleWanted(digest))
            }
            Search::Refused(reason) => Some(FleetEvent::Refused { bundle, reason }),
            Search::Unavailable(reason) => {
                if let BundleRef::Shipped(digest) = &bundle {
                    self.fetches.remove(digest);
                }
                Some(FleetEvent::Died { bundle, host: None, reason })
            }
            Search::Abandoned => None,
        }
    }

    fn start_host(&mut self, bundle: &BundleRef, program: Program) {
        self.last_number += 1;
        self.spawn(self.last_number, bundle.clone(), Arc::default(), Origin::New(program));
    }

    fn find_host(&mut self, number: HostNumber, record: HostRecord) {
        let lease = match &record.bundle {
            BundleRef::Shipped(digest) => Some(self.cache.lease(*digest)),
            BundleRef::Installed(_) => None,
        };
        let process = Arc::new(OnceLock::from(record.process));
        self.spawn(number, record.bundle.clone(), process, Origin::Earlier { record, _lease: lease });
    }

    fn identify_host(&mut self, number: HostNumber) {
        let (around, installed) = (self.around.clone(), self.installed.clone());
        self.unknown.spawn(async move { (number, identify(number, &around, &installed).await) });
    }

    fn on_identified(&mut self, number: HostNumber, record: Option<HostRecord>) {
        let state = &self.around.state;
        match record {
            Some(record) => {
                if let Err(error) = record.write(&state.host_record(number)) {
                    warn!(number, %error, "cannot write down a job host");
                }
                self.find_host(number, record);
            }
            None => {
                remove_files(state, number);
                self.asked.remove(&number);
                self.look_for_leftovers();
            }
        }
    }

    fn spawn(
        &mut self,
        number: HostNumber,
        bundle: BundleRef,
        process: Arc<OnceLock<Process>>,
        origin: Origin,
    ) {
        let (commands, receiver) = mpsc::unbounded_channel();
        self.hosts.insert(number, Host { bundle: bundle.clone(), commands, process: process.clone() });
        let task = HostTask { number, bundle, process, around: self.around.clone() };
        self.tasks.spawn(run_host(task, origin, receiver, self.event_sender.clone()));
    }

    /// A host of an earlier run has answered or is gone. Once all have, what the others have left is nobody's.
    fn look_for_leftovers(&mut self) {
        if self.asked.is_empty() && self.leftovers.is_none() {
            let around = self.around.clone();
            self.leftovers = Some(tokio::task::spawn_blocking(move || Leftovers::find(&around.state)));
        }
    }

    /// Events of a host that was ended on purpose are no news.
    fn on_host(&mut self, host: HostNumber, event: HostEvent) -> Option<FleetEvent> {
        let bundle = self.hosts.get(&host)?.bundle.clone();
        if self.asked.remove(&host) {
            self.look_for_leftovers();
        }
        Some(match event {
            HostEvent::Ready { arena, held } => FleetEvent::Ready { bundle, host, arena, held },
            HostEvent::Resumed => FleetEvent::Resumed { host },
            HostEvent::Checkpoint { attempt, state } => FleetEvent::Checkpoint { attempt, state },
            HostEvent::Began { attempt, pid, region } => FleetEvent::Began { host, attempt, pid, region },
            HostEvent::Ended(ended) => FleetEvent::Ended { host, ended },
            HostEvent::OutputRead { attempt, texts } => FleetEvent::OutputRead { attempt, texts },
            HostEvent::Gone => {
                self.hosts.remove(&host);
                return None;
            }
            HostEvent::Refused { reason } => {
                self.hosts.remove(&host);
                FleetEvent::Refused { bundle, reason }
            }
            HostEvent::Died { reason } => {
                self.hosts.remove(&host);
                FleetEvent::Died { bundle, host: Some(host), reason }
            }
        })
    }
}

/// What was found, once. Safe to cancel.
async fn found(search: &mut Option<JoinHandle<Leftovers>>) -> Leftovers {
    match search {
        Some(running) => {
            let result = running.await;
            *search = None;
            result.expect("looking at files doesn't panic")
        }
        None => std::future::pending().await,
    }
}
