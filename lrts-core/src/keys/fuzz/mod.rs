#[cfg(test)]
#[cfg(feature = "authority")]
pub(crate) mod seeds;

use std::time::Duration;

use rustls::pki_types::CertificateDer;

use super::{Identity, KeyFile, KeyRing, ROLES};
use crate::fuzz::Input;

/// A key file: as text, or as what would stand in its sections.
pub fn key_file(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let file = match input.byte() {
        0 => sections(&mut input),
        _ => match KeyFile::parse(input.rest()) {
            Ok(file) => file,
            Err(_) => return,
        },
    };
    let text = file.to_text();
    // What was made of sections may lack some.
    let Ok(again) = KeyFile::parse(text.as_bytes()) else { return };
    assert_eq!(again, file);
    assert_eq!(again.to_text(), text);
    let (own, identity) = (file.chain.clone(), file.identity());
    let Ok(ring) = KeyRing::new(file) else { return };
    assert_eq!(Some(ring.identity()), identity.as_ref());
    // How it looks to one that trusts the same.
    if let Ok(known) = ring.check_client(&own, NOW) {
        assert_eq!(Some(known), identity);
    }
    for role in ROLES {
        if ring.check_server(&own, role, NOW).is_ok() {
            assert_eq!(identity.as_ref().map(|identity| identity.role), Some(role));
        }
    }
}

/// When certificates are looked at: one moment, so that what was found is found again.
const NOW: Duration = Duration::from_secs(1_800_000_000);

fn sections(input: &mut Input<'_>) -> KeyFile {
    let key = input.part().to_vec().into();
    let chain = vec![CertificateDer::from(input.part().to_vec())];
    let authorities = vec![CertificateDer::from(input.part().to_vec())];
    let mut revocations = Vec::new();
    while !input.is_empty() {
        revocations.push(input.part().to_vec().into());
    }
    KeyFile { chain, key, authorities, revocations }
}

/// A certificate as a peer shows it.
pub fn certificate(bytes: &[u8]) {
    if let Some(identity) = Identity::of(&CertificateDer::from(bytes)) {
        assert_eq!(Identity::from_uri(&identity.to_uri()), Some(identity));
    }
}

/// The record of all keys, or the authority itself.
#[cfg(feature = "authority")]
pub fn key_records(bytes: &[u8]) {
    use super::{Authority, Index};
    let mut input = Input::new(bytes);
    match input.byte() {
        0 => {
            let Ok(index) = Index::parse(input.rest()) else { return };
            assert_eq!(Index::parse(index.to_text().as_bytes()), Ok(index));
        }
        _ => {
            let Ok(authority) = Authority::parse(input.rest()) else { return };
            let text = authority.to_text();
            let again = Authority::parse(text.as_bytes()).expect("what was written is read");
            assert_eq!(again.accepted(), authority.accepted());
        }
    }
}
