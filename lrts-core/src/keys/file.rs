//! Key files: all that one party needs to show who it is and to check others, in one file.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use pem::Pem;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivatePkcs8KeyDer};

use super::{Identity, KeysError};
use crate::limits::{KEY_FILE_BYTES, KEY_FILE_SECTIONS};

pub(super) const CERTIFICATE: &str = "CERTIFICATE";
pub(super) const PRIVATE_KEY: &str = "PRIVATE KEY";
const REVOCATIONS: &str = "X509 CRL";

/// The content of a key file.
///
/// As text it is PEM (RFC 7468), in this order: the key's own certificate and those that lead from it to an older authority,
/// the private key in PKCS 8, the certificates of the authorities that are trusted, and their revocation lists. Lines outside of
/// the sections are for people.
#[derive(PartialEq, Eq)]
pub struct KeyFile {
    /// The key's certificate, then those of authorities that vouch for its issuer.
    pub chain: Vec<CertificateDer<'static>>,
    /// The private key.
    pub key: PrivatePkcs8KeyDer<'static>,
    /// Authorities whose keys are accepted; at least one.
    pub authorities: Vec<CertificateDer<'static>>,
    /// Keys that are not accepted any more; a list for each authority.
    pub revocations: Vec<CertificateRevocationListDer<'static>>,
}

impl KeyFile {
    /// Reads the text of a key file. Certificates are checked once they are used.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        if text.len() > KEY_FILE_BYTES {
            return Err(format!("it has more than {KEY_FILE_BYTES} bytes"));
        }
        let sections = pem::parse_many(text).map_err(|error| error.to_string())?;
        if sections.len() > KEY_FILE_SECTIONS {
            return Err(format!("it has more than {KEY_FILE_SECTIONS} sections"));
        }
        let (mut chain, mut key, mut authorities, mut revocations) =
            (Vec::new(), None, Vec::new(), Vec::new());
        for section in sections {
            match section.tag() {
                CERTIFICATE if key.is_none() => chain.push(section.into_contents().into()),
                CERTIFICATE => authorities.push(section.into_contents().into()),
                PRIVATE_KEY if key.is_none() => key = Some(section.into_contents().into()),
                PRIVATE_KEY => return Err("it has two private keys".to_owned()),
                REVOCATIONS => revocations.push(section.into_contents().into()),
                other => return Err(format!("it has a section of kind {other:?}")),
            }
        }
        let key = key.ok_or("it has no private key")?;
        if chain.is_empty() {
            return Err("it has no certificate before its private key".to_owned());
        }
        if authorities.is_empty() {
            return Err("it has no certificate of an authority behind its private key".to_owned());
        }
        Ok(Self { chain, key, authorities, revocations })
    }

    /// The text of a key file, headed by a line that says whose it is.
    pub fn to_text(&self) -> String {
        let head = match self.identity() {
            Some(identity) => {
                format!("lrts {identity}. Whoever has this file can use it: keep it to yourself.\n")
            }
            None => String::new(),
        };
        let section = |tag: &str, bytes: &[u8]| Pem::new(tag, bytes);
        let mut sections: Vec<Pem> = self.chain.iter().map(|it| section(CERTIFICATE, it)).collect();
        sections.push(section(PRIVATE_KEY, self.key.secret_pkcs8_der()));
        sections.extend(self.authorities.iter().map(|it| section(CERTIFICATE, it)));
        sections.extend(self.revocations.iter().map(|it| section(REVOCATIONS, it)));
        let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
        head + &pem::encode_many_config(&sections, config)
    }

    /// Reads a key file that nobody else can read.
    ///
    /// # Errors
    ///
    /// [`KeysError`]; [`KeysError::Io`] of kind `NotFound` if there is none.
    pub fn read(path: &Path) -> Result<Self, KeysError> {
        let malformed = |reason| KeysError::Malformed { path: path.to_owned(), reason };
        match read_private(path) {
            Ok(text) => Self::parse(&text).map_err(malformed),
            // Nobody is asked to change the mode or owner of what is no key file.
            Err(error @ (KeysError::Loose { .. } | KeysError::Foreign { .. })) => {
                let parsed = read_up_to(path, KEY_FILE_BYTES).ok().map(|(text, _)| Self::parse(&text));
                Err(parsed.and_then(Result::err).map_or(error, malformed))
            }
            Err(error) => Err(error),
        }
    }

    /// Whose key it is, by its own certificate.
    pub fn identity(&self) -> Option<Identity> {
        self.chain.first().and_then(Identity::of)
    }
}

/// Shows no key.
impl std::fmt::Debug for KeyFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyFile").field("identity", &self.identity()).finish_non_exhaustive()
    }
}

/// Reads a file of this user's own that is closed to others, of at most [`KEY_FILE_BYTES`]; longer ones are cut behind it.
pub(crate) fn read_private(path: &Path) -> Result<Vec<u8>, KeysError> {
    read_private_up_to(path, KEY_FILE_BYTES)
}

/// The same for files of another size.
pub(crate) fn read_private_up_to(path: &Path, limit: usize) -> Result<Vec<u8>, KeysError> {
    let (text, metadata) = read_up_to(path, limit)?;
    check_private(path, &metadata)?;
    Ok(text)
}

/// Reads a file, whoever else can read it.
fn read_up_to(path: &Path, limit: usize) -> Result<(Vec<u8>, fs::Metadata), KeysError> {
    // Not blocking, should somebody have put a pipe there.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(path);
    let file = file.map_err(KeysError::io(path))?;
    let metadata = file.metadata().map_err(KeysError::io(path))?;
    if !metadata.is_file() {
        return Err(KeysError::Malformed {
            path: path.to_owned(),
            reason: "it is no regular file".to_owned(),
        });
    }
    let mut text = Vec::new();
    file.take(limit as u64 + 1).read_to_end(&mut text).map_err(KeysError::io(path))?;
    Ok((text, metadata))
}

/// Checks that a file or directory is this user's own and closed to others.
pub(crate) fn check_private(path: &Path, metadata: &fs::Metadata) -> Result<(), KeysError> {
    let (owner, uid) = (metadata.uid(), nix::unistd::geteuid().as_raw());
    if owner != uid {
        return Err(KeysError::Foreign { path: path.to_owned(), owner, uid });
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        let mend = if metadata.is_dir() { "700" } else { "600" };
        return Err(KeysError::Loose { path: path.to_owned(), mode, mend });
    }
    Ok(())
}

/// Checks the directory where keys are made in the same way, and the way there.
#[cfg(feature = "authority")]
pub(crate) fn check_private_directory(path: &Path) -> Result<(), KeysError> {
    crate::private_dir::check_way(path)?;
    let metadata = fs::metadata(path).map_err(KeysError::io(path))?;
    if !metadata.is_dir() {
        return Err(KeysError::io(path)(std::io::ErrorKind::NotADirectory.into()));
    }
    check_private(path, &metadata).map_err(|error| match holds_other_things(path) {
        // As of a file: nobody is asked to change the mode of, say, /etc.
        true => KeysError::Malformed {
            path: path.to_owned(),
            reason: "it is a directory of something else".to_owned(),
        },
        false => error,
    })
}

#[cfg(feature = "authority")]
fn holds_other_things(directory: &Path) -> bool {
    let Ok(entries) = fs::read_dir(directory) else { return false };
    let mut names = entries.flatten().map(|entry| entry.file_name()).peekable();
    let are_keys = |name: &std::ffi::OsString| Path::new(name).extension().is_some_and(|end| end == "pem");
    names.peek().is_some() && !names.any(|name| are_keys(&name))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn file() -> KeyFile {
        KeyFile {
            chain: vec![vec![1].into(), vec![2; 100].into()],
            key: vec![3; 40].into(),
            authorities: vec![vec![4; 10].into()],
            revocations: vec![vec![5].into(), vec![6].into()],
        }
    }

    #[test]
    fn key_files_survive_their_text() {
        assert_eq!(KeyFile::parse(file().to_text().as_bytes()), Ok(file()));
        let explained = format!("for the night shift\n{}\nbye\n", file().to_text());
        assert_eq!(KeyFile::parse(explained.as_bytes()), Ok(file()));
    }

    #[test]
    fn what_is_no_key_file_says_why() {
        let problem = |text: &str| KeyFile::parse(text.as_bytes()).unwrap_err();
        assert!(problem("").contains("no private key"));
        assert!(problem(&file().to_text().repeat(2)).contains("two private keys"));
        assert!(problem(&"x".repeat(KEY_FILE_BYTES + 1)).contains("bytes"));
        let without = |change: fn(&mut KeyFile)| {
            let mut file = file();
            change(&mut file);
            problem(&file.to_text())
        };
        assert!(without(|file| file.chain.clear()).contains("before"));
        assert!(without(|file| file.authorities.clear()).contains("behind"));
        assert!(
            without(|file| file.revocations = vec![vec![1].into(); KEY_FILE_SECTIONS]).contains("sections")
        );
        let foreign = pem::encode(&Pem::new("RSA PRIVATE KEY", "x"));
        assert!(problem(&foreign).contains("RSA PRIVATE KEY"));
    }

    #[test]
    fn a_file_that_others_can_read_is_refused_with_the_command_that_mends_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("worker.pem");
        fs::write(&path, file().to_text()).unwrap();
        for mode in [0o644, 0o640, 0o601, 0o620] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = KeyFile::read(&path).unwrap_err().to_string();
            assert!(error.contains(&format!("chmod 600 {}", path.display())), "{error}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(KeyFile::read(&path).unwrap(), file());
    }

    #[test]
    fn nobody_is_asked_to_change_the_mode_of_what_is_no_key() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("passwd");
        fs::write(&path, "root:x:0:0::/root:/bin/sh\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = KeyFile::read(&path).unwrap_err();
        assert!(
            matches!(error, KeysError::Malformed { .. }) && !error.to_string().contains("chmod"),
            "{error}"
        );

        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let source = crate::keys::KeySource::new(directory.path(), crate::transport::Role::Worker);
        let error = source.current().err().unwrap();
        assert!(matches!(error, KeysError::Missing { .. }), "{error}");
        fs::write(directory.path().join("worker.pem"), file().to_text()).unwrap();
        let error = source.current().err().unwrap().to_string();
        assert!(error.contains(&format!("chmod 700 {}", directory.path().display())), "{error}");
    }

    /// Whoever waits for a key would wait for ever, where only the directory's owner can help.
    #[test]
    fn a_directory_that_is_closed_to_this_user_is_refused_and_not_taken_for_one_without_a_key() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("keys");
        let with_mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("worker.pem"), file().to_text()).unwrap();
        let source = crate::keys::KeySource::new(&directory, crate::transport::Role::Worker);
        let is_root = nix::unistd::geteuid().is_root();
        if is_root {
            // Only root can give it away, and nothing is closed to root: the thread looks as yet another user.
            std::os::unix::fs::chown(&directory, Some(12_345), None).unwrap();
            with_mode(parent.path(), 0o755).unwrap();
            with_mode(&directory, 0o700).unwrap();
        } else {
            with_mode(&directory, 0o077).unwrap();
        }

        let looking = std::thread::spawn(move || {
            if is_root {
                nix::unistd::setfsuid(54_321.into());
            }
            source.current().err().unwrap()
        });
        let error = looking.join().unwrap();

        with_mode(&directory, 0o700).unwrap();
        match is_root {
            true => assert!(matches!(error, KeysError::Foreign { owner: 12_345, .. }), "{error}"),
            false => assert!(matches!(error, KeysError::Loose { .. }), "{error}"),
        }
    }

    #[test]
    fn a_directory_is_no_key_file_and_a_pipe_does_not_block() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(KeyFile::read(directory.path()), Err(KeysError::Malformed { .. })));
        let pipe = directory.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(matches!(KeyFile::read(&pipe), Err(KeysError::Malformed { .. })));
    }
}
