//! Applications whose scheduler is hostile, with a good key or where there are none: they take no harm, and find the honest one.

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use lrts_client::blocking::ClientApplication;
use lrts_client::{ApplicationInformation, Bundle, ProgressDisplay};
use lrts_core::keys::KeySource;
use lrts_core::transport::Role;
use rustls::ServerConfig;

use crate::attack::{
    Attacker, COMMAND, DATA, MORE, REFUSAL, WELCOME, announced, data, frame, greeting, packet, ready,
};
use crate::site::Site;
use crate::support::{self, Work, appears, forget_peak, status_kib};
use crate::words::{contents, message};

/// Most that an application's memory may grow while it is attacked.
const GROWTH_KIB: u64 = 64 * 1024;

/// How often an application is attacked before it reaches the honest scheduler.
const ATTACKS: usize = 2;

/// The kind of a refusal that doesn't hinder anybody from trying again.
const FULL: u8 = 3;

/// The test that is a program where the environment says so, and nothing when the suite runs. It schedules one job once it is
/// told to, says `result` when it has it, and waits for its death.
#[test]
fn program() {
    let Some(go) = support::argument() else { return };
    println!("\nready");
    appears(go.as_ref());
    let information = ApplicationInformation::from_env().progress_display(ProgressDisplay::Hidden);
    let app = ClientApplication::start(information.bundle(Bundle::Installed("tests".to_owned()))).unwrap();
    let job = app.schedule_service(&Work::new(std::env::current_dir().unwrap().join("honest"), 1).number(7));
    match app.wait_for(&job.unwrap()) {
        Ok(result) => println!("result {}", result.into_output().unwrap().number),
        Err(error) => println!("result {error}"),
    }
    loop {
        thread::park();
    }
}

/// What a hostile scheduler does on one connection.
type Attack = Box<dyn Fn(Attacker, Option<&Arc<ServerConfig>>) -> io::Result<()> + Send>;

/// TLS if there are keys.
fn secured(attacker: Attacker, key: Option<&Arc<ServerConfig>>) -> io::Result<Attacker> {
    match key {
        Some(key) => attacker.secure_as_server(key),
        None => Ok(attacker),
    }
}

/// Says something in place of a greeting, and waits for the end.
fn instead_of_greeting(bytes: Vec<u8>) -> Attack {
    Box::new(move |attacker, key| {
        let mut attacker = secured(attacker, key)?;
        attacker.write(&bytes)?;
        attacker.farewell();
        Ok(())
    })
}

/// Is a ROUTER, hears the HELLO, and says something.
fn instead_of_welcome(bytes: Vec<u8>) -> Attack {
    Box::new(move |attacker, key| {
        let mut attacker = secured(attacker, key)?;
        attacker.greet("ROUTER")?;
        attacker.hear()?;
        attacker.write(&bytes)?;
        attacker.farewell();
        Ok(())
    })
}

/// Welcomes the application with an interval of pings, and says something.
fn behind_a_welcome(interval_ms: u32, bytes: Vec<u8>) -> Attack {
    let version = lrts_core::protocol::VERSION.to_be_bytes();
    let welcome = [&[WELCOME][..], &version, &[7; 8], &interval_ms.to_be_bytes()].concat();
    instead_of_welcome([packet(&welcome, None), bytes].concat())
}

fn attacks() -> Vec<(String, Attack)> {
    let mut attacks: Vec<(String, Attack)> = Vec::new();
    let mut add = |what: String, attack: Attack| attacks.push((what, attack));
    let before_tls = |bytes: Vec<u8>| -> Attack {
        Box::new(move |mut attacker, _| {
            attacker.write(&bytes)?;
            attacker.farewell();
            Ok(())
        })
    };
    let bomb = announced(COMMAND, 1 << 47);
    add("bomb before anything".to_owned(), before_tls([&bomb[..], &[0xff; 1_000]].concat()));
    add("garbage".to_owned(), before_tls((0..100_000).map(|_| fastrand::u8(..)).collect()));
    add("silence and an end".to_owned(), Box::new(|_, _| Ok(())));
    for length in [1 << 31, 1 << 32, 1 << 47, 1 << 62_u64] {
        let command = [&greeting()[..], &announced(COMMAND, length)].concat();
        add(format!("command of {length}"), instead_of_greeting(command));
        add(format!("frame of {length}"), behind_a_welcome(2_000, announced(0, length)));
        let message = data(false, Some((u32::MAX, length)), b"x");
        add(format!("message of {length}"), behind_a_welcome(2_000, message));
    }
    add("another kind of socket".to_owned(), instead_of_greeting([&greeting()[..], &ready("PUB")].concat()));
    add("endless frames".to_owned(), instead_of_welcome(frame(MORE, b"x").repeat(100_000)));
    add(
        "a refusal of a megabyte".to_owned(),
        instead_of_welcome(packet(&[REFUSAL, FULL], Some(&[b'x'; 200_000]))),
    );
    add("a packet of no kind".to_owned(), instead_of_welcome(packet(&[99], None)));
    add("pings without a pause".to_owned(), behind_a_welcome(0, packet(&[DATA], None)));
    for (what, content) in contents() {
        // In pieces, as far as the first credit goes: what is longer is cut there.
        for head in [content.clone(), message("Listed", "jobs", &content)] {
            let head = &head[..head.len().min(4 << 20)];
            let mut first = Some((head.len() as u32, 0));
            let pieces = head.chunks(200_000).flat_map(|piece| data(false, first.take(), piece));
            add(what.to_owned(), behind_a_welcome(2_000, pieces.collect()));
        }
    }
    attacks
}

/// A hostile scheduler's port. After some connections it is a line to the honest one, as if that had got its address back.
fn hostile_scheduler(attack: Attack, key: Option<Arc<ServerConfig>>, honest: String) -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let address = listener.local_addr().expect("it is bound").to_string();
    thread::spawn(move || {
        for stream in listener.incoming().take(ATTACKS).map_while(Result::ok) {
            // The application may hang up at any of it.
            let _ended = attack(Attacker::new(stream), key.as_ref());
        }
        for near in listener.incoming().map_while(Result::ok) {
            let far = TcpStream::connect(&honest).expect("the honest scheduler listens");
            let pairs = [(near.try_clone(), far.try_clone()), (Ok(far), Ok(near))];
            for (from, to) in pairs {
                let (mut from, mut to) = (from.expect("a socket"), to.expect("a socket"));
                thread::spawn(move || {
                    let _ended = io::copy(&mut from, &mut to);
                    let _ended = to.shutdown(Shutdown::Both);
                });
            }
        }
    });
    address
}

fn applications_take_no_harm(site: Site) {
    let key = site
        .scheduler()
        .keys
        .map(|keys| KeySource::new(keys, Role::Scheduler).current().expect("the scheduler's key").server());
    let go = site.cluster.file("go");
    let mut programs = Vec::new();
    for (number, (what, attack)) in attacks().into_iter().enumerate() {
        let address = hostile_scheduler(attack, key.clone(), site.cluster.scheduler_address.clone());
        let name = format!("application-{number}");
        let (test, argument) = ("applications::program", go.to_str().expect("plain text"));
        let mut program = support::program_at(&address, &site.cluster, &name, test, argument, &name);
        program.line_of("ready");
        forget_peak(program.pid());
        let before = status_kib(program.pid(), "VmRSS");
        programs.push((what, program, before));
    }
    std::fs::write(go, "").unwrap();
    for (what, program, before) in &mut programs {
        let result = program.line_of("result");
        let peak = status_kib(program.pid(), "VmHWM");
        assert!(peak < *before + GROWTH_KIB, "{what}: grew from {before} to {peak} KiB");
        // Nothing was lost but what a hostile scheduler had taken.
        assert_eq!(result, "7", "{what}\n{}", program.log());
        program.kill();
    }
    site.assert_unharmed();
}

#[test]
fn a_hostile_scheduler_with_a_key_does_applications_no_harm() {
    applications_take_no_harm(Site::new());
}

#[test]
fn a_hostile_scheduler_without_keys_does_applications_no_harm() {
    applications_take_no_harm(Site::insecure());
}
