//! How long a scheduler takes to answer a worker's heartbeat while it is attacked.
//!
//! `cargo bench --bench hostile` prints for each kind of attack p50 and p99 of the answers while nobody attacks and under it, and
//! how much longer p99 is: medians of pairs. Scheduler and worker have the first core, the attackers all others, since on
//! machines of their own they wouldn't take the scheduler's either. It fails if a heartbeat isn't answered.
//! `cargo bench --bench hostile -- churn` measures this kind alone.

use std::error::Error;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::command_line::raise_open_file_limit;
use lrts_core::keys::{KeySource, Security};
use lrts_core::protocol::codec::{decode, encode};
use lrts_core::protocol::command::FromCommand;
use lrts_core::protocol::worker::{FromWorker, ToWorker};
use lrts_core::transport::{
    Hello, Link, LinkConfig, LinkEvent, LinkReceiver, LinkSender, Message, Role, SocketDir,
};
use lrts_core::worker_secret::WorkerSecret;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

#[path = "../tests/hostile/attack.rs"]
#[allow(dead_code, reason = "made for tests")]
mod attack;
#[path = "../tests/support/mod.rs"]
#[allow(clippy::unwrap_used, clippy::print_stderr, reason = "made for tests")]
mod support;
#[path = "../tests/hostile/words.rs"]
#[allow(clippy::unwrap_used, dead_code, reason = "made for tests")]
mod words;

use attack::{Attacker, COMMAND, LONG, Stage, Target, announced, client_hello};
use support::{Cluster, keys};

/// Between two heartbeats.
const INTERVAL: Duration = Duration::from_millis(5);

/// Of each attack.
const ROUNDS: usize = 5;

/// How long an answer may take at all.
const PATIENCE: Duration = Duration::from_secs(30);

/// Half-open connections at once.
const CROWD: usize = 2_000;

const ATTACKS: [&str; 6] = ["half-open", "churn", "garbage", "bombs", "messages", "deaf"];

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    raise_open_file_limit();
    if let [word, kind, address, from, cores @ ..] = &arguments[..]
        && word == "attack"
    {
        pin(cores.iter().filter_map(|core| core.parse().ok()))?;
        let from = Some(from.parse()?);
        let target = Target { address: address.clone(), role: Role::Scheduler, keys: Some(keys()), from };
        attack_on(kind, &target);
    }
    let all = cores()?;
    // With one core only, they share it.
    let theirs = if all.len() > 1 { &all[1..] } else { &all[..] };
    pin(all.first().copied())?;
    // `cargo test` runs benches too, without this flag, where it wants a quick look only.
    let (rounds, time) = match arguments.iter().any(|argument| argument == "--bench") {
        true => (ROUNDS, Duration::from_secs(4)),
        false => (1, Duration::from_millis(200)),
    };
    let wanted = |kind: &&str| arguments.iter().any(|argument| argument == kind);
    let named: Vec<_> = ATTACKS.into_iter().filter(wanted).collect();
    let kinds = if named.is_empty() { ATTACKS.to_vec() } else { named };
    tokio::runtime::Runtime::new()?.block_on(measure(&kinds, theirs, rounds, time))
}

/// Keeps this process and its children to these cores.
fn pin(cores: impl IntoIterator<Item = usize>) -> nix::Result<()> {
    let mut set = CpuSet::new();
    cores.into_iter().try_for_each(|core| set.set(core))?;
    sched_setaffinity(Pid::from_raw(0), &set)
}

/// Those that this process may use.
fn cores() -> nix::Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0))?;
    Ok((0..CpuSet::count()).filter(|&core| set.is_set(core) == Ok(true)).collect())
}

async fn measure(
    kinds: &[&str],
    cores: &[usize],
    rounds: usize,
    time: Duration,
) -> Result<(), Box<dyn Error>> {
    let cluster = Cluster::without_workers(&[]);
    let mut worker = Worker::register(&cluster.scheduler_address).await?;
    let mut out = std::io::stdout().lock();
    for kind in kinds {
        let (mut quiet, mut attacked) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            quiet.push(worker.heartbeats(time).await?);
            let attackers = Attackers::start(kind, &cluster.scheduler_address, cores)?;
            // It is in full swing.
            worker.heartbeats(time / 4).await?;
            attacked.push(worker.heartbeats(time).await?);
            drop(attackers);
            // What it has left behind is gone.
            worker.heartbeats(time / 4).await?;
        }
        let ratios = quiet.iter().zip(&attacked).map(|(quiet, attacked)| attacked.p99 / quiet.p99).collect();
        writeln!(
            out,
            "{kind:10} p50 {:.2} -> {:.2} ms, p99 {:.2} -> {:.2} ms, x {:.2}",
            median(quiet.iter().map(|times| times.p50).collect()),
            median(attacked.iter().map(|times| times.p50).collect()),
            median(quiet.iter().map(|times| times.p99).collect()),
            median(attacked.iter().map(|times| times.p99).collect()),
            median(ratios),
        )?;
    }
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A worker that says heartbeats and nothing else.
struct Worker {
    sender: LinkSender,
    receiver: LinkReceiver,
    number: u64,
    /// Dropped last: the link's sockets are in it.
    _sockets: SocketDir,
}

/// In milliseconds.
struct Times {
    p50: f64,
    p99: f64,
}

impl Worker {
    async fn register(address: &str) -> Result<Self, Box<dyn Error>> {
        let sockets = SocketDir::create()?;
        let security = Security::Keys(KeySource::new(keys(), Role::Worker));
        let hello = Hello::new(Role::Worker, "heartbeats", "here");
        let config = LinkConfig::new(address, Role::Scheduler, hello, security, sockets.path());
        let (sender, receiver) = Link::open(config);
        let mut worker = Self { sender, receiver, number: 0, _sockets: sockets };
        while !matches!(worker.receiver.next().await, LinkEvent::Up { .. }) {}
        let secret = WorkerSecret::random();
        let register = FromWorker::Register(words::register(secret.worker(), secret));
        worker.sender.send(Message::new(encode(&register), "")).await?;
        while !matches!(worker.hear().await?, ToWorker::Registered { .. }) {}
        Ok(worker)
    }

    async fn hear(&mut self) -> Result<ToWorker, Box<dyn Error>> {
        match tokio::time::timeout(PATIENCE, self.receiver.next()).await? {
            LinkEvent::Message(message) => Ok(decode(&message.head)?),
            event @ (LinkEvent::Up { .. } | LinkEvent::Down { .. } | LinkEvent::Refused(_)) => {
                Err(format!("the worker was disturbed: {event:?}").into())
            }
        }
    }

    /// Says heartbeats for so long; how long the answers take.
    async fn heartbeats(&mut self, time: Duration) -> Result<Times, Box<dyn Error>> {
        let until = Moment::now() + time;
        let mut tick = tokio::time::interval(INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut times = Vec::new();
        while Moment::now() < until {
            tick.tick().await;
            self.number += 1;
            let said = Moment::now();
            let heartbeat = encode(&FromWorker::Heartbeat { number: self.number });
            self.sender.send(Message::new(heartbeat, "").urgent()).await?;
            while self.hear().await? != (ToWorker::Renewed { number: self.number }) {}
            times.push(said.elapsed().as_secs_f64() * 1e3);
        }
        times.sort_by(f64::total_cmp);
        let quantile = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize];
        Ok(Times { p50: quantile(0.5), p99: quantile(0.99) })
    }
}

/// Processes that attack until this is dropped, each like a machine with an address of its own.
struct Attackers(Vec<Child>);

impl Attackers {
    fn start(kind: &str, address: &str, cores: &[usize]) -> std::io::Result<Self> {
        let mut attackers = Self(Vec::new());
        for from in ["127.0.0.2", "127.0.0.3"] {
            let mut command = Command::new(std::env::current_exe()?);
            command.args(["attack", kind, address, from]).args(cores.iter().map(usize::to_string));
            attackers.0.push(command.stdin(Stdio::null()).spawn()?);
        }
        Ok(attackers)
    }
}

impl Drop for Attackers {
    fn drop(&mut self) {
        for attacker in &mut self.0 {
            // Ended by itself if the scheduler is gone; then that is what shows.
            let _ended = attacker.kill();
            let _reaped = attacker.wait();
        }
    }
}

/// Attacks until it is killed. Whatever the server does about a single connection, the next one comes.
fn attack_on(kind: &str, target: &Target) -> ! {
    let hello = client_hello(target.keys.as_deref().unwrap_or(&PathBuf::new()), Role::Client, target.role);
    let half = &hello[..hello.len() / 2];
    let mut crowd: Vec<Attacker> = Vec::new();
    let mut contents = words::contents().into_iter().cycle();
    loop {
        let (_, content) = contents.next().expect("it begins anew");
        let _ended: std::io::Result<()> = match kind {
            "half-open" => {
                crowd.retain(|attacker| !attacker.has_ended());
                while crowd.len() < CROWD / 2 {
                    let mut attacker = target.connect();
                    let _pushed_out = attacker.write(half);
                    crowd.push(attacker);
                }
                Ok(())
            }
            "churn" => {
                target.connect().reset();
                Ok(())
            }
            "garbage" => {
                let garbage: Vec<u8> = (0..4_096).map(|_| fastrand::u8(..)).collect();
                let stage = [Stage::Connected, Stage::Secured, Stage::Greeted][fastrand::usize(..3)];
                target.enter(stage, Role::Worker).and_then(|mut attacker| attacker.write(&garbage))
            }
            "bombs" => {
                let bomb = announced(COMMAND | LONG, 1 << 47);
                let stage = [Stage::Connected, Stage::Secured, Stage::Greeted][fastrand::usize(..3)];
                target.enter(stage, Role::Worker).and_then(|mut attacker| attacker.write(&bomb))
            }
            "messages" => {
                target.enter(Stage::Joined, Role::Admin).and_then(|mut attacker| attacker.say(&content, b""))
            }
            "deaf" => {
                if crowd.len() == 10 {
                    crowd.clear();
                }
                target.enter(Stage::Joined, Role::Admin).and_then(|mut attacker| {
                    attacker.give_up_soon();
                    let question = encode(&FromCommand::Status);
                    let asked = (0..20_000).try_for_each(|_| attacker.say(&question, b""));
                    crowd.push(attacker);
                    asked
                })
            }
            other => panic!("no attack is called {other}"),
        };
    }
}
