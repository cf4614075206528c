//! Seeded random histories of a whole cluster: messages that are lost, doubled, late and out of order; workers, their machines,
//! applications and the scheduler that crash and come back; a disk that is slow and, at a crash, has not kept what it hadn't
//! synced. A plain model keeps book of what was committed and said, and checks it.
//!
//! `LRTS_SIM_SEED=n cargo test -p lrts-scheduler --lib replays` replays one history; `LRTS_SIM_EVENTS=n cargo test -p
//! lrts-scheduler --lib nothing_is_lost` goes through so many more of them that there are this many events.

mod applications;
mod history;
mod workers;
mod world;

use world::World;

/// The engine's events in each history, at least.
const EVENTS: u64 = 32_000;

/// The tests below, which run side by side.
const SHARES: u64 = 8;

/// Events of all of them together, unless `LRTS_SIM_EVENTS` says otherwise.
const ALL_EVENTS: u64 = 1_000_000;

/// Says how to replay a history if it fails.
struct Replay(u64);

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("LRTS_SIM_SEED={} cargo test -p lrts-scheduler --lib replays", self.0);
        }
    }
}

fn run(seed: u64) -> World {
    let _replay = Replay(seed);
    let mut world = World::new(seed);
    world.run(EVENTS);
    world
}

/// One share of all histories.
fn share(number: u64) {
    let all = std::env::var("LRTS_SIM_EVENTS");
    let all = all.map_or(ALL_EVENTS, |events| events.parse().expect("LRTS_SIM_EVENTS is a number"));
    let count = all.div_ceil(SHARES * EVENTS);
    let seeds = number * count..(number + 1) * count;
    let handled: u64 = seeds.map(|seed| run(seed).events).sum();
    assert!(handled * SHARES >= all, "{handled} events are too few");
}

macro_rules! shares {
    ($($name:ident = $number:literal),*) => {
        $(
            #[test]
            fn $name() {
                share($number);
            }
        )*
    };
}

mod nothing_is_lost {
    use super::share;

    shares!(one = 0, two = 1, three = 2, four = 3, five = 4, six = 5, seven = 6, eight = 7);
}

#[test]
fn a_seed_replays_its_history() {
    let seed = std::env::var("LRTS_SIM_SEED").ok();
    let seed = seed.map_or(1, |seed| seed.parse().expect("LRTS_SIM_SEED is a number"));
    run(seed);
}

#[test]
fn the_same_seed_gives_the_same_history() {
    let trace = |seed| {
        let mut world = World::new(seed);
        world.trace = Some(Vec::new());
        world.run(4_000);
        world.trace
    };
    assert!(trace(3) == trace(3));
    assert!(trace(3) != trace(4));
}
