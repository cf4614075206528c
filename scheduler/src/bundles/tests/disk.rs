//! Disks that are slow, full, broken or changed by somebody else.

use super::*;
use crate::bundles::receive::DISK_PAUSE;

#[tokio::test(flavor = "multi_thread")]
async fn what_the_disk_has_no_time_for_is_asked_for_again() {
    let mut store = Store::start().await;
    let program = Program::new(2_500_000);
    let mut peer = store.connect().await;
    store.offer(&peer, &program);
    peer.is_asked().await;
    // However small a piece is when compressed.
    let full = BUNDLE_BACKLOG_BYTES - BUNDLE_CHUNK_BYTES + 1;
    store.bundles.disk.backlog.fetch_add(full, Ordering::Relaxed);
    store.send(&peer, program.digest, &program.content, 0).unwrap();
    assert_eq!(peer.is_asked().await, 0);
    store.bundles.disk.backlog.fetch_sub(full, Ordering::Relaxed);
    store.send(&peer, program.digest, &program.content, 0).unwrap();
    assert_eq!(store.outcome().await, ["completed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn until_when_a_program_was_in_use_is_known_after_a_restart() {
    let mut store = Store::start().await;
    let program = Program::new(10);
    let mut peer = store.connect().await;
    store.offer(&peer, &program);
    peer.is_asked().await;
    store.send(&peer, program.digest, &program.content, 0).unwrap();
    assert_eq!(store.outcome().await, ["completed"]);
    store.bundles.set_in_use(program.digest, true);
    let path = store.directory.path().join("bundles").join(program.digest.to_string());
    std::fs::File::open(&path).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    store.bundles.set_in_use(program.digest, false);
    store.is_done().await;
    store.restart();
    assert!(wall_clock() - store.bundles.complete[&program.digest].last_used < KEPT);
    assert_eq!(words(store.bundles.delete_old()), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stored_program_that_cannot_be_read_is_asked_for_again() {
    let mut store = Store::start().await;
    let program = Program::new(2_500_000);
    let (mut peer, mut worker) = (store.connect().await, store.connect().await);
    let gone = store.connect().await;
    store.offer(&peer, &program);
    store.offer(&gone, &program);
    store.bundles.left(gone.connection);
    let path = store.directory.path().join("bundles").join(program.digest.to_string());
    for is_deleted in [false, true] {
        assert_eq!(peer.is_asked().await, 0);
        store.send(&peer, program.digest, &program.content, 0).unwrap();
        assert_eq!(store.outcome().await, ["completed"]);
        peer.hear().await;
        store.bundles.set_in_use(program.digest, true);
        if is_deleted {
            std::fs::remove_file(&path).unwrap();
        } else {
            std::fs::File::options().write(true).open(&path).unwrap().set_len(CHUNK).unwrap();
        }
        store.bundles.want(worker.connection, program.digest, 0);
        let outcome = tokio::time::timeout(PATIENCE, store.bundles.next()).await.expect("it is told in time");
        let heard = words(store.bundles.uploaded(outcome));
        assert_eq!(heard, ["forgotten", "offered"], "who is there and has offered it has it");
        let mut said = Vec::new();
        while !matches!(said.last(), Some(ToWorker::BundleMissing { .. })) {
            said.push(worker.hears().await);
        }
        assert_eq!(said.len(), if is_deleted { 1 } else { 2 }, "{said:?}");
        // Another worker's word comes too late to matter.
        let error = io::ErrorKind::NotFound.into();
        let late = Unreadable { digest: program.digest, to: worker.connection, error };
        assert_eq!(words(store.bundles.uploaded(Outcome::Unreadable(late))), [""; 0]);
        worker.hears::<ToWorker>().await;
    }
    assert_eq!(peer.is_asked().await, 0);
    store.bundles.left(peer.connection);
    assert!(store.bundles.offers.is_empty() && store.bundles.uploads.is_empty());
}

impl Store {
    /// Time passes until the disk is tried again.
    fn disk_is_tried_again(&mut self) {
        self.bundles.disk_failed = Some(Moment::now() - DISK_PAUSE);
        assert_eq!(self.look(LOOK_AGAIN), [""; 0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_is_nobodys_fault_and_is_tried_again() {
    let mut store = Store::start().await;
    let directory = store.directory.path().join("bundles");
    let (program, second) = (Program::new(2_500_000), Program::new(10));
    let (mut peer, mut other) = (store.connect().await, store.connect().await);
    store.offer(&peer, &program);
    assert_eq!(peer.is_asked().await, 0);
    std::fs::remove_dir(&directory).unwrap();
    store.send(&peer, program.digest, &program.content[..BUNDLE_CHUNK_BYTES], 0).unwrap();
    assert_eq!(store.outcome().await, [""; 0]);
    // It isn't interrupted, and nobody is asked in vain.
    store.send(&peer, program.digest, &program.content, CHUNK).unwrap();
    assert_eq!(store.offer(&other, &second), ["offered"]);
    assert_eq!(store.look(LOOK_AGAIN), [""; 0]);
    // Nor twice, when all of it came before the disk's word.
    store.disk_is_tried_again();
    assert_eq!((peer.is_asked().await, other.is_asked().await), (0, 0));
    store.send(&peer, program.digest, &program.content, 0).unwrap();
    assert_eq!(store.outcome().await, [""; 0]);
    store.send(&other, second.digest, &second.content, 0).unwrap();
    std::fs::create_dir(&directory).unwrap();
    // When it is given its name, too.
    let name = directory.join(program.digest.to_string());
    std::fs::create_dir(&name).unwrap();
    store.disk_is_tried_again();
    assert_eq!((peer.is_asked().await, other.is_asked().await), (0, 0));
    store.send(&peer, program.digest, &program.content, 0).unwrap();
    assert_eq!(store.outcome().await, [""; 0]);
    std::fs::remove_dir(&name).unwrap();
    store.disk_is_tried_again();
    assert_eq!(peer.is_asked().await, 0);
    store.send(&peer, program.digest, &program.content, 0).unwrap();
    assert_eq!(store.outcome().await, ["completed"]);
    assert_eq!(peer.hear().await, ToApplication::BundleComplete { digest: program.digest });
    store.send(&other, second.digest, &second.content, 0).unwrap();
    assert_eq!(store.outcome().await, ["completed"]);
    // What one sent who has left is gone, and on a full disk what nobody needs.
    let third = Program::new(11);
    store.offer(&other, &third);
    store.send(&other, third.digest, &third.content, 0).unwrap();
    store.bundles.left(other.connection);
    let number = store.bundles.uploads[&third.digest].sources[0].part.as_ref().unwrap().number;
    let error = io::ErrorKind::StorageFull.into();
    let full = store.bundles.uploaded(Outcome::DiskFailed { digest: third.digest, number, error });
    assert_eq!(words(full), ["forgotten"]);
    assert!(store.bundles.uploads.is_empty());
}

/// A disk that does what it is told when the test says so.
struct SlowDisk {
    orders: std::sync::mpsc::Receiver<Work>,
    disk: std::sync::mpsc::Sender<Work>,
}

impl SlowDisk {
    fn new(store: &mut Store) -> Self {
        let (sender, orders) = std::sync::mpsc::channel();
        Self { orders, disk: std::mem::replace(&mut store.bundles.disk.work, sender) }
    }

    /// Does so many of its orders, and waits until that is done.
    async fn go_on(&self, store: &mut Store, orders: usize) -> Vec<&'static str> {
        for work in self.orders.try_iter().take(orders) {
            self.disk.send(work).unwrap();
        }
        let digest = BundleDigest([0xff; 32]);
        self.disk.send(Work::Finish { digest, number: 0 }).unwrap();
        let mut events = Vec::new();
        loop {
            let outcome = tokio::time::timeout(PATIENCE, store.bundles.outcomes.recv()).await;
            let outcome = outcome.expect("the disk answers").expect("the writer lives");
            if matches!(outcome, Outcome::DiskFailed { number: 0, .. }) {
                return events;
            }
            events.extend(words(store.bundles.uploaded(outcome)));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_more_than_the_disk_writes_leaves_it_time_for_others() {
    const BACKLOG: u64 = (BUNDLE_BACKLOG_BYTES as u64) / CHUNK;
    let mut store = Store::with_room(8 << 30).await;
    let program = Program::new(40 << 20);
    let endless = BundleDigest([1; 32]);
    let zeros = zstd_of(&[0; BUNDLE_CHUNK_BYTES]);
    let mut greedy = Vec::new();
    for _ in 0..3 {
        greedy.push(store.connect_as("eve").await);
    }
    for (number, client) in (0..).zip(&mut greedy) {
        store.offer_bytes(client, endless, BUNDLE_BYTES);
        store.look(UPLOAD_STALL * 10 * number);
        client.is_asked().await;
    }
    let disk = SlowDisk::new(&mut store);
    let mut honest = store.connect_as("ann").await;
    store.offer(&honest, &program);
    let mut wanted = honest.is_asked().await;
    let mut passes = 0;
    loop {
        // Each piece again and again, so that it comes right when there is room.
        for client in &greedy {
            for _ in 0..2 * BACKLOG {
                let part = store.bundles.part(endless, client.connection).unwrap();
                let offset = part.received;
                store.bundles.chunk(client.connection, endless, offset, CHUNK as u32, zeros.clone()).unwrap();
            }
        }
        store.send(&honest, program.digest, &program.content, wanted).unwrap();
        passes += 1;
        assert!(passes < 60, "{wanted} bytes have come through");
        let events = disk.go_on(&mut store, 4).await;
        if store.bundles.part(program.digest, honest.connection).is_none_or(|part| part.received == 40 << 20)
        {
            assert_eq!(events, [""; 0]);
            break;
        }
        wanted = honest.is_asked().await;
    }
    while disk.go_on(&mut store, 100).await != ["completed"] {}
    assert_eq!(honest.hear().await, ToApplication::BundleComplete { digest: program.digest });
}
