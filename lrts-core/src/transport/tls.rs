//! TLS 1.3 below ZMTP: the handshakes of gate and tunnel, and what a failed one means.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::{AlertDescription, CommonState, Error};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::hello::Role;
use super::splice::End;
use super::tls_socket::TlsSocket;
use crate::clock::{Moment, wall_clock};
use crate::keys::{Identity, KeyRefusal, KeyRing, KeySource, tls_server_name};
use crate::limits::{FAREWELL_TIME, HANDSHAKE_TIME};

/// First byte of a TLS record that begins a handshake, and of one that is an alert.
pub(crate) const HANDSHAKE: u8 = 0x16;
/// See [`HANDSHAKE`].
pub(crate) const ALERT: u8 = 0x15;

/// A fatal alert `insufficient_security` in a record (RFC 8446, 5.1 and 6), for a peer that wants TLS where there is none. No
/// server with keys sends it.
const NO_TLS_HERE: [u8; 7] = [ALERT, 3, 3, 0, 2, 2, 71];

/// Most bytes of a refused peer that are read while it is given time to hear why.
const FAREWELL_READ: u64 = 64 * 1024;

/// What a peer without TLS is told on its own side.
pub(crate) const WANTED: &str =
    "the server wants a key, but this side was asked to connect without (--insecure)";

/// What a peer has shown in its handshake, to be checked anew when keys are revoked.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    /// Certificates, its own first.
    chain: Arc<Vec<CertificateDer<'static>>>,
    /// When they were accepted, by the wall clock and by the one that doesn't jump.
    accepted: Duration,
    since: Moment,
}

impl Shown {
    fn now(connection: &CommonState) -> Self {
        let shown = connection.peer_certificates().unwrap_or_default();
        Self {
            chain: Arc::new(shown.iter().map(|certificate| certificate.clone().into_owned()).collect()),
            accepted: wall_clock(),
            since: Moment::now(),
        }
    }

    /// The time by which the certificates of this connection are judged: that of their handshake and what has passed since. So
    /// they expire, but what was accepted once can't become invalid because somebody sets a clock.
    fn time(&self, now: Moment) -> Duration {
        self.accepted + now.since(self.since)
    }

    /// Whether a client is still accepted.
    pub(crate) fn check_client(&self, ring: &KeyRing, now: Moment) -> Result<(), KeyRefusal> {
        ring.check_client(&self.chain, self.time(now)).map(drop)
    }

    /// Whether a server of this role still is.
    pub(crate) fn check_server(&self, ring: &KeyRing, role: Role, now: Moment) -> Result<(), KeyRefusal> {
        ring.check_server(&self.chain, role, self.time(now))
    }
}

/// Who stands behind a secured connection.
#[derive(Clone, Debug)]
pub(crate) struct Certified {
    pub(crate) identity: Identity,
    pub(crate) shown: Shown,
}

#[cfg(test)]
impl Certified {
    /// Somebody who needs no certificate, since nobody looks at it anew.
    pub(crate) fn as_said(identity: Identity) -> Self {
        let shown = Shown { chain: Arc::default(), accepted: Duration::ZERO, since: Moment::now() };
        Self { identity, shown }
    }
}

/// The server's handshake with a stranger. A refused one is told why, as far as TLS has words for it.
pub(crate) async fn accept(
    stream: TcpStream,
    ring: &KeyRing,
) -> Result<(server::TlsStream<TlsSocket>, Certified), End> {
    let accepting = TlsAcceptor::from(ring.server()).accept(TlsSocket::rationed(stream)).into_fallible();
    let mut stream = match timeout(HANDSHAKE_TIME, accepting).await {
        Err(_) => return Err(End::Handshake),
        Ok(Err((error, stream))) => {
            let refusal = refusal(&error).map(|refusal| End::Keys(refusal.to_string()));
            take_leave(stream.into_stream()).await;
            return Err(refusal.unwrap_or_else(|| End::failed(error)));
        }
        Ok(Ok(stream)) => stream,
    };
    stream.get_mut().0.lift_ration();
    let shown = Shown::now(stream.get_ref().1);
    let Some(identity) = shown.chain.first().and_then(Identity::of) else {
        return Err(End::Keys("its certificate names no role and user".to_owned()));
    };
    Ok((stream, Certified { identity, shown }))
}

/// The client's handshake with a server of this role, by the key that came from this source.
pub(crate) async fn connect(
    stream: TcpStream,
    ring: &KeyRing,
    source: &KeySource,
    role: Role,
) -> Result<(client::TlsStream<TlsSocket>, Shown), End> {
    let connecting = TlsConnector::from(ring.client()).connect(tls_server_name(role), TlsSocket::new(stream));
    let stream = match timeout(HANDSHAKE_TIME, connecting).await {
        Err(_) => return Err(End::Handshake),
        Ok(Err(error)) => {
            return Err(match refusal(&error) {
                Some(refusal) if refusal.is_of_a_stranger() => End::Keys(format!(
                    "the {role} there is not trusted: {refusal}; or {} is: then another one has to be exported for here",
                    source.file_path().display()
                )),
                Some(refusal) => End::Keys(format!("the {role} there is not trusted: {refusal}")),
                None => End::failed(error),
            });
        }
        Ok(Ok(stream)) => stream,
    };
    let shown = Shown::now(stream.get_ref().1);
    Ok((stream, shown))
}

/// Whether a peer of a server without keys begins with TLS. It is told that there is none, and must go.
pub(crate) async fn turn_away(mut stream: TcpStream) -> Option<TcpStream> {
    let mut first = [0];
    match timeout(HANDSHAKE_TIME, stream.peek(&mut first)).await {
        Ok(Ok(1)) if first[0] == HANDSHAKE => {
            // It is gone already if this fails.
            let _ = stream.write_all(&NO_TLS_HERE).await;
            take_leave(stream).await;
            None
        }
        // What else is wrong shows when it is read.
        _ => Some(stream),
    }
}

/// Closes a connection so that the peer reads what was written last: unread bytes would reset it.
async fn take_leave(mut stream: TcpStream) {
    let farewell = async {
        stream.shutdown().await?;
        tokio::io::copy(&mut (&mut stream).take(FAREWELL_READ), &mut tokio::io::sink()).await
    };
    let _ = timeout(FAREWELL_TIME, farewell).await;
}

/// Why the peer's certificate was not accepted here, if that is what failed.
fn refusal(error: &io::Error) -> Option<KeyRefusal> {
    let error = error_of(error)?;
    let judged = matches!(error, Error::InvalidCertificate(_) | Error::NoCertificatesPresented);
    judged.then(|| KeyRefusal(error.clone()))
}

/// What the other side has against this one's key, if that is what failed.
#[expect(clippy::wildcard_enum_match_arm, reason = "alerts of another crate, to which more may come")]
pub(crate) fn objection(error: &io::Error) -> Option<End> {
    let Error::AlertReceived(alert) = error_of(error)? else { return None };
    match alert {
        AlertDescription::CertificateRevoked => Some(End::Objected("was revoked")),
        AlertDescription::CertificateExpired => {
            Some(End::Objected("has expired, or is not valid yet: are the clocks right?"))
        }
        AlertDescription::UnknownCA => Some(End::Objected(
            "is not of that cluster, or one of the two keys is older than the last rotations",
        )),
        AlertDescription::CertificateRequired => Some(End::Keys("the other side wants a key".to_owned())),
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::AccessDenied => Some(End::Objected("is not good there")),
        AlertDescription::InsufficientSecurity => Some(End::Keys(
            "the server has no keys (it was started with --insecure), and this side was not asked to connect without"
                .to_owned(),
        )),
        _ => None,
    }
}

/// What TLS has against the other side's bytes, if that is what failed.
pub(crate) fn error_of(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

#[cfg(all(test, feature = "authority"))]
mod tests {
    use rustls::CertificateError;

    use super::*;
    use crate::keys::{Authority, Index, IssuedKey, KeyFile, KeyId};

    const MADE: Duration = Duration::from_secs(1_800_000_000);
    const DAY: Duration = Duration::from_hours(24);
    const T0: Moment = Moment::from_nanos(1_000_000_000_000);

    /// A key that is valid for ten days, and was shown in a handshake on the third of them.
    fn shown(file: &KeyFile) -> Shown {
        Shown { chain: Arc::new(file.chain.clone()), accepted: MADE + 3 * DAY, since: T0 }
    }

    /// Whatever the wall clock of whoever runs this says: the key's ten days are of 2027.
    #[test]
    fn a_connection_lasts_as_long_as_its_key_and_no_clock_that_is_set_ends_it() {
        let (authority, mut index) = (Authority::create(MADE).unwrap(), Index::default());
        let mut issue = |role| {
            let (key, user) = (KeyId::random(), "ann".parse().unwrap());
            let expires = MADE + 10 * DAY;
            let issued =
                IssuedKey { key, role, user, made: MADE, expires, authority: authority.id(), revoked: None };
            let identity = Identity { role, user: issued.user.clone(), key };
            index.add(issued).unwrap();
            authority.issue(&identity, MADE, expires, &index).unwrap()
        };
        let (client, mut server) = (issue(Role::Client), issue(Role::Scheduler));
        let ring = |file: &KeyFile| KeyRing::new(KeyFile::parse(file.to_text().as_bytes()).unwrap()).unwrap();
        let sides = |server: &KeyFile, now| {
            [
                shown(&client).check_client(&ring(server), now),
                shown(server).check_server(&ring(&client), Role::Scheduler, now),
            ]
        };
        for passed in [Duration::ZERO, DAY, 6 * DAY] {
            assert_eq!(sides(&server, T0 + passed), [Ok(()), Ok(())], "{passed:?}");
        }
        for side in sides(&server, T0 + 8 * DAY) {
            assert!(side.unwrap_err().to_string().contains("has expired"));
        }

        index.revoke(&[client.identity().unwrap().key], MADE).unwrap();
        authority.renew(&mut server, MADE, &index).unwrap();
        let revoked = Err(KeyRefusal(CertificateError::Revoked.into()));
        assert_eq!(shown(&client).check_client(&ring(&server), T0), revoked);
    }
}
