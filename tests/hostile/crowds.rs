//! Thousands of connections that say half of something, or nothing, while honest parties come and go.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use lrts_core::transport::Role;

use crate::attack::{Attacker, Stage, Target, client_hello, greeting};
use crate::site::Site;
use crate::support::{SOON, eventually};

/// Connections at once.
const CROWD: usize = 2_000;

/// Between two looks at who is still connected.
const ROUND: Duration = Duration::from_millis(100);

/// Connections that are held open; who is sent away is replaced, until this is dropped.
struct Crowd {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Crowd {
    /// Returns once as many have come as wanted.
    fn gather(
        size: usize,
        mut arrive: impl FnMut(usize) -> io::Result<Attacker> + Send + 'static,
        mut each_round: impl FnMut(&mut Attacker) -> io::Result<()> + Send + 'static,
    ) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let came = Arc::new(AtomicUsize::new(0));
        let (ends, counts) = (over.clone(), came.clone());
        let thread = thread::spawn(move || {
            let mut crowd: Vec<Attacker> = Vec::new();
            while !ends.load(Ordering::Relaxed) {
                while crowd.len() < size && !ends.load(Ordering::Relaxed) {
                    // A full backlog, perhaps: the next round is soon.
                    let Ok(attacker) = arrive(counts.load(Ordering::Relaxed)) else { break };
                    crowd.push(attacker);
                    counts.fetch_add(1, Ordering::Relaxed);
                }
                thread::sleep(ROUND);
                crowd.retain_mut(|attacker| each_round(attacker).is_ok() && !attacker.has_ended());
            }
        });
        eventually("a crowd gathers", SOON, || {
            let came = came.load(Ordering::Relaxed);
            if came >= size { Ok(()) } else { Err(format!("{came} of {size}")) }
        });
        Self { over, thread: Some(thread) }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("it is joined once");
        assert!(thread.join().is_ok() || thread::panicking(), "the crowd panicked");
    }
}

/// Says nothing, or half of what comes first at this server.
fn half_a_word(target: &Target, number: usize) -> Vec<u8> {
    let whole = match &target.keys {
        Some(keys) => client_hello(keys, Role::Client, target.role),
        None => greeting().to_vec(),
    };
    whole[..number % 3 * whole.len() / 4].to_vec()
}

/// A worker, an application and commands come while the crowd is there.
fn newcomers_get_through(site: &mut Site) {
    site.cluster.add_worker_with_program(1);
    site.serves_newcomers();
}

/// A crowd whose members come from so many addresses.
fn idlers(target: &Target, addresses: usize) -> Crowd {
    let target = target.clone();
    let arrive = move |number: usize| {
        let from = IpAddr::from([127, 0, 0, 1 + (number % addresses) as u8]);
        let mut attacker = target.connect_from(from)?;
        attacker.write(&half_a_word(&target, number))?;
        Ok(attacker)
    };
    Crowd::gather(CROWD, arrive, |_| Ok(()))
}

fn half_handshakes_keep_nobody_out(mut site: Site, addresses: usize) {
    for target in [site.scheduler(), site.progress_server()] {
        let crowd = idlers(&target, addresses);
        newcomers_get_through(&mut site);
        drop(crowd);
    }
    site.assert_unharmed();
}

#[test]
fn two_thousand_half_handshakes_from_the_same_address_keep_nobody_out() {
    half_handshakes_keep_nobody_out(Site::new(), 1);
}

#[test]
fn two_thousand_half_handshakes_from_many_addresses_keep_nobody_out() {
    half_handshakes_keep_nobody_out(Site::new(), 20);
}

#[test]
fn two_thousand_half_greetings_keep_nobody_out_without_keys() {
    half_handshakes_keep_nobody_out(Site::insecure(), 1);
}

#[test]
fn who_says_a_byte_now_and_then_keeps_nobody_out() {
    let mut site = Site::new();
    for target in [site.scheduler(), site.progress_server()] {
        let greeting = greeting();
        let mut said = 0;
        let drip = move |attacker: &mut Attacker| {
            said += 1;
            attacker.write(&greeting[said % 2..][..1])
        };
        let server = Target { from: Some([127, 0, 0, 2].into()), ..target.clone() };
        let crowd = Crowd::gather(200, move |_| server.enter(Stage::Secured, Role::Worker), drip);
        newcomers_get_through(&mut site);
        drop(crowd);
    }
    site.assert_unharmed();
}
