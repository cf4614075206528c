//! All job hosts of the worker: where their programs come from, and which commands go to which.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lrts_core::ids::{AttemptId, BundleDigest};
use lrts_core::spec::BundleRef;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::{Command, HostEnded, HostEvent, HostNumber, run_host};
use crate::bundles::{BundleCache, Fetch, FetchError, Program};
use crate::config::Config;
use crate::state_dir::StateDir;

/// Events of hosts that wait for the event loop; beyond it, hosts wait.
const EVENTS: usize = 1_024;

/// How long hosts may take to end with their worker, their jobs included.
const END_TIME: Duration = Duration::from_secs(5);

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
    },
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
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Fleet {
    state: Arc<StateDir>,
    cache: Arc<BundleCache>,
    installed: BTreeMap<String, PathBuf>,
    ships_bundles: bool,
    fetches: BTreeMap<BundleDigest, Fetch>,
    hosts: BTreeMap<HostNumber, Host>,
    /// The one that takes a bundle's commands.
    current: BTreeMap<BundleRef, HostNumber>,
    started: HostNumber,
    tasks: JoinSet<()>,
    /// Not bounded by itself: there is one search per bundle at a time.
    search_results: mpsc::UnboundedSender<(BundleRef, Search)>,
    searches: mpsc::UnboundedReceiver<(BundleRef, Search)>,
    event_sender: mpsc::Sender<(HostNumber, HostEvent)>,
    events: mpsc::Receiver<(HostNumber, HostEvent)>,
}

impl Fleet {
    /// No hosts yet.
    pub(crate) fn new(config: &Config, state: Arc<StateDir>) -> Self {
        let (search_results, searches) = mpsc::unbounded_channel();
        let (event_sender, events) = mpsc::channel(EVENTS);
        Self {
            cache: BundleCache::new(state.bundles(), config.bundle_cache_bytes),
            state,
            installed: config.installed.clone(),
            ships_bundles: config.ships_bundles,
            fetches: BTreeMap::new(),
            hosts: BTreeMap::new(),
            current: BTreeMap::new(),
            started: 0,
            tasks: JoinSet::new(),
            search_results,
            searches,
            event_sender,
            events,
        }
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

    /// Ends a bundle's host, which has nothing to do. Returns which it was.
    pub(crate) fn end_host(&mut self, bundle: &BundleRef) -> Option<HostNumber> {
        let number = self.current.remove(bundle)?;
        // Dropping its commands is what ends it.
        self.hosts.remove(&number);
        info!(host = number, "idle job host ends");
        Some(number)
    }

    /// Sends a command to a bundle's host. Without one it is dropped: what the host had, died with it.
    pub(crate) fn command(&self, bundle: &BundleRef, command: Command) {
        if let Some(&number) = self.current.get(bundle) {
            self.command_host(number, command);
        }
    }

    /// Sends a command to this host, if it is still there.
    pub(crate) fn command_host(&self, host: HostNumber, command: Command) {
        if let Some(host) = self.hosts.get(&host) {
            // A task that is gone has sent `Died`.
            let _ = host.commands.send(command);
        }
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
        if let Err(total) = fetch.accept(offset, bytes, total, body) {
            self.fetches.remove(&digest);
            let reason = format!("a bundle of {total} bytes is larger than any may be");
            self.conclude_search(&BundleRef::Shipped(digest), Search::Refused(reason));
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
    pub(crate) async fn end(mut self) {
        self.hosts.clear();
        self.fetches.clear();
        self.events.close();
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(END_TIME, all).await.is_err() {
            warn!("job hosts don't end by themselves and are killed");
        }
        // Aborts what is left; a host is killed when its task is dropped.
        self.tasks.shutdown().await;
    }

    /// Kills all hosts, and with them their jobs.
    pub(crate) async fn kill(mut self) {
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
        if self.current.contains_key(bundle) {
            return; // The late answer of a search that was given up.
        }
        self.started += 1;
        let number = self.started;
        let (commands, receiver) = mpsc::unbounded_channel();
        self.hosts.insert(number, Host { bundle: bundle.clone(), commands });
        self.current.insert(bundle.clone(), number);
        self.tasks.spawn(run_host(number, program, self.state.clone(), receiver, self.event_sender.clone()));
    }

    /// Events of a host that was ended on purpose are no news.
    fn on_host(&mut self, host: HostNumber, event: HostEvent) -> Option<FleetEvent> {
        let bundle = self.hosts.get(&host)?.bundle.clone();
        Some(match event {
            HostEvent::Ready { arena } => FleetEvent::Ready { bundle, host, arena },
            HostEvent::Began { attempt, pid, region } => FleetEvent::Began { host, attempt, pid, region },
            HostEvent::Ended(ended) => FleetEvent::Ended { host, ended },
            HostEvent::OutputRead { attempt, texts } => FleetEvent::OutputRead { attempt, texts },
            HostEvent::Refused { reason } => {
                self.forget_host(host, &bundle);
                FleetEvent::Refused { bundle, reason }
            }
            HostEvent::Died { reason } => {
                self.forget_host(host, &bundle);
                FleetEvent::Died { bundle, host: Some(host), reason }
            }
        })
    }

    fn forget_host(&mut self, host: HostNumber, bundle: &BundleRef) {
        self.hosts.remove(&host);
        self.current.remove(bundle);
    }
}
