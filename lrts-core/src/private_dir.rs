//! Directories that nobody else can enter: those that last, and temporary ones that don't stay behind, not even after
//! `kill -9`. And files that nobody else can open.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use nix::unistd::{Gid, Group, User, geteuid};

/// The mode of directories.
const DIRECTORY_MODE: u32 = 0o700;

/// The mode of files.
const FILE_MODE: u32 = 0o600;

/// Bits that let others in, and those that let them change what is there.
const OTHERS: u32 = 0o077;
const OTHERS_WRITE: u32 = 0o022;

/// Bit of a directory in which only the owner of something may rename or remove it, as in `/tmp`.
const STICKY: u32 = 0o1000;

/// Most symbolic links on the way to a directory, as many as the kernel follows.
const LINKS: u32 = 40;

/// Why a directory can't hold what is private.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrivateDirError {
    /// Others may have put something into it.
    #[error("directory `{}` can be written to by others: `chmod 700 {}`, or give another one", path.display(), path.display())]
    Writable {
        /// The directory.
        path: PathBuf,
    },
    /// Somebody else made it, and can change everything in it.
    #[error("directory `{}` belongs to user number {owner}: give one of your own", path.display())]
    OfAnother {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// The way there is laid by somebody else, and leads wherever they like.
    #[error("`{}` is a symbolic link of user number {owner}: give the directory's own path", path.display())]
    LinkOfAnother {
        /// The link.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// Others can put something else in the place of what is in it, however private that is.
    #[error(
        "directory `{}` can be written to by others, who could replace what lies in it: `chmod go-w {}` as its owner (`chmod +t` \
         if they are to write there), or give a directory elsewhere", path.display(), path.display()
    )]
    WritableAbove {
        /// The directory, which is above the one that was asked for.
        path: PathBuf,
    },
    /// Its owner can do the same.
    #[error("directory `{}` belongs to user number {owner}, who could replace what lies in it: give a directory elsewhere", path.display())]
    AboveOfAnother {
        /// The directory, which is above the one that was asked for.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// The system says no.
    #[error("cannot use directory `{}`", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl From<PrivateDirError> for io::Error {
    fn from(error: PrivateDirError) -> Self {
        match error {
            PrivateDirError::Io { source, .. } => source,
            PrivateDirError::Writable { .. }
            | PrivateDirError::OfAnother { .. }
            | PrivateDirError::LinkOfAnother { .. }
            | PrivateDirError::WritableAbove { .. }
            | PrivateDirError::AboveOfAnother { .. } => {
                io::Error::new(io::ErrorKind::PermissionDenied, error)
            }
        }
    }
}

/// Makes a directory of mode 0700, with all above it, or makes one that is there private: see [`find`] and [`close`].
///
/// # Errors
///
/// [`PrivateDirError`].
pub fn make(path: &Path) -> Result<(), PrivateDirError> {
    find(path)?;
    close(path)
}

/// Makes a directory of mode 0700, with all above it, unless it is there. One that is there is left as it is, but must be this
/// user's, and nobody else's to write to: what others have put there could be taken for one's own. So must the way, see
/// [`check_way`].
///
/// # Errors
///
/// [`PrivateDirError`].
pub fn find(path: &Path) -> Result<(), PrivateDirError> {
    let failed = |source| PrivateDirError::Io { path: path.to_owned(), source };
    let own = geteuid().as_raw();
    check_way(path)?;
    DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(path).map_err(failed)?;
    let metadata = fs::metadata(path).map_err(failed)?;
    if metadata.uid() != own {
        return Err(PrivateDirError::OfAnother { path: path.to_owned(), owner: metadata.uid() });
    }
    if metadata.mode() & OTHERS_WRITE != 0 {
        return Err(PrivateDirError::Writable { path: path.to_owned() });
    }
    Ok(())
}

/// Keeps others from a directory of this user's own that they could only read so far, as `mkdir` makes them.
///
/// # Errors
///
/// [`PrivateDirError::Io`].
pub fn close(path: &Path) -> Result<(), PrivateDirError> {
    let failed = |source| PrivateDirError::Io { path: path.to_owned(), source };
    if fs::metadata(path).map_err(failed)?.mode() & OTHERS != 0 {
        fs::set_permissions(path, Permissions::from_mode(DIRECTORY_MODE)).map_err(failed)?;
    }
    Ok(())
}

/// Checks that nobody but this user and root can make a path lead elsewhere: not by a symbolic link of theirs, and not by renaming
/// something on the way. So each directory above it must belong to one of the two and be closed to writers, unless it is sticky
/// as `/tmp` is. The group of the user's own name may write, if nobody else is in it, and so may root's.
///
/// What isn't there yet is made later, and is private then.
///
/// # Errors
///
/// [`PrivateDirError`].
pub fn check_way(path: &Path) -> Result<(), PrivateDirError> {
    let failed = |source| PrivateDirError::Io { path: path.to_owned(), source };
    let steps = steps_to(path).map_err(failed)?;
    // Whoever has the root directory has everything. In a namespace of users, root may go by another number.
    let all = steps.first().map_or(0, |root| root.owner);
    let trusted = [geteuid().as_raw(), 0, all];
    steps.into_iter().try_for_each(|step| step.check(&trusted, is_harmless_group))
}

/// Something on the way to a directory, by which it could be made to lead elsewhere.
#[derive(Debug)]
struct Step {
    path: PathBuf,
    owner: u32,
    group: u32,
    mode: u32,
    is_link: bool,
}

impl Step {
    fn new(path: &Path, metadata: &fs::Metadata) -> Self {
        Self {
            path: path.to_owned(),
            owner: metadata.uid(),
            group: metadata.gid(),
            mode: metadata.mode(),
            is_link: metadata.is_symlink(),
        }
    }

    fn check(
        self,
        trusted: &[u32],
        is_harmless_group: impl FnOnce(u32) -> bool,
    ) -> Result<(), PrivateDirError> {
        let Self { path, owner, group, mode, is_link } = self;
        if !trusted.contains(&owner) {
            return Err(match is_link {
                true => PrivateDirError::LinkOfAnother { path, owner },
                false => PrivateDirError::AboveOfAnother { path, owner },
            });
        }
        let by_group = mode & 0o020 != 0 && !is_harmless_group(group);
        if !is_link && mode & STICKY == 0 && (by_group || mode & 0o002 != 0) {
            return Err(PrivateDirError::WritableAbove { path });
        }
        Ok(())
    }
}

/// Whether a group lets nobody in but this user and root: many systems give each user a group of the same name.
fn is_harmless_group(group: u32) -> bool {
    if group == 0 {
        return true;
    }
    let user = User::from_uid(geteuid()).ok().flatten();
    let group = Group::from_gid(Gid::from_raw(group)).ok().flatten();
    user.zip(group).is_some_and(|(user, group)| {
        group.gid == user.gid && group.name == user.name && group.mem.iter().all(|name| *name == user.name)
    })
}

/// All directories above a path, from the root directory on, and all symbolic links on the way. What isn't there yet has none.
fn steps_to(path: &Path) -> io::Result<Vec<Step>> {
    let names = |path: &Path| -> Vec<OsString> {
        let names =
            path.components().filter(|name| matches!(name, Component::Normal(_) | Component::ParentDir));
        names.map(|name| name.as_os_str().to_owned()).rev().collect()
    };
    let mut at = PathBuf::from("/");
    let mut steps = vec![Step::new(&at, &fs::symlink_metadata(&at)?)];
    let mut ahead = names(&std::path::absolute(path)?);
    let mut links = 0;
    while let Some(name) = ahead.pop() {
        if name == ".." {
            at.pop();
            continue;
        }
        let next = at.join(name);
        let metadata = match fs::symlink_metadata(&next) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) => return Err(error),
        };
        if !metadata.is_symlink() {
            at = next;
            if !ahead.is_empty() {
                steps.push(Step::new(&at, &metadata));
            }
            continue;
        }
        steps.push(Step::new(&next, &metadata));
        links += 1;
        if links > LINKS {
            return Err(nix::errno::Errno::ELOOP.into());
        }
        let target = fs::read_link(&next)?;
        if target.is_absolute() {
            at = PathBuf::from("/");
        }
        ahead.extend(names(&target));
    }
    Ok(steps)
}

/// Options to open a file to be read and written that is made, if it isn't there, for this user alone.
pub fn file_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(FILE_MODE);
    options
}

/// Writes a file that is for this user alone, in place of what was there.
///
/// # Errors
///
/// Those of `open(2)` and `write(2)`.
pub fn write(path: &Path, content: impl AsRef<[u8]>) -> io::Result<()> {
    file_options().truncate(true).open(path)?.write_all(content.as_ref())
}

/// What all of them are called; the purpose and a random number follow.
const PREFIX: &str = "lrts-";

/// Locked by the owner as long as it lives: without that, the directory is a leftover.
const LOCK: &str = "lock";

/// A new directory of mode 0700, removed with all in it when dropped.
///
/// Those whose owner was killed are removed by whoever makes the next one beside them.
#[derive(Debug)]
pub struct PrivateDir {
    path: PathBuf,
    _lock: File,
}

impl PrivateDir {
    /// Makes one in `parent`, called after its purpose.
    ///
    /// # Errors
    ///
    /// If it can't be made, or others could replace it.
    pub fn create(parent: &Path, purpose: &str) -> io::Result<Self> {
        check_way(&parent.join(PREFIX))?;
        remove_leftovers(parent);
        loop {
            let path = parent.join(format!("{PREFIX}{purpose}-{:016x}", crate::ids::random_u64()));
            match DirBuilder::new().mode(DIRECTORY_MODE).create(&path) {
                Ok(()) => {
                    // Locked before it has its name, so that nobody takes it for a leftover in between.
                    let unnamed = path.join("new");
                    let lock = file_options().open(&unnamed)?;
                    lock.lock()?;
                    fs::rename(&unnamed, path.join(LOCK))?;
                    return Ok(Self { path, _lock: lock });
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for PrivateDir {
    fn drop(&mut self) {
        // Somebody may have cleaned up before; otherwise the next one made here removes it.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Removes this user's directories whose owner is gone. What can't be looked at or removed stays.
fn remove_leftovers(parent: &Path) {
    let own = geteuid().as_raw();
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let ours = entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes())
            && entry.metadata().is_ok_and(|metadata| metadata.is_dir() && metadata.uid() == own);
        let unlocked = |lock: File| lock.try_lock().is_ok();
        if ours && File::open(entry.path().join(LOCK)).is_ok_and(unlocked) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Where lrts keeps a user's state: `$XDG_STATE_HOME/lrts`, else `~/.local/state/lrts`. None if neither variable names an
/// absolute path.
pub fn state_home(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let absolute = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let home = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    Some(home.join("lrts"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn a_directory_is_made_private_and_one_that_others_write_to_is_refused_with_the_cure() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("deep/state");
        make(&path).unwrap();
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o700, 0o700));
        for readable in [0o701, 0o710, 0o750, 0o755] {
            fs::set_permissions(&path, Permissions::from_mode(readable)).unwrap();
            find(&path).unwrap();
            assert_eq!(mode(&path), readable);
            make(&path).unwrap();
            assert_eq!(mode(&path), 0o700);
        }
        for writable in [0o702, 0o720, 0o770, 0o777, 0o1777] {
            fs::set_permissions(&path, Permissions::from_mode(writable)).unwrap();
            let error = make(&path).unwrap_err();
            assert!(matches!(error, PrivateDirError::Writable { .. }), "{writable:o}");
            assert!(error.to_string().contains(&format!("`chmod 700 {}`", path.display())), "{error}");
        }
        fs::write(parent.path().join("file"), "").unwrap();
        assert!(matches!(make(&parent.path().join("file")), Err(PrivateDirError::Io { .. })));
    }

    #[test]
    fn directories_and_links_of_others_are_refused() {
        let parent = tempfile::tempdir().unwrap();
        let (state, link) = (parent.path().join("state"), parent.path().join("link"));
        make(&state).unwrap();
        symlink("../".to_owned() + parent.path().file_name().unwrap().to_str().unwrap() + "/state", &link)
            .unwrap();
        make(&link.join("below")).unwrap();
        assert_eq!(mode(&state.join("below")), 0o700, "a link of one's own is as good as what it leads to");

        // Seen by a user who trusts nobody.
        let own = geteuid().as_raw();
        let links = |path: &Path| -> Vec<PathBuf> {
            let steps = steps_to(path).unwrap().into_iter().filter(|step| step.is_link);
            let refused = steps.map(|step| match step.check(&[u32::MAX], |_| true) {
                Err(PrivateDirError::LinkOfAnother { path, owner }) => Some(path).filter(|_| owner == own),
                _ => None,
            });
            refused.map(|path| path.expect("it is refused")).collect()
        };
        assert_eq!(links(&link.join("below")), std::slice::from_ref(&link));
        let chain = parent.path().join("chain");
        symlink(&link, &chain).unwrap();
        assert_eq!(links(&chain), [chain.clone(), link.clone()]);
        check_way(&chain).unwrap();
        assert!(links(&state.join("../none/at/all")).is_empty());
        let circle = parent.path().join("circle");
        symlink(&circle, &circle).unwrap();
        assert_eq!(steps_to(&circle).unwrap_err().raw_os_error(), Some(libc::ELOOP));

        // This one is root's, unless it is root who asks.
        if own != 0 {
            assert!(matches!(make(Path::new("/usr")), Err(PrivateDirError::OfAnother { owner: 0, .. })));
        }
    }

    #[test]
    fn a_directory_above_that_others_write_to_is_refused_with_the_cure() {
        let parent = tempfile::tempdir().unwrap();
        let above = parent.path().join("above");
        make(&above.join("state")).unwrap();
        for (mode, good) in
            [(0o755, true), (0o711, true), (0o1777, true), (0o777, false), (0o2707, false), (0o702, false)]
        {
            fs::set_permissions(&above, Permissions::from_mode(mode)).unwrap();
            for path in ["state", "state/deeper", "none", "none/../state"].map(|name| above.join(name)) {
                match make(&path) {
                    Ok(()) => assert!(good, "{mode:o}"),
                    Err(error) => {
                        assert!(
                            !good && error.to_string().contains(&format!("`chmod go-w {}`", above.display()))
                        );
                        let is_named =
                            matches!(&error, PrivateDirError::WritableAbove { path } if *path == above);
                        assert!(is_named, "{error:?}");
                    }
                }
            }
            assert_eq!(PrivateDir::create(&above, "tests").is_ok(), good, "{mode:o}");
        }
        // A link leads through it.
        let link = parent.path().join("link");
        symlink(above.join("state"), &link).unwrap();
        assert!(matches!(make(&link), Err(PrivateDirError::WritableAbove { .. })));
    }

    #[test]
    fn above_a_directory_only_its_user_and_root_may_write() {
        let check = |owner, mode| {
            let step = Step { path: "/above".into(), owner, group: 7, mode, is_link: false };
            step.check(&[1_000, 0], |group| group != 7)
        };
        for owner in [0, 1_000] {
            assert!(check(owner, 0o755).is_ok() && check(owner, 0o1777).is_ok());
            assert!(matches!(check(owner, 0o775), Err(PrivateDirError::WritableAbove { .. })));
        }
        for mode in [0o700, 0o1777] {
            assert!(matches!(check(1_001, mode), Err(PrivateDirError::AboveOfAnother { owner: 1_001, .. })));
        }
        let home = |mode| Step { path: "/home/ann".into(), owner: 1_000, group: 1_000, mode, is_link: false };
        assert!(home(0o2775).check(&[1_000, 0], |group| group == 1_000).is_ok());
        assert!(home(0o2777).check(&[1_000, 0], |group| group == 1_000).is_err());
        assert!(is_harmless_group(0) && !is_harmless_group(u32::MAX - 1));
    }

    #[test]
    fn files_are_for_the_owner_alone_whatever_the_umask_says() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let before = nix::sys::stat::umask(nix::sys::stat::Mode::empty());
        write(&path, "some more").unwrap();
        nix::sys::stat::umask(before);
        assert_eq!(mode(&path), 0o600);
        write(&path, "less").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"less");
    }

    #[test]
    fn it_is_private_and_leaves_nothing_behind() {
        let parent = tempfile::tempdir().unwrap();
        let directory = PrivateDir::create(parent.path(), "tests").unwrap();
        assert_eq!(mode(directory.path()), 0o700);
        fs::write(directory.path().join("file"), "").unwrap();
        drop(directory);
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
    }

    #[test]
    fn leftovers_go_and_others_stay() {
        let parent = tempfile::tempdir().unwrap();
        let alive = PrivateDir::create(parent.path(), "alive").unwrap();
        let killed = PrivateDir::create(parent.path(), "killed").unwrap();
        let path = killed.path.clone();
        let lock = killed._lock.try_clone().unwrap();
        std::mem::forget(killed);
        let stranger = parent.path().join("lrts-stranger");
        fs::create_dir(&stranger).unwrap();
        lock.unlock().unwrap();

        let _next = PrivateDir::create(parent.path(), "next").unwrap();

        assert!(!path.exists(), "its owner is gone");
        assert!(alive.path().exists() && stranger.exists());
    }

    #[test]
    fn the_state_home_follows_the_environment() {
        let with = |set: &'static [(&str, &str)]| {
            let variable =
                |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into());
            state_home(variable)
        };
        assert_eq!(with(&[("XDG_STATE_HOME", "/s"), ("HOME", "/h")]).unwrap(), Path::new("/s/lrts"));
        assert_eq!(with(&[("HOME", "/h")]).unwrap(), Path::new("/h/.local/state/lrts"));
        assert_eq!(with(&[("XDG_STATE_HOME", "relative")]), None);
    }
}
