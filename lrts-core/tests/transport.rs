//! The transport over real sockets on loopback.
#![expect(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "helpers fail as the tests do, by panicking on what was not expected"
)]

use std::collections::HashSet;
use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::limits::{CHUNK_BYTES, PEER_QUEUE_BYTES, WINDOW_BYTES, WIRE_HELLO_BYTES};
use lrts_core::transport::{
    BindError, Cause, ConnectionId, Hello, Link, LinkConfig, LinkEvent, LinkReceiver, LinkSendError,
    LinkSender, Message, Refusal, RefusalKind, Role, SendError, Server, ServerConfig, ServerEvent, SocketDir,
    TrySendError,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Everything here takes milliseconds; a test that takes this long hangs.
const DEADLINE: Duration = Duration::from_secs(60);

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("deadline passed: {what}"))
}

fn loopback() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

fn config(dir: &SocketDir, address: SocketAddr) -> ServerConfig {
    ServerConfig::insecure(address, dir.path(), vec![Role::Worker, Role::Client])
}

async fn bind(dir: &SocketDir) -> Server {
    Server::bind(config(dir, loopback())).await.unwrap()
}

fn open(dir: &SocketDir, address: SocketAddr) -> (LinkSender, LinkReceiver) {
    let hello = Hello::new(Role::Client, "somebody", "here");
    Link::open(LinkConfig::insecure(address.to_string(), hello, dir.path()))
}

async fn up(receiver: &mut LinkReceiver) -> u64 {
    match within("up", receiver.next()).await {
        LinkEvent::Up { welcome } => welcome.instance,
        event => panic!("not up but {event:?}"),
    }
}

async fn message(receiver: &mut LinkReceiver) -> Message {
    match within("message", receiver.next()).await {
        LinkEvent::Message(message) => message,
        event => panic!("no message but {event:?}"),
    }
}

async fn down(receiver: &mut LinkReceiver) -> String {
    loop {
        match within("down", receiver.next()).await {
            LinkEvent::Down { reason } => return reason,
            LinkEvent::Message(_) => {}
            event => panic!("not down but {event:?}"),
        }
    }
}

async fn joined(server: &mut Server) -> ConnectionId {
    match within("joined", server.next()).await {
        ServerEvent::Joined { connection, .. } => connection,
        event => panic!("nobody joined but {event:?}"),
    }
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index % 251) as u8).collect()
}

/// A server that sends everything back.
fn echo(mut server: Server) -> JoinHandle<()> {
    tokio::spawn(async move {
        let handle = server.handle();
        loop {
            if let ServerEvent::Message { connection, message } = server.next().await {
                let _ = handle.send(connection, message);
            }
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_small_and_large_come_back_in_order() {
    let dir = SocketDir::create().unwrap();
    let server = bind(&dir).await;
    let (sender, mut receiver) = open(&dir, server.local_address());
    echo(server);
    up(&mut receiver).await;
    let sizes = [0, 1, 255, 256, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 64 << 20, 3];
    let sent: Vec<_> =
        sizes.iter().enumerate().map(|(index, &size)| Message::new(vec![index as u8], bytes(size))).collect();

    let to_send = sent.clone();
    let sending = tokio::spawn(async move {
        for message in to_send {
            sender.send(message).await.unwrap();
        }
    });

    for expected in sent {
        let received = message(&mut receiver).await;
        assert!(received == expected, "sent {} bytes, got {}", expected.size(), received.size());
    }
    sending.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_flow_while_a_large_body_travels() {
    let dir = SocketDir::create().unwrap();
    let mut server = bind(&dir).await;
    let (sender, mut receiver) = open(&dir, server.local_address());
    up(&mut receiver).await;
    joined(&mut server).await;
    let body = bytes::Bytes::from(bytes(256 << 20));
    sender.send(Message::new("large", body.clone())).await.unwrap();
    let stop = CancellationToken::new();
    let heartbeats = tokio::spawn({
        let (sender, stop) = (sender.clone(), stop.clone());
        async move {
            while !stop.is_cancelled() {
                sender.send(Message::new("heartbeat", "").urgent()).await.unwrap();
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    });

    let mut overtaken = 0;
    let large = loop {
        match within("message", server.next()).await {
            ServerEvent::Message { message, .. } if message.urgent => overtaken += 1,
            ServerEvent::Message { message, .. } => break message,
            event => panic!("{event:?}"),
        }
    };

    assert!(large.body == body, "the body came out changed");
    assert!(overtaken >= 5, "only {overtaken} heartbeats overtook");
    stop.cancel();
    heartbeats.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_survives_its_servers_restart() {
    let dir = SocketDir::create().unwrap();
    let mut server = bind(&dir).await;
    let address = server.local_address();
    let (sender, mut receiver) = open(&dir, address);
    let first = up(&mut receiver).await;
    joined(&mut server).await;
    assert!(sender.is_up());

    within("close", server.close()).await;

    assert!(down(&mut receiver).await.contains("shutting down"));
    assert_eq!(sender.send(Message::new("lost", "")).await, Err(LinkSendError::Down));
    assert_eq!(sender.try_send(Message::new("lost", "")), Err(TrySendError::Down));
    assert!(sender.trouble().is_some());
    let mut server = Server::bind(config(&dir, address)).await.unwrap();
    assert_ne!(up(&mut receiver).await, first);
    joined(&mut server).await;
    sender.send(Message::new("again", "")).await.unwrap();
    assert!(matches!(within("message", server.next()).await, ServerEvent::Message { .. }));

    drop(server);

    down(&mut receiver).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_waits_for_a_server_that_is_not_there_yet() {
    let dir = SocketDir::create().unwrap();
    let place = std::net::TcpListener::bind(loopback()).unwrap();
    let address = place.local_addr().unwrap();
    drop(place);
    let (sender, mut receiver) = open(&dir, address);
    within("a failed attempt", async {
        while sender.trouble().is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;

    let _server = Server::bind(config(&dir, address)).await.unwrap();

    up(&mut receiver).await;
    assert_eq!(sender.trouble(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_versions_and_roles_are_refused_for_good() {
    let dir = SocketDir::create().unwrap();
    let server = bind(&dir).await;
    let address = server.local_address().to_string();
    let mut foreign = Hello::new(Role::Client, "old", "here");
    foreign.protocol = 77;
    let refused = async |hello: Hello| {
        let (sender, mut receiver) = Link::open(LinkConfig::insecure(address.clone(), hello, dir.path()));
        match within("refusal", receiver.next()).await {
            LinkEvent::Refused(refusal) => {
                assert_eq!(sender.try_send(Message::default()), Err(TrySendError::Down));
                refusal
            }
            event => panic!("not refused but {event:?}"),
        }
    };

    let version = refused(foreign).await;
    assert_eq!(version.kind, RefusalKind::Version);
    let ours = lrts_core::protocol::VERSION.to_string();
    assert!(version.message.contains("77") && version.message.contains(&ours), "{version}");

    let role = refused(Hello::new(Role::Admin, "me", "here")).await;
    assert_eq!(role.kind, RefusalKind::Role);
    assert!(role.message.contains("admin") && role.message.contains("worker, client"), "{role}");

    let handle = server.handle();
    let counted = handle.counters().snapshot().into_iter().filter(|&(_, count)| count > 0);
    assert_eq!(counted.collect::<Vec<_>>(), [(Cause::Version, 1), (Cause::Role, 1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_superseded_peer_learns_why_and_stays_away() {
    let dir = SocketDir::create().unwrap();
    let mut server = bind(&dir).await;
    let (_sender, mut receiver) = open(&dir, server.local_address());
    up(&mut receiver).await;
    let connection = joined(&mut server).await;
    let handle = server.handle();

    handle.disconnect(connection, Some(Refusal::new(RefusalKind::Superseded, "a newer one came")));

    assert_eq!(handle.send(connection, Message::default()), Err(SendError::Gone));
    assert!(
        matches!(within("left", server.next()).await, ServerEvent::Left { connection: left, .. } if left == connection)
    );
    assert_eq!(down(&mut receiver).await, "a newer one came");
    let event = within("refused", receiver.next()).await;
    assert!(matches!(event, LinkEvent::Refused(refusal) if refusal.kind == RefusalKind::Superseded));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disconnected_peer_comes_back_as_another_connection() {
    let dir = SocketDir::create().unwrap();
    let mut server = bind(&dir).await;
    let (_sender, mut receiver) = open(&dir, server.local_address());
    let mut seen = HashSet::new();
    for _ in 0..5 {
        up(&mut receiver).await;
        let connection = joined(&mut server).await;
        assert!(seen.insert(connection));
        server.handle().disconnect(connection, None);
        assert!(matches!(within("left", server.next()).await, ServerEvent::Left { .. }));
        down(&mut receiver).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_takes_nothing_is_disconnected_and_others_go_on() {
    let dir = SocketDir::create().unwrap();
    let mut server = bind(&dir).await;
    let address = server.local_address();
    let (_sleepy_sender, mut sleepy) = open(&dir, address);
    up(&mut sleepy).await;
    let sleeper = joined(&mut server).await;
    let (_lively_sender, mut lively) = open(&dir, address);
    up(&mut lively).await;
    let other = joined(&mut server).await;
    let handle = server.handle();
    let body = bytes::Bytes::from(bytes(1 << 20));

    let mut accepted = 0;
    let refused = loop {
        match handle.send(sleeper, Message::new("", body.clone())) {
            Ok(()) => accepted += body.len(),
            Err(error) => break error,
        }
        if accepted % (64 << 20) == 0 {
            handle.send(other, Message::new("ping", "")).unwrap();
            assert_eq!(message(&mut lively).await.head, "ping");
        }
    };

    assert_eq!(refused, SendError::Overrun);
    // Beyond the queue only what credit allows is under way.
    assert!(accepted <= PEER_QUEUE_BYTES + 3 * WINDOW_BYTES as usize, "{accepted}");
    match within("left", server.next()).await {
        ServerEvent::Left { connection, .. } => assert_eq!(connection, sleeper),
        event => panic!("{event:?}"),
    }
    handle.send(other, Message::new("still here", "")).unwrap();
    assert_eq!(message(&mut lively).await.head, "still here");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_sleeps_slows_its_peers_and_loses_nothing() {
    const MESSAGES: u32 = 20_000;
    let dir = SocketDir::create().unwrap();
    let mut server = bind(&dir).await;
    let (sender, mut receiver) = open(&dir, server.local_address());
    up(&mut receiver).await;
    joined(&mut server).await;
    let mut accepted = 0;
    // Until the window and the queue are full, and stay so: nobody takes anything.
    while accepted < MESSAGES {
        let send = sender.send(Message::new(accepted.to_be_bytes().to_vec(), ""));
        if tokio::time::timeout(Duration::from_millis(200), send).await.is_err() {
            break;
        }
        accepted += 1;
    }
    assert!(accepted < MESSAGES, "the sender was never stopped");
    let sending = tokio::spawn(async move {
        for number in accepted..MESSAGES {
            sender.send(Message::new(number.to_be_bytes().to_vec(), "")).await.unwrap();
        }
        sender
    });

    for number in 0..MESSAGES {
        // A future that is dropped half-way, now and then, must not take a message with it.
        let event = if number % 3 == 0 {
            loop {
                let next = server.next();
                if let Ok(event) = tokio::time::timeout(Duration::from_micros(50), next).await {
                    break event;
                }
            }
        } else {
            within("message", server.next()).await
        };
        let ServerEvent::Message { message, .. } = event else { panic!("{event:?}") };
        assert_eq!(message.head, number.to_be_bytes().to_vec());
    }
    sending.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_clients_are_served() {
    const CLIENTS: usize = 200;
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let dir = SocketDir::create().unwrap();
    let server = bind(&dir).await;
    let address = server.local_address();
    echo(server);

    let mut clients = tokio::task::JoinSet::new();
    for index in 0..CLIENTS {
        let (sender, mut receiver) = open(&dir, address);
        clients.spawn(async move {
            up(&mut receiver).await;
            for round in 0..20 {
                let head = format!("{index} {round}");
                sender.send(Message::new(head.clone(), "")).await.unwrap();
                assert_eq!(message(&mut receiver).await.head, head);
            }
            within("close", sender.close()).await;
        });
    }
    assert_eq!(within("all clients", clients.join_all()).await.len(), CLIENTS);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_server_says_so() {
    let dir = SocketDir::create().unwrap();
    let mut config = config(&dir, loopback());
    config.connections = 1;
    let mut server = Server::bind(config).await.unwrap();
    let (_first, mut first_receiver) = open(&dir, server.local_address());
    up(&mut first_receiver).await;
    joined(&mut server).await;

    let (second, mut second_receiver) = open(&dir, server.local_address());

    within("refusal", async {
        while !second.trouble().is_some_and(|trouble| trouble.contains("full")) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    drop(first_receiver);
    up(&mut second_receiver).await;
}

/// A ZMTP greeting, NULL mechanism.
fn greeting() -> Vec<u8> {
    let mut greeting = vec![0; 64];
    (greeting[0], greeting[9], greeting[10]) = (0xff, 0x7f, 3);
    greeting[12..16].copy_from_slice(b"NULL");
    greeting
}

/// The READY command of a DEALER that claims this identity.
fn ready(identity: &[u8]) -> Vec<u8> {
    let mut body = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER\x08Identity\x00\x00\x00".to_vec();
    body.push(identity.len() as u8);
    body.extend_from_slice(identity);
    [vec![4, body.len() as u8], body].concat()
}

/// Sends raw bytes and waits until the server hangs up.
async fn attack(address: SocketAddr, garbage: &[u8]) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The server may hang up before it has read everything.
    let _ = stream.write_all(garbage).await;
    let mut rest = Vec::new();
    let _ = within("the server hangs up", stream.read_to_end(&mut rest)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_ends_its_own_connection_only() {
    let dir = SocketDir::create().unwrap();
    let server = bind(&dir).await;
    let address = server.local_address();
    echo(server);
    let (sender, mut receiver) = open(&dir, address);
    up(&mut receiver).await;
    let bomb = |flags: u8| [vec![flags], (1_u64 << 47).to_be_bytes().to_vec()].concat();
    let shaken = [greeting(), ready(b"me")].concat();
    // A well-formed ZMTP message of one frame.
    let packet = |bytes: &[u8]| [vec![0, bytes.len() as u8], bytes.to_vec()].concat();

    let attacks = [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![0xff; 64],
        [greeting(), bomb(6)].concat(),
        [greeting(), bomb(2)].concat(),
        [shaken.clone(), bomb(2)].concat(),
        [shaken.clone(), bomb(3)].concat(),
        [shaken.clone(), [1, 0].repeat(100_000)].concat(),
        [shaken.clone(), vec![4, 0]].concat(),
        [shaken.clone(), packet(b"")].concat(),
        [shaken.clone(), packet(b"\x04\x00data before hello")].concat(),
        [shaken.clone(), packet(b"\x01")].concat(),
        [shaken, packet(b"\xff\xff\xff")].concat(),
    ];
    let mut attackers = tokio::task::JoinSet::new();
    for garbage in attacks {
        attackers.spawn(async move { attack(address, &garbage).await });
    }
    attackers.join_all().await;

    sender.send(Message::new("still", "alive")).await.unwrap();
    assert_eq!(message(&mut receiver).await, Message::new("still", "alive"));
}

#[tokio::test(flavor = "multi_thread")]
async fn before_its_welcome_a_peer_may_say_no_more_than_hello() {
    let dir = SocketDir::create().unwrap();
    let server = bind(&dir).await;
    let handle = server.handle();
    let announced = [vec![2], (WIRE_HELLO_BYTES + 1).to_be_bytes().to_vec()].concat();
    // Also behind a HELLO that is refused, as the one of an unknown version is.
    let foreign = [0, 3, 1, 0xff, 0xff];
    for (count, first) in [&[][..], &foreign].into_iter().enumerate() {
        attack(server.local_address(), &[&greeting()[..], &ready(b""), first, &announced].concat()).await;
        let counted = async {
            // Not for its silence, which takes longer.
            while handle.counters().of(Cause::Protocol) <= count as u64 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        within("counted", counted).await;
    }
    assert_eq!(handle.counters().of(Cause::NoHello), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_cannot_take_anothers_identity() {
    let dir = SocketDir::create().unwrap();
    let mut server = bind(&dir).await;
    let (_sender, mut receiver) = open(&dir, server.local_address());
    up(&mut receiver).await;
    let victim = joined(&mut server).await;
    // What the gate calls its first connections, as far as a stranger can guess.
    for guess in 0_u64..8 {
        let mut stream = TcpStream::connect(server.local_address()).await.unwrap();
        stream.write_all(&[greeting(), ready(&guess.to_be_bytes())].concat()).await.unwrap();
        let mut answer = [0; 64];
        within("the router's greeting", stream.read_exact(&mut answer)).await.unwrap();
    }

    server.handle().send(victim, Message::new("for you", "")).unwrap();

    assert_eq!(message(&mut receiver).await.head, "for you");
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_peers_are_dropped() {
    let dir = SocketDir::create().unwrap();
    let mut config = config(&dir, loopback());
    config.heartbeat = Duration::from_millis(50);
    let mut server = Server::bind(config).await.unwrap();
    let (sender, mut receiver) = open(&dir, server.local_address());
    up(&mut receiver).await;
    let lively = joined(&mut server).await;
    let mut silent = TcpStream::connect(server.local_address()).await.unwrap();
    let hello = [&b"\x01"[..], &lrts_core::protocol::VERSION.to_be_bytes()].concat();
    let body = b"\x93\xa6client\xa1a\xa1b";
    let frames = [&[1, hello.len() as u8][..], &hello[..], &[0, body.len() as u8][..], &body[..]].concat();
    silent.write_all(&[greeting(), ready(b""), frames].concat()).await.unwrap();
    let connection = joined(&mut server).await;

    match within("left", server.next()).await {
        ServerEvent::Left { connection: left, reason } => {
            assert_eq!(left, connection);
            assert!(reason.contains("heard nothing"), "{reason}");
        }
        event => panic!("{event:?}"),
    }
    // The other pings.
    assert!(server.handle().send(lively, Message::new("there", "")).is_ok());
    assert_eq!(message(&mut receiver).await.head, "there");
    assert!(sender.round_trip().unwrap() < Duration::from_secs(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_flushed_arrives_although_the_peer_goes() {
    let dir = SocketDir::create().unwrap();
    let mut server = bind(&dir).await;
    let (sender, mut receiver) = open(&dir, server.local_address());
    up(&mut receiver).await;
    let connection = joined(&mut server).await;
    for _ in 0..10 {
        sender.send(Message::new("", bytes(100_000))).await.unwrap();
    }

    within("close", sender.close()).await;

    assert_eq!(sender.flush().await, Err(lrts_core::transport::LinkDown));
    down(&mut receiver).await;
    for _ in 0..10 {
        assert!(matches!(within("message", server.next()).await, ServerEvent::Message { .. }));
    }
    let event = within("left", server.next()).await;
    assert!(matches!(event, ServerEvent::Left { connection: left, .. } if left == connection), "{event:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_queued_leaves_before_a_server_closes() {
    let dir = SocketDir::create().unwrap();
    let mut server = bind(&dir).await;
    let (_sender, mut receiver) = open(&dir, server.local_address());
    up(&mut receiver).await;
    let connection = joined(&mut server).await;
    let body = bytes(50 << 20);
    server.handle().send(connection, Message::new("last", body.clone())).unwrap();

    let closing = tokio::spawn(server.close());

    assert!(message(&mut receiver).await.body == body);
    down(&mut receiver).await;
    within("close", closing).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_named() {
    let dir = SocketDir::create().unwrap();
    let server = bind(&dir).await;
    let address = server.local_address();

    let error = Server::bind(config(&dir, address)).await.err().expect("the port is in use");

    assert!(matches!(error, BindError::Listen { .. }));
    assert_eq!(
        error.to_string(),
        format!("cannot listen on {address}: the port is in use by another program")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_over_the_bound_are_not_sent() {
    let dir = SocketDir::create().unwrap();
    let mut server = bind(&dir).await;
    let (sender, mut receiver) = open(&dir, server.local_address());
    up(&mut receiver).await;
    let connection = joined(&mut server).await;
    let too_large = Message::new(vec![0; lrts_core::limits::HEAD_BYTES + 1], "");

    assert_eq!(sender.send(too_large.clone()).await, Err(LinkSendError::TooLarge));
    assert_eq!(sender.try_send(too_large.clone()), Err(TrySendError::TooLarge));
    assert_eq!(server.handle().send(connection, too_large), Err(SendError::TooLarge));
}

/// Prints what the transport can do here: `cargo nextest run -p lrts-core --run-ignored only measure --no-capture`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn measure() {
    let dir = SocketDir::create().unwrap();
    let mut server = bind(&dir).await;
    let handle = server.handle();
    let (sender, mut receiver) = open(&dir, server.local_address());
    up(&mut receiver).await;
    joined(&mut server).await;
    let serving = tokio::spawn(async move {
        loop {
            if let ServerEvent::Message { connection, message } = server.next().await
                && message.head != "one way"
            {
                handle.send(connection, message).unwrap();
            }
        }
    });

    let mut trips = Vec::new();
    for _ in 0..5_000 {
        let start = Moment::now();
        sender.send(Message::new(vec![0; 64], "")).await.unwrap();
        message(&mut receiver).await;
        trips.push(start.elapsed());
    }
    trips.sort_unstable();
    println!("round trip of 64 B: p50 {:?}, p99 {:?}", trips[2_500], trips[4_950]);
    for (size, count) in [(64, 200_000), (1_024, 100_000), (1 << 20, 1_000), (64 << 20, 8)] {
        let body = bytes::Bytes::from(bytes(size));
        let start = Moment::now();
        for _ in 0..count {
            sender.send(Message::new("one way", body.clone())).await.unwrap();
        }
        sender.send(Message::new("end", "")).await.unwrap();
        message(&mut receiver).await;
        let seconds = start.elapsed().as_secs_f64();
        let (rate, volume) = (count as f64 / seconds, (size * count) as f64 / seconds / 1e6);
        println!("{size} B one way: {rate:.0} messages/s, {volume:.0} MB/s");
    }
    serving.abort();
}
