//! The keys directory where keys are made: the authority, the record of what it has issued, and a key file for each role.
//!
//! Whoever changes something holds the lock, and puts each file in its place whole. What only reads key files needs no lock,
//! since each is complete by itself. A change is written in an order in which nothing is lost wherever it is interrupted: first
//! the record, so that no key and no revocation is unknown to it, then the authority, then the key files. Doing the same again
//! completes it.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::{User, geteuid};

use super::authority::{Authority, AuthorityId};
use super::file::{check_private_directory, read_private, read_private_up_to};
use super::index::{INDEX_BYTES, Index, IssuedKey};
use super::{Identity, KeyFile, KeyId, KeysError, ROLES, key_file_name};
use crate::clock::wall_clock;
use crate::ids::UserName;
use crate::limits::{AUTHORITY_VALIDITY, CLOCK_SKEW, KEY_VALIDITY};
use crate::transport::Role;

const AUTHORITY: &str = "authority.pem";
const INDEX: &str = "issued.jsonl";
const LOCK: &str = "lock";

/// There is no directory of that name.
const NOT_THERE: [io::ErrorKind; 2] = [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory];

/// Makes what a keys directory needs: itself, an authority, and a key file of this user for each role. True if it made
/// something.
///
/// A key file needs nothing, and a path that ends in `.pem` is meant to be one. A directory with key files but no authority is
/// a copy, and is left alone. Two processes that do this at once end with one authority.
///
/// # Errors
///
/// [`KeysError`], also if the directory is there but open to others.
pub fn ensure(path: &Path) -> Result<bool, KeysError> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => return Ok(false),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if path.extension().is_some_and(|extension| extension == "pem") {
                return Ok(false);
            }
            DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(KeysError::io(path))?;
        }
        Err(error) => return Err(KeysError::io(path)(error)),
    }
    check_private_directory(path)?;
    if is_complete(path) {
        return Ok(false);
    }
    let lock = lock(path)?;
    // Another process may have had the lock before.
    if is_complete(path) {
        return Ok(false);
    }
    let mut directory = if is_there(path, AUTHORITY) {
        KeysDirectory::load(path, lock)?
    } else {
        KeysDirectory {
            path: path.to_owned(),
            authority: Authority::create(wall_clock())?,
            index: Index::default(),
            stored: Vec::new(),
            _lock: lock,
        }
    };
    let missing = ROLES.into_iter().filter(|&role| !is_there(path, &key_file_name(role)));
    directory.settle(missing.map(|role| (role, None)).collect())?;
    Ok(true)
}

/// Whether [`ensure`] has nothing to make.
fn is_complete(path: &Path) -> bool {
    let mut files = ROLES.into_iter().map(|role| is_there(path, &key_file_name(role)));
    if is_there(path, AUTHORITY) { files.all(|there| there) } else { files.any(|there| there) }
}

fn is_there(directory: &Path, name: &str) -> bool {
    // Also if it is a link to nowhere.
    fs::symlink_metadata(directory.join(name)).is_ok()
}

fn lock(directory: &Path) -> Result<File, KeysError> {
    let path = directory.join(LOCK);
    let lock = File::options().create(true).append(true).mode(0o600).open(&path);
    let lock = lock.map_err(KeysError::io(&path))?;
    lock.lock().map_err(KeysError::io(&path))?;
    Ok(lock)
}

/// What [`KeysDirectory::rotate`] has done.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Rotation {
    /// There is a new authority.
    Done,
    /// An earlier rotation had been interrupted, and is complete now.
    Completed,
}

/// A keys directory with an authority, locked as long as this lives. After an error it must be opened anew.
#[derive(Debug)]
pub struct KeysDirectory {
    path: PathBuf,
    authority: Authority,
    index: Index,
    /// The authorities that are in its file.
    stored: Vec<AuthorityId>,
    _lock: File,
}

impl KeysDirectory {
    /// Opens one, and waits for its lock.
    ///
    /// # Errors
    ///
    /// [`KeysError::NoAuthority`] if no keys are made there; any other that files can have.
    pub fn open(path: &Path) -> Result<Self, KeysError> {
        match check_private_directory(path) {
            Ok(()) if is_there(path, AUTHORITY) => Self::load(path, lock(path)?),
            Err(KeysError::Io { source, .. }) if !NOT_THERE.contains(&source.kind()) => {
                Err(KeysError::io(path)(source))
            }
            Ok(()) | Err(KeysError::Io { .. }) => Err(KeysError::NoAuthority { path: path.to_owned() }),
            Err(error) => Err(error),
        }
    }

    fn load(path: &Path, lock: File) -> Result<Self, KeysError> {
        let broken = |path: PathBuf| move |reason| KeysError::Broken { path, reason };
        let file = path.join(AUTHORITY);
        let authority = Authority::parse(&read_private(&file)?).map_err(broken(file))?;
        let file = path.join(INDEX);
        let mut index = Index::parse(&read_private_up_to(&file, INDEX_BYTES)?).map_err(broken(file))?;
        let stored = authority.accepted();
        index.keep_of(&stored);
        Ok(Self { path: path.to_owned(), authority, index, stored, _lock: lock })
    }

    /// Whose new keys are.
    pub fn authority(&self) -> AuthorityId {
        self.authority.id()
    }

    /// The authority before, whose keys are still accepted.
    pub fn previous(&self) -> Option<AuthorityId> {
        self.authority.previous()
    }

    /// The keys on record, but for those that have expired.
    pub fn issued(&self) -> impl Iterator<Item = &IssuedKey> {
        self.index.unexpired(wall_clock())
    }

    /// All keys on record of a user, also those that have expired by this machine's clock, which may be wrong.
    pub fn keys_of(&self, user: &UserName) -> Vec<KeyId> {
        self.index.keys().filter(|key| key.user == *user).map(|key| key.key).collect()
    }

    /// A key on record.
    pub fn issued_key(&self, key: KeyId) -> Option<&IssuedKey> {
        self.index.get(key)
    }

    /// Makes a key that stays valid for this long, as a file for another place.
    ///
    /// # Errors
    ///
    /// [`KeysError`].
    pub fn issue(&mut self, role: Role, user: UserName, valid: Duration) -> Result<KeyFile, KeysError> {
        self.index.count_change();
        let file = self.make(role, user, valid, wall_clock(), Index::add)?;
        self.replace(INDEX, &self.index.to_text())?;
        Ok(file)
    }

    /// Begins to use a new authority: all of this directory's key files get keys of it. Older keys are accepted until the next
    /// rotation, or until [`Self::drop_old`].
    ///
    /// # Errors
    ///
    /// [`KeysError`].
    pub fn rotate(&mut self) -> Result<Rotation, KeysError> {
        let files = self.key_files()?;
        let rotation = if self.authority.previous().is_some() && self.has_older(&files) {
            Rotation::Completed
        } else {
            self.authority.rotate(wall_clock())?;
            Rotation::Done
        };
        self.settle(files)?;
        Ok(rotation)
    }

    /// Ends a rotation: keys of the authority before aren't accepted any more.
    ///
    /// # Errors
    ///
    /// [`KeysError`].
    pub fn drop_old(&mut self) -> Result<(), KeysError> {
        let files = self.key_files()?;
        // After a rotation that was interrupted, some of these have keys that are about to be dropped.
        if self.has_older(&files) {
            self.settle(files)?;
        }
        let files = self.key_files()?;
        self.authority.drop_previous();
        self.settle(files)?;
        Ok(())
    }

    /// Whether some of these key files still have keys of an older authority. One that isn't there says nothing: no rotation
    /// leaves it so, somebody has taken it away.
    fn has_older(&self, files: &[(Role, Option<KeyFile>)]) -> bool {
        let keys = files.iter().filter_map(|(_, file)| self.index.get(file.as_ref()?.identity()?.key));
        keys.into_iter().any(|key| key.authority != self.authority.id())
    }

    /// Revokes keys; those that aren't on record are skipped. Key files of this directory whose own key is among them get a new
    /// one: their roles are returned.
    ///
    /// # Errors
    ///
    /// [`KeysError`].
    pub fn revoke(&mut self, keys: &[KeyId]) -> Result<Vec<Role>, KeysError> {
        let files = self.key_files()?;
        self.index.revoke(keys, wall_clock())?;
        self.settle(files)
    }

    /// This directory's key files, as far as they are there.
    fn key_files(&self) -> Result<Vec<(Role, Option<KeyFile>)>, KeysError> {
        let read = |role| match KeyFile::read(&self.path.join(key_file_name(role))) {
            Ok(file) => Ok((role, Some(file))),
            Err(KeysError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok((role, None)),
            Err(error) => Err(error),
        };
        ROLES.into_iter().map(read).collect()
    }

    /// Brings these key files up to date, those with new keys where there is none or none that is good, and writes all that has
    /// changed. Returns the roles with new keys.
    fn settle(&mut self, files: Vec<(Role, Option<KeyFile>)>) -> Result<Vec<Role>, KeysError> {
        let now = wall_clock();
        let mut renewed = Vec::new();
        let mut settled = Vec::new();
        self.index.count_change();
        for (role, file) in files {
            let file = match file.filter(|file| self.is_good(role, file, now)) {
                Some(mut file) => {
                    self.authority.renew(&mut file, now, &self.index)?;
                    file
                }
                None => {
                    renewed.push(role);
                    self.make(role, login_name(), KEY_VALIDITY, now, Index::add_own)?
                }
            };
            settled.push((role, file));
        }
        self.replace(INDEX, &self.index.to_text())?;
        if self.authority.accepted() != self.stored {
            self.replace(AUTHORITY, &self.authority.to_text())?;
        }
        for (role, file) in settled {
            self.replace(&key_file_name(role), &file.to_text())?;
        }
        Ok(renewed)
    }

    /// Whether the key in a key file may stay there.
    fn is_good(&self, role: Role, file: &KeyFile, now: Duration) -> bool {
        let own = file.identity().filter(|own| own.role == role);
        own.and_then(|own| self.index.get(own.key)).is_some_and(|key| {
            let is_valid = key.made <= now + CLOCK_SKEW && now < key.expires;
            is_valid && key.authority == self.authority.id() && key.revoked.is_none()
        })
    }

    fn make(
        &mut self,
        role: Role,
        user: UserName,
        valid: Duration,
        now: Duration,
        add: fn(&mut Index, IssuedKey) -> Result<(), KeysError>,
    ) -> Result<KeyFile, KeysError> {
        let identity = Identity { role, user, key: KeyId::random() };
        let expires = now + valid.min(AUTHORITY_VALIDITY);
        let key = IssuedKey {
            key: identity.key,
            role,
            user: identity.user.clone(),
            made: now,
            expires,
            authority: self.authority.id(),
            revoked: None,
        };
        add(&mut self.index, key)?;
        self.authority.issue(&identity, now, expires, &self.index)
    }

    /// Puts a file in its place, whole and durable.
    fn replace(&self, name: &str, text: &str) -> Result<(), KeysError> {
        let path = self.path.join(name);
        let new = self.path.join(format!("{name}.new"));
        let write = || {
            match fs::remove_file(&new) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = File::options().write(true).create_new(true).mode(0o600).open(&new)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(KeysError::io(&path))
    }
}

/// Who runs this process, as the system calls them; else `uid-` and the user's number.
pub fn login_name() -> UserName {
    let uid = geteuid();
    let known = User::from_uid(uid).ok().flatten().and_then(|user| user.name.parse().ok());
    known.unwrap_or_else(|| format!("uid-{uid}").parse().expect("letters, a hyphen and digits make a name"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;
    use crate::keys::verify::{REVOKED, UNKNOWN, admits_at, believes_at};

    fn made() -> (tempfile::TempDir, PathBuf) {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("config/lrts/keys");
        assert!(ensure(&path).unwrap());
        (parent, path)
    }

    fn own_key(path: &Path, role: Role) -> KeyId {
        let identity = KeyFile::read(&path.join(key_file_name(role))).unwrap().identity().unwrap();
        assert_eq!(identity.role, role);
        identity.key
    }

    fn own_keys(path: &Path) -> Vec<KeyId> {
        ROLES.into_iter().map(|role| own_key(path, role)).collect()
    }

    /// All files with their content.
    fn content(path: &Path) -> Vec<(PathBuf, String)> {
        let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> =
            entries.map(|file| (file.clone(), fs::read_to_string(file).unwrap())).collect();
        files.sort();
        files
    }

    #[test]
    fn a_directory_is_made_once_and_nobody_else_can_read_it() {
        let (parent, path) = made();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        for new in [&parent.path().join("config"), &parent.path().join("config/lrts"), &path] {
            assert_eq!(mode(new), 0o700, "{}", new.display());
        }
        let files = content(&path);
        assert_eq!(files.len(), ROLES.len() + 3, "keys, authority, record and lock: {files:?}");
        assert!(files.iter().all(|(file, _)| mode(file) == 0o600));
        assert!(!ensure(&path).unwrap());
        assert_eq!(content(&path), files);

        let directory = KeysDirectory::open(&path).unwrap();
        let mut issued: Vec<KeyId> = directory.issued().map(|key| key.key).collect();
        let mut own = own_keys(&path);
        own.sort();
        issued.sort();
        assert_eq!(own, issued);
        assert!(directory.issued().all(|key| key.user == login_name()));
    }

    #[test]
    fn many_that_make_it_at_once_end_with_one_authority() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("keys");
        let made: Vec<bool> = std::thread::scope(|scope| {
            let starters: Vec<_> = (0..8).map(|_| scope.spawn(|| ensure(&path).unwrap())).collect();
            starters.into_iter().map(|starter| starter.join().unwrap()).collect()
        });
        assert_eq!(made.iter().filter(|&&made| made).count(), 1);
        let directory = KeysDirectory::open(&path).unwrap();
        assert_eq!(directory.issued().count(), ROLES.len());
        assert!(own_keys(&path).into_iter().all(|key| directory.index.get(key).is_some()));
    }

    #[test]
    fn what_is_missing_is_made_by_the_same_authority() {
        let (_parent, path) = made();
        let before = content(&path);
        let authority = KeysDirectory::open(&path).unwrap().authority();
        for role in [Role::Scheduler, Role::Client] {
            fs::remove_file(path.join(key_file_name(role))).unwrap();
        }
        assert!(ensure(&path).unwrap());
        assert_eq!(KeysDirectory::open(&path).unwrap().authority(), authority);
        let worker = path.join(key_file_name(Role::Worker));
        assert!(before.contains(&(worker.clone(), fs::read_to_string(&worker).unwrap())));
        assert_eq!(own_keys(&path).len(), ROLES.len());
    }

    #[test]
    fn copies_and_key_files_are_left_alone() {
        let (parent, path) = made();
        let (file, missing) = (path.join(key_file_name(Role::Worker)), parent.path().join("worker.pem"));
        assert!(!ensure(&file).unwrap());
        assert!(!ensure(&missing).unwrap() && !missing.exists());
        fs::remove_file(path.join(AUTHORITY)).unwrap();
        fs::remove_file(path.join(key_file_name(Role::Client))).unwrap();
        let before = content(&path);
        assert!(!ensure(&path).unwrap());
        assert_eq!(content(&path), before);
        for path in [&path, &file, &missing] {
            let error = KeysDirectory::open(path).unwrap_err();
            assert!(matches!(&error, KeysError::NoAuthority { path: named } if named == path), "{error}");
        }
    }

    #[test]
    fn a_directory_that_others_can_enter_is_refused() {
        let (_parent, path) = made();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o750)).unwrap();
        for error in [ensure(&path).unwrap_err(), KeysDirectory::open(&path).unwrap_err()] {
            assert!(error.to_string().contains(&format!("chmod 700 {}", path.display())), "{error}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        let file = path.join(AUTHORITY);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        let error = KeysDirectory::open(&path).unwrap_err().to_string();
        assert!(error.contains(&format!("chmod 600 {}", file.display())), "{error}");
    }

    #[test]
    fn a_directory_of_something_else_is_not_to_be_closed_to_others() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("etc");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(
            ensure(&path).unwrap_err().to_string().contains("chmod 700"),
            "an empty one may be meant for keys"
        );
        fs::write(path.join("hosts"), "").unwrap();
        for error in [ensure(&path).unwrap_err(), KeysDirectory::open(&path).unwrap_err()] {
            assert!(matches!(error, KeysError::Malformed { .. }), "{error}");
        }
        assert_eq!(fs::read_dir(&path).unwrap().count(), 1, "nothing is made there");
    }

    #[test]
    fn keys_for_other_places_are_on_record_and_listed_until_they_expire() {
        let (_parent, path) = made();
        let mut directory = KeysDirectory::open(&path).unwrap();
        let user: UserName = "ann".parse().unwrap();
        let file = directory.issue(Role::Client, user.clone(), Duration::from_hours(1)).unwrap();
        let long = directory.issue(Role::Client, user.clone(), Duration::MAX).unwrap();
        drop(directory);
        let directory = KeysDirectory::open(&path).unwrap();
        let identity = file.identity().unwrap();
        assert_eq!((identity.role, &identity.user), (Role::Client, &user));
        let issued = directory.index.get(identity.key).unwrap();
        assert_eq!((issued.expires - issued.made, &issued.user), (Duration::from_hours(1), &user));
        let issued = directory.index.get(long.identity().unwrap().key).unwrap();
        assert_eq!(issued.expires - issued.made, AUTHORITY_VALIDITY);
        assert_eq!(directory.issued().count(), ROLES.len() + 2);
        let mut all = directory.keys_of(&user);
        all.retain(|key| [identity.key, long.identity().unwrap().key].contains(key));
        assert_eq!(all.len(), 2);
        let later = wall_clock() + Duration::from_hours(48);
        assert_eq!(directory.index.unexpired(later).count(), ROLES.len() + 1);
    }

    #[test]
    fn rotation_gives_each_role_a_new_key_and_drops_the_old_ones_in_the_end() {
        let (_parent, path) = made();
        let (first, old) = (KeysDirectory::open(&path).unwrap().authority(), own_keys(&path));
        assert_eq!(KeysDirectory::open(&path).unwrap().rotate().unwrap(), Rotation::Done);
        let mut directory = KeysDirectory::open(&path).unwrap();
        assert_ne!(directory.authority(), first);
        let new = own_keys(&path);
        assert!(new.iter().all(|key| !old.contains(key)));
        assert!(old.iter().chain(&new).all(|&key| directory.index.get(key).is_some()));
        let chain = |role| KeyFile::read(&path.join(key_file_name(role))).unwrap().chain.len();
        assert_eq!(chain(Role::Scheduler), 2);

        directory.drop_old().unwrap();
        drop(directory);
        let directory = KeysDirectory::open(&path).unwrap();
        assert_eq!((own_keys(&path), chain(Role::Scheduler)), (new.clone(), 1));
        assert!(directory.issued().all(|key| new.contains(&key.key)));
    }

    #[test]
    fn a_start_that_was_interrupted_is_completed_by_the_next() {
        for name in ROLES.map(key_file_name).into_iter().chain([INDEX.to_owned(), AUTHORITY.to_owned()]) {
            let parent = tempfile::tempdir().unwrap();
            let path = parent.path().join("keys");
            DirBuilder::new().mode(0o700).create(&path).unwrap();
            let new = path.join(format!("{name}.new"));
            fs::create_dir(&new).unwrap();
            assert!(ensure(&path).is_err(), "{name}");
            fs::remove_dir(&new).unwrap();
            fs::write(&new, "half a").unwrap();

            assert!(ensure(&path).unwrap(), "{name}");

            all_work(&path);
            assert!(!new.exists());
            let directory = KeysDirectory::open(&path).unwrap();
            assert!(own_keys(&path).into_iter().all(|key| directory.issued_key(key).is_some()));
        }
    }

    /// A change to a keys directory.
    #[derive(Clone, Copy, PartialEq)]
    enum Change {
        Rotate,
        DropOld,
        Revoke(KeyId),
    }

    impl Change {
        fn make(self, path: &Path) -> Result<(), KeysError> {
            let mut directory = KeysDirectory::open(path)?;
            match self {
                Self::Rotate => directory.rotate().map(drop),
                Self::DropOld => directory.drop_old(),
                Self::Revoke(key) => directory.revoke(&[key]).map(drop),
            }
        }

        /// Makes it, but it is interrupted where it writes this file. False if it doesn't write that.
        fn make_until(self, path: &Path, name: &str) -> bool {
            let obstacle = path.join(format!("{name}.new"));
            fs::create_dir(&obstacle).unwrap();
            let made = self.make(path);
            fs::remove_dir(&obstacle).unwrap();
            made.is_err()
        }
    }

    /// Whether the servers' key files and those of their clients accept each other.
    fn all_work(path: &Path) {
        let file = |role| KeyFile::read(&path.join(key_file_name(role))).unwrap();
        for server in [Role::Scheduler, Role::ProgressServer] {
            for client in [Role::Worker, Role::Client, Role::Admin] {
                assert_eq!(admits_at(&file(server), &file(client), wall_clock()), Ok(()));
                assert_eq!(believes_at(&file(client), &file(server), server, wall_clock()), Ok(()));
            }
        }
    }

    #[test]
    fn wherever_a_change_is_interrupted_all_keys_work_and_the_same_again_completes_it() {
        let names = ROLES.map(key_file_name).into_iter().chain([INDEX.to_owned(), AUTHORITY.to_owned()]);
        for (name, case) in names.flat_map(|name| (0..3).map(move |case| (name.clone(), case))) {
            let (_parent, path) = made();
            let issued =
                KeysDirectory::open(&path).unwrap().issue(Role::Worker, login_name(), KEY_VALIDITY).unwrap();
            let key = issued.identity().unwrap().key;
            let (change, verdict) =
                [(Change::Rotate, Ok(())), (Change::DropOld, UNKNOWN), (Change::Revoke(key), REVOKED)][case]
                    .clone();
            if change == Change::DropOld {
                Change::Rotate.make(&path).unwrap();
            }

            let writes = name != AUTHORITY || change != Change::Revoke(key);
            assert_eq!(change.make_until(&path, &name), writes, "{name}");
            all_work(&path);
            let directory = KeysDirectory::open(&path).unwrap();
            assert!(own_keys(&path).into_iter().all(|key| directory.issued_key(key).is_some()));
            drop(directory);
            assert!(!ensure(&path).unwrap());
            change.make(&path).unwrap();

            all_work(&path);
            let scheduler = KeyFile::read(&path.join("scheduler.pem")).unwrap();
            assert_eq!(admits_at(&scheduler, &issued, wall_clock()), verdict, "{name}");
            let directory = KeysDirectory::open(&path).unwrap();
            let is_current = |key| directory.issued_key(key).unwrap().authority == directory.authority();
            assert!(own_keys(&path).into_iter().all(is_current));
            assert_eq!(directory.previous().is_some(), change == Change::Rotate);
        }
    }

    #[test]
    fn a_rotation_that_was_interrupted_begins_no_other() {
        let (_parent, path) = made();
        assert!(Change::Rotate.make_until(&path, "client.pem"));
        let second = KeysDirectory::open(&path).unwrap().authority();
        assert_eq!(KeysDirectory::open(&path).unwrap().rotate().unwrap(), Rotation::Completed);
        assert_eq!(KeysDirectory::open(&path).unwrap().authority(), second);
        assert_eq!(KeysDirectory::open(&path).unwrap().rotate().unwrap(), Rotation::Done);
    }

    #[test]
    fn a_key_file_that_somebody_has_taken_away_is_no_interrupted_rotation() {
        let (_parent, path) = made();
        let first = KeysDirectory::open(&path).unwrap().authority();
        KeysDirectory::open(&path).unwrap().rotate().unwrap();
        fs::remove_file(path.join("client.pem")).unwrap();
        assert_eq!(KeysDirectory::open(&path).unwrap().rotate().unwrap(), Rotation::Done);
        KeysDirectory::open(&path).unwrap().drop_old().unwrap();
        let directory = KeysDirectory::open(&path).unwrap();
        assert_eq!(directory.previous(), None);
        assert_ne!(directory.authority(), first);
        all_work(&path);
    }

    #[test]
    fn no_key_is_dropped_that_this_directory_still_uses() {
        for name in ROLES.map(key_file_name).into_iter().chain([INDEX.to_owned(), AUTHORITY.to_owned()]) {
            let (_parent, path) = made();
            assert!(Change::Rotate.make_until(&path, "worker.pem"));
            assert!(Change::DropOld.make_until(&path, &name), "{name}");
            all_work(&path);
        }
    }

    #[test]
    fn a_revoked_key_of_the_directory_itself_is_replaced() {
        let (_parent, path) = made();
        let (client, worker) = (own_key(&path, Role::Client), own_key(&path, Role::Worker));
        let exported = {
            let mut directory = KeysDirectory::open(&path).unwrap();
            directory.issue(Role::Worker, login_name(), KEY_VALIDITY).unwrap().identity().unwrap().key
        };
        let before = fs::read(path.join(key_file_name(Role::Worker))).unwrap();
        for renewed in [&[Role::Client][..], &[]] {
            let mut directory = KeysDirectory::open(&path).unwrap();
            assert_eq!(directory.revoke(&[client, exported, KeyId::random()]).unwrap(), renewed);
        }
        assert_ne!(own_key(&path, Role::Client), client);
        assert_eq!(own_key(&path, Role::Worker), worker);
        assert_ne!(fs::read(path.join(key_file_name(Role::Worker))).unwrap(), before, "it has the new list");
        let directory = KeysDirectory::open(&path).unwrap();
        let revoked = directory.issued().filter(|key| key.revoked.is_some()).map(|key| key.key);
        let mut expected = [client, exported];
        expected.sort();
        assert_eq!(revoked.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_broken_key_file_stops_a_change_before_it_has_begun() {
        let (_parent, path) = made();
        fs::write(path.join(key_file_name(Role::Admin)), "nonsense").unwrap();
        let before = content(&path);
        let key = own_key(&path, Role::Client);
        let mut directory = KeysDirectory::open(&path).unwrap();
        assert!(matches!(directory.revoke(&[key]), Err(KeysError::Malformed { .. })));
        assert!(matches!(directory.rotate(), Err(KeysError::Malformed { .. })));
        assert!(matches!(directory.drop_old(), Err(KeysError::Malformed { .. })));
        assert_eq!(content(&path), before);
    }

    #[test]
    fn without_its_record_an_authority_is_not_used() {
        let (_parent, path) = made();
        fs::remove_file(path.join(INDEX)).unwrap();
        let error = KeysDirectory::open(&path).unwrap_err();
        assert!(matches!(&error, KeysError::Io { path: named, .. } if named.ends_with(INDEX)), "{error}");
        fs::write(path.join(INDEX), "{\"revision\":1}\n{}\n").unwrap();
        fs::set_permissions(path.join(INDEX), fs::Permissions::from_mode(0o600)).unwrap();
        let error = KeysDirectory::open(&path).unwrap_err().to_string();
        assert!(error.contains(INDEX) && error.contains("line 2"), "{error}");
    }
}
