//! Disks of a test's own: small ones that fill up, and ones whose writes stall.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;

/// A file system that is mounted for a test, unmounted when this is dropped.
#[derive(Debug)]
pub(crate) struct Disk {
    mounted_on: PathBuf,
}

impl Disk {
    /// A tmpfs of so many MiB. None where this process may not mount: the reason is on stderr, and the test has nothing to
    /// show on this machine.
    pub(crate) fn small(mount_on: &Path, mebibytes: u32) -> Option<Self> {
        let size = format!("size={mebibytes}m,mode=700");
        Self::mount(mount_on, &["-t", "tmpfs", "-o", &size, "lrts-test"])
    }

    /// An ext4 in a file beside the mount point, that can be frozen. None as for [`Disk::small`].
    pub(crate) fn freezable(mount_on: &Path) -> Option<Self> {
        let image = mount_on.with_extension("img");
        File::create(&image).and_then(|file| file.set_len(256 << 20)).expect("the test's own directory");
        let image = image.to_str().expect("paths of tests are text");
        if let Err(reason) = run("mkfs.ext4", &["-q", "-F", image]) {
            return skip(&reason);
        }
        let disk = Self::mount(mount_on, &["-o", "loop", image])?;
        // What a new file system has of its own would make the directory somebody else's.
        std::fs::remove_dir(mount_on.join("lost+found")).expect("a new ext4 has it");
        std::fs::set_permissions(mount_on, std::fs::Permissions::from_mode(0o700)).expect("it is ours");
        Some(disk)
    }

    fn mount(mount_on: &Path, arguments: &[&str]) -> Option<Self> {
        std::fs::create_dir_all(mount_on).expect("the test's own directory");
        let mut arguments = arguments.to_vec();
        arguments.push(mount_on.to_str().expect("paths of tests are text"));
        match run("mount", &arguments) {
            Ok(()) => Some(Self { mounted_on: mount_on.to_owned() }),
            Err(reason) => skip(&reason),
        }
    }

    /// Fills what is left, but for so many bytes. Room comes back when the ballast is dropped.
    pub(crate) fn fill_but(&self, left: u64) -> Ballast {
        let path = self.mounted_on.join("ballast");
        let mut ballast = File::create(&path).expect("a name needs no room");
        // Others write meanwhile: only a refused write shows that there is no room.
        let refused = loop {
            if let Err(error) = ballast.write_all(&[0; 64 * 1024]) {
                break error;
            }
        };
        assert_eq!(refused.kind(), std::io::ErrorKind::StorageFull);
        let length = ballast.metadata().expect("it is open").len();
        ballast.set_len(length.saturating_sub(left)).expect("it gets shorter");
        Ballast(path)
    }

    /// Makes every write wait until the guard is dropped.
    pub(crate) fn freeze(&self) -> Frozen<'_> {
        self.set_frozen("-f");
        Frozen(self)
    }

    fn set_frozen(&self, flag: &str) {
        run("fsfreeze", &[flag, self.mounted_on.to_str().expect("paths of tests are text")])
            .expect("what can be mounted can be frozen");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a process of a failed test may still be about to end.
        let unmounted = run("umount", &["-l", self.mounted_on.to_str().expect("paths of tests are text")]);
        if !std::thread::panicking() {
            unmounted.expect("it was mounted");
        }
    }
}

/// A file that takes the room of a disk.
#[derive(Debug)]
pub(crate) struct Ballast(PathBuf);

impl Drop for Ballast {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).expect("nobody else touches it");
    }
}

/// A disk whose writes wait.
#[derive(Debug)]
pub(crate) struct Frozen<'a>(&'a Disk);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        self.0.set_frozen("-u");
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output =
        Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

fn skip<T>(reason: &str) -> Option<T> {
    static SAID: Once = Once::new();
    SAID.call_once(|| eprintln!("tests with disks of their own show nothing here: {reason}"));
    None
}
