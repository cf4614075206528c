//! What rustls' verifiers say of key files, for tests.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::UnixTime;
use rustls::server::WebPkiClientVerifier;
use rustls::{CertificateError, Error, RootCertStore};

use super::KeyFile;
use super::identity::tls_server_name;
use crate::transport::Role;

/// It was accepted before.
pub(super) const REVOKED: Result<(), Error> = Err(Error::InvalidCertificate(CertificateError::Revoked));

/// Nobody who is trusted vouches for it.
pub(super) const UNKNOWN: Result<(), Error> = Err(Error::InvalidCertificate(CertificateError::UnknownIssuer));

/// Those a party trusts by its file.
fn roots(file: &KeyFile) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for authority in &file.authorities {
        roots.add(authority.clone()).expect("it is the certificate of an authority");
    }
    Arc::new(roots)
}

/// What a server says of a client, by the server's file and clock.
pub(super) fn admits_at(server: &KeyFile, client: &KeyFile, now: Duration) -> Result<(), Error> {
    // An older file has no list of an authority that came after it, and whose keys it accepts all the same.
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(server), default_provider().into())
        .with_crls(server.revocations.clone())
        .allow_unknown_revocation_status()
        .build()
        .expect("a key file has authorities and their lists");
    let now = UnixTime::since_unix_epoch(now);
    verifier.verify_client_cert(&client.chain[0], &client.chain[1..], now).map(drop)
}

/// What a client says of the server that it reaches, which is to have this role.
pub(super) fn believes_at(
    client: &KeyFile,
    server: &KeyFile,
    role: Role,
    now: Duration,
) -> Result<(), Error> {
    let verifier = WebPkiServerVerifier::builder_with_provider(roots(client), default_provider().into())
        .with_crls(client.revocations.clone())
        .allow_unknown_revocation_status()
        .build()
        .expect("a key file has authorities and their lists");
    let (name, now) = (tls_server_name(role), UnixTime::since_unix_epoch(now));
    verifier.verify_server_cert(&server.chain[0], &server.chain[1..], &name, &[], now).map(drop)
}
