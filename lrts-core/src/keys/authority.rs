//! Makes certificates and revocation lists. No file and no clock is touched here; times count from 1970.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use pem::Pem;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PublicKeyData, RevokedCertParams, SanType,
    SerialNumber, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use webpki::EndEntityCert;

use super::file::{CERTIFICATE, PRIVATE_KEY};
use super::identity::server_name;
use super::{Identity, Index, KeyFile, KeyId, KeysError, role_word};
use crate::ids::ParseIdError;
use crate::limits::{AUTHORITY_VALIDITY, CLOCK_SKEW};
use crate::transport::Role;

/// Names an authority: a digest of its public key. Prints as 16 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AuthorityId(pub(super) u64);

impl AuthorityId {
    fn of(key: &KeyPair) -> Self {
        let digest = blake3::hash(key.der_bytes());
        let (first, _) = digest.as_bytes().split_first_chunk().expect("a digest has 32 bytes");
        Self(u64::from_be_bytes(*first))
    }
}

impl fmt::Display for AuthorityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for AuthorityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for AuthorityId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = digits.then(|| u64::from_str_radix(text, 16).ok()).flatten();
        number.map(Self).ok_or_else(|| ParseIdError::new("authority id", text, "16 hex digits"))
    }
}

/// Vouches for the keys of a cluster.
///
/// After a rotation it has the authority before beside it. That one signs no more keys, but it vouches for its successor, so
/// that parties whose files are older accept the new keys, and its own keys stay valid until it is dropped.
pub struct Authority {
    current: Signer,
    previous: Option<Signer>,
}

/// A private key and the self-signed certificate for it.
struct Signer {
    id: AuthorityId,
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new one.
    ///
    /// # Errors
    ///
    /// If the system has no randomness to give.
    pub fn create(now: Duration) -> Result<Self, KeysError> {
        Ok(Self { current: Signer::create(now)?, previous: None })
    }

    /// Puts a new authority in its place, and drops the one before it.
    ///
    /// # Errors
    ///
    /// As in [`Self::create`].
    pub fn rotate(&mut self, now: Duration) -> Result<(), KeysError> {
        let old = std::mem::replace(&mut self.current, Signer::create(now)?);
        self.previous = Some(old);
        Ok(())
    }

    /// Ends a rotation: keys of the authority before aren't accepted any more.
    pub fn drop_previous(&mut self) {
        self.previous = None;
    }

    /// Whose new keys are.
    pub fn id(&self) -> AuthorityId {
        self.current.id
    }

    /// The authority before, whose keys are still accepted.
    pub fn previous(&self) -> Option<AuthorityId> {
        self.previous.as_ref().map(|signer| signer.id)
    }

    /// The ids of all authorities whose keys are accepted.
    pub fn accepted(&self) -> Vec<AuthorityId> {
        self.signers().map(|signer| signer.id).collect()
    }

    /// The newest first.
    fn signers(&self) -> impl Iterator<Item = &Signer> {
        std::iter::once(&self.current).chain(&self.previous)
    }

    /// Makes a key that is valid until `expires`. The caller has put it into the index.
    ///
    /// # Errors
    ///
    /// As in [`Self::create`].
    pub fn issue(
        &self,
        identity: &Identity,
        now: Duration,
        expires: Duration,
        index: &Index,
    ) -> Result<KeyFile, KeysError> {
        let key = KeyPair::generate().map_err(cannot_make)?;
        let certificate = leaf(identity, now, expires)?.signed_by(&key, &self.current.issuer);
        let mut file = KeyFile {
            chain: vec![certificate.map_err(cannot_make)?.into()],
            key: key.serialize_der().into(),
            authorities: Vec::new(),
            revocations: Vec::new(),
        };
        self.renew(&mut file, now, index)?;
        Ok(file)
    }

    /// Brings a file up to date whose key is of the current authority: who else is trusted, and who isn't any more.
    ///
    /// # Errors
    ///
    /// As in [`Self::create`].
    pub fn renew(&self, file: &mut KeyFile, now: Duration, index: &Index) -> Result<(), KeysError> {
        file.chain.truncate(1);
        if let Some(previous) = &self.previous {
            let cross = authority_certificate(self.current.id, now, 0)
                .signed_by(self.current.issuer.key(), &previous.issuer);
            file.chain.push(cross.map_err(cannot_make)?.into());
        }
        file.authorities = self.signers().map(|signer| signer.certificate.clone()).collect();
        file.revocations =
            self.signers().map(|signer| signer.revocations(now, index)).collect::<Result<_, _>>()?;
        Ok(())
    }

    /// Reads the text of an authority's file.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let sections = pem::parse_many(text).map_err(|error| error.to_string())?;
        let mut signers = sections.chunks(2).map(Signer::parse);
        let current = signers.next().ok_or("it has no private key")??;
        let previous = signers.next().transpose()?;
        match signers.next() {
            Some(_) => Err("it has more than two authorities".to_owned()),
            None => Ok(Self { current, previous }),
        }
    }

    /// The text of an authority's file: private key and certificate, then those of the authority before.
    pub fn to_text(&self) -> String {
        let section = |signer: &Signer| {
            let key = Pem::new(PRIVATE_KEY, signer.issuer.key().serialize_der());
            [key, Pem::new(CERTIFICATE, &*signer.certificate)]
        };
        let sections: Vec<Pem> = self.signers().flat_map(section).collect();
        let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
        format!(
            "lrts authority {}. Whoever has this file can make keys: it never leaves this directory.\n{}",
            self.id(),
            pem::encode_many_config(&sections, config)
        )
    }
}

/// Shows no key.
impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("id", &self.id())
            .field("previous", &self.previous())
            .finish_non_exhaustive()
    }
}

impl Signer {
    fn create(now: Duration) -> Result<Self, KeysError> {
        let key = KeyPair::generate().map_err(cannot_make)?;
        let id = AuthorityId::of(&key);
        let params = authority_certificate(id, now, 1);
        let certificate = params.self_signed(&key).map_err(cannot_make)?.into();
        Ok(Self { id, certificate, issuer: Issuer::new(params, key) })
    }

    fn parse(sections: &[Pem]) -> Result<Self, String> {
        let [key, certificate] = sections else {
            return Err("a private key has no certificate behind it".to_owned());
        };
        if (key.tag(), certificate.tag()) != (PRIVATE_KEY, CERTIFICATE) {
            return Err("it must have a private key and its certificate, in this order".to_owned());
        }
        let key = KeyPair::try_from(key.contents()).map_err(|error| error.to_string())?;
        let id = AuthorityId::of(&key);
        let certificate = CertificateDer::from(certificate.contents().to_vec());
        let of = EndEntityCert::try_from(&certificate).map_err(|error| error.to_string())?;
        if *of.subject_public_key_info() != *key.subject_public_key_info() {
            return Err("a certificate is of another private key".to_owned());
        }
        // Name and key are all that counts of an issuer, and both follow from the key: nothing of the certificate is needed.
        let issuer = Issuer::new(authority_certificate(id, Duration::ZERO, 1), key);
        Ok(Self { id, certificate, issuer })
    }

    /// The list of this authority's keys that aren't accepted any more. There is one even if it is empty: without it, a key's
    /// status would be unknown.
    fn revocations(
        &self,
        now: Duration,
        index: &Index,
    ) -> Result<CertificateRevocationListDer<'static>, KeysError> {
        let revoked = |(key, when): (KeyId, Duration)| RevokedCertParams {
            serial_number: SerialNumber::from(key.to_serial()),
            revocation_time: date_time_ymd(1970, 1, 1) + when,
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(1970, 1, 1) + now.saturating_sub(CLOCK_SKEW),
            next_update: date_time_ymd(1970, 1, 1) + now + AUTHORITY_VALIDITY,
            crl_number: SerialNumber::from(index.revision()),
            issuing_distribution_point: None,
            revoked_certs: index.revoked(self.id).map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(list.signed_by(&self.issuer).map_err(cannot_make)?.into())
    }
}

/// The certificate of an authority, with `below` other authorities between it and a key at most.
fn authority_certificate(id: AuthorityId, now: Duration, below: u8) -> CertificateParams {
    let mut params = valid(now, now + AUTHORITY_VALIDITY);
    params.distinguished_name.push(DnType::CommonName, format!("lrts authority {id}"));
    params.serial_number = Some(SerialNumber::from(KeyId::random().to_serial()));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params
}

/// The certificate of a key.
fn leaf(identity: &Identity, now: Duration, expires: Duration) -> Result<CertificateParams, KeysError> {
    let text = |text: String| text.try_into().map_err(cannot_make);
    let mut params = valid(now, expires);
    params
        .distinguished_name
        .push(DnType::CommonName, format!("{} ({})", identity.user, role_word(identity.role)));
    params.serial_number = Some(SerialNumber::from(identity.key.to_serial()));
    params.subject_alt_names.push(SanType::URI(text(identity.to_uri())?));
    params.extended_key_usages = match identity.role {
        Role::Scheduler | Role::ProgressServer => {
            params.subject_alt_names.push(SanType::DnsName(text(server_name(identity.role))?));
            vec![ExtendedKeyUsagePurpose::ServerAuth]
        }
        Role::Worker | Role::Client | Role::Admin => vec![ExtendedKeyUsagePurpose::ClientAuth],
    };
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// Parameters without a name, for a certificate that is valid from a little before `now`.
fn valid(now: Duration, until: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.not_before = date_time_ymd(1970, 1, 1) + now.saturating_sub(CLOCK_SKEW);
    params.not_after = date_time_ymd(1970, 1, 1) + until;
    params
}

fn cannot_make(error: rcgen::Error) -> KeysError {
    KeysError::Make(error.into())
}

#[cfg(test)]
mod tests {
    use rustls::Error;

    use super::*;
    use crate::keys::verify::{REVOKED, UNKNOWN, admits_at, believes_at};
    use crate::keys::{IssuedKey, ROLES};
    use crate::limits::{KEY_FILE_BYTES, KEY_VALIDITY, REVOKED_KEYS};

    const NOW: Duration = Duration::from_secs(1_800_000_000);

    /// An authority with its index, and what people do with them.
    struct Keys {
        authority: Authority,
        index: Index,
    }

    impl Keys {
        fn create() -> Self {
            Self { authority: Authority::create(NOW).unwrap(), index: Index::default() }
        }

        fn issue_until(&mut self, role: Role, expires: Duration) -> KeyFile {
            let identity = Identity { role, user: "ann".parse().unwrap(), key: KeyId::random() };
            let (user, authority) = (identity.user.clone(), self.authority.id());
            let issued =
                IssuedKey { key: identity.key, role, user, made: NOW, expires, authority, revoked: None };
            self.index.add(issued).unwrap();
            let file = self.authority.issue(&identity, NOW, expires, &self.index).unwrap();
            assert_eq!(file.identity(), Some(identity));
            KeyFile::parse(file.to_text().as_bytes()).unwrap()
        }

        fn issue(&mut self, role: Role) -> KeyFile {
            self.issue_until(role, NOW + KEY_VALIDITY)
        }

        fn revoke(&mut self, file: &KeyFile) {
            self.index.revoke(&[file.identity().unwrap().key], NOW).unwrap();
        }

        fn renew(&self, mut file: KeyFile) -> KeyFile {
            self.authority.renew(&mut file, NOW, &self.index).unwrap();
            file
        }
    }

    fn admits(server: &KeyFile, client: &KeyFile) -> Result<(), Error> {
        admits_at(server, client, NOW)
    }

    fn believes(client: &KeyFile, server: &KeyFile, role: Role) -> Result<(), Error> {
        believes_at(client, server, role, NOW)
    }

    #[test]
    fn servers_and_clients_of_one_authority_accept_each_other() {
        let mut keys = Keys::create();
        let files = ROLES.map(|role| keys.issue(role));
        for server in &files[..2] {
            let role = server.identity().unwrap().role;
            for client in &files[2..] {
                assert_eq!((admits(server, client), believes(client, server, role)), (Ok(()), Ok(())));
                assert!(believes(client, client, role).is_err(), "a client's key serves nobody");
            }
            for other in &files[..2] {
                assert!(admits(server, other).is_err(), "a server's key isn't a client's");
            }
        }
        assert!(believes(&files[2], &files[0], Role::ProgressServer).is_err(), "it is the scheduler");
        let mut stranger = Keys::create();
        assert_eq!(admits(&files[0], &stranger.issue(Role::Client)), UNKNOWN);
        assert_eq!(believes(&stranger.issue(Role::Client), &files[0], Role::Scheduler), UNKNOWN);
    }

    #[test]
    fn a_key_vouches_for_nobody() {
        let mut keys = Keys::create();
        let (server, client) = (keys.issue(Role::Scheduler), keys.issue(Role::Client));
        let own = KeyPair::try_from(client.key.secret_pkcs8_der()).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "ann (client)");
        let issuer = Issuer::new(params, own);
        let identity = Identity { role: Role::Admin, user: "root".parse().unwrap(), key: KeyId::random() };
        let forged = leaf(&identity, NOW, NOW + KEY_VALIDITY).unwrap();
        let mut file = keys.issue(Role::Admin);
        let key = KeyPair::try_from(file.key.secret_pkcs8_der()).unwrap();
        file.chain = vec![forged.signed_by(&key, &issuer).unwrap().into(), client.chain[0].clone()];
        assert_eq!(file.identity(), Some(identity), "it looks as it should");
        let error = format!("{:?}", admits(&server, &file));
        assert!(error.contains("EndEntityUsedAsCa"), "{error}");
    }

    #[test]
    fn a_key_is_valid_until_it_expires_and_a_little_before_it_was_made() {
        let mut keys = Keys::create();
        let hour = Duration::from_hours(1);
        let (server, client) = (keys.issue(Role::Scheduler), keys.issue_until(Role::Client, NOW + hour));
        assert_eq!(admits_at(&server, &client, NOW + hour), Ok(()));
        assert!(admits_at(&server, &client, NOW + hour * 2).is_err());
        assert_eq!(admits_at(&server, &client, NOW - hour), Ok(()));
        assert!(admits_at(&server, &client, NOW - CLOCK_SKEW * 2).is_err());
    }

    #[test]
    fn a_revoked_key_is_refused_by_files_made_afterwards() {
        let mut keys = Keys::create();
        let (server, client, other) =
            (keys.issue(Role::Scheduler), keys.issue(Role::Client), keys.issue(Role::Client));
        keys.revoke(&client);
        assert_eq!(admits(&server, &client), Ok(()), "its file is older");
        let server = keys.renew(server);
        assert_eq!((admits(&server, &client), admits(&server, &other)), (REVOKED, Ok(())));
        keys.revoke(&server);
        assert_eq!(believes(&keys.renew(other), &server, Role::Scheduler), REVOKED);
    }

    #[test]
    fn old_and_new_keys_accept_each_other_until_the_old_authority_is_dropped() {
        let mut keys = Keys::create();
        let old = [Role::Scheduler, Role::Worker].map(|role| keys.issue(role));
        keys.authority.rotate(NOW).unwrap();
        let new = [Role::Scheduler, Role::Worker].map(|role| keys.issue(role));
        for [server, worker] in [[&old[0], &new[1]], [&new[0], &old[1]], [&new[0], &new[1]]] {
            assert_eq!((admits(server, worker), believes(worker, server, Role::Scheduler)), (Ok(()), Ok(())));
        }

        keys.authority.drop_previous();
        let last = new.map(|file| keys.renew(file));
        assert_eq!((admits(&last[0], &old[1]), admits(&old[0], &last[1])), (UNKNOWN, UNKNOWN));
        assert_eq!(believes(&old[1], &last[0], Role::Scheduler), UNKNOWN);
        assert_eq!(believes(&last[1], &old[0], Role::Scheduler), UNKNOWN);
        assert_eq!(admits(&last[0], &last[1]), Ok(()));
    }

    #[test]
    fn a_second_rotation_drops_the_first_authority() {
        let mut keys = Keys::create();
        let first = keys.issue(Role::Worker);
        keys.authority.rotate(NOW).unwrap();
        let second = keys.issue(Role::Worker);
        keys.authority.rotate(NOW).unwrap();
        let server = keys.issue(Role::Scheduler);
        assert_eq!((admits(&server, &first), admits(&server, &second)), (UNKNOWN, Ok(())));
        assert_eq!(believes(&first, &server, Role::Scheduler), UNKNOWN);
    }

    #[test]
    fn keys_of_both_authorities_are_revoked_after_a_rotation() {
        let mut keys = Keys::create();
        let (old, kept) = (keys.issue(Role::Worker), keys.issue(Role::Worker));
        keys.authority.rotate(NOW).unwrap();
        let (new, server) = (keys.issue(Role::Worker), keys.issue(Role::Scheduler));
        keys.revoke(&old);
        keys.revoke(&new);
        let server = keys.renew(server);
        assert_eq!((admits(&server, &old), admits(&server, &new)), (REVOKED, REVOKED));
        assert_eq!(admits(&server, &kept), Ok(()));
    }

    #[test]
    fn a_key_file_has_room_for_all_revoked_keys() {
        let mut keys = Keys::create();
        keys.authority.rotate(NOW).unwrap();
        let file = keys.issue(Role::Scheduler);
        let issued = keys.index.get(file.identity().unwrap().key).unwrap().clone();
        for _ in 0..REVOKED_KEYS {
            let key = KeyId::random();
            keys.index.add(IssuedKey { key, ..issued.clone() }).unwrap();
        }
        let all: Vec<KeyId> = keys.index.keys().map(|key| key.key).filter(|&key| key != issued.key).collect();
        keys.index.revoke(&all, NOW).unwrap();
        let text = keys.renew(file).to_text();
        assert!(text.len() < KEY_FILE_BYTES, "{}", text.len());
        assert!(text.len() > KEY_FILE_BYTES * 3 / 4, "the bound could be higher: {}", text.len());
    }

    #[test]
    fn an_authority_survives_its_text() {
        let mut keys = Keys::create();
        let worker = keys.issue(Role::Worker);
        for previous in [false, true] {
            if previous {
                keys.authority.rotate(NOW).unwrap();
            }
            let read = Authority::parse(keys.authority.to_text().as_bytes()).unwrap();
            assert_eq!(read.accepted(), keys.authority.accepted());
            assert_eq!(read.previous().is_some(), previous);
            keys.authority = read;
            keys.index.count_change();
            let server = keys.issue(Role::Scheduler);
            assert_eq!(
                (admits(&server, &worker), believes(&worker, &server, Role::Scheduler)),
                (Ok(()), Ok(()))
            );
        }
    }

    #[test]
    fn what_is_no_authority_says_why() {
        let problem = |text: &str| Authority::parse(text.as_bytes()).unwrap_err();
        let [one, two] = [(); 2].map(|()| Authority::create(NOW).unwrap().to_text());
        assert!(problem("").contains("no private key"));
        assert!(problem(&[&*one, &one, &two].concat()).contains("two authorities"));
        let (key, certificate) = one.split_at(one.find("-----BEGIN CERT").unwrap());
        assert!(problem(key).contains("behind it"));
        assert!(problem(&[certificate, key].concat()).contains("in this order"));
        let (_, other) = two.split_at(two.find("-----BEGIN CERT").unwrap());
        assert!(problem(&[key, other].concat()).contains("another private key"));
    }
}
