//! How long a revoked key still opens anything.
//!
//! `cargo bench --bench revocation` revokes keys of connected peers as `lrts keys revoke` does, and prints how long it takes until
//! scheduler and progress server have sent the last of them away: the shortest, median and longest time. It fails if that takes
//! longer than 5 s, or if a handshake with such a key succeeds afterwards.

use std::error::Error;
use std::io::Write;
use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::keys::{KeyRing, KeysDirectory};
use lrts_core::transport::{RefusalKind, Role};

#[path = "../tests/hostile/attack.rs"]
#[allow(dead_code, reason = "made for tests")]
mod attack;
#[path = "../tests/support/mod.rs"]
#[allow(clippy::unwrap_used, clippy::print_stderr, reason = "made for tests")]
mod support;

use attack::{Attacker, Target};
use support::Cluster;

const ROUNDS: usize = 15;

/// Most that it may take.
const BOUND: Duration = Duration::from_secs(5);

/// How long the keys would be good.
const VALID: Duration = Duration::from_hours(1);

fn main() -> Result<(), Box<dyn Error>> {
    // `cargo test` runs benches too, without this flag, where it wants a quick look only.
    let rounds = if std::env::args().any(|argument| argument == "--bench") { ROUNDS } else { 1 };
    let directory = Cluster::new_directory();
    let keys = directory.path().join("keys");
    let cluster = Cluster::with_keys(Some(keys.clone()), directory, Vec::new(), &[]);
    let target = |address: &str, role| Target {
        address: address.to_owned(),
        role,
        keys: Some(keys.clone()),
        from: None,
    };
    let servers = [
        target(&cluster.scheduler_address, Role::Scheduler),
        target(&cluster.progress_address, Role::ProgressServer),
    ];
    let mut times = Vec::new();
    for round in 0..rounds {
        let mut directory = KeysDirectory::open(&keys)?;
        let key = directory.issue(Role::Client, "attacker".parse()?, VALID)?;
        let id = key.identity().ok_or("a key without a name")?.key;
        let ring = KeyRing::new(key)?;
        let enter = |server: &Target| -> std::io::Result<Attacker> {
            let mut attacker = server.connect().secure(&ring.client(), server.role)?;
            attacker.greet("DEALER")?;
            attacker.join(Role::Client, "attacker")?;
            Ok(attacker)
        };
        let inside = servers.iter().map(enter).collect::<Result<Vec<_>, _>>()?;
        // Servers look at regular times: these are others each round.
        std::thread::sleep(Duration::from_millis(137) * round as u32);

        let start = Moment::now();
        directory.revoke(&[id])?;
        for attacker in inside {
            match attacker.farewell() {
                None | Some((RefusalKind::Keys, _)) => {}
                Some(other) => return Err(format!("sent away for another reason: {other:?}").into()),
            }
        }
        let time = start.elapsed();
        if time > BOUND {
            return Err(format!("a revoked key was good for {time:?}").into());
        }
        if servers.iter().any(|server| enter(server).is_ok()) {
            return Err("a revoked key opened a server".into());
        }
        times.push(time.as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    let (shortest, median, longest) = (times[0], times[times.len() / 2], times[times.len() - 1]);
    writeln!(std::io::stdout(), "a revoked key is out after {shortest:.2}, {median:.2}, {longest:.2} s")?;
    Ok(())
}
