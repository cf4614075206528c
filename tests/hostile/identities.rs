//! Somebody who says to be somebody else.

use lrts_client::blocking::ClientApplication;
use lrts_client::{ClientError, JobHandle};
use lrts_core::ids::{SessionId, WorkerId};
use lrts_core::keys::{KeyRing, KeysDirectory};
use lrts_core::protocol::application::{FromApplication, ToApplication};
use lrts_core::protocol::codec::encode;
use lrts_core::protocol::progress::{FromWatcher, ToWatcher};
use lrts_core::protocol::worker::{FromWorker, ToWorker};
use lrts_core::transport::{RefusalKind, Role};
use lrts_core::worker_secret::WorkerSecret;

use crate::attack::{COMMAND, Stage, greeting, ready};
use crate::keys::HOUR;
use crate::site::Site;
use crate::support::{Done, Work};
use crate::words::{attach, register};

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

#[test]
fn an_application_of_another_user_is_not_taken_over() {
    let site = Site::with_own_keys();
    let target = site.scheduler();
    let app =
        ClientApplication::start(site.cluster.information_of_installed().application_id("mine")).unwrap();
    let work = Work::until(site.cluster.file("mine"), site.cluster.file("mines-end")).number(7);
    let job = app.schedule_service(&work).unwrap();
    app.flush().unwrap();
    let mut directory = KeysDirectory::open(target.keys.as_deref().expect("keys of its own")).unwrap();
    let key = directory.issue(Role::Client, "somebody-else".parse().unwrap(), HOUR).unwrap();
    drop(directory);
    let key = KeyRing::new(key).unwrap().client();

    let mut thief = target.connect().secure(&key, target.role).unwrap();
    thief.greet("DEALER").and_then(|()| thief.join(Role::Client, "thief")).unwrap();
    thief.say(&encode(&FromApplication::Attach(attach("mine", SessionId(7)))), b"").unwrap();

    let farewell = thief.farewell();
    assert!(matches!(farewell, Some((RefusalKind::Owner, _))), "{farewell:?}");
    site.turned_away("owner", 1);
    // Nor are its bars shown.
    let progress_server = site.progress_server();
    let mut watcher = progress_server.connect().secure(&key, progress_server.role).unwrap();
    watcher.greet("DEALER").and_then(|()| watcher.join(Role::Client, "watcher")).unwrap();
    watcher.give_up_soon();
    watcher.say(&encode(&FromWatcher::Watch { application: "mine".parse().unwrap() }), b"").unwrap();
    if let Ok(ToWatcher::Bars { updates }) = watcher.answer() {
        assert_eq!(updates, []);
    }
    std::fs::write(site.cluster.file("mines-end"), "").unwrap();
    assert_eq!(app.wait_for(&job).unwrap().into_output().unwrap().number, 7);
    app.stop().unwrap();
    site.assert_unharmed();
}

#[test]
fn a_worker_is_not_taken_over_by_who_knows_its_id() {
    let site = Site::new();
    let target = site.scheduler();
    let known = site.cluster.json(&["workers"]).remove(0);
    let id: WorkerId = known["worker"].as_str().unwrap().parse().unwrap();

    let mut thief = target.at(Stage::Joined, Role::Worker);
    thief.say(&encode(&FromWorker::Register(register(id, WorkerSecret::random()))), b"").unwrap();

    let farewell = thief.farewell();
    assert!(matches!(farewell, Some((RefusalKind::Keys, _))), "{farewell:?}");
    site.turned_away("keys", 1);
    // One with an id of its own is taken, so it was not refused for anything else.
    let secret = WorkerSecret::random();
    let mut worker = target.at(Stage::Joined, Role::Worker);
    worker.say(&encode(&FromWorker::Register(register(secret.worker(), secret))), b"").unwrap();
    worker.answer_that(|answer| matches!(answer, ToWorker::Registered { .. })).unwrap();
    worker.say(&encode(&FromWorker::Goodbye), b"").unwrap();
    site.assert_unharmed();
}
