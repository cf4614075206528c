//! Somebody who says to be somebody else.

use lrts_client::blocking::ClientApplication;
use lrts_client::{ClientError, JobHandle};
use lrts_core::ids::SessionId;
use lrts_core::protocol::application::{FromApplication, ToApplication};
use lrts_core::protocol::codec::encode;
use lrts_core::transport::Role;

use crate::attack::{COMMAND, Stage, greeting, ready};
use crate::garbage::attach;
use crate::site::Site;
use crate::support::{Done, Work};

#[test]
fn nobody_chooses_the_name_of_a_connection() {
    let site = Site::new();
    for (target, roles) in site.servers() {
        for number in 0..60_u64 {
            let mut attacker = target.at(Stage::Secured, roles[0]);
            // As the servers name connections: by a number of eight bytes, counted from 1.
            let mut body = ready("DEALER").split_off(2);
            body.extend(b"\x08Identity\0\0\0\x08");
            body.extend(number.to_be_bytes());
            let named = [&greeting()[..], &[COMMAND, body.len() as u8], &body].concat();
            attacker.write(&named).unwrap();
            let _ended = attacker.write(&crate::attack::hello(roles[0], "attacker"));
        }
    }
    site.assert_unharmed();
}

/// The newer of two starts of an application wins, as when a program is started again elsewhere; its jobs are one's own all the
/// while.
#[test]
fn an_application_of_the_same_user_is_taken_over_and_back() {
    let site = Site::new();
    let information = || site.cluster.information_of_installed().application_id("twins");
    let app = ClientApplication::start(information()).unwrap();
    let work = Work::until(site.cluster.file("twin"), site.cluster.file("twins-end")).number(7);
    let job = app.schedule_service(&work).unwrap();
    app.flush().unwrap();

    let mut twin = site.scheduler().at(Stage::Joined, Role::Client);
    twin.say(&encode(&FromApplication::Attach(attach("twins", SessionId(7)))), b"").unwrap();
    twin.answer_that(|answer| matches!(answer, ToApplication::Attached { .. })).unwrap();

    let error = app.wait_for(&job).unwrap_err();
    assert!(matches!(error, ClientError::Superseded { .. }), "{error}");
    let app = ClientApplication::start(information()).unwrap();
    let jobs: Vec<JobHandle<Done>> = app.jobs().unwrap();
    assert_eq!(jobs.iter().map(JobHandle::id).collect::<Vec<_>>(), [job.id()]);
    std::fs::write(site.cluster.file("twins-end"), "").unwrap();
    assert_eq!(app.wait_for(&jobs[0]).unwrap().into_output().unwrap().number, 7);
    app.stop().unwrap();
    drop(twin);
    site.assert_unharmed();
}
