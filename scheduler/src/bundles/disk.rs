//! The files of bundles, and the thread that writes them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc as blocking};
use std::time::UNIX_EPOCH;

use bytes::Bytes;
use lrts_core::bundle::{digest_file, restore_chunk};
use lrts_core::clock::wall_clock;
use lrts_core::ids::{BundleDigest, UserName};
use lrts_core::limits::BUNDLE_BACKLOG_BYTES;
use lrts_core::private_dir;
use tokio::sync::mpsc;
use tracing::warn;

use super::upload::Half;
use super::{Complete, KEPT, Outcome};
use crate::engine::Platforms;

/// What the disk is told to do, in order.
pub(super) enum Work {
    Write(Piece),
    Finish {
        digest: BundleDigest,
        number: u64,
    },
    Abandon {
        digest: BundleDigest,
        number: u64,
    },
    Remove {
        digest: BundleDigest,
    },
    /// It was used until now.
    Touch {
        digest: BundleDigest,
    },
}

/// A piece of a file, in the backlog for as long as this lives.
pub(super) struct Piece {
    digest: BundleDigest,
    number: u64,
    offset: u64,
    bytes: u32,
    compressed: Bytes,
    /// All that wait, and those of the same user.
    backlogs: [Arc<AtomicUsize>; 2],
}

impl Drop for Piece {
    fn drop(&mut self) {
        for backlog in &self.backlogs {
            backlog.fetch_sub(self.bytes as usize, Ordering::Relaxed);
        }
    }
}

/// The orders of two threads, which end with them: one writes, the other one does all that comes after. To verify a large file takes
/// long, to sync many small ones too, and nobody else's pieces wait for that.
pub(super) struct Disk {
    pub(super) work: blocking::Sender<Work>,
    /// Bytes of pieces that are to be written, as they will be in the file.
    pub(super) backlog: Arc<AtomicUsize>,
    /// Those of each user who has some.
    backlogs: BTreeMap<Option<UserName>, Arc<AtomicUsize>>,
}

impl Disk {
    /// Starts the threads, and returns where they say how uploads end.
    ///
    /// # Errors
    ///
    /// If one can't be started.
    pub(super) fn start(directory: PathBuf) -> io::Result<(Self, mpsc::UnboundedReceiver<Outcome>)> {
        let (work, orders) = blocking::channel();
        let (rest, written) = blocking::channel();
        let (sender, outcomes) = mpsc::unbounded_channel();
        let files = Files { directory, outcomes: sender };
        let verifier = files.clone();
        let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
        thread("bundles").spawn(move || files.write(&orders, &rest))?;
        thread("bundles-verify").spawn(move || verifier.finish_all(&written))?;
        Ok((Self { work, backlog: Arc::default(), backlogs: BTreeMap::new() }, outcomes))
    }

    pub(super) fn order(&self, work: Work) {
        self.work.send(work).expect("the writer lives as long as its orders come");
    }

    /// Whether a user's piece of this length finds room in the backlog. A user has no more of it than is left for all others, so one
    /// who sends faster than the disk writes leaves half of it free.
    pub(super) fn has_time_for(&self, user: Option<&UserName>, bytes: u32) -> bool {
        let own = self.backlogs.get(&user.cloned()).map_or(0, |backlog| backlog.load(Ordering::Relaxed));
        own + bytes as usize + self.backlog.load(Ordering::Relaxed) <= BUNDLE_BACKLOG_BYTES
    }

    /// Has a user's piece written.
    pub(super) fn write(
        &mut self,
        user: Option<UserName>,
        (digest, number): (BundleDigest, u64),
        offset: u64,
        bytes: u32,
        compressed: Bytes,
    ) {
        if !self.backlogs.contains_key(&user) {
            self.backlogs.retain(|_, backlog| Arc::strong_count(backlog) > 1);
        }
        let backlogs = [&self.backlog, self.backlogs.entry(user).or_default()].map(Arc::clone);
        for backlog in &backlogs {
            backlog.fetch_add(bytes as usize, Ordering::Relaxed);
        }
        self.order(Work::Write(Piece { digest, number, offset, bytes, compressed, backlogs }));
    }
}

/// Suffix of files that aren't whole.
const PART: &str = ".part";

fn part(directory: &Path, digest: BundleDigest, number: u64) -> PathBuf {
    directory.join(format!("{digest}.{number}{PART}"))
}

/// Which bundle's part this is, and its number; none if it can't be continued, being of a scheduler before.
fn parse_part(name: &str) -> Option<(BundleDigest, Option<u64>)> {
    let name = name.strip_suffix(PART)?;
    let (digest, number) = name.split_once('.').unwrap_or((name, ""));
    // Far from where numbers end, and as it is written, so that this is the file's name.
    let parsed = number.parse::<u32>().ok().filter(|parsed| parsed.to_string() == number);
    Some((digest.parse().ok()?, parsed.map(u64::from)))
}

/// Schedulers before kept beside a bundle what it was built for.
fn is_description(name: &str) -> bool {
    name.strip_suffix(".platform").is_some_and(|name| name.parse::<BundleDigest>().is_ok())
}

/// The bundles that earlier schedulers left in a directory, and of the others the longest half of each. Halves that nobody has gone
/// on with for long are deleted. What the bundles were built for isn't known any more.
///
/// # Errors
///
/// Those of `readdir(3)`, `stat(2)` and `unlink(2)`.
pub(super) fn scan(
    directory: &Path,
) -> io::Result<(BTreeMap<BundleDigest, Complete>, BTreeMap<BundleDigest, Half>)> {
    let (mut complete, mut halves) = (BTreeMap::new(), BTreeMap::<_, Half>::new());
    let mut parts = Vec::new();
    let now = wall_clock();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let metadata = entry.metadata()?;
        let modified = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
        if let Some((digest, number)) = parse_part(name) {
            parts.push((entry.path(), digest, number, metadata.len(), modified));
        } else if is_description(name) {
            fs::remove_file(entry.path())?;
        } else if let Ok(digest) = name.parse() {
            let (bytes, platforms) = (metadata.len(), Platforms::Any);
            complete.insert(digest, Complete { bytes, last_used: modified, platforms });
        }
    }
    for (path, digest, number, bytes, left) in parts {
        let is_longest =
            !complete.contains_key(&digest) && halves.get(&digest).is_none_or(|half| half.bytes < bytes);
        let Some(number) = number.filter(|_| is_longest && now.saturating_sub(left) <= KEPT) else {
            fs::remove_file(path)?;
            continue;
        };
        if let Some(shorter) = halves.insert(digest, Half { bytes, left, number }) {
            fs::remove_file(part(directory, digest, shorter.number))?;
        }
    }
    Ok((complete, halves))
}

/// Whose fault it is that nothing comes of a file.
enum Fault {
    /// Of whoever sent it, or what it continued.
    Sender(io::Error),
    Disk(io::Error),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Disk(error)
    }
}

/// What the threads know.
#[derive(Clone)]
struct Files {
    directory: PathBuf,
    outcomes: mpsc::UnboundedSender<Outcome>,
}

impl Files {
    /// The thread that writes, and hands on what comes after.
    fn write(&self, orders: &blocking::Receiver<Work>, rest: &blocking::Sender<Work>) {
        // Files of which nothing more is written, until they are abandoned.
        let mut failed: BTreeSet<u64> = BTreeSet::new();
        for work in orders {
            match work {
                Work::Write(piece) => {
                    let (digest, number) = (piece.digest, piece.number);
                    if !failed.contains(&number)
                        && let Err(fault) = write_piece(&self.directory, &piece)
                    {
                        failed.insert(number);
                        self.failed(digest, number, fault);
                    }
                    continue;
                }
                Work::Finish { number, .. } if failed.contains(&number) => continue,
                Work::Abandon { number, .. } => drop(failed.remove(&number)),
                Work::Finish { .. } | Work::Remove { .. } | Work::Touch { .. } => {}
            }
            if rest.send(work).is_err() {
                return;
            }
        }
    }

    /// The thread that does the rest.
    fn finish_all(&self, orders: &blocking::Receiver<Work>) {
        let directory = &self.directory;
        for work in orders {
            match work {
                Work::Write(_) => {}
                Work::Finish { digest, number } => match finish(directory, digest, number) {
                    Ok(()) => self.tell(Outcome::Stored { digest, number }),
                    Err(fault) => self.failed(digest, number, fault),
                },
                Work::Abandon { digest, number } => remove_part(directory, digest, number),
                Work::Touch { digest } => {
                    // It may have been deleted by somebody, which shows when it is wanted.
                    let _ = File::open(directory.join(digest.to_string()))
                        .and_then(|file| file.set_modified(UNIX_EPOCH + wall_clock()));
                }
                Work::Remove { digest } => {
                    if let Err(error) = fs::remove_file(directory.join(digest.to_string())) {
                        warn!(bundle = %digest, %error, "bundle not deleted");
                    }
                }
            }
        }
    }

    /// Nothing comes of this file.
    fn failed(&self, digest: BundleDigest, number: u64, fault: Fault) {
        remove_part(&self.directory, digest, number);
        self.tell(match fault {
            Fault::Sender(error) => {
                let reason = format!("the scheduler can't store the bundle: {error}");
                Outcome::Failed { digest, number, reason }
            }
            Fault::Disk(error) => Outcome::DiskFailed { digest, number, error },
        });
    }

    fn tell(&self, outcome: Outcome) {
        // Nobody listens any more once the scheduler has ended.
        let _ = self.outcomes.send(outcome);
    }
}

/// If it can't be deleted, what is wrong with it shows when it is verified.
fn remove_part(directory: &Path, digest: BundleDigest, number: u64) {
    let _ = fs::remove_file(part(directory, digest, number));
}

/// Opens the file for each piece: what keeps files open is the number of peers.
fn write_piece(directory: &Path, piece: &Piece) -> Result<(), Fault> {
    let Piece { digest, number, offset, .. } = *piece;
    let content = restore_chunk(&piece.compressed, piece.bytes).map_err(Fault::Sender)?;
    let path = part(directory, digest, number);
    let file = private_dir::file_options().truncate(offset == 0).open(path)?;
    file.write_all_at(&content, offset)?;
    Ok(())
}

/// Verifies an upload and gives it its name.
fn finish(directory: &Path, digest: BundleDigest, number: u64) -> Result<(), Fault> {
    let path = part(directory, digest, number);
    let file = File::open(&path)?;
    let (found, _) = digest_file(&file)?;
    if found != digest {
        let reason = format!("the uploaded bytes have the digest {found}: upload the program again");
        return Err(Fault::Sender(io::Error::other(reason)));
    }
    file.sync_all()?;
    fs::rename(path, directory.join(digest.to_string()))?;
    File::open(directory)?.sync_all()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uploads_that_nobody_goes_on_with_are_deleted_at_the_next_start() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        let [old, new, gone, here] = [1, 2, 3, 4].map(|byte| BundleDigest([byte; 32]));
        let half = |digest, number, bytes: usize| {
            fs::write(part(directory, digest, number), vec![0; bytes]).unwrap();
        };
        half(old, 1, 4);
        for (number, bytes) in [(2, 4), (3, 5), (4, 3)] {
            half(new, number, bytes);
        }
        half(here, 5, 4);
        fs::write(directory.join(here.to_string()), "all of it").unwrap();
        // Of schedulers before.
        fs::write(directory.join(format!("{gone}.platform")), "").unwrap();
        fs::write(directory.join(format!("{here}.platform")), "").unwrap();
        fs::write(directory.join(format!("{new}.part")), "half").unwrap();
        fs::write(directory.join(format!("{here}.platform.part")), "").unwrap();
        let file = File::options().write(true).open(part(directory, old, 1)).unwrap();
        file.set_modified(UNIX_EPOCH + wall_clock() - 2 * KEPT).unwrap();

        let (complete, halves) = scan(directory).unwrap();
        assert_eq!(complete.into_keys().collect::<Vec<_>>(), [here]);
        let halves: Vec<_> = halves.iter().map(|(digest, half)| (*digest, half.number, half.bytes)).collect();
        assert_eq!(halves, [(new, 3, 5)]);
        let mut left: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
        left.sort_unstable();
        assert_eq!(left, [part(directory, new, 3), directory.join(here.to_string())]);
    }

    #[test]
    fn names_that_are_no_digests_are_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let digest = BundleDigest([0xab; 32]).to_string();
        let names =
            [digest[1..].to_owned(), format!("+{}", &digest[1..]), format!("{digest}0"), "a.part".to_owned()];
        for name in &names {
            fs::write(directory.path().join(name), "").unwrap();
        }
        let (complete, halves) = scan(directory.path()).unwrap();
        assert!(complete.is_empty() && halves.is_empty());
        assert!(names.iter().all(|name| directory.path().join(name).exists()));
    }
}
