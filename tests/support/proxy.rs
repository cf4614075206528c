//! A line between two parts that a test can cut, block, slow down and heal.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// How the line is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Line {
    /// Whatever comes goes on at once.
    Whole,
    /// It goes on this much later.
    Slow(Duration),
    /// Nothing goes on and nobody is told; it goes on when the line is whole again.
    Blocked,
    /// Connections are closed, new ones at once.
    Cut,
}

/// A port of its own, from which connections go on to a target.
pub(crate) struct Proxy {
    address: String,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    line: Line,
    /// What a cut has to close.
    connections: Vec<TcpStream>,
    /// What went to the target on each connection, if it is recorded.
    recordings: Option<Vec<Vec<u8>>>,
    ended: bool,
}

impl Proxy {
    /// A whole line to `host:port`.
    pub(crate) fn to(target: &str) -> Self {
        Self::new(target, None)
    }

    /// The same, and whatever goes to the target is recorded.
    pub(crate) fn recording(target: &str) -> Self {
        Self::new(target, Some(Vec::new()))
    }

    fn new(target: &str, recordings: Option<Vec<Vec<u8>>>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let state = State { line: Line::Whole, connections: Vec::new(), recordings, ended: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let (accepting, target) = (Arc::clone(&shared), target.to_owned());
        thread::spawn(move || accept(&listener, &target, &accepting));
        Self { address, shared }
    }

    /// Where to connect.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// What has gone to the target so far, connection by connection.
    pub(crate) fn recorded(&self) -> Vec<Vec<u8>> {
        self.shared.lock().recordings.clone().expect("it was made to record")
    }

    /// Changes the line, for connections that are there too.
    pub(crate) fn set(&self, line: Line) {
        let mut state = self.shared.lock();
        state.line = line;
        if line == Line::Cut {
            state.close_all();
        }
        self.shared.changed.notify_all();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.ended = true;
        state.close_all();
        drop(state);
        self.shared.changed.notify_all();
        // So that the accepting thread looks up.
        let _refused = TcpStream::connect(&self.address);
    }
}

impl State {
    fn close_all(&mut self) {
        for connection in self.connections.drain(..) {
            let _ended = connection.shutdown(Shutdown::Both);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, tape: Option<usize>, bytes: &[u8]) {
        let Some(tape) = tape else { return };
        if let Some(recordings) = &mut self.lock().recordings {
            recordings[tape].extend_from_slice(bytes);
        }
    }

    /// Waits while nothing may go on. What the line is then, none at the end.
    fn wait_until_open(&self) -> Option<Line> {
        let waits = |state: &mut State| state.line == Line::Blocked && !state.ended;
        let state = self.changed.wait_while(self.lock(), waits).unwrap_or_else(PoisonError::into_inner);
        (!state.ended).then_some(state.line)
    }
}

fn accept(listener: &TcpListener, target: &str, shared: &Arc<Shared>) {
    for near in listener.incoming() {
        if shared.lock().ended {
            return;
        }
        let (Ok(near), shared, target) = (near, Arc::clone(shared), target.to_owned()) else { continue };
        // A connection through a blocked line must not hold up the next one.
        thread::spawn(move || {
            // Whoever connected learns of a failure by the end of its connection.
            let _failed = connect(near, &target, &shared);
        });
    }
}

fn connect(near: TcpStream, target: &str, shared: &Arc<Shared>) -> io::Result<()> {
    if matches!(shared.wait_until_open(), None | Some(Line::Cut)) {
        return near.shutdown(Shutdown::Both);
    }
    let far = TcpStream::connect(target)?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let ends = [near.try_clone()?, far.try_clone()?];
    let tape = {
        let mut state = shared.lock();
        state.connections.extend(ends);
        let tape = state.recordings.as_mut().map(|recordings| {
            recordings.push(Vec::new());
            recordings.len() - 1
        });
        // It may have been cut meanwhile.
        if state.line == Line::Cut || state.ended {
            state.close_all();
        }
        tape
    };
    let (from_near, to_far) = (near.try_clone()?, far.try_clone()?);
    let forth = Arc::clone(shared);
    thread::spawn(move || pump(from_near, to_far, &forth, tape));
    pump(far, near, shared, None);
    Ok(())
}

/// Passes bytes on until either end is closed, then closes both. What passes is added to a recording, if there is one.
fn pump(mut from: TcpStream, mut to: TcpStream, shared: &Shared, tape: Option<usize>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        match shared.wait_until_open() {
            None | Some(Line::Cut) => break,
            Some(Line::Slow(delay)) => thread::sleep(delay),
            Some(Line::Whole | Line::Blocked) => {}
        }
        shared.record(tape, &buffer[..length]);
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ended = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that sends back what it gets.
    fn echo() -> String {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        thread::spawn(move || {
            for connection in listener.incoming().map_while(Result::ok) {
                thread::spawn(move || {
                    let (mut from, mut to) = (connection.try_clone().unwrap(), connection);
                    let _ended = io::copy(&mut from, &mut to);
                });
            }
        });
        address
    }

    fn says(connection: &mut TcpStream, word: &[u8; 4]) -> io::Result<[u8; 4]> {
        connection.write_all(word)?;
        let mut answer = [0; 4];
        connection.read_exact(&mut answer)?;
        Ok(answer)
    }

    #[test]
    fn a_proxy_passes_on_blocks_cuts_and_heals() {
        let proxy = Proxy::to(&echo());
        let mut connection = TcpStream::connect(proxy.address()).unwrap();
        assert_eq!(says(&mut connection, b"once").unwrap(), *b"once");

        proxy.set(Line::Slow(Duration::from_millis(5)));
        assert_eq!(says(&mut connection, b"slow").unwrap(), *b"slow");

        proxy.set(Line::Blocked);
        connection.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let silent = says(&mut connection, b"held").unwrap_err();
        assert_eq!(silent.kind(), io::ErrorKind::WouldBlock);
        proxy.set(Line::Whole);
        connection.set_read_timeout(None).unwrap();
        let mut answer = [0; 4];
        connection.read_exact(&mut answer).unwrap();
        assert_eq!(answer, *b"held", "what was held back comes when the line is whole");

        proxy.set(Line::Cut);
        assert!(says(&mut connection, b"gone").is_err());
        proxy.set(Line::Whole);
        let mut connection = TcpStream::connect(proxy.address()).unwrap();
        assert_eq!(says(&mut connection, b"back").unwrap(), *b"back");
    }
}
