//! Accepts connections for the gate and does their TLS handshakes, on a thread of its own and of low priority: however many
//! strangers come, and however much arithmetic they cause, those who are inside go first.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Builder;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::peers::{Opened, Orders, Shared};
use super::splice::{End, caught, tune};
use super::tls_socket::TlsSocket;
use super::{ConnectionId, tls};
use crate::clock::{Moment, sleep_until};
use crate::keys::Security;
use crate::limits::BREACH_PAUSE;

/// Connections that the kernel keeps until they are accepted.
const BACKLOG: u32 = 4_096;

/// Niceness of the thread above the process's own: where all want the same core, it gets a tenth of it (`sched(7)`), which is some
/// hundred handshakes a second.
const NICENESS: i32 = 10;

/// How long it may keep a core from a thread that wakes up (EEVDF, since Linux 6.12; before, all turns are alike, up to 3 ms). The
/// shortest there is: longer ones, which whoever wakes up may cut short, were measured to disturb more.
const SLICE: Duration = Duration::from_micros(100);

/// Backoff when accepting fails, which is mostly for want of descriptors: doubles from the first to the second.
const ACCEPT_BACKOFF_MIN: Duration = Duration::from_millis(10);
const ACCEPT_BACKOFF_MAX: Duration = Duration::from_secs(1);

/// While strangers crowd each other out, so many are accepted in a row before a pause, so that they don't take all the time of
/// those who are inside, and the line of newcomers still moves.
const CROWDED_BURST: u32 = 4;
const CROWDED_PAUSE: Duration = Duration::from_millis(1);

/// Listens on a TCP address.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A server that restarts must get its port back although old connections linger.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// A connection whose key was accepted.
pub(crate) struct Newcomer {
    pub(crate) connection: ConnectionId,
    pub(crate) orders: Orders,
    pub(crate) stream: Network,
}

/// The network's side of a connection.
pub(crate) enum Network {
    Plain(TcpStream),
    Tls(Box<TlsStream<TlsSocket>>),
}

impl Network {
    /// Moves it from the runtime that accepted it to that of the caller.
    pub(crate) fn move_here(mut self) -> io::Result<Self> {
        let socket = match &mut self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => stream.get_mut().0.stream(),
        };
        let twin = std::net::TcpStream::from(socket.as_fd().try_clone_to_owned()?);
        *socket = TcpStream::from_std(twin)?;
        Ok(self)
    }
}

/// Starts the thread, which ends once it is told to stop; so does the channel then.
pub(crate) async fn start(
    listener: TcpListener,
    shared: Arc<Shared>,
    stop: CancellationToken,
) -> io::Result<mpsc::UnboundedReceiver<Newcomer>> {
    let listener = listener.into_std()?;
    let (admitted, newcomers) = mpsc::unbounded_channel();
    let (ready, started) = oneshot::channel();
    let acceptor = Acceptor { shared, admitted };
    std::thread::Builder::new()
        .name("acceptor".to_owned())
        .spawn(move || run_thread(listener, acceptor, &stop, ready))?;
    started.await.map_err(io::Error::other)??;
    Ok(newcomers)
}

fn run_thread(
    listener: std::net::TcpListener,
    acceptor: Acceptor,
    stop: &CancellationToken,
    ready: oneshot::Sender<io::Result<()>>,
) {
    lower_priority();
    let opened = Builder::new_current_thread().enable_io().enable_time().build().and_then(|runtime| {
        let _within = runtime.enter();
        let listener = TcpListener::from_std(listener)?;
        Ok((runtime, listener))
    });
    let (opened, result) = match opened {
        Ok(opened) => (Some(opened), Ok(())),
        Err(error) => (None, Err(error)),
    };
    // Unless whoever has started it is gone again.
    if ready.send(result).is_ok()
        && let Some((runtime, listener)) = opened
    {
        runtime.block_on(acceptor.run(listener, stop));
    }
}

/// Of this thread.
#[expect(unsafe_code, reason = "nix has none of these calls")]
fn lower_priority() {
    // SAFETY: they take no pointers; 0 is the calling thread, whose own niceness it is on Linux.
    let (policy, niceness) =
        unsafe { (libc::sched_getscheduler(0), libc::getpriority(libc::PRIO_PROCESS, 0)) };
    if policy != libc::SCHED_OTHER && policy != libc::SCHED_BATCH {
        // Whoever has chosen another for the daemon knows what they do.
        return;
    }
    let attributes = libc::sched_attr {
        size: size_of::<libc::sched_attr>() as u32,
        sched_policy: libc::SCHED_OTHER as u32,
        sched_flags: 0,
        sched_nice: niceness.saturating_add(NICENESS).min(19),
        sched_priority: 0,
        sched_runtime: SLICE.as_nanos() as u64,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the attributes outlive the call, and say their size.
    let changed = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    if changed == -1 {
        let error = io::Error::last_os_error();
        warn!(%error, "newcomers can't be put behind those who are inside");
    }
}

#[derive(Clone)]
struct Acceptor {
    shared: Arc<Shared>,
    admitted: mpsc::UnboundedSender<Newcomer>,
}

impl Acceptor {
    async fn run(self, listener: TcpListener, stop: &CancellationToken) {
        let mut handshakes = JoinSet::new();
        let mut backoff = ACCEPT_BACKOFF_MIN;
        let mut paused_until = None;
        let mut crowd = 0;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Some(_) = handshakes.join_next() => {}
                () = sleep_until(paused_until) => paused_until = None,
                accepted = listener.accept(), if paused_until.is_none() => match accepted {
                    Ok((stream, address)) => {
                        backoff = ACCEPT_BACKOFF_MIN;
                        let connection = ConnectionId::next();
                        let Opened { orders, crowded } = self.shared.opened(connection, address);
                        if let Some(orders) = orders {
                            handshakes.spawn(self.clone().admit(connection, stream, orders));
                        }
                        crowd += u32::from(crowded);
                        if crowd == CROWDED_BURST {
                            crowd = 0;
                            paused_until = Some(Moment::now() + CROWDED_PAUSE);
                        }
                    }
                    Err(error) => {
                        warn!(%error, ?backoff, "cannot accept connections, trying again");
                        paused_until = Some(Moment::now() + backoff);
                        backoff = (backoff * 2).min(ACCEPT_BACKOFF_MAX);
                    }
                },
            }
        }
    }

    /// Hands on whoever has a key.
    async fn admit(self, connection: ConnectionId, stream: TcpStream, orders: Orders) {
        let entered = tokio::select! {
            () = orders.hang_up.cancelled() => Err(End::ClosedHere),
            entered = caught(self.shake_hands(connection, stream), Err(End::Fault)) => entered,
        };
        match entered {
            Ok(stream) => {
                // If the server has ended, so has this.
                let _ = self.admitted.send(Newcomer { connection, orders, stream });
            }
            Err(end) => self.shared.closed(connection, &end),
        }
    }

    async fn shake_hands(&self, connection: ConnectionId, stream: TcpStream) -> Result<Network, End> {
        tune(&stream).map_err(End::Network)?;
        let Security::Keys(source) = self.shared.security() else {
            let stream = tls::turn_away(stream).await;
            let wants_keys =
                || End::Keys("it wants keys, and this server was started without (--insecure)".to_owned());
            return stream.map(Network::Plain).ok_or_else(wants_keys);
        };
        // Looked at for each handshake: a key that was made a moment ago already counts.
        let ring = source.current_or_last().map_err(|error| End::Keys(error.to_string()))?;
        let (stream, certified) = tls::accept(stream, &ring).await?;
        let shown = certified.shown.clone();
        self.shared.certified(connection, certified);
        // The keys may have changed since the handshake began. From here on the watch over them sees this peer too.
        if let Ok(now) = source.current_or_last()
            && !Arc::ptr_eq(&now, &ring)
            && let Err(refusal) = shown.check_client(&now, Moment::now())
        {
            return Err(End::Keys(refusal.to_string()));
        }
        while let Err(later) = self.shared.enter(connection) {
            // Not all at once.
            sleep_until(Some(later + BREACH_PAUSE.mul_f64(fastrand::f64() / 4.0))).await;
        }
        Ok(Network::Tls(Box::new(stream)))
    }
}
