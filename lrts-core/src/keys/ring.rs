//! A key file at work: the TLS configurations made of it, and the check of others' certificates.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{CertificateError, ClientConfig, Error, RootCertStore, ServerConfig, version};

use super::identity::{server_name, tls_server_name};
use super::{Identity, KeyFile, ROLES};
use crate::transport::Role;

/// One loaded key: presents itself, and judges others.
pub struct KeyRing {
    identity: Identity,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    clients: Arc<dyn ClientCertVerifier>,
    servers: Arc<WebPkiServerVerifier>,
}

impl KeyRing {
    /// Loads a key.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn new(file: KeyFile) -> Result<Self, String> {
        let identity = file.identity().ok_or("its first certificate names no role and user of lrts")?;
        let provider = Arc::new(provider());
        let mut authorities = RootCertStore::empty();
        for authority in file.authorities {
            authorities.add(authority).map_err(|error| format!("a certificate of an authority: {error}"))?;
        }
        let authorities = Arc::new(authorities);
        // A file from before a rotation has no list of the authority that came after it.
        let clients = WebPkiClientVerifier::builder_with_provider(authorities.clone(), provider.clone())
            .with_crls(file.revocations.iter().cloned())
            .only_check_end_entity_revocation()
            .allow_unknown_revocation_status()
            .build()
            .map_err(|error| error.to_string())?;
        let servers = WebPkiServerVerifier::builder_with_provider(authorities, provider.clone())
            .with_crls(file.revocations)
            .only_check_end_entity_revocation()
            .allow_unknown_revocation_status()
            .build()
            .map_err(|error| error.to_string())?;

        let versions = &[&version::TLS13];
        let key = PrivateKeyDer::from(file.key);
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)
            .map_err(|error| error.to_string())?
            .with_client_cert_verifier(clients.clone())
            .with_single_cert(file.chain.clone(), key.clone_key())
            .map_err(|error| error.to_string())?;
        // A resumed session would come past the check of the certificate.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .map_err(|error| error.to_string())?
            .with_webpki_verifier(servers.clone())
            .with_client_auth_cert(file.chain, key)
            .map_err(|error| error.to_string())?;
        client.resumption = rustls::client::Resumption::disabled();
        Ok(Self { identity, client: Arc::new(client), server: Arc::new(server), clients, servers })
    }

    /// Whose key it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// For connections to servers.
    pub fn client(&self) -> Arc<ClientConfig> {
        self.client.clone()
    }

    /// For connections of clients.
    pub fn server(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }

    /// Who a client is, if its key is accepted `now` (since the epoch): by the same check as in the handshake.
    ///
    /// # Errors
    ///
    /// Why it is not.
    pub fn check_client(&self, chain: &[CertificateDer<'_>], now: Duration) -> Result<Identity, KeyRefusal> {
        let (own, others) = chain.split_first().ok_or(KeyRefusal(Error::NoCertificatesPresented))?;
        self.clients.verify_client_cert(own, others, UnixTime::since_unix_epoch(now)).map_err(KeyRefusal)?;
        Identity::of(own).ok_or(KeyRefusal(CertificateError::ApplicationVerificationFailure.into()))
    }

    /// The same for a server of this role.
    ///
    /// # Errors
    ///
    /// Why its key is not accepted.
    pub fn check_server(
        &self,
        chain: &[CertificateDer<'_>],
        role: Role,
        now: Duration,
    ) -> Result<(), KeyRefusal> {
        let (own, others) = chain.split_first().ok_or(KeyRefusal(Error::NoCertificatesPresented))?;
        let name = tls_server_name(role);
        self.servers
            .verify_server_cert(own, others, &name, &[], UnixTime::since_unix_epoch(now))
            .map_err(KeyRefusal)?;
        Ok(())
    }
}

/// Shows no key.
impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRing").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// The one provider of cryptography. AES-128 goes first: where hardware does it, it is the fastest, and strong enough.
fn provider() -> CryptoProvider {
    let mut provider = ring::default_provider();
    provider.cipher_suites = vec![
        ring::cipher_suite::TLS13_AES_128_GCM_SHA256,
        ring::cipher_suite::TLS13_AES_256_GCM_SHA384,
        ring::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    provider
}

/// Why a certificate is not accepted.
#[derive(Clone, PartialEq, Debug)]
pub struct KeyRefusal(pub(crate) Error);

impl KeyRefusal {
    /// Whether nobody who is trusted here vouches for it.
    pub(crate) fn is_of_a_stranger(&self) -> bool {
        use CertificateError::{BadSignature, UnknownIssuer};
        matches!(self.0, Error::InvalidCertificate(UnknownIssuer | BadSignature))
    }

    /// The role that a server has shown in place of the wanted one.
    fn shown_role(&self) -> Option<Role> {
        let Error::InvalidCertificate(CertificateError::NotValidForNameContext { presented, .. }) = &self.0
        else {
            return None;
        };
        ROLES.into_iter().find(|&role| {
            let name = server_name(role);
            presented.iter().any(|shown| shown.contains(&name))
        })
    }

    /// The reason in plain words; None for what an honest key never shows.
    #[expect(clippy::wildcard_enum_match_arm, reason = "errors of another crate, to which more may come")]
    fn plain(&self) -> Option<&'static str> {
        use CertificateError as C;
        match &self.0 {
            Error::NoCertificatesPresented => Some("it has no key"),
            Error::InvalidCertificate(error) => match error {
                C::Revoked => Some("its key was revoked"),
                C::Expired | C::ExpiredContext { .. } => Some("its key has expired"),
                C::NotValidYet | C::NotValidYetContext { .. } => {
                    Some("its key is not valid yet: are the clocks right?")
                }
                C::UnknownIssuer | C::BadSignature => {
                    Some("its key is not of this cluster, or older than the last rotations")
                }
                C::NotValidForName
                | C::NotValidForNameContext { .. }
                | C::InvalidPurpose
                | C::InvalidPurposeContext { .. } => Some("its key is of another role"),
                _ => None,
            },
            _ => None,
        }
    }
}

impl fmt::Display for KeyRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(role) = self.shown_role() {
            return write!(f, "its key is of another role, that of a {role}: is the port right?");
        }
        match self.plain() {
            Some(reason) => f.write_str(reason),
            None => write!(f, "its key is not accepted ({})", self.0),
        }
    }
}

impl std::error::Error for KeyRefusal {}
