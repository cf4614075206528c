//! Connections that come and go at once, from every stage.

use std::thread;

use lrts_core::transport::Role;

use crate::attack::{Stage, Target, client_hello, hello};
use crate::site::Site;

/// Connections in all: most come no further than TCP.
const CHURN: usize = 5_000;

/// How often one of a hundred comes further.
fn come_and_go(target: &Target, from: usize, to: usize) {
    let half = target.keys.as_ref().map(|keys| client_hello(keys, Role::Client, target.role));
    for number in from..to {
        let entered = match number % 100 {
            0 => target.enter(Stage::Secured, Role::Worker),
            1 => target.enter(Stage::Greeted, Role::Client),
            2 => target.enter(Stage::Joined, Role::Worker),
            // Gone before the answer.
            3 => target
                .enter(Stage::Greeted, Role::Worker)
                .and_then(|mut attacker| attacker.write(&hello(Role::Worker, "gone")).map(|()| attacker)),
            _ => Ok(target.connect()),
        };
        // Among so many it may have been pushed out before it was let in.
        let Ok(mut attacker) = entered else { continue };
        if let (true, Some(half)) = (number % 5 == 4, &half) {
            let _reset = attacker.write(&half[..half.len() / 2]);
        }
        if number % 2 == 0 {
            attacker.reset();
        }
    }
}

#[test]
fn five_thousand_connections_that_come_and_go_leave_nothing_behind() {
    let site = Site::new();
    for target in [site.scheduler(), site.progress_server()] {
        thread::scope(|scope| {
            for part in 0..4 {
                let target = &target;
                scope.spawn(move || come_and_go(target, part * CHURN / 8, (part + 1) * CHURN / 8));
            }
        });
        site.serves_newcomers();
    }
    site.assert_unharmed();
}
