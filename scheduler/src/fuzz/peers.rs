use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::fuzz::Input;
use lrts_core::ids::{BundleDigest, UserName};
use lrts_core::spec::Platform;
use lrts_core::transport::Message;

use crate::convert::{self, BadMessage, InputBodies};
use crate::engine::{Action, Bounds, Engine, Event, Peer, Settings};
use crate::store::Bodies;

/// Connections at a time: the even ones are applications, of a user each, the odd ones workers.
const CONNECTIONS: u8 = 4;

/// Applications and workers that say what they like, in any order, while time passes and connections end.
pub fn peers(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut scheduler = Scheduler::new();
    while !input.is_empty() {
        let step = input.byte();
        let connection = usize::from(step % CONNECTIONS);
        match step / CONNECTIONS {
            0 => scheduler.leaves(connection),
            1 => scheduler.time_passes(Duration::from_millis(u64::from(input.byte()) * 1_000)),
            2 => {
                let (digest, platform) = (BundleDigest([input.byte(); 32]), Platform::current());
                scheduler.handle(
                    Event::BundleCompleted { digest, bytes: 100, platforms: platform.into() },
                    InputBodies::Nothing,
                );
            }
            _ => {
                let (head, body) = (input.part().to_vec(), input.part().to_vec());
                scheduler.message(connection, &Message::new(head, body));
            }
        }
    }
}

/// Small, so that they are reached.
const BOUNDS: Bounds = Bounds {
    applications: 4,
    applications_per_user: 3,
    bundles: 8,
    bundles_per_user: 4,
    bundle_bytes_per_user: 300,
    sessions: 4,
    services: 16,
    jobs: 20,
    payload_bytes: 4_096,
    ended_jobs: 16,
    keys: 4,
    answer_jobs: 5,
    answers: 3,
    questions: 64,
};

struct Scheduler {
    engine: Engine,
    now: Moment,
    /// Who is at each of the connections now.
    peers: [Peer; CONNECTIONS as usize],
    users: [UserName; 2],
    /// Connections so far.
    count: u64,
}

impl Scheduler {
    fn new() -> Self {
        let settings = Settings {
            store: 77,
            epoch: 1,
            seed: 7,
            heartbeat: Duration::from_secs(5),
            lost_after: Duration::from_secs(20),
            result_retention: Duration::from_secs(600),
            result_bytes: 1 << 20,
            bounds: BOUNDS,
        };
        let peers = std::array::from_fn(|connection| Peer(connection as u64));
        let now = Moment::default() + Duration::from_secs(1_000);
        let users = ["ann", "bob"].map(|user| user.parse().expect("a valid name"));
        Self { engine: Engine::new(settings), now, peers, users, count: u64::from(CONNECTIONS) }
    }

    fn message(&mut self, connection: usize, message: &Message) {
        let peer = self.peers[connection];
        let read = match connection % 2 {
            0 => convert::from_application(peer, Some(&self.users[connection / 2]), message),
            _ => convert::from_worker(peer, message),
        };
        match read {
            Ok(convert::Input::Event(event, bodies)) => self.handle(event, bodies),
            Ok(convert::Input::Bundle(_) | convert::Input::Output { .. }) => {}
            Err(BadMessage::Undecodable(_)) => {}
            Err(_) => self.leaves(connection),
        }
    }

    fn leaves(&mut self, connection: usize) {
        let peer = self.renew(connection);
        self.handle(Event::Disconnected { peer }, InputBodies::Nothing);
    }

    /// Another peer at this connection.
    fn renew(&mut self, connection: usize) -> Peer {
        let next = Peer(self.count);
        self.count += 1;
        std::mem::replace(&mut self.peers[connection], next)
    }

    fn time_passes(&mut self, span: Duration) {
        let until = self.now + span;
        // As the event loop does: at every deadline, but here a few at most.
        for _ in 0..16 {
            let Some(due) = self.engine.next_deadline(true).filter(|&due| due <= until) else { break };
            self.now = self.now.max(due);
            self.handle(Event::Tick { may_forget: true }, InputBodies::Nothing);
        }
        self.now = until;
        self.handle(Event::Tick { may_forget: true }, InputBodies::Nothing);
        let asking: Vec<Peer> = self.engine.asking().collect();
        for peer in asking {
            self.handle(Event::RoomFor { peer }, InputBodies::Nothing);
        }
    }

    fn handle(&mut self, event: Event, mut bodies: InputBodies) {
        let actions = self.engine.handle(event, self.now);
        self.engine.check_invariants();
        for action in actions {
            match action {
                Action::Persist(record) => {
                    if let Bodies::Payloads(payloads) = bodies.for_record(&record) {
                        let crate::record::Record::Submitted(submitted) = record else {
                            panic!("payloads belong to a submit")
                        };
                        assert_eq!(payloads.len(), submitted.jobs.len());
                    }
                }
                Action::Disconnect { peer, .. } => {
                    if let Some(connection) = self.peers.iter().position(|&other| other == peer) {
                        self.renew(connection);
                    }
                }
                Action::Send { to, .. } | Action::SendAtOnce { to, .. } => {
                    assert!(to.0 < self.count, "nothing is said to nobody");
                }
                Action::BundleInUse { .. } | Action::Note(_) => {}
            }
        }
    }
}
