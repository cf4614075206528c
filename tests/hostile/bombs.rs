//! Lengths and counts that nobody could hold, announced at every stage of a connection.

use lrts_core::limits::{WINDOW_MESSAGES, WINDOW_URGENT};
use lrts_core::transport::Role;

use crate::attack::{
    Attacker, COMMAND, CREDIT, MORE, Stage, Target, announced, data, frame, greeting, packet,
};
use crate::site::Site;

/// What is announced.
const LENGTHS: [u64; 5] = [1 << 31, 1 << 32, 1 << 47, 1 << 62, u64::MAX];

/// Far more than what a server takes of anything.
const MANY: usize = 100_000;

/// Says something; the server hangs up.
fn says(mut attacker: Attacker, bytes: &[u8]) {
    // It may hang up before it has heard everything.
    let _refused = attacker.write(bytes);
    attacker.farewell();
}

fn length_bombs(target: &Target, role: Role) {
    for length in LENGTHS {
        let command = announced(COMMAND, length);
        let greeted = [&greeting()[..], &command].concat();
        for stage in [Stage::Connected, Stage::Secured] {
            says(target.at(stage, role), &command);
            says(target.at(stage, role), &greeted);
        }
        for stage in [Stage::Greeted, Stage::Joined] {
            says(target.at(stage, role), &announced(0, length));
            says(target.at(stage, role), &announced(MORE, length));
        }
        let (head, body) = (u32::MAX, length);
        says(target.at(Stage::Joined, role), &data(false, Some((head, body)), b"x"));
        says(target.at(Stage::Joined, role), &data(true, Some((head, body)), b"x"));
        says(target.at(Stage::Joined, role), &data(false, Some((1, body)), b"xx"));
    }
    // The longest record of TLS, and one that is longer.
    for length in [[0x40, 0x00], [0xff, 0xff]] {
        let record = [&[0x16, 3, 1][..], &length, &[1; 70_000]].concat();
        says(target.connect(), &record);
    }
}

#[test]
fn announced_lengths_take_no_memory() {
    let site = Site::new();
    for (target, roles) in site.servers() {
        roles.iter().for_each(|&role| length_bombs(&target, role));
    }
    site.turned_away("protocol", 1);
    site.assert_unharmed();
}

#[test]
fn announced_lengths_take_no_memory_without_keys() {
    let site = Site::insecure();
    for (target, roles) in site.servers() {
        length_bombs(&target, roles[0]);
    }
    site.assert_unharmed();
}

#[test]
fn what_never_ends_is_ended() {
    let site = Site::new();
    for (target, roles) in site.servers() {
        for &role in roles {
            let endless = frame(MORE, b"x").repeat(MANY);
            says(target.at(Stage::Greeted, role), &endless);
            says(target.at(Stage::Joined, role), &endless);
            // A command, padded to its bound again and again, where the first message should come.
            says(target.at(Stage::Greeted, role), &frame(COMMAND, &[0; 255]).repeat(MANY / 100));
            // Messages that begin and never go on, more than were granted, and urgent ones.
            let begun = data(false, Some((1 << 20, 0)), b"x");
            says(target.at(Stage::Joined, role), &begun.repeat(WINDOW_MESSAGES as usize + 2));
            let all = data(false, Some((0, 16 << 20)), &[0; 200_000]);
            let piece = data(false, None, &[0; 200_000]);
            says(target.at(Stage::Joined, role), &[all, piece.repeat(100)].concat());
            let urgent = data(true, Some((1, 0)), b"\xc1");
            says(target.at(Stage::Joined, role), &urgent.repeat(WINDOW_URGENT as usize * 100));
            // Credit that nobody has.
            says(
                target.at(Stage::Joined, role),
                &packet(&[&[CREDIT], &[0xff; 16][..]].concat(), None).repeat(3),
            );
        }
    }
    site.assert_unharmed();
}
