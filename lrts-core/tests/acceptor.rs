//! The thread of a server that accepts strangers. In a process of its own, whose threads it counts.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::transport::{Role, Server, ServerConfig, SocketDir};

/// How nice the threads called `acceptor` are (`proc_pid_stat(5)`).
fn acceptors() -> Vec<i32> {
    let threads = fs::read_dir("/proc/self/task").unwrap().flatten();
    let stats = threads.filter_map(|thread| fs::read_to_string(thread.path().join("stat")).ok());
    stats.filter(|stat| stat.contains("(acceptor)")).map(|stat| niceness(&stat)).collect()
}

/// The 19th field; the second one may have spaces in it.
fn niceness(stat: &str) -> i32 {
    stat.rsplit_once(')').unwrap().1.split_whitespace().nth(16).unwrap().parse().unwrap()
}

async fn wait_until_none_is_left() {
    let deadline = Moment::now() + Duration::from_secs(30);
    while !acceptors().is_empty() {
        assert!(Moment::now() < deadline, "it still runs");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn strangers_have_a_thread_of_low_priority_which_ends_with_its_server() {
    let own = niceness(&fs::read_to_string("/proc/thread-self/stat").unwrap());
    let sockets = SocketDir::create().unwrap();
    let bind = |port| {
        let address = ([127, 0, 0, 1], port).into();
        Server::bind(ServerConfig::insecure(address, sockets.path(), vec![Role::Client]))
    };
    let mut server = bind(0).await.unwrap();
    assert_eq!(acceptors(), [(own + 10).min(19)]);
    let port = server.local_address().port();
    for _ in 0..20 {
        drop(server);
        // Whenever its thread notices.
        server = bind(port).await.unwrap();
    }
    server.close().await;
    bind(port).await.unwrap().close().await;
    wait_until_none_is_left().await;
}
