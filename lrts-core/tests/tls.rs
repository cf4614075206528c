//! Who is let in, over real sockets on loopback.
#![expect(
    clippy::unwrap_used,
    reason = "helpers fail as the tests do, by panicking on what was not expected"
)]

use std::fs;
use std::future::Future;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use lrts_core::clock::{Moment, wall_clock};
use lrts_core::keys::{
    Authority, Identity, Index, KeyFile, KeyId, KeySource, KeysDirectory, Security, ensure, role_word,
};
use lrts_core::limits::{KEY_VALIDITY, STRANGERS_PER_ADDRESS, TLS_HANDSHAKE_BYTES, USER_NAME_BYTES};
use lrts_core::transport::{
    BindError, Cause, ConnectionId, Hello, Link, LinkConfig, LinkEvent, LinkReceiver, LinkSender, Message,
    RefusalKind, Role, Server, ServerConfig, ServerEvent, SocketDir,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Everything here takes milliseconds; a test that takes this long hangs.
const DEADLINE: Duration = Duration::from_secs(60);

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("deadline passed: {what}"))
}

/// A keys directory, a scheduler's address, and places for sockets.
struct Cluster {
    directory: tempfile::TempDir,
    sockets: SocketDir,
}

impl Cluster {
    fn new() -> Self {
        let cluster = Self { directory: tempfile::tempdir().unwrap(), sockets: SocketDir::create().unwrap() };
        ensure(&cluster.keys()).unwrap();
        cluster
    }

    fn keys(&self) -> PathBuf {
        self.directory.path().join("keys")
    }

    fn opened(&self) -> KeysDirectory {
        KeysDirectory::open(&self.keys()).unwrap()
    }

    fn file(&self, name: &str, file: &KeyFile) -> PathBuf {
        let path = self.directory.path().join(name);
        write_private(&path, &file.to_text());
        path
    }

    fn export(&self, role: Role, user: &str) -> PathBuf {
        let file = self.opened().issue(role, user.parse().unwrap(), KEY_VALIDITY).unwrap();
        self.file(&format!("{user}-{}.pem", KeyId::random()), &file)
    }

    async fn serve(&self, role: Role) -> Server {
        self.serve_with(Security::new(Some(self.keys()), role)).await
    }

    async fn serve_with(&self, security: Security) -> Server {
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let accepts = vec![Role::Worker, Role::Client];
        Server::bind(ServerConfig::new(address, self.sockets.path(), accepts, security)).await.unwrap()
    }

    fn connect(&self, server: &Server, role: Role, keys: impl Into<PathBuf>) -> (LinkSender, LinkReceiver) {
        self.connect_with(server, role, Security::new(Some(keys.into()), role))
    }

    fn connect_with(&self, server: &Server, role: Role, security: Security) -> (LinkSender, LinkReceiver) {
        let hello = Hello::new(role, "somebody", "here");
        let address = server.local_address().to_string();
        Link::open(LinkConfig::new(address, Role::Scheduler, hello, security, self.sockets.path()))
    }
}

fn write_private(path: &Path, text: &str) {
    let new = path.with_extension("new");
    let mut file =
        fs::File::options().create(true).write(true).truncate(true).mode(0o600).open(&new).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    fs::rename(new, path).unwrap();
}

async fn up(receiver: &mut LinkReceiver) {
    let event = within("up", receiver.next()).await;
    assert!(matches!(event, LinkEvent::Up { .. }), "not up but {event:?}");
}

/// Waits until the link is refused for good.
async fn refused(receiver: &mut LinkReceiver) -> (RefusalKind, String) {
    loop {
        match within("refused", receiver.next()).await {
            LinkEvent::Refused(refusal) => return (refusal.kind, refusal.message),
            LinkEvent::Down { .. } => {}
            event @ (LinkEvent::Up { .. } | LinkEvent::Message(_)) => panic!("not refused but {event:?}"),
        }
    }
}

/// Waits until the link is not connected for this reason.
async fn trouble(sender: &LinkSender, reason: &str) {
    let waiting = async {
        while !sender.trouble().is_some_and(|trouble| trouble.contains(reason)) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(reason, waiting).await;
}

/// The user who joins next.
async fn joined(server: &mut Server) -> (ConnectionId, Option<String>) {
    loop {
        if let ServerEvent::Joined { connection, user, .. } = within("joined", server.next()).await {
            return (connection, user.map(|user| user.to_string()));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_has_a_key_is_known_by_its_user() {
    let cluster = Cluster::new();
    let mut server = cluster.serve(Role::Scheduler).await;
    let (sender, mut receiver) = cluster.connect(&server, Role::Client, cluster.export(Role::Client, "ann"));
    up(&mut receiver).await;
    let (connection, user) = joined(&mut server).await;
    assert_eq!(user.as_deref(), Some("ann"));
    let large = Message::new("head", vec![7; 3 << 20]);
    sender.send(large.clone()).await.unwrap();
    let event = within("message", server.next()).await;
    let ServerEvent::Message { message, .. } = event else { panic!("no message but {event:?}") };
    assert_eq!(message, large);
    server.handle().send(connection, large.clone()).unwrap();
    let event = within("answer", receiver.next()).await;
    assert!(matches!(event, LinkEvent::Message(message) if message == large));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_side_without_keys_and_one_with_them_part_at_once_and_say_why() {
    let cluster = Cluster::new();
    let secured = cluster.serve(Role::Scheduler).await;
    let (_sender, mut receiver) = cluster.connect_with(&secured, Role::Client, Security::Insecure);
    let (kind, message) = refused(&mut receiver).await;
    assert!(kind == RefusalKind::Keys && message.contains("wants a key"), "{message}");

    let mut open = cluster.serve_with(Security::Insecure).await;
    let (_sender, mut receiver) = cluster.connect(&open, Role::Client, cluster.keys());
    let (kind, message) = refused(&mut receiver).await;
    assert!(kind == RefusalKind::Keys && message.contains("has no keys"), "{message}");

    let (_sender, mut receiver) = cluster.connect_with(&open, Role::Client, Security::Insecure);
    up(&mut receiver).await;
    assert_eq!(joined(&mut open).await.1, None, "nobody is told apart");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_another_cluster_opens_nothing_on_either_side() {
    let (ours, theirs) = (Cluster::new(), Cluster::new());
    let server = ours.serve(Role::Scheduler).await;
    // The client trusts this cluster, but its own key is of the other one.
    let mut mixed = KeyFile::read(&theirs.export(Role::Client, "eve")).unwrap();
    let own = KeyFile::read(&ours.export(Role::Client, "ann")).unwrap();
    (mixed.authorities, mixed.revocations) = (own.authorities, own.revocations);
    let (_sender, mut receiver) = ours.connect(&server, Role::Client, ours.file("mixed.pem", &mixed));
    let (kind, message) = refused(&mut receiver).await;
    assert!(kind == RefusalKind::Keys && message.contains("not of that cluster"), "{message}");
    assert!(message.contains("mixed.pem") && message.contains("lrts keys export --role client"), "{message}");

    let (_sender, mut receiver) = ours.connect(&server, Role::Client, theirs.keys());
    let (kind, message) = refused(&mut receiver).await;
    assert!(kind == RefusalKind::Keys && message.contains("scheduler there is not trusted"), "{message}");
    let own = theirs.keys().join("client.pem");
    assert!(message.contains(&own.display().to_string()), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_good_for_its_own_role_only() {
    let cluster = Cluster::new();
    let server = cluster.serve(Role::Scheduler).await;
    let as_worker = |keys: PathBuf| {
        let hello = Hello::new(Role::Client, "liar", "here");
        let security = Security::Keys(KeySource::new(keys, Role::Worker));
        let address = server.local_address().to_string();
        Link::open(LinkConfig::new(address, Role::Scheduler, hello, security, cluster.sockets.path()))
    };
    let (_sender, mut receiver) = as_worker(cluster.keys());
    let (kind, message) = refused(&mut receiver).await;
    assert!(kind == RefusalKind::Role && message.contains("lrts keys export --role client"), "{message}");

    let (_sender, mut receiver) = cluster.connect(&server, Role::Worker, cluster.export(Role::Client, "ann"));
    let (kind, message) = refused(&mut receiver).await;
    assert!(kind == RefusalKind::Keys && message.contains("for the role worker"), "{message}");

    let progress_server = cluster.serve(Role::ProgressServer).await;
    let (_sender, mut receiver) = cluster.connect(&progress_server, Role::Client, cluster.keys());
    let (kind, message) = refused(&mut receiver).await;
    assert!(kind == RefusalKind::Keys && message.contains("that of a progress server"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_side_accepts_a_key_that_has_expired_or_is_not_valid_yet() {
    let cluster = Cluster::new();
    let day = Duration::from_hours(24);
    let now = wall_clock();
    let authority = Authority::create(now - 100 * day).unwrap();
    let issue = |role, made: Duration, expires: Duration| {
        let identity = Identity { role, user: "ann".parse().unwrap(), key: KeyId::random() };
        let file = authority.issue(&identity, made, expires, &Index::default()).unwrap();
        cluster.file(&format!("{}.pem", identity.key), &file)
    };
    let scheduler = issue(Role::Scheduler, now, now + day);
    let server = cluster.serve_with(Security::new(Some(scheduler), Role::Scheduler)).await;
    for (made, expires) in [(now - 9 * day, now - 2 * day), (now + 5 * day, now + 9 * day)] {
        let (_sender, mut receiver) =
            cluster.connect(&server, Role::Client, issue(Role::Client, made, expires));
        let (kind, message) = refused(&mut receiver).await;
        assert!(kind == RefusalKind::Keys && message.contains("are the clocks right"), "{message}");
    }
    let expired = issue(Role::Scheduler, now - 9 * day, now - 2 * day);
    let server = cluster.serve_with(Security::new(Some(expired), Role::Scheduler)).await;
    let good = issue(Role::Client, now, now + day);
    let (_sender, mut receiver) = cluster.connect(&server, Role::Client, good);
    let (kind, message) = refused(&mut receiver).await;
    assert!(kind == RefusalKind::Keys && message.contains("has expired"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_key_is_out_and_stays_out_while_others_go_on() {
    let cluster = Cluster::new();
    let mut server = cluster.serve(Role::Scheduler).await;
    let eve = cluster.export(Role::Client, "eve");
    let (_sender, mut revoked) = cluster.connect(&server, Role::Client, &eve);
    up(&mut revoked).await;
    joined(&mut server).await;
    let (_sender, mut other) = cluster.connect(&server, Role::Client, cluster.export(Role::Client, "ann"));
    up(&mut other).await;
    let (connection, _) = joined(&mut server).await;

    let key = KeyFile::read(&eve).unwrap().identity().unwrap().key;
    cluster.opened().revoke(&[key]).unwrap();

    let (kind, message) = refused(&mut revoked).await;
    assert!(kind == RefusalKind::Keys && message.contains("revoked"), "{message}");
    let (_sender, mut again) = cluster.connect(&server, Role::Client, &eve);
    let (kind, message) = refused(&mut again).await;
    assert!(kind == RefusalKind::Keys && message.contains("revoked"), "{message}");
    assert!(message.contains(&eve.display().to_string()), "{message}");
    server.handle().send(connection, Message::new("still", "here")).unwrap();
    assert!(matches!(within("message", other.next()).await, LinkEvent::Message(_)));
}

/// A handshake that began before the revocation and ends after it.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_revoked_during_its_handshake_is_out() {
    let cluster = Cluster::new();
    let server = cluster.serve(Role::Scheduler).await;
    let eve = cluster.export(Role::Client, "eve");
    let ring = KeySource::new(&eve, Role::Client).current().unwrap();
    let name = "scheduler.lrts.internal".try_into().unwrap();
    let mut tls = rustls::ClientConnection::new(ring.client(), name).unwrap();
    let mut stream = std::net::TcpStream::connect(server.local_address()).unwrap();
    tls.write_tls(&mut stream).unwrap();
    // The server's answer is there, so it has looked at its keys; what proves ours is not sent yet.
    while tls.is_handshaking() {
        tls.read_tls(&mut stream).unwrap();
        tls.process_new_packets().unwrap();
    }

    cluster.opened().revoke(&[KeyFile::read(&eve).unwrap().identity().unwrap().key]).unwrap();

    let ended = tokio::task::spawn_blocking(move || {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let written = tls.write_tls(&mut stream);
        let mut byte = [0];
        written.is_err()
            || matches!(
                std::io::Read::read(&mut rustls::Stream::new(&mut tls, &mut stream), &mut byte),
                Ok(0) | Err(_)
            )
    });
    assert!(within("the end", ended).await.unwrap());
    let handle = server.handle();
    let counted = async {
        // For its key, not for its silence.
        while handle.counters().of(Cause::Keys) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within("counted", counted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_server_loses_its_clients() {
    let cluster = Cluster::new();
    let scheduler = cluster.export(Role::Scheduler, "old");
    let server = cluster.serve_with(Security::new(Some(scheduler.clone()), Role::Scheduler)).await;
    let (sender, mut receiver) = cluster.connect(&server, Role::Client, cluster.keys());
    up(&mut receiver).await;
    cluster.opened().revoke(&[KeyFile::read(&scheduler).unwrap().identity().unwrap().key]).unwrap();
    let event = within("down", receiver.next()).await;
    assert!(matches!(event, LinkEvent::Down { .. }), "not down but {event:?}");
    // Another server may take its place: the link goes on looking for it.
    trouble(&sender, "there is not trusted: its key was revoked").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_rotate_under_running_servers_and_old_ones_last_until_they_are_dropped() {
    let cluster = Cluster::new();
    let mut server = cluster.serve(Role::Scheduler).await;
    let exported = cluster.export(Role::Client, "ann");
    let (_sender, mut from_directory) = cluster.connect(&server, Role::Client, cluster.keys());
    let (_sender, mut from_file) = cluster.connect(&server, Role::Client, &exported);
    up(&mut from_directory).await;
    up(&mut from_file).await;
    for _ in 0..2 {
        joined(&mut server).await;
    }

    cluster.opened().rotate().unwrap();

    // The server has a new key by now, and the old file doesn't know the authority that it is of.
    let (_sender, mut again) = cluster.connect(&server, Role::Client, &exported);
    up(&mut again).await;
    let (_sender, mut new) = cluster.connect(&server, Role::Client, cluster.export(Role::Client, "bob"));
    up(&mut new).await;

    cluster.opened().drop_old().unwrap();

    for receiver in [&mut from_file, &mut again] {
        assert_eq!(refused(receiver).await.0, RefusalKind::Keys);
    }
    // Its file has changed with the server's, so it comes back by itself.
    let event = within("down", from_directory.next()).await;
    assert!(matches!(event, LinkEvent::Down { .. }), "not down but {event:?}");
    up(&mut from_directory).await;
    let (_sender, mut late) = cluster.connect(&server, Role::Client, &exported);
    assert_eq!(refused(&mut late).await.0, RefusalKind::Keys);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_not_there_yet_is_waited_for() {
    let (cluster, directory) = (Cluster::new(), tempfile::tempdir().unwrap());
    let server = cluster.serve(Role::Scheduler).await;
    let later = directory.path().join("keys");
    let (sender, mut receiver) = cluster.connect(&server, Role::Client, &later);
    trouble(&sender, "lrts keys export --role client").await;
    fs::create_dir(&later).unwrap();
    fs::set_permissions(&later, fs::Permissions::from_mode(0o700)).unwrap();
    let name = format!("{}.pem", role_word(Role::Client));
    write_private(&later.join(&name), &fs::read_to_string(cluster.keys().join(&name)).unwrap());
    up(&mut receiver).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn loose_modes_are_refused_with_the_command_that_mends_them() {
    let cluster = Cluster::new();
    let server = cluster.serve(Role::Scheduler).await;
    let key = cluster.export(Role::Client, "ann");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let (_sender, mut receiver) = cluster.connect(&server, Role::Client, &key);
    let (kind, message) = refused(&mut receiver).await;
    assert!(kind == RefusalKind::Keys && message.contains("chmod 600"), "{message}");

    fs::set_permissions(cluster.keys(), fs::Permissions::from_mode(0o755)).unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], 0));
    let security = Security::new(Some(cluster.keys()), Role::Scheduler);
    let config = ServerConfig::new(address, cluster.sockets.path(), vec![Role::Client], security);
    let error = Server::bind(config).await.err().unwrap();
    assert!(matches!(&error, BindError::Keys(error) if error.to_string().contains("chmod 700")), "{error}");
}

/// Whatever a stranger says in place of a handshake, it hears at most a TLS alert.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_key_nothing_is_answered() {
    let cluster = Cluster::new();
    let server = cluster.serve(Role::Scheduler).await;
    let mut greeting = [0; 64];
    (greeting[0], greeting[9], greeting[10]) = (0xff, 0x7f, 3);
    greeting[12..16].copy_from_slice(b"NULL");
    for sent in [&greeting[..], b"GET / HTTP/1.1\r\n\r\n", &[0x16, 3, 1, 0xff, 0xff, 1], &[0; 300], b"\xff"] {
        let mut stream = TcpStream::connect(server.local_address()).await.unwrap();
        stream.write_all(sent).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        // A reset is no answer either.
        let _ = within("the end", stream.read_to_end(&mut answer)).await;
        assert!(answer.len() <= 7 && answer.first().is_none_or(|&byte| byte == 0x15), "{answer:?}");
    }
}

/// One that rustls would go on collecting.
#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_does_not_end_is_cut_short() {
    let cluster = Cluster::new();
    let server = cluster.serve(Role::Scheduler).await;
    let mut stream = TcpStream::connect(server.local_address()).await.unwrap();
    let record = |content: &[u8]| {
        [&[0x16, 3, 1][..], &u16::try_from(content.len()).unwrap().to_be_bytes(), content].concat()
    };
    // A ClientHello of 60,000 bytes.
    let mut sent = record(&[1, 0, 0xea, 0x60]);
    while sent.len() <= TLS_HANDSHAKE_BYTES {
        sent.extend(record(&[0; 4_000]));
    }
    stream.write_all(&sent).await.unwrap();
    let ended = within("the end", stream.read(&mut [0])).await;
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    let handle = server.handle();
    let counted = async {
        // Not for its silence, which takes longer.
        while handle.counters().of(Cause::Protocol) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within("counted", counted).await;
    assert_eq!(handle.counters().of(Cause::NoHello), 0);

    // The longest that a key needs: two certificates, of which one names its holder as long as may be.
    cluster.opened().rotate().unwrap();
    let longest = KeyFile::read(&cluster.export(Role::Worker, &"a".repeat(USER_NAME_BYTES))).unwrap();
    let bytes: usize = longest.chain.iter().map(|certificate| certificate.len()).sum();
    assert!(longest.chain.len() == 2 && bytes < TLS_HANDSHAKE_BYTES / 4, "{bytes}");
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_make_room_for_whoever_comes_after_them() {
    let cluster = Cluster::new();
    let server = cluster.serve(Role::Scheduler).await;
    let mut strangers = Vec::new();
    for _ in 0..STRANGERS_PER_ADDRESS + 50 {
        let mut stream = TcpStream::connect(server.local_address()).await.unwrap();
        stream.write_all(&[0x16, 3, 1]).await.unwrap();
        strangers.push(stream);
    }
    let started = Moment::now();
    let (_sender, mut receiver) = cluster.connect(&server, Role::Client, cluster.keys());
    up(&mut receiver).await;
    // Those that waited longest were closed, without waiting for their time to be over.
    let mut byte = [0];
    let first = within("the end", strangers[0].read(&mut byte)).await;
    assert!(matches!(first, Ok(0) | Err(_)), "{first:?} after {:?}", started.elapsed());
}
