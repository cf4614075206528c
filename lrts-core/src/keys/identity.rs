//! What a certificate says about its holder.

use std::fmt;
use std::str::FromStr;

use rustls::pki_types::{CertificateDer, ServerName};
use webpki::EndEntityCert;

use super::{role_of_word, role_word};
use crate::ids::{ParseIdError, UserName, random_u64};
use crate::transport::Role;

/// The scheme of the URI in which a certificate names its holder: `lrts:ROLE:USER:ID`.
const SCHEME: &str = "lrts";

/// Names a key: the serial number of its certificate, which is never 0. Prints as 16 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(u64);

impl KeyId {
    /// A new one. The highest bit stays clear, since a serial number is positive (RFC 5280, 4.1.2.2).
    pub fn random() -> Self {
        Self((random_u64() >> 1).max(1))
    }

    /// The serial number, without leading zeros.
    pub fn to_serial(self) -> Vec<u8> {
        let bytes = self.0.to_be_bytes();
        bytes[self.0.leading_zeros() as usize / 8..].to_vec()
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for KeyId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = digits.then(|| u64::from_str_radix(text, 16).ok()).flatten().filter(|&id| id > 0);
        number.map(Self).ok_or_else(|| ParseIdError::new("key id", text, "16 hex digits"))
    }
}

/// The holder of a key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// What it may be.
    pub role: Role,
    /// Whose it is.
    pub user: UserName,
    /// Which key.
    pub key: KeyId,
}

impl Identity {
    /// The URI that stands for it in a certificate.
    pub fn to_uri(&self) -> String {
        format!("{SCHEME}:{}:{}:{}", role_word(self.role), self.user, self.key)
    }

    pub(super) fn from_uri(uri: &str) -> Option<Self> {
        let mut parts = uri.split(':');
        let mut next = || parts.next();
        let (scheme, role, user, key) = (next()?, next()?, next()?, next()?);
        let role = role_of_word(role)?;
        let whole = scheme == SCHEME && next().is_none();
        whole.then_some(Self { role, user: user.parse().ok()?, key: key.parse().ok()? })
    }

    /// What a certificate says; the caller has checked who vouches for it. None if it is no certificate of a cluster.
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let certificate = EndEntityCert::try_from(certificate).ok()?;
        let mut identities = certificate.valid_uri_names().filter_map(Self::from_uri);
        let identity = identities.next()?;
        identities.next().is_none().then_some(identity)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} key {} of {}", self.role, self.key, self.user)
    }
}

/// The DNS name in the certificates of servers of this role. A client asks for it, wherever the server is: what counts is the
/// role, not the machine. `.internal` never names anything public.
pub(crate) fn server_name(role: Role) -> String {
    format!("{}.lrts.internal", role_word(role))
}

/// The same as a TLS client wants it.
pub(crate) fn tls_server_name(role: Role) -> ServerName<'static> {
    ServerName::try_from(server_name(role)).expect("letters, hyphens and dots make a name")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::ROLES;

    #[test]
    fn identities_survive_a_certificate() {
        for role in ROLES {
            let identity =
                Identity { role, user: "ann.k@example.org".parse().unwrap(), key: KeyId::random() };
            assert_eq!(Identity::from_uri(&identity.to_uri()), Some(identity));
        }
    }

    #[test]
    fn other_uris_are_no_identities() {
        for uri in [
            "",
            "lrts",
            "lrts:worker:ann",
            "lrts:worker:ann:0000000000000000",
            "lrts:worker:ann:000000000000001f:x",
            "lrts:root:ann:000000000000001f",
            "lrts:worker::000000000000001f",
            "lrts:worker:a/b:000000000000001f",
            "http:worker:ann:000000000000001f",
        ] {
            assert_eq!(Identity::from_uri(uri), None, "{uri}");
        }
    }

    #[test]
    fn serial_numbers_have_no_leading_zeros() {
        assert_eq!(KeyId(0x1f).to_serial(), [0x1f]);
        assert_eq!(KeyId(0x0100).to_serial(), [1, 0]);
        assert!(KeyId::random().to_serial()[0] < 0x80 || KeyId::random().to_serial().len() < 8);
    }
}
