//! What honest parties have said, said again by somebody who has listened.

use fastrand::Rng;
use lrts_client::JobHandle;
use lrts_client::blocking::ClientApplication;
use lrts_core::limits::HANDSHAKE_TIME;

use crate::attack::{Attacker, Target};
use crate::site::Site;
use crate::support::{Done, Mark, Proxy, Work};

/// Jobs of the application that is listened to.
const JOBS: u64 = 3;

/// What an application, a command and, if `with_worker`, a worker have said to the scheduler.
fn listen(site: &mut Site, with_worker: bool) -> Vec<Vec<u8>> {
    let proxy = Proxy::recording(&site.cluster.scheduler_address);
    if with_worker {
        site.cluster.add_worker_with_program_at(proxy.address(), 1);
        let mut worker = site.cluster.workers.pop().expect("it was just added");
        worker.end();
    }
    // It stays known to the scheduler, which could take its jobs for new ones.
    let information = site.cluster.information_of_installed_at(proxy.address()).application_id("listened to");
    let app = ClientApplication::start(information).unwrap();
    let work = |number| Work::new(marks(site, number), 1).number(number);
    let jobs: Vec<JobHandle<Done>> = app.schedule_services((0..JOBS).map(work)).unwrap();
    assert_eq!(app.wait_for_multi(&jobs).unwrap().len(), jobs.len());
    app.detach().unwrap();
    assert!(site.cluster.command_at(proxy.address(), &["status"]).status.success());
    proxy.recorded()
}

fn marks(site: &Site, number: u64) -> std::path::PathBuf {
    site.cluster.file(&format!("listened-{number}"))
}

/// Says it in all ways: whole, twice, cut, and in another order.
fn versions(said: &[u8], random: &mut Rng) -> Vec<Vec<u8>> {
    let mut parts: Vec<&[u8]> = said.chunks(1 + said.len() / 20).collect();
    random.shuffle(&mut parts);
    let (cut, from) = (random.usize(..said.len()), random.usize(..said.len()));
    vec![said.to_vec(), said.repeat(2), said[..cut].to_vec(), said[from..].to_vec(), parts.concat()]
}

/// Says all of it on connections that stay until everything was said.
fn replay(target: &Target, recordings: &[Vec<u8>]) -> Vec<Attacker> {
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    let mut random = Rng::with_seed(seed);
    let versions = recordings.iter().flat_map(|said| versions(said, &mut random)).collect::<Vec<_>>();
    let say = |said: &Vec<u8>| {
        let mut attacker = target.connect();
        let _ended = attacker.write(said);
        attacker
    };
    versions.iter().map(say).collect()
}

/// Nothing was done a second time.
fn assert_once(site: &Site) {
    let jobs = site.cluster.json(&["jobs"]);
    let of_them = jobs.iter().filter(|job| job["application_id"] == "listened to");
    assert_eq!(of_them.count() as u64, JOBS, "{jobs:?}");
    for number in 0..JOBS {
        assert_eq!(Mark::began(&marks(site, number)).len(), 1, "job {number}");
    }
}

#[test]
fn what_was_said_over_tls_lets_nobody_in_again() {
    let mut site = Site::new();
    let recordings = listen(&mut site, true);
    assert!(recordings.len() >= 3 && recordings.iter().all(|said| said.len() > 100));
    for attacker in replay(&site.scheduler(), &recordings) {
        // What was cut within TLS's handshake is waited for, but not for ever.
        let farewell = attacker.farewell();
        assert_eq!(farewell, None, "nobody came as far as lrts' own words within {HANDSHAKE_TIME:?}");
    }
    assert_once(&site);
    site.assert_unharmed();
}

#[test]
fn what_was_said_without_keys_changes_nothing_when_it_is_said_again() {
    let mut site = Site::insecure();
    let recordings = listen(&mut site, false);
    for attacker in replay(&site.scheduler(), &recordings) {
        drop(attacker);
    }
    site.serves_newcomers();
    assert_once(&site);
    site.assert_unharmed();
}
