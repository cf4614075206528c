//! Keys of the wrong role, of nobody, of another cluster, of yesterday, and revoked ones.

use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lrts_core::clock::wall_clock;
use lrts_core::ids::SessionId;
use lrts_core::keys::{Authority, Identity, Index, KeyFile, KeyId, KeyRing, KeysDirectory, ROLES, ensure};
use lrts_core::protocol::application::FromApplication;
use lrts_core::protocol::codec::encode;
use lrts_core::protocol::command::FromCommand;
use lrts_core::protocol::worker::FromWorker;
use lrts_core::transport::{RefusalKind, Role};
use rustls::{ClientConfig, RootCertStore};

use crate::attack::{Attacker, Heard, Stage, Target, key};
use crate::site::Site;
use crate::words::attach;

/// How long a key is good enough for a test.
pub(crate) const HOUR: Duration = Duration::from_secs(3_600);

fn keys(target: &Target) -> PathBuf {
    target.keys.clone().expect("a cluster with keys")
}

/// How far one comes with a key: to the answer to its HELLO at best.
fn knock(target: &Target, key: &Arc<ClientConfig>, role: Role) -> io::Result<Heard> {
    let mut attacker = target.connect().secure(key, target.role)?;
    attacker.greet("DEALER")?;
    attacker.hello(role, "attacker")
}

#[test]
fn a_key_opens_only_what_it_is_for() {
    let site = Site::new();
    for (target, roles) in site.servers() {
        for of_key in ROLES {
            for claimed in ROLES {
                let heard = knock(&target, &key(&keys(&target), of_key), claimed);
                let what = format!("a key for a {of_key} at the {} as a {claimed}: {heard:?}", target.role);
                if of_key == claimed && roles.contains(&claimed) {
                    assert!(matches!(heard, Ok(Heard::Welcome)), "{what}");
                } else {
                    let refused =
                        matches!(heard, Err(_) | Ok(Heard::Refusal { kind: RefusalKind::Role, .. }));
                    assert!(refused, "{what}");
                }
            }
        }
    }
    site.turned_away("role", 1);
    site.assert_unharmed();
}

#[test]
fn a_role_is_not_heard_in_the_words_of_another() {
    let site = Site::new();
    let target = site.scheduler();
    let attach = encode(&FromApplication::Attach(attach("attacker", SessionId(7))));
    let heartbeat = encode(&FromWorker::Heartbeat { number: 1 });
    let workers = encode(&FromCommand::Workers);
    for (role, words) in [
        (Role::Worker, [&attach, &workers]),
        (Role::Client, [&heartbeat, &workers]),
        (Role::Admin, [&attach, &heartbeat]),
    ] {
        for head in words {
            let mut attacker = target.at(Stage::Joined, role);
            attacker.say(head, b"").unwrap();
            let farewell = attacker.farewell();
            assert!(matches!(farewell, Some((RefusalKind::Protocol, _))), "{role}: {farewell:?}");
        }
    }
    site.turned_away("protocol", 6);
    site.assert_unharmed();
}

/// What TLS says with this key and chain, to a server of the cluster whose own key file this is.
fn configuration(file: KeyFile, of_cluster: &KeyFile) -> Arc<ClientConfig> {
    let file = KeyFile { authorities: of_cluster.authorities.clone(), ..file };
    KeyRing::new(file).expect("the key can be used").client()
}

/// One without a key, which trusts everybody that the cluster does.
fn without_key(of_cluster: &KeyFile) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    of_cluster.authorities.iter().for_each(|authority| roots.add(authority.clone()).unwrap());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    Arc::new(builder.unwrap().with_root_certificates(roots).with_no_client_auth())
}

#[test]
fn keys_of_others_of_yesterday_and_of_nobody_open_nothing() {
    let site = Site::new();
    let directory = keys(&site.scheduler());
    let own = |role: &str| KeyFile::read(&directory.join(format!("{role}.pem"))).unwrap();
    let foreign = site.cluster.file("foreign");
    ensure(&foreign).unwrap();
    let foreign = |role: &str| KeyFile::read(&foreign.join(format!("{role}.pem"))).unwrap();
    let authority = Authority::parse(&std::fs::read(directory.join("authority.pem")).unwrap()).unwrap();
    let yesterday = |role| {
        let identity = Identity { role, user: "attacker".parse().unwrap(), key: KeyId::random() };
        let now = wall_clock();
        authority.issue(&identity, now - 48 * HOUR, now - HOUR, &Index::default()).unwrap()
    };
    // A key's certificate vouches for nobody, although its authority stands behind it.
    let chained = |role: &str| {
        let mut file = foreign(role);
        file.chain.extend(own(role).chain);
        file
    };
    for (target, roles) in site.servers() {
        for &role in roles {
            let word = lrts_core::keys::role_word(role);
            for (what, key) in [
                ("foreign", configuration(foreign(word), &own(word))),
                ("expired", configuration(yesterday(role), &own(word))),
                ("chained to an honest one", configuration(chained(word), &own(word))),
                ("none", without_key(&own(word))),
            ] {
                let heard = knock(&target, &key, role);
                assert!(heard.is_err(), "a key that is {what} at the {}: {heard:?}", target.role);
            }
        }
    }
    site.turned_away("keys", 12);
    site.assert_unharmed();
}

#[test]
fn a_revoked_key_is_out_and_stays_out() {
    let site = Site::with_own_keys();
    let directory = keys(&site.scheduler());
    let mut issued = Vec::new();
    let mut issue = |role| {
        let mut directory = KeysDirectory::open(&directory).unwrap();
        let file = directory.issue(role, "attacker".parse().unwrap(), HOUR).unwrap();
        issued.push(file.identity().expect("an identity").key);
        let path = site.cluster.file(&format!("{role}.pem"));
        let mut options = std::fs::OpenOptions::new();
        let mut written = options.create_new(true).write(true).mode(0o600).open(&path).unwrap();
        io::Write::write_all(&mut written, file.to_text().as_bytes()).unwrap();
        (role, key(&path, role))
    };
    let keys = [Role::Client, Role::Worker, Role::Admin].map(&mut issue);
    let mut inside = Vec::new();
    for (target, roles) in site.servers() {
        for (role, key) in keys.iter().filter(|(role, _)| roles.contains(role)) {
            let mut attacker = target.connect().secure(key, target.role).unwrap();
            attacker.greet("DEALER").and_then(|()| attacker.join(*role, "attacker")).unwrap();
            inside.push((target.clone(), *role, key, attacker));
        }
    }

    KeysDirectory::open(&directory).unwrap().revoke(&issued).unwrap();

    let outside: Vec<_> = inside
        .into_iter()
        .map(|(target, role, key, attacker)| {
            let farewell = attacker.farewell();
            // Who doesn't read it within a second isn't told why.
            let out = matches!(farewell, None | Some((RefusalKind::Keys, _)));
            assert!(out, "{role}: {farewell:?}");
            (target, role, key)
        })
        .collect();
    for (target, role, key) in outside {
        let heard = knock(&target, key, role);
        assert!(heard.is_err(), "a revoked key at the {}: {heard:?}", target.role);
    }
    site.turned_away("keys", 6);
    site.assert_unharmed();
}

/// Who takes part without being let in learns nothing of what is said.
#[test]
fn an_attacker_without_tls_hears_nothing() {
    let site = Site::new();
    for (target, roles) in site.servers() {
        let mut attacker: Attacker = target.connect();
        assert!(attacker.greet("DEALER").is_err(), "the {} greeted", target.role);
        for &role in roles {
            let mut attacker = target.connect();
            let _ended = attacker.write(&crate::attack::hello(role, "attacker"));
            assert_eq!(attacker.farewell(), None);
        }
    }
    site.assert_unharmed();
}
