//! Results that wait on a worker's disk: too large for a notice, or left behind by a host that has ended.
//!
//! A job process writes `NAME.part` and renames it, so a file without that suffix is whole. Nothing is synced: a power loss may
//! cost a result, and then the job runs again.
//!
//! A large output is a file of its own, `JOB.ATTEMPT`. What else belongs to an attempt's end is with its host; where no worker
//! is connected, the host writes it beside the output, as `JOB.ATTEMPT.end`: the notices that it would have sent, so that the
//! result outlives the host too.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::ids::AttemptId;
use crate::private_dir::{self, PrivateDirError};

/// Suffix of a file that is being written.
const PART: &str = ".part";

/// Suffix of a file with the notices of an attempt's end.
const END: &str = ".end";

/// A directory of results, one file an attempt.
#[derive(Clone, Debug)]
pub struct Spool {
    directory: PathBuf,
}

/// A file of the spool.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SpoolFile {
    /// Whose result it is.
    pub attempt: AttemptId,
    /// Its length.
    pub bytes: u64,
    /// Whether it is whole. If not, its job process is writing it or has died over it.
    pub whole: bool,
}

impl Spool {
    /// The spool in this directory, which is made (mode 0700) if it isn't there.
    ///
    /// # Errors
    ///
    /// [`PrivateDirError`].
    pub fn open(directory: impl Into<PathBuf>) -> Result<Self, PrivateDirError> {
        let directory = directory.into();
        private_dir::make(&directory)?;
        Ok(Self { directory })
    }

    /// Where the result of an attempt goes.
    pub fn path(&self, attempt: AttemptId) -> PathBuf {
        self.directory.join(format!("{}.{}", attempt.job, attempt.attempt))
    }

    /// The result of an attempt, which must have exactly this many bytes.
    ///
    /// # Errors
    ///
    /// Those of `read(2)`; `NotFound` if there is none, `InvalidData` if it has another length.
    pub fn read(&self, attempt: AttemptId, bytes: u64) -> io::Result<Vec<u8>> {
        let content = fs::read(self.path(attempt))?;
        if content.len() as u64 != bytes {
            let text = format!("spool file of {attempt} has {} bytes instead of {bytes}", content.len());
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(content)
    }

    /// Deletes what there is of an attempt, whole or not. Nothing there is fine.
    ///
    /// # Errors
    ///
    /// Those of `unlink(2)`.
    pub fn remove(&self, attempt: AttemptId) -> io::Result<()> {
        let path = self.path(attempt);
        let end = with_suffix(&path, END);
        for path in [part_of(&end), end, part_of(&path), path] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// The attempts whose hosts have written their ends, in order.
    ///
    /// # Errors
    ///
    /// Those of `readdir(3)`.
    pub fn ends(&self) -> io::Result<Vec<AttemptId>> {
        let mut ends = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            ends.extend(name.to_str().and_then(|name| attempt_of(name.strip_suffix(END)?)));
        }
        ends.sort_unstable();
        Ok(ends)
    }

    /// The notices of an attempt's end, as given to [`write_end`].
    ///
    /// # Errors
    ///
    /// Those of `read(2)`; `NotFound` if there are none, `InvalidData` if the file is torn.
    pub fn read_end(&self, attempt: AttemptId) -> io::Result<Vec<Vec<u8>>> {
        read_end(&self.path(attempt))
    }

    /// What is there of outputs, ordered by attempt. Files of other names are passed over.
    ///
    /// # Errors
    ///
    /// Those of `readdir(3)`.
    pub fn scan(&self) -> io::Result<Vec<SpoolFile>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            let (name, whole) = match name.strip_suffix(PART) {
                Some(name) => (name, false),
                None => (name, true),
            };
            let Some(attempt) = attempt_of(name) else { continue };
            match entry.metadata() {
                Ok(metadata) => files.push(SpoolFile { attempt, bytes: metadata.len(), whole }),
                // Renamed or removed since the directory was read.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        files.sort_by_key(|file| (file.attempt, file.whole));
        Ok(files)
    }
}

/// Writes a result: `PATH.part`, then renamed, so that whoever sees `PATH` sees all of it.
///
/// A full disk is no reason to lose a day's work: `wait` is called each time that there is no room, and the write goes on
/// where it stopped.
///
/// # Errors
///
/// Those of `open(2)`, `write(2)` and `rename(2)`, except for a full disk or quota.
pub fn write(path: &Path, bytes: &[u8], mut wait: impl FnMut(&io::Error)) -> io::Result<()> {
    let part = part_of(path);
    let mut file = patiently(&mut wait, || private_dir::file_options().truncate(true).open(&part))?;
    let mut rest = bytes;
    while !rest.is_empty() {
        let written = patiently(&mut wait, || file.write(rest))?;
        rest = &rest[written..];
    }
    patiently(&mut wait, || fs::rename(&part, path))
}

/// Writes the notices of an attempt's end beside where its output goes. Doesn't wait for a full disk: the caller tries again.
///
/// # Errors
///
/// Those of `open(2)`, `write(2)` and `rename(2)`.
pub fn write_end(output: &Path, notices: &[impl AsRef<[u8]>]) -> io::Result<()> {
    let path = with_suffix(output, END);
    let part = part_of(&path);
    let mut content = Vec::new();
    for notice in notices {
        let notice = notice.as_ref();
        let length = u32::try_from(notice.len()).expect("a notice is small");
        content.extend_from_slice(&length.to_le_bytes());
        content.extend_from_slice(notice);
    }
    private_dir::write(&part, content).and_then(|()| fs::rename(&part, &path)).inspect_err(|_| {
        // A full disk is short enough of room.
        let _ = fs::remove_file(&part);
    })
}

/// The notices of an attempt's end, as given to [`write_end`] with the same path.
///
/// # Errors
///
/// Those of `read(2)`; `NotFound` if there are none, `InvalidData` if the file is torn.
pub fn read_end(output: &Path) -> io::Result<Vec<Vec<u8>>> {
    let path = with_suffix(output, END);
    let content = fs::read(&path)?;
    let mut rest = &content[..];
    let mut notices = Vec::new();
    while !rest.is_empty() {
        let notice = rest.split_first_chunk::<4>().and_then(|(length, behind)| {
            let length = u32::from_le_bytes(*length) as usize;
            let notice = behind.get(..length)?;
            rest = &behind[length..];
            Some(notice.to_vec())
        });
        let torn = || io::Error::new(io::ErrorKind::InvalidData, format!("`{}` is torn", path.display()));
        notices.push(notice.ok_or_else(torn)?);
    }
    Ok(notices)
}

/// Whether reading again can't help, ever: there is no such file, or it is torn. Anything else may pass.
pub fn is_final(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData)
}

/// Deletes what [`write_end`] has written with the same path. Nothing there is fine.
///
/// # Errors
///
/// Those of `unlink(2)`.
pub fn remove_end(output: &Path) -> io::Result<()> {
    match fs::remove_file(with_suffix(output, END)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn patiently<T>(wait: &mut impl FnMut(&io::Error), mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error)
                if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) =>
            {
                wait(&error);
            }
            result => return result,
        }
    }
}

fn part_of(path: &Path) -> PathBuf {
    with_suffix(path, PART)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn attempt_of(name: &str) -> Option<AttemptId> {
    let (job, attempt) = name.rsplit_once('.')?;
    Some(AttemptId { job: job.parse().ok()?, attempt: attempt.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::SessionId;

    fn attempt(sequence: u64) -> AttemptId {
        AttemptId { job: SessionId(0x1f).job(sequence), attempt: 2 }
    }

    #[test]
    fn results_are_written_found_read_and_removed() {
        let directory = tempfile::tempdir().unwrap();
        let spool = Spool::open(directory.path().join("spool")).unwrap();
        write(&spool.path(attempt(2)), b"second", |error| panic!("{error}")).unwrap();
        write(&spool.path(attempt(1)), b"first", |error| panic!("{error}")).unwrap();
        fs::write(part_of(&spool.path(attempt(3))), b"thi").unwrap();
        fs::write(directory.path().join("spool/other"), b"").unwrap();

        let file = |sequence, bytes, whole| SpoolFile { attempt: attempt(sequence), bytes, whole };
        assert_eq!(spool.scan().unwrap(), [file(1, 5, true), file(2, 6, true), file(3, 3, false)]);
        assert_eq!(spool.read(attempt(1), 5).unwrap(), b"first");
        assert_eq!(spool.read(attempt(1), 6).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(spool.read(attempt(3), 3).unwrap_err().kind(), io::ErrorKind::NotFound);

        for sequence in 1..=4 {
            spool.remove(attempt(sequence)).unwrap();
        }
        assert_eq!(spool.scan().unwrap(), []);
    }

    #[test]
    fn ends_are_written_found_read_and_removed() {
        let directory = tempfile::tempdir().unwrap();
        let spool = Spool::open(directory.path()).unwrap();
        let path = spool.path(attempt(1));
        write_end(&path, &[&b"one"[..], b"", b"three"]).unwrap();
        assert_eq!((spool.ends().unwrap(), spool.scan().unwrap()), (vec![attempt(1)], vec![]));
        assert_eq!(spool.read_end(attempt(1)).unwrap(), [&b"one"[..], b"", b"three"]);
        let file = with_suffix(&path, END);
        let content = fs::read(&file).unwrap();
        fs::write(&file, &content[..content.len() - 1]).unwrap();
        assert_eq!(spool.read_end(attempt(1)).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(spool.read_end(attempt(2)).unwrap_err().kind(), io::ErrorKind::NotFound);
        spool.remove(attempt(1)).unwrap();
        assert!(spool.ends().unwrap().is_empty());
    }

    #[test]
    fn a_full_disk_is_waited_for_other_errors_are_not() {
        let mut calls = 0;
        let mut waits = 0;
        let result = patiently(&mut |_| waits += 1, || {
            calls += 1;
            match calls {
                1 => Err(io::ErrorKind::StorageFull.into()),
                2 => Err(io::ErrorKind::QuotaExceeded.into()),
                3 => Err(io::ErrorKind::Interrupted.into()),
                _ => Ok(calls),
            }
        });
        assert_eq!((result.unwrap(), waits), (4, 2));

        let missing = Path::new("/proc/self/no such directory/result");
        assert!(write(missing, b"x", |error| panic!("{error}")).is_err());
    }
}
