//! Directories that nobody else can enter: those that last, and temporary ones that whoever comes
//! next removes if they stay behind, as after `kill -9`. And files that nobody else can open.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use nix::unistd::{Gid, Group, User, geteuid};
use tracing::warn;

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
            | PrivateDirError::LinkOfAnother { .. } => io::Error::new(io::ErrorKind::PermissionDenied, error),
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
/// user's, and nobody else's to write to: what others have put there could be taken for one's own. For the way, see [`check_way`].
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

/// Checks that nobody but this user and root has laid the way to a path: that no symbolic link of somebody else is on it.
///
/// Whoever may rename a directory on the way could still put another in its place. Containers and shared project directories are
/// often set up so, with nobody there to do it, so the log warns of that, and says what mends it.
///
/// # Errors
///
/// [`PrivateDirError`].
pub fn check_way(path: &Path) -> Result<(), PrivateDirError> {
    let failed = |source| PrivateDirError::Io { path: path.to_owned(), source };
    let steps = steps_to(path).map_err(failed)?;
    // Whoever has the root directory has everything. In a namespace of users, root may go by another number, the one that all
    // have there who aren't of it.
    let all = steps.first().map_or(0, |root| root.owner);
    let trusted = [geteuid().as_raw(), 0, all];
    for step in steps {
        if step.is_link && !trusted.contains(&step.owner) {
            return Err(PrivateDirError::LinkOfAnother { path: step.path, owner: step.owner });
        }
        if let Some(weakness) = step.weakness(&trusted, is_harmless_group) {
            let (above, path) = (step.path.display(), path.display());
            warn!(%above, %path, "{weakness}");
        }
    }
    Ok(())
}

/// Why a directory that is private may not stay in its place.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
enum Weakness {
    #[error(
        "others may write to the directory above, and so replace what is below: `chmod go-w` it (`chmod +t`, if they are to)"
    )]
    Writable,
    #[error("the directory above belongs to user number {0}, who could replace what is below")]
    OfAnother(u32),
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

    /// How somebody could replace what lies in this directory, unless it is one of those who are trusted.
    fn weakness(&self, trusted: &[u32], is_harmless_group: impl FnOnce(u32) -> bool) -> Option<Weakness> {
        if self.is_link {
            return None;
        }
        if !trusted.contains(&self.owner) {
            return Some(Weakness::OfAnother(self.owner));
        }
        let by_group = self.mode & 0o020 != 0 && !is_harmless_group(self.group);
        let by_others = self.mode & 0o002 != 0;
        (self.mode & STICKY == 0 && (by_group || by_others)).then_some(Weakness::Writable)
    }
}

/// Whether a group lets nobody in but this user and root, as far as the list of groups tells: many systems give each user a
/// group of the same name.
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
    /// If it can't be made, or a link of somebody else leads there.
    pub fn create(parent: &Path, purpose: &str) -> io::Result<Self> {
        // A name that nobody can foresee, and so be there first.
        let name = || parent.join(format!("{PREFIX}{purpose}-{:016x}", crate::ids::random_u64()));
        check_way(&name())?;
        remove_leftovers(parent);
        loop {
            let path = name();
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

        let own = geteuid().as_raw();
        let links = |path: &Path| -> Vec<PathBuf> {
            let links = steps_to(path).unwrap().into_iter().filter(|step| step.is_link);
            links.inspect(|link| assert_eq!(link.owner, own)).map(|link| link.path).collect()
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

    /// Nobody's directory is made useless by somebody who has put a link into `/tmp` first. Only root can make such a link.
    #[test]
    fn a_link_of_somebody_else_is_in_nobodys_way_but_on_their_own() {
        if !geteuid().is_root() {
            return;
        }
        let shared = tempfile::tempdir().unwrap();
        fs::set_permissions(shared.path(), Permissions::from_mode(0o1777)).unwrap();
        let link = shared.path().join("lrts-");
        symlink("nowhere", &link).unwrap();
        std::os::unix::fs::lchown(&link, Some(12_345), None).unwrap();
        assert!(PrivateDir::create(shared.path(), "").is_ok());
        let error = make(&link).unwrap_err();
        assert!(matches!(error, PrivateDirError::LinkOfAnother { owner: 12_345, .. }), "{error}");
    }

    #[test]
    fn a_directory_above_in_which_others_may_write_is_a_weakness_and_no_obstacle() {
        let parent = tempfile::tempdir().unwrap();
        let above = parent.path().join("above");
        make(&above.join("state")).unwrap();
        let own = geteuid().as_raw();
        for (mode, good) in
            [(0o755, true), (0o711, true), (0o1777, true), (0o777, false), (0o2707, false), (0o702, false)]
        {
            fs::set_permissions(&above, Permissions::from_mode(mode)).unwrap();
            for path in ["state", "state/deeper", "none", "none/../state"].map(|name| above.join(name)) {
                let steps = steps_to(&path).unwrap();
                let step = steps.iter().find(|step| step.path == above).unwrap();
                let weakness = step.weakness(&[own, 0], |_| false);
                assert_eq!(weakness, (!good).then_some(Weakness::Writable), "{mode:o}");
            }
            make(&above.join("state")).unwrap();
            PrivateDir::create(&above, "tests").unwrap();
        }
    }

    #[test]
    fn above_a_directory_its_user_root_and_a_group_of_its_own_may_write() {
        let step = |owner, mode| Step { path: "/above".into(), owner, group: 7, mode, is_link: false };
        let weakness = |owner, mode| step(owner, mode).weakness(&[1_000, 0], |group| group != 7);
        for owner in [0, 1_000] {
            assert_eq!([0o755, 0o1777].map(|mode| weakness(owner, mode)), [None; 2]);
            assert_eq!(weakness(owner, 0o775), Some(Weakness::Writable));
        }
        for mode in [0o700, 0o1777] {
            assert_eq!(weakness(1_001, mode), Some(Weakness::OfAnother(1_001)));
        }
        assert_eq!(step(1_000, 0o2775).weakness(&[1_000, 0], |group| group == 7), None);
        assert_eq!(step(1_000, 0o2777).weakness(&[1_000, 0], |group| group == 7), Some(Weakness::Writable));
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
