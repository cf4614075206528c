//! Applications that have the same program, and some that only say so.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::Ordering;

use lrts_core::limits::{BUNDLE_BACKLOG_BYTES, BUNDLE_CHUNK_BYTES, BUNDLE_ROOM_MIN, UPLOAD_STALL};
use lrts_core::transport::{
    Hello, Link, LinkConfig, LinkEvent, LinkReceiver, LinkSender, Role, Server, ServerConfig, ServerEvent,
    SocketDir,
};

use super::receive::LOOK_AGAIN;
use super::*;
use crate::engine::Peer;

mod disk;

const PATIENCE: Duration = Duration::from_secs(20);
const ROOM: u64 = 10 << 20;
const CHUNK: u64 = BUNDLE_CHUNK_BYTES as u64;

struct Store {
    bundles: Bundles,
    server: Server,
    sockets: SocketDir,
    directory: tempfile::TempDir,
    peers: u64,
}

struct Client {
    connection: ConnectionId,
    who: Offerer,
    receiver: LinkReceiver,
    _sender: LinkSender,
}

impl Client {
    async fn hear(&mut self) -> ToApplication {
        self.hears().await
    }

    async fn hears<M: codec::Head>(&mut self) -> M {
        let event = tokio::time::timeout(PATIENCE, self.receiver.next()).await.expect("it is told in time");
        let LinkEvent::Message(message) = event else { panic!("{event:?} where a message was due") };
        codec::decode(&message.head).unwrap()
    }

    /// The next thing that it hears must be that the program is wanted. Returns from where on.
    async fn is_asked(&mut self) -> u64 {
        let heard = self.hear().await;
        let ToApplication::BundleWanted { offset, .. } = heard else { panic!("{heard:?} instead of a wish") };
        offset
    }

    async fn is_refused(&mut self) -> String {
        let heard = self.hear().await;
        let ToApplication::BundleRefused { reason, .. } = heard else {
            panic!("{heard:?} instead of a refusal")
        };
        reason
    }
}

impl Store {
    async fn start() -> Self {
        Self::with_room(ROOM).await
    }

    async fn with_room(room: u64) -> Self {
        let sockets = SocketDir::create().unwrap();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let server =
            Server::bind(ServerConfig::insecure(address, sockets.path(), vec![Role::Client])).await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        let bundles = Bundles::open(directory.path().join("bundles"), room, server.handle()).unwrap();
        Self { bundles, server, sockets, directory, peers: 0 }
    }

    async fn connect(&mut self) -> Client {
        let hello = Hello::new(Role::Client, "test", "here");
        let address = self.server.local_address().to_string();
        let (sender, mut receiver) = Link::open(LinkConfig::insecure(&address, hello, self.sockets.path()));
        let joined = async {
            let ServerEvent::Joined { connection, .. } = self.server.next().await else {
                panic!("nobody joins")
            };
            let LinkEvent::Up { .. } = receiver.next().await else { panic!("no connection") };
            connection
        };
        let connection = tokio::time::timeout(PATIENCE, joined).await.expect("it connects in time");
        self.peers += 1;
        let who = Offerer { connection, peer: Peer(self.peers), user: None };
        Client { connection, who, receiver, _sender: sender }
    }

    async fn connect_as(&mut self, user: &str) -> Client {
        let mut client = self.connect().await;
        client.who.user = Some(user.parse().unwrap());
        client
    }

    /// As the next scheduler in the same directory.
    fn restart(&mut self) {
        self.bundles =
            Bundles::open(self.directory.path().join("bundles"), ROOM, self.server.handle()).unwrap();
    }

    /// As much later.
    fn look(&mut self, later: Duration) -> Vec<&'static str> {
        words(self.bundles.look(Moment::now() + later))
    }

    fn offer(&mut self, peer: &Client, program: &Program) -> Vec<&'static str> {
        self.offer_bytes(peer, program.digest, program.content.len() as u64)
    }

    fn offer_bytes(&mut self, peer: &Client, digest: BundleDigest, bytes: u64) -> Vec<&'static str> {
        words(self.bundles.offer(peer.who.clone(), digest, bytes, platform("x86_64-linux-gnu")))
    }

    /// Sends pieces of a program's content under some digest from an offset on.
    fn send(
        &mut self,
        peer: &Client,
        digest: BundleDigest,
        content: &[u8],
        from: u64,
    ) -> Result<Vec<&'static str>, BadChunk> {
        let mut offset = from;
        let mut events = Vec::new();
        for piece in content[from as usize..].chunks(BUNDLE_CHUNK_BYTES) {
            let bytes = piece.len() as u32;
            let compressed = zstd_of(piece);
            events.extend(self.bundles.chunk(peer.connection, digest, offset, bytes, compressed)?);
            offset += u64::from(bytes);
        }
        Ok(words(events))
    }

    /// The next end of an upload, and what the engine is told.
    async fn outcome(&mut self) -> Vec<&'static str> {
        let outcome = tokio::time::timeout(PATIENCE, self.bundles.outcomes.recv()).await;
        let outcome = outcome.expect("the disk answers").expect("the writer lives");
        words(self.bundles.uploaded(outcome))
    }

    /// Returns once the disk has done all that it was told.
    async fn is_done(&mut self) {
        let digest = BundleDigest([0xff; 32]);
        self.bundles.disk.order(Work::Finish { digest, number: 0 });
        let outcome = tokio::time::timeout(PATIENCE, self.bundles.outcomes.recv()).await.unwrap();
        assert!(matches!(outcome, Some(Outcome::DiskFailed { number: 0, .. })), "{outcome:?}");
        self.bundles.disk.order(Work::Abandon { digest, number: 0 });
    }

    fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.directory.path().join("bundles")).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort_unstable();
        names
    }
}

struct Program {
    digest: BundleDigest,
    content: Vec<u8>,
}

impl Program {
    fn new(bytes: usize) -> Self {
        let content: Vec<u8> = (0..bytes).map(|index| (index % 251) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &content).unwrap();
        Self { digest: lrts_core::bundle::digest_file(&file).unwrap().0, content }
    }
}

fn zstd_of(piece: &[u8]) -> Bytes {
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, piece).unwrap();
    lrts_core::bundle::read_chunk(&file, 0).unwrap().0
}

fn platform(target: &str) -> Platform {
    Platform { target: target.to_owned(), glibc: None }
}

/// In a word each, what the engine is to know.
fn words(events: impl IntoIterator<Item = Event>) -> Vec<&'static str> {
    let word = |event| {
        if let Event::BundleCompleted { mut platforms, .. } = event {
            return if platforms.add(platform("x86_64-linux-gnu")) { "elsewhere" } else { "completed" };
        }
        if matches!(event, Event::BundleFailed { .. }) {
            return "failed";
        }
        if matches!(event, Event::BundleOffered { .. }) {
            return "offered";
        }
        assert!(matches!(event, Event::BundleForgotten { .. }), "{event:?}");
        "forgotten"
    };
    events.into_iter().map(word).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_who_sends_something_else_is_refused_and_the_next_one_is_asked() {
    let mut store = Store::start().await;
    let program = Program::new(2_500_000);
    let (mut liar, mut honest) = (store.connect().await, store.connect().await);
    let elsewhere = platform("sparc64-linux-gnu");
    store.bundles.offer(liar.who.clone(), program.digest, 2_000_000, elsewhere);
    assert_eq!(liar.is_asked().await, 0);
    assert_eq!(store.offer(&honest, &program), ["offered"]);
    store.send(&liar, program.digest, &vec![0; 2_000_000], 0).unwrap();
    // A piece of one who wasn't asked, or a repeat, changes nothing.
    store.send(&honest, program.digest, &program.content, 0).unwrap();

    let outcome = store.bundles.next().await;
    let event = store.bundles.uploaded(outcome);
    let is_the_liars = matches!(event[..], [Event::BundleFailed { peer, .. }] if peer == liar.who.peer);
    assert!(is_the_liars, "others with the program can still run its jobs: {event:?}");
    assert!(liar.is_refused().await.contains("upload the program again"));
    assert_eq!(honest.is_asked().await, 0);
    store.send(&honest, program.digest, &program.content, 0).unwrap();
    assert_eq!(store.outcome().await, ["completed"]);
    assert_eq!(honest.hear().await, ToApplication::BundleComplete { digest: program.digest });
    store.is_done().await;
    assert_eq!(store.files(), [program.digest.to_string()]);

    // Alone, it is the end of its upload, and nothing is left of it.
    let other = Program::new(10);
    assert_eq!(store.offer(&liar, &other), ["offered"]);
    assert_eq!(liar.is_asked().await, 0);
    store.send(&liar, other.digest, &[0; 10], 0).unwrap();
    assert_eq!(store.outcome().await, ["failed"]);
    liar.is_refused().await;
    assert_eq!(store.files().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_else_has_begun_wrongly_is_sent_anew() {
    let mut store = Store::start().await;
    let program = Program::new(2_500_000);
    let (mut liar, mut honest) = (store.connect().await, store.connect().await);
    store.offer(&liar, &program);
    assert_eq!(liar.is_asked().await, 0);
    let chunk = BUNDLE_CHUNK_BYTES as u64;
    let wrong = zstd_of(&vec![0; BUNDLE_CHUNK_BYTES]);
    store.bundles.chunk(liar.connection, program.digest, 0, chunk as u32, wrong).unwrap();
    store.bundles.left(liar.connection);

    store.offer(&honest, &program);
    assert_eq!(honest.is_asked().await, chunk, "it goes on where the other one ended");
    store.send(&honest, program.digest, &program.content, chunk).unwrap();
    assert_eq!(store.outcome().await, [""; 0], "that is nobody's fault yet");
    assert_eq!(honest.is_asked().await, 0);
    // As a client does that was in the middle of it: what doesn't fit is passed over, and then asked for.
    store.send(&honest, program.digest, &program.content, chunk).unwrap();
    assert_eq!(honest.is_asked().await, 0);
    store.send(&honest, program.digest, &program.content, 0).unwrap();
    assert_eq!(store.outcome().await, ["completed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_senders_all_go_on_and_the_first_to_finish_ends_it() {
    let mut store = Store::start().await;
    let program = Program::new(2_500_000);
    let (mut slow, mut slower) = (store.connect_as("ann").await, store.connect_as("bob").await);
    store.offer(&slow, &program);
    assert_eq!(slow.is_asked().await, 0);
    store.offer(&slower, &program);
    let piece = |number: usize| &program.content[..(number + 1) * BUNDLE_CHUNK_BYTES];
    store.send(&slow, program.digest, piece(0), 0).unwrap();
    store.look(UPLOAD_STALL / 2);
    store.look(UPLOAD_STALL);
    assert_eq!(slower.is_asked().await, 0);
    // Long after.
    for later in 2..9 {
        store.look(UPLOAD_STALL * later);
    }
    store.send(&slower, program.digest, piece(0), 0).unwrap();
    store.send(&slow, program.digest, piece(1), CHUNK).unwrap();
    store.send(&slower, program.digest, piece(1), CHUNK).unwrap();
    store.send(&slow, program.digest, &program.content, 2 * CHUNK).unwrap();
    assert_eq!(store.outcome().await, ["completed"]);
    for client in [&mut slow, &mut slower] {
        assert_eq!(client.hear().await, ToApplication::BundleComplete { digest: program.digest });
    }
    // What it had under way.
    assert_eq!(store.send(&slower, program.digest, &program.content, 2 * CHUNK).unwrap(), [""; 0]);
    store.is_done().await;
    assert_eq!(store.files(), [program.digest.to_string()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_nothing_or_wrong_things_delays_others_once_however_often_it_connects() {
    let mut store = Store::start().await;
    let mut liars = Vec::new();
    for _ in 0..10 {
        liars.push(store.connect_as("eve").await);
    }
    let mut honest = store.connect_as("ann").await;
    for is_silent in [true, false] {
        let program = Program::new(2_500_000 + usize::from(is_silent));
        for liar in &liars {
            store.offer_bytes(liar, program.digest, 5);
        }
        store.offer(&honest, &program);
        assert_eq!(liars[0].is_asked().await, 0);
        if is_silent {
            store.look(UPLOAD_STALL);
        } else {
            store.send(&liars[0], program.digest, b"wrong", 0).unwrap();
            assert_eq!(store.outcome().await, ["failed"]);
            liars[0].is_refused().await;
        }
        assert_eq!(honest.is_asked().await, 0);
        store.send(&honest, program.digest, &program.content, 0).unwrap();
        assert_eq!(store.outcome().await, ["completed"]);
        honest.hear().await;
        if is_silent {
            liars[0].hear().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn more_of_a_users_own_are_asked_ever_later() {
    let mut store = Store::start().await;
    let program = Program::new(2_500_000);
    let mut clients = Vec::new();
    for _ in 0..4 {
        let client = store.connect_as("ann").await;
        store.offer(&client, &program);
        clients.push(client);
    }
    let asked = |store: &Store| {
        let sources = &store.bundles.uploads[&program.digest].sources;
        sources.iter().filter(|source| source.part.is_some()).count()
    };
    // The next one after one span, then after two more, three more.
    for (stalls, expected) in [(0, 1), (1, 2), (2, 2), (3, 3), (5, 3), (6, 4)] {
        store.look(UPLOAD_STALL * stalls);
        assert_eq!(asked(&store), expected, "after {stalls}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_file_refuses_its_sender_alone_while_another_goes_on() {
    let mut store = Store::start().await;
    let program = Program::new(2_500_000);
    let (mut liar, mut honest) = (store.connect().await, store.connect().await);
    store.offer_bytes(&liar, program.digest, 2_000_000);
    assert_eq!(liar.is_asked().await, 0);
    store.offer(&honest, &program);
    store.look(UPLOAD_STALL);
    assert_eq!(honest.is_asked().await, 0);
    store.send(&honest, program.digest, &program.content[..BUNDLE_CHUNK_BYTES], 0).unwrap();
    store.send(&liar, program.digest, &vec![0; 2_000_000], 0).unwrap();
    assert_eq!(store.outcome().await, ["failed"]);
    assert!(liar.is_refused().await.contains("upload the program again"));
    store.send(&honest, program.digest, &program.content, CHUNK).unwrap();
    assert_eq!(store.outcome().await, ["completed"]);
    assert_eq!(honest.hear().await, ToApplication::BundleComplete { digest: program.digest });
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_midway_leaves_the_longest_to_the_next_and_what_is_whole_counts() {
    let mut store = Store::start().await;
    let program = Program::new(2_500_000);
    let mut clients = Vec::new();
    for number in 0..3 {
        let mut client = store.connect().await;
        store.offer(&client, &program);
        store.look(UPLOAD_STALL * (10 * number));
        assert_eq!(client.is_asked().await, 0);
        clients.push(client);
    }
    let [short, long, on] = &mut clients[..] else { panic!("three clients") };
    store.send(long, program.digest, &program.content[..2 * BUNDLE_CHUNK_BYTES], 0).unwrap();
    for client in [&short, &on] {
        store.send(client, program.digest, &program.content[..BUNDLE_CHUNK_BYTES], 0).unwrap();
    }
    store.bundles.left(long.connection);
    store.bundles.left(short.connection);
    let mut next = store.connect().await;
    store.offer(&next, &program);
    store.look(UPLOAD_STALL * 100);
    assert_eq!(next.is_asked().await, 2 * CHUNK);
    store.send(&next, program.digest, &program.content, 2 * CHUNK).unwrap();
    store.bundles.left(next.connection);
    store.send(on, program.digest, &program.content[..2 * BUNDLE_CHUNK_BYTES], CHUNK).unwrap();
    assert_eq!(store.outcome().await, ["completed"]);
    assert_eq!(on.hear().await, ToApplication::BundleComplete { digest: program.digest });
    assert!(store.bundles.uploads.is_empty() && store.bundles.halves.is_empty());
    store.is_done().await;
    assert_eq!(store.files().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_any_worker_may_try_a_program_whatever_is_said_of_it_then() {
    let mut store = Store::start().await;
    let (program, half) = (Program::new(10), Program::new(2_500_000));
    let mut client = store.connect().await;
    store.offer(&client, &program);
    store.send(&client, program.digest, &program.content, 0).unwrap();
    assert_eq!(store.outcome().await, ["completed"]);
    client.is_asked().await;
    client.hear().await;
    store.offer(&client, &half);
    assert_eq!(client.is_asked().await, 0);
    store.send(&client, half.digest, &half.content[..BUNDLE_CHUNK_BYTES], 0).unwrap();
    store.is_done().await;

    store.restart();
    let any = |events: &[Event]| matches!(events, [Event::BundleCompleted { platforms: Platforms::Any, .. }]);
    assert!(any(&store.bundles.complete_already()));
    let (mut liar, mut again) = (store.connect().await, store.connect().await);
    let elsewhere = platform("sparc64-linux-gnu");
    assert!(any(&store.bundles.offer(liar.who.clone(), program.digest, 10, elsewhere)));
    assert_eq!(liar.hear().await, ToApplication::BundleComplete { digest: program.digest });
    store.offer(&again, &half);
    assert_eq!(again.is_asked().await, CHUNK, "and halves are continued");
    // Under a number of their own.
    let fresh = Program::new(12);
    store.offer(&liar, &fresh);
    assert_eq!(liar.is_asked().await, 0);
    store.send(&liar, fresh.digest, &fresh.content, 0).unwrap();
    assert_eq!(store.outcome().await, ["completed"]);
    store.send(&again, half.digest, &half.content, CHUNK).unwrap();
    assert_eq!(store.outcome().await, ["completed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_has_to_go_on_with_what_another_user_left() {
    let mut store = Store::start().await;
    let program = Program::new(2_500_000);
    let (mut liar, mut honest) = (store.connect_as("eve").await, store.connect_as("ann").await);
    store.offer(&honest, &program);
    assert_eq!(honest.is_asked().await, 0);
    store.send(&honest, program.digest, &program.content[..BUNDLE_CHUNK_BYTES], 0).unwrap();
    store.offer(&liar, &program);
    store.look(UPLOAD_STALL);
    assert_eq!(liar.is_asked().await, 0);
    store.send(&liar, program.digest, &[0; 2 * BUNDLE_CHUNK_BYTES], 0).unwrap();
    for client in [&liar, &honest] {
        store.bundles.left(client.connection);
    }
    assert_eq!(store.bundles.halves.len(), 2);
    let (mut again, mut third) = (store.connect_as("ann").await, store.connect_as("bob").await);
    for client in [&again, &third] {
        store.offer(client, &program);
    }
    assert_eq!(again.is_asked().await, CHUNK, "it is its user's own");
    store.look(UPLOAD_STALL * 2);
    assert_eq!(third.is_asked().await, 0);
    store.send(&again, program.digest, &program.content, CHUNK).unwrap();
    assert_eq!(store.outcome().await, ["completed"]);
    assert!(store.bundles.halves.is_empty());
    store.is_done().await;
    assert_eq!(store.files(), [program.digest.to_string()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn announcements_take_no_room_and_what_comes_does() {
    let mut store = Store::start().await;
    let (mut peer, other) = (store.connect().await, store.connect().await);
    let (unused, needed) = (Program::new(3 << 20), Program::new(2 << 20));
    for program in [&unused, &needed] {
        store.offer(&peer, program);
        peer.is_asked().await;
        store.send(&peer, program.digest, &program.content, 0).unwrap();
        assert_eq!(store.outcome().await, ["completed"]);
        peer.hear().await;
    }
    store.bundles.set_in_use(needed.digest, true);
    let too_large = ROOM - (2 << 20) + 1;
    assert_eq!(store.offer_bytes(&peer, BundleDigest([1; 32]), too_large), ["failed"]);
    assert!(peer.is_refused().await.contains("--bundle-store"));

    // Far more than there is, all in all.
    let announced = [1, 2].map(|byte| BundleDigest([byte; 32]));
    for digest in announced {
        for client in [&peer, &other] {
            assert_eq!(store.offer_bytes(client, digest, too_large - 1), ["offered"]);
        }
        assert_eq!(peer.is_asked().await, 0);
    }
    assert!(store.bundles.complete.contains_key(&unused.digest));
    let content = vec![0; ROOM as usize];
    let fits = store.send(&peer, announced[0], &content[..5 << 20], 0).unwrap();
    assert!(fits.is_empty() && store.bundles.complete.contains_key(&unused.digest));
    let fits = store.send(&peer, announced[0], &content[..6 << 20], 5 << 20).unwrap();
    assert_eq!(fits, ["forgotten"], "what nobody needs makes room");
    assert!(store.bundles.complete.contains_key(&needed.digest));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_finds_no_room_waits_until_there_is_some() {
    let mut store = Store::start().await;
    let (mut first, mut second, mut sharing) =
        (store.connect().await, store.connect().await, store.connect().await);
    let (large, program) = (Program::new(8 << 20), Program::new(4 << 20));
    store.offer(&first, &large);
    first.is_asked().await;
    store.send(&first, large.digest, &large.content[..7 << 20], 0).unwrap();
    store.offer(&second, &program);
    store.offer(&sharing, &program);
    second.is_asked().await;
    assert_eq!(store.send(&second, program.digest, &program.content, 0).unwrap(), [""; 0]);
    assert_eq!(store.bundles.part(program.digest, second.connection).unwrap().received, 3 << 20);
    // Nobody has asked for more of it yet.
    assert!(store.send(&second, program.digest, &program.content, 3 << 20).unwrap().is_empty());
    assert_eq!(store.look(LOOK_AGAIN), [""; 0]);
    let left = store.send(&first, large.digest, &large.content, 7 << 20).unwrap();
    assert!(left.is_empty(), "it has none either");
    assert_eq!(store.look(LOOK_AGAIN), [""; 0]);
    store.bundles.left(first.connection);
    assert_eq!(store.look(LOOK_AGAIN), [""; 0], "what is spare makes room");
    assert_eq!(second.is_asked().await, 3 << 20);
    assert!(store.bundles.halves.is_empty());
    store.send(&second, program.digest, &program.content, 3 << 20).unwrap();
    assert_eq!(store.outcome().await, ["completed"]);
    for client in [&mut second, &mut sharing] {
        assert_eq!(client.hear().await, ToApplication::BundleComplete { digest: program.digest });
    }
    // For one who would wait in vain, that is another matter, and nobody who sends is in its way.
    store.offer(&second, &large);
    assert_eq!(second.is_asked().await, 0);
    store.send(&second, large.digest, &large.content[..6 << 20], 0).unwrap();
    store.bundles.set_in_use(program.digest, true);
    let too_large = ROOM - (4 << 20) + 1;
    assert_eq!(store.offer_bytes(&sharing, BundleDigest([1; 32]), too_large), ["failed"]);
    assert!(sharing.is_refused().await.contains("--bundle-store"));
    assert_eq!(store.bundles.part(large.digest, second.connection).unwrap().received, 6 << 20);
    assert_eq!(store.send(&second, large.digest, &large.content[..7 << 20], 6 << 20).unwrap(), ["failed"]);
    assert!(second.is_refused().await.contains("--bundle-store"));
    assert!(store.bundles.uploads.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nothing_is_added_to_makes_room_and_is_sent_anew() {
    let mut store = Store::start().await;
    let (mut silent, honest) = (store.connect().await, store.connect().await);
    let half = Program::new(9 << 20);
    store.offer(&silent, &half);
    silent.is_asked().await;
    store.send(&silent, half.digest, &half.content[..8 << 20], 0).unwrap();
    store.bundles.part(half.digest, silent.connection).unwrap().heard = Moment::now() - UPLOAD_STALL;
    // It stays where that would be in vain.
    let vain = Program::new(9 << 20);
    assert_eq!(store.offer(&honest, &vain), ["offered"]);
    assert_eq!(store.bundles.part(half.digest, silent.connection).unwrap().received, 8 << 20);
    store.bundles.left(honest.connection);
    // All of it and the half don't fit.
    let other = Program::new(3 << 20);
    store.offer(&honest, &other);
    store.send(&honest, other.digest, &other.content, 0).unwrap();
    assert_eq!(store.outcome().await, ["completed"]);
    // The silent one goes on as if nothing had been, and is asked anew.
    assert_eq!(store.send(&silent, half.digest, &half.content, 8 << 20).unwrap(), ["forgotten"]);
    assert_eq!(silent.is_asked().await, 0);
    let part = store.bundles.part(half.digest, silent.connection).unwrap();
    assert!(Moment::now().since(part.heard) < UPLOAD_STALL, "and has its time");
    assert!(store.send(&silent, half.digest, &half.content, 0).unwrap().is_empty());
    assert_eq!(store.outcome().await, ["completed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_disks_word_about_an_earlier_file_concerns_nobody_who_sends_now() {
    let mut store = Store::start().await;
    let program = Program::new(2_500_000);
    let (mut liar, mut honest) = (store.connect().await, store.connect().await);
    let damaged = zstd_of(&program.content[..BUNDLE_CHUNK_BYTES]);
    let damaged = damaged.slice(..damaged.len() - 9);
    let chunk = BUNDLE_CHUNK_BYTES as u32;
    for half_is_kept in [false, true] {
        store.offer(&liar, &program);
        assert_eq!(liar.is_asked().await, 0);
        store.bundles.chunk(liar.connection, program.digest, 0, chunk, damaged.clone()).unwrap();
        store.bundles.left(liar.connection);
        if !half_is_kept {
            let number = store.bundles.halves[&(program.digest, None)].number;
            store.bundles.delete(FileId::Part(program.digest, number));
        }
        store.offer(&honest, &program);
        assert_eq!(honest.is_asked().await, if half_is_kept { u64::from(chunk) } else { 0 });
        // How the first file ended was on its way meanwhile.
        assert_eq!(store.outcome().await, [""; 0]);
        if half_is_kept {
            assert_eq!(honest.is_asked().await, 0, "its file is gone, and that isn't its fault");
        }
        store.send(&honest, program.digest, &program.content, 0).unwrap();
        assert_eq!(store.outcome().await, ["completed"]);
        honest.hear().await;
        store.bundles.delete(FileId::Complete(program.digest));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lengths_are_bounded_repeats_are_passed_over_and_small_files_take_room_too() {
    let mut store = Store::start().await;
    let (mut peer, mut other) = (store.connect().await, store.connect().await);
    for _ in 0..3 {
        assert_eq!(store.offer_bytes(&peer, BundleDigest([0; 32]), 100), ["offered"]);
    }
    assert_eq!(peer.is_asked().await, 0);
    for bytes in [0, BUNDLE_BYTES + 1, u64::MAX] {
        assert_eq!(store.offer_bytes(&other, BundleDigest([9; 32]), bytes), ["failed"]);
        assert!(other.is_refused().await.contains("are allowed"));
        let others = BundleDigest([0; 32]);
        assert_eq!(store.offer_bytes(&other, others, bytes), ["failed"]);
        other.is_refused().await;
        let sources = store.bundles.uploads[&others].sources.iter().map(|source| source.bytes);
        assert_eq!(sources.collect::<Vec<_>>(), [100], "nobody else's upload is touched");
    }
    store.bundles.left(peer.connection);
    let most = ROOM / BUNDLE_ROOM_MIN;
    let piece = zstd_of(&[0; BUNDLE_CHUNK_BYTES]);
    for number in 0..2 * most {
        let digest = BundleDigest(std::array::from_fn(|index| (number >> (8 * index.min(7))) as u8 ^ 0x55));
        let bytes = BUNDLE_CHUNK_BYTES as u32;
        store.offer_bytes(&other, digest, u64::from(bytes) + 1);
        if number % 2 == 0 {
            store.bundles.chunk(other.connection, digest, 0, bytes, piece.clone()).unwrap();
        }
        store.bundles.left(other.connection);
    }
    let halves = store.bundles.halves.values().map(|half| half.bytes);
    assert_eq!(halves.collect::<Vec<_>>(), [BUNDLE_CHUNK_BYTES as u64; 10], "as many as there is room for");
}

#[tokio::test(flavor = "multi_thread")]
async fn pieces_that_no_honest_application_sends_are_told_apart() {
    let mut store = Store::start().await;
    let program = Program::new(BUNDLE_CHUNK_BYTES + 5);
    let mut peer = store.connect().await;
    store.offer(&peer, &program);
    peer.is_asked().await;
    let (chunk, right) = (BUNDLE_CHUNK_BYTES as u32, zstd_of(&program.content[..BUNDLE_CHUNK_BYTES]));
    let mut try_chunk = |offset, bytes, compressed: &Bytes| {
        store.bundles.chunk(peer.connection, program.digest, offset, bytes, compressed.clone())
    };
    for (offset, bytes) in
        [(0, 0), (0, 5), (0, chunk + 1), (0, u32::MAX), (5, chunk), (u64::MAX, 1), (u64::MAX - 1, u32::MAX)]
    {
        assert!(try_chunk(offset, bytes, &right).is_err(), "{offset} {bytes}");
    }
    for wrong in [Bytes::new(), Bytes::from_static(b"nonsense"), zstd_of(&[0; 5]), vec![0; 2 << 20].into()] {
        assert!(try_chunk(0, chunk, &wrong).is_err());
    }
    try_chunk(0, chunk, &right).unwrap();
    try_chunk(0, chunk, &right).unwrap();
    assert!(try_chunk(u64::from(chunk), 6, &zstd_of(&[0; 6])).is_err());
    assert!(store.bundles.disk.backlog.load(Ordering::Relaxed) <= BUNDLE_CHUNK_BYTES);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_program_was_built_for_is_what_anybody_says_of_it() {
    let mut store = Store::start().await;
    let program = Program::new(10);
    let (mut liar, mut honest) = (store.connect().await, store.connect().await);
    let (right, wrong) = (platform("x86_64-linux-gnu"), platform("sparc64-linux-gnu"));
    store.bundles.offer(liar.who.clone(), program.digest, 10, wrong.clone());
    liar.is_asked().await;
    store.send(&liar, program.digest, &program.content, 0).unwrap();
    // While it is verified.
    store.bundles.offer(honest.who.clone(), program.digest, 10, right.clone());
    assert_eq!(store.outcome().await, ["completed"]);
    honest.hear().await;
    assert_eq!(store.bundles.complete[&program.digest].platforms, Platforms::Told(vec![wrong, right]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_user_sends_at_a_time_makes_way_for_others_and_only_for_them() {
    let mut store = Store::start().await;
    let (mut eves, mut eves_too) = (store.connect_as("eve").await, store.connect_as("eve").await);
    let (mut anns, mut eves_third) = (store.connect_as("ann").await, store.connect_as("eve").await);
    let (large, second, third) = (BundleDigest([1; 32]), Program::new(3 << 20), Program::new(2 << 20));
    let zeros = vec![0; 6 << 20];
    store.offer_bytes(&eves, large, ROOM - 1);
    eves.is_asked().await;
    store.send(&eves, large, &zeros, 0).unwrap();
    store.offer_bytes(&eves_too, second.digest, 3 << 20);
    eves_too.is_asked().await;
    store.send(&eves_too, second.digest, &second.content[..2 << 20], 0).unwrap();
    let received = |store: &mut Store, digest, client: &Client| {
        store.bundles.part(digest, client.connection).map(|part| part.received >> 20)
    };
    assert_eq!(
        received(&mut store, second.digest, &eves_too),
        Some(2),
        "there is room for more than a share"
    );
    // For more of hers there is none.
    let shared = Program::new(4 << 20);
    store.offer(&eves_third, &shared);
    assert_eq!(eves_third.is_asked().await, 0);
    assert_eq!(store.send(&eves_third, shared.digest, &shared.content, 0).unwrap(), [""; 0]);
    assert_eq!(received(&mut store, shared.digest, &eves_third), Some(2));

    store.offer(&anns, &third);
    assert_eq!(anns.is_asked().await, 0);
    assert_eq!(store.send(&anns, third.digest, &third.content, 0).unwrap(), [""; 0]);
    assert_eq!(received(&mut store, shared.digest, &eves_third), Some(0), "what she began last makes way");
    assert_eq!(store.outcome().await, ["completed"]);
    assert_eq!(anns.hear().await, ToApplication::BundleComplete { digest: third.digest });
    assert_eq!(received(&mut store, second.digest, &eves_too), Some(2));
    assert_eq!(received(&mut store, large, &eves), Some(6));

    // Nothing has failed: it waits until there is room.
    store.bundles.left(eves_too.connection);
    assert_eq!(store.look(LOOK_AGAIN), ["forgotten"]);
    assert_eq!(eves_third.is_asked().await, 0);
    store.send(&eves_third, shared.digest, &shared.content, 0).unwrap();
    assert_eq!(store.outcome().await, ["completed"]);
}
