//! What TLS costs: the same work over connections with keys and without, in pairs of one run.
//!
//! `cargo bench --bench tls` prints for each kind of work the medians with and without TLS, and the median of the pairs' ratios
//! (throughput) or differences (latency). TLS is to cost at most 20% of throughput and 100 us of latency.

use std::cell::RefCell;
use std::error::Error;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use lrts::{LocalCluster, LocalConfig, LocalKeys};
use lrts_client::blocking::ClientApplication;
use lrts_client::{JobContext, ProgressDisplay, Service, ServiceError};
use lrts_core::clock::Moment;
use lrts_core::keys::{Security, ensure};
use lrts_core::transport::{
    Hello, Link, LinkConfig, LinkEvent, LinkReceiver, LinkSender, Message, Role, Server, ServerConfig,
    ServerEvent, SocketDir,
};
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;

const ROUNDS: usize = 9;

#[derive(Serialize, Deserialize)]
struct Back(lrts_client::Bytes);

impl Service for Back {
    const NAME: &'static str = "back";
    type Output = lrts_client::Bytes;
    fn run(self, _job: &JobContext) -> Result<lrts_client::Bytes, ServiceError> {
        Ok(self.0)
    }
}

/// How much is done in a round.
struct Amount {
    rounds: usize,
    small_jobs: usize,
    large_jobs: usize,
    trips: usize,
    small_messages: usize,
    large_messages: usize,
}

fn main() -> Result<(), Box<dyn Error>> {
    lrts_client::host_services!(Back);
    // `cargo test` runs benches too, with this flag where it wants a quick look only.
    let amount = if std::env::args().any(|argument| argument == "--bench") {
        Amount {
            rounds: ROUNDS,
            small_jobs: 2_000,
            large_jobs: 100,
            trips: 200,
            small_messages: 200_000,
            large_messages: 400,
        }
    } else {
        Amount { rounds: 1, small_jobs: 10, large_jobs: 2, trips: 5, small_messages: 100, large_messages: 2 }
    };
    jobs(&amount)?;
    messages(&amount)
}

/// Whole jobs on a whole cluster.
fn jobs(amount: &Amount) -> Result<(), Box<dyn Error>> {
    let start = |keys: LocalKeys| -> Result<(LocalCluster, ClientApplication), Box<dyn Error>> {
        let cluster = LocalCluster::start(LocalConfig::default().max_jobs(2).keys(keys))?;
        let information = cluster.application_information().progress_display(ProgressDisplay::Hidden);
        let app = ClientApplication::start(information)?;
        run_jobs(&app, 20, 1)?;
        Ok((cluster, app))
    };
    let (_open_cluster, open) = start(LocalKeys::Insecure)?;
    let (_secured_cluster, secured) = start(LocalKeys::ThrowAway)?;
    let rate = |jobs: usize, bytes: usize| {
        move |app: &ClientApplication| Ok(jobs as f64 / run_jobs(app, jobs, bytes)?.as_secs_f64())
    };
    let mut small = Pairs::default();
    let mut large = Pairs::default();
    let mut trips = Pairs::default();
    for round in 0..amount.rounds {
        small.measure(round, &open, &secured, rate(amount.small_jobs, 1))?;
        large.measure(round, &open, &secured, rate(amount.large_jobs, 1 << 20))?;
        // In turn job by job, since a machine's mood lasts longer than one of them.
        for trip in 0..amount.trips {
            trips.measure(trip, &open, &secured, |app| Ok(run_jobs(app, 1, 1)?.as_secs_f64() * 1e6))?;
        }
    }
    small.print_rates("no-op jobs, a process each", "/s")?;
    large.print_rates("jobs of 1 MiB in and out", "/s")?;
    trips.print_times("one job on an idle cluster")?;
    open.stop()?;
    secured.stop()?;
    Ok(())
}

fn run_jobs(app: &ClientApplication, jobs: usize, bytes: usize) -> Result<Duration, Box<dyn Error>> {
    let start = Moment::now();
    let handles = app.schedule_services((0..jobs).map(|_| Back(vec![7; bytes].into())))?;
    for result in app.as_completed(&handles) {
        result?.into_output()?;
    }
    Ok(start.elapsed())
}

/// The transport alone, a link and a server in this process.
fn messages(amount: &Amount) -> Result<(), Box<dyn Error>> {
    let runtime = Runtime::new()?;
    let sockets = SocketDir::create()?;
    let directory = tempfile::tempdir()?;
    let keys = directory.path().join("keys");
    ensure(&keys)?;
    let start = |keys: Option<PathBuf>| runtime.block_on(Line::open(keys, &sockets));
    let open = start(None)?;
    let secured = start(Some(keys))?;
    let (mut small, mut large, mut trips) = (Pairs::default(), Pairs::default(), Pairs::default());
    for round in 0..amount.rounds {
        let rate = |count: usize, bytes: usize, unit: f64| {
            let runtime = &runtime;
            move |line: &RefCell<Line>| {
                let took = runtime.block_on(line.borrow_mut().stream(count, bytes))?;
                Ok(count as f64 * unit / took.as_secs_f64())
            }
        };
        small.measure(round, &open, &secured, rate(amount.small_messages, 64, 1.0))?;
        large.measure(round, &open, &secured, rate(amount.large_messages, 1 << 20, 1.048_576))?;
        trips.measure(round, &open, &secured, |line| {
            runtime.block_on(line.borrow_mut().round_trips(10 * amount.trips))
        })?;
    }
    small.print_rates("messages of 64 B, one way", "/s")?;
    large.print_rates("messages of 1 MiB, one way", "MB/s")?;
    trips.print_times("message there and back")?;
    Ok(())
}

/// A link whose server counts, and answers messages that have a body of one byte.
struct Line {
    sender: LinkSender,
    receiver: LinkReceiver,
}

impl Line {
    async fn open(keys: Option<PathBuf>, sockets: &SocketDir) -> Result<RefCell<Self>, Box<dyn Error>> {
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let security = Security::new(keys.clone(), Role::Scheduler);
        let mut server =
            Server::bind(ServerConfig::new(address, sockets.path(), vec![Role::Client], security)).await?;
        let address = server.local_address().to_string();
        let hello = Hello::new(Role::Client, "bench", "here");
        let security = Security::new(keys, Role::Client);
        let config = LinkConfig::new(address, Role::Scheduler, hello, security, sockets.path());
        let (sender, mut receiver) = Link::open(config);
        tokio::spawn(async move {
            let handle = server.handle();
            loop {
                if let ServerEvent::Message { connection, message } = server.next().await
                    && message.body.len() == 1
                {
                    // A line that is gone needs no answer.
                    let _ = handle.send(connection, message);
                }
            }
        });
        match receiver.next().await {
            LinkEvent::Up { .. } => Ok(RefCell::new(Self { sender, receiver })),
            event @ (LinkEvent::Message(_) | LinkEvent::Down { .. } | LinkEvent::Refused(_)) => {
                Err(format!("not connected: {event:?}").into())
            }
        }
    }

    async fn answer(&mut self) -> Result<(), Box<dyn Error>> {
        match self.receiver.next().await {
            LinkEvent::Message(_) => Ok(()),
            event @ (LinkEvent::Up { .. } | LinkEvent::Down { .. } | LinkEvent::Refused(_)) => {
                Err(format!("no answer but {event:?}").into())
            }
        }
    }

    /// How long so many messages of this size take until the last has arrived.
    async fn stream(&mut self, count: usize, bytes: usize) -> Result<Duration, Box<dyn Error>> {
        let body = Bytes::from(vec![7; bytes]);
        let start = Moment::now();
        for _ in 0..count {
            self.sender.send(Message::new("stream", body.clone())).await?;
        }
        self.sender.send(Message::new("last", "!")).await?;
        self.answer().await?;
        Ok(start.elapsed())
    }

    /// The median round trip, in microseconds.
    async fn round_trips(&mut self, count: usize) -> Result<f64, Box<dyn Error>> {
        let mut times = Vec::new();
        for _ in 0..count {
            let start = Moment::now();
            self.sender.send(Message::new("trip", "!")).await?;
            self.answer().await?;
            times.push(start.elapsed().as_secs_f64() * 1e6);
        }
        Ok(median(times))
    }
}

/// What was measured without and with TLS, in turn.
#[derive(Default)]
struct Pairs(Vec<(f64, f64)>);

impl Pairs {
    /// Measures both; who goes first changes from round to round.
    fn measure<T>(
        &mut self,
        round: usize,
        open: &T,
        secured: &T,
        mut measure: impl FnMut(&T) -> Result<f64, Box<dyn Error>>,
    ) -> Result<(), Box<dyn Error>> {
        let pair = if round.is_multiple_of(2) {
            let first = measure(open)?;
            (first, measure(secured)?)
        } else {
            let first = measure(secured)?;
            (measure(open)?, first)
        };
        self.0.push(pair);
        Ok(())
    }

    fn medians(&self) -> (f64, f64) {
        (
            median(self.0.iter().map(|pair| pair.0).collect()),
            median(self.0.iter().map(|pair| pair.1).collect()),
        )
    }

    fn print_rates(&self, what: &str, unit: &str) -> std::io::Result<()> {
        let (open, secured) = self.medians();
        let ratio = median(self.0.iter().map(|(open, secured)| secured / open).collect());
        let mut out = std::io::stdout().lock();
        writeln!(
            out,
            "{what:30} without {open:10.0} {unit:5} with TLS {secured:10.0} {unit:5} ratio {ratio:.2}"
        )
    }

    fn print_times(&self, what: &str) -> std::io::Result<()> {
        let (open, secured) = self.medians();
        let more = median(self.0.iter().map(|(open, secured)| secured - open).collect());
        let mut out = std::io::stdout().lock();
        writeln!(out, "{what:30} without {open:10.1} us    with TLS {secured:10.1} us    more  {more:.1} us")
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
