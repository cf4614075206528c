//! What holders of key files say of each other, for tests.

use std::time::Duration;

use rustls::{CertificateError, Error};

use super::{KeyFile, KeyRefusal, KeyRing};
use crate::transport::Role;

/// It was accepted before.
pub(super) const REVOKED: Result<(), Error> = Err(Error::InvalidCertificate(CertificateError::Revoked));

/// Nobody who is trusted vouches for it.
pub(super) const UNKNOWN: Result<(), Error> = Err(Error::InvalidCertificate(CertificateError::UnknownIssuer));

fn ring(file: &KeyFile) -> KeyRing {
    let copy = KeyFile::parse(file.to_text().as_bytes()).expect("it was made here");
    KeyRing::new(copy).expect("a whole key file can be used")
}

/// What a server says of a client, by the server's file and clock.
pub(super) fn admits_at(server: &KeyFile, client: &KeyFile, now: Duration) -> Result<(), Error> {
    ring(server).check_client(&client.chain, now).map(drop).map_err(|KeyRefusal(error)| error)
}

/// What a client says of the server that it reaches, which is to have this role.
pub(super) fn believes_at(
    client: &KeyFile,
    server: &KeyFile,
    role: Role,
    now: Duration,
) -> Result<(), Error> {
    ring(client).check_server(&server.chain, role, now).map_err(|KeyRefusal(error)| error)
}
