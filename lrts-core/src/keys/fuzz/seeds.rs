//! What corpora of keys begin with: keys of clusters that never were.

use std::time::Duration;

use crate::fuzz::Script;
use crate::keys::{Authority, Identity, Index, IssuedKey, KeyFile, KeyId, ROLES};
use crate::limits::KEY_VALIDITY;
use crate::transport::Role;

const NOW: Duration = Duration::from_secs(1_800_000_000);

/// All inputs, each with its target.
pub(crate) fn all() -> Vec<(&'static str, Vec<u8>)> {
    let mut authority = Authority::create(NOW).unwrap();
    let mut index = Index::default();
    let mut files: Vec<KeyFile> = ROLES.map(|role| issue(&authority, &mut index, role)).into();
    let first = index.keys().next().unwrap().key;
    index.revoke(&[first], NOW).unwrap();
    authority.renew(&mut files[0], NOW, &index).unwrap();
    let alone = authority.to_text();
    authority.rotate(NOW).unwrap();
    files.push(issue(&authority, &mut index, Role::Worker));

    let mut all = Vec::new();
    for file in &files {
        all.push(("certificate", file.chain[0].to_vec()));
        all.push(("key_file", Script::new().byte(1).rest(file.to_text().as_bytes()).bytes()));
        all.push(("key_file", sections(file)));
    }
    all.push(("certificate", files[0].authorities[0].to_vec()));
    all.push(("certificate", b"\x30\x84\xff\xff\xff\xff".to_vec()));
    all.push(("key_file", Script::new().byte(1).rest(b"-----BEGIN CERTIFICATE-----\n").bytes()));
    let records = |kind, text: &str| ("key_records", Script::new().byte(kind).rest(text.as_bytes()).bytes());
    all.push(records(0, &index.to_text()));
    all.push(records(0, &Index::default().to_text()));
    all.push(records(0, "{\"revision\":18446744073709551615}\n{}"));
    all.push(records(1, &alone));
    all.push(records(1, &authority.to_text()));
    all.push(records(1, &authority.to_text().repeat(2)));
    all
}

fn issue(authority: &Authority, index: &mut Index, role: Role) -> KeyFile {
    let identity = Identity { role, user: "ann".parse().unwrap(), key: KeyId::random() };
    let (user, expires) = (identity.user.clone(), NOW + KEY_VALIDITY);
    let (key, authority_id) = (identity.key, authority.id());
    let issued = IssuedKey { key, role, user, made: NOW, expires, authority: authority_id, revoked: None };
    index.add(issued).unwrap();
    authority.issue(&identity, NOW, expires, index).unwrap()
}

/// A file by its sections.
fn sections(file: &KeyFile) -> Vec<u8> {
    let script = Script::new().byte(0).part(file.key.secret_pkcs8_der()).part(&file.chain[0]);
    let script = script.part(&file.authorities[0]);
    file.revocations.iter().fold(script, |script, list| script.part(list)).bytes()
}
