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
use lrts_core::ids::BundleDigest;
use lrts_core::private_dir;
use lrts_core::protocol::codec;
use lrts_core::spec::Platform;
use tokio::sync::mpsc;
use tracing::warn;

use super::upload::Half;
use super::{Complete, KEPT, Outcome};
use crate::engine::Platforms;

/// What the writing thread does.
pub(super) enum Work {
    Write { digest: BundleDigest, number: u64, offset: u64, bytes: u32, compressed: Bytes },
    Finish { digest: BundleDigest, number: u64 },
    Describe { digest: BundleDigest, platforms: Platforms },
    Abandon { digest: BundleDigest, number: u64 },
    Remove { digest: BundleDigest },
}

/// The writing thread's orders. It ends with them.
pub(super) struct Disk {
    work: blocking::Sender<Work>,
    /// Bytes of pieces that are to be written, as they will be in the file.
    pub(super) backlog: Arc<AtomicUsize>,
}

impl Disk {
    /// Starts the thread, and returns where it says how uploads end.
    ///
    /// # Errors
    ///
    /// If it can't be started.
    pub(super) fn start(directory: PathBuf) -> io::Result<(Self, mpsc::UnboundedReceiver<Outcome>)> {
        let (work, orders) = blocking::channel();
        let (sender, outcomes) = mpsc::unbounded_channel();
        let backlog = Arc::new(AtomicUsize::new(0));
        let left = Arc::clone(&backlog);
        let thread = std::thread::Builder::new().name("bundles".to_owned());
        thread.spawn(move || write(&directory, &orders, &left, &sender))?;
        Ok((Self { work, backlog }, outcomes))
    }

    pub(super) fn order(&self, work: Work) {
        if let Work::Write { bytes, .. } = &work {
            self.backlog.fetch_add(*bytes as usize, Ordering::Relaxed);
        }
        self.work.send(work).expect("the writer lives as long as its orders come");
    }

    /// How many bytes of pieces wait for the disk.
    pub(super) fn backlog(&self) -> usize {
        self.backlog.load(Ordering::Relaxed)
    }
}

/// What a bundle was built for, beside it.
fn description(directory: &Path, digest: BundleDigest) -> PathBuf {
    directory.join(format!("{digest}{DESCRIPTION}"))
}

/// Suffix of descriptions, and of files that aren't whole.
const DESCRIPTION: &str = ".platform";
const PART: &str = ".part";

fn part(directory: &Path, digest: BundleDigest, number: u64) -> PathBuf {
    directory.join(format!("{digest}.{number}{PART}"))
}

/// Which bundle's part this is, and its number; none if it can't be continued: a description, or of a scheduler before.
fn parse_part(name: &str) -> Option<(BundleDigest, Option<u64>)> {
    let name = name.strip_suffix(PART)?;
    let (digest, number) = name.split_once('.').unwrap_or((name, ""));
    // Far from where numbers end, and as it is written, so that this is the file's name.
    let parsed = number.parse::<u32>().ok().filter(|parsed| parsed.to_string() == number);
    Some((digest.parse().ok()?, parsed.map(u64::from)))
}

/// Whoever reads it, at whatever moment, finds all of it or what was there before.
fn describe(directory: &Path, digest: BundleDigest, platforms: &Platforms) -> io::Result<()> {
    let path = description(directory, digest);
    let part = directory.join(format!("{digest}{DESCRIPTION}{PART}"));
    let written =
        private_dir::write(&part, codec::encode(platforms)).and_then(|()| File::open(&part)?.sync_all());
    written.and_then(|()| fs::rename(&part, path)).inspect_err(|_| {
        // A full disk is short enough of room.
        let _ = fs::remove_file(&part);
    })
}

/// None if it isn't there or can't be read: an application that has the bundle says it again.
fn read_platforms(path: &Path) -> Option<Platforms> {
    let bytes = fs::read(path).ok()?;
    // Schedulers before kept one account only.
    let one = || codec::decode_local::<Platform>(&bytes).map(Platforms::from);
    codec::decode_local(&bytes).or_else(|_| one()).ok()
}

/// The bundles that earlier schedulers left in a directory, and of the others the longest half of each. Halves that nobody has gone
/// on with for long are deleted, and descriptions of what isn't there.
///
/// # Errors
///
/// Those of `readdir(3)`, `stat(2)` and `unlink(2)`.
pub(super) fn scan(
    directory: &Path,
) -> io::Result<(BTreeMap<BundleDigest, Complete>, BTreeMap<BundleDigest, Half>)> {
    let (mut complete, mut halves) = (BTreeMap::new(), BTreeMap::<_, Half>::new());
    let (mut parts, mut described) = (Vec::new(), Vec::new());
    let now = wall_clock();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let digest_before = |suffix: &str| name.strip_suffix(suffix).and_then(|name| name.parse().ok());
        let metadata = entry.metadata()?;
        let modified = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
        if let Some((digest, number)) = parse_part(name) {
            parts.push((entry.path(), digest, number, metadata.len(), modified));
        } else if let Some(digest) = digest_before(DESCRIPTION) {
            described.push(digest);
        } else if let Some(digest) = digest_before("") {
            let platforms = read_platforms(&description(directory, digest)).unwrap_or_default();
            complete.insert(digest, Complete { bytes: metadata.len(), last_used: modified, platforms });
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
    for digest in described.into_iter().filter(|digest| !complete.contains_key(digest)) {
        fs::remove_file(description(directory, digest))?;
    }
    Ok((complete, halves))
}

/// The writing thread.
fn write(
    directory: &Path,
    work: &blocking::Receiver<Work>,
    backlog: &AtomicUsize,
    outcomes: &mpsc::UnboundedSender<Outcome>,
) {
    // Files of which nothing more is written, until they are abandoned.
    let mut failed: BTreeSet<u64> = BTreeSet::new();
    for work in work {
        let (digest, number, result) = match work {
            Work::Write { digest, number, offset, bytes, compressed } => {
                backlog.fetch_sub(bytes as usize, Ordering::Relaxed);
                if failed.contains(&number) {
                    continue;
                }
                let written = write_piece(&part(directory, digest, number), offset, bytes, &compressed);
                (digest, number, written.map(|()| None))
            }
            Work::Finish { number, .. } if failed.contains(&number) => continue,
            Work::Finish { digest, number } => {
                let finished = finish(directory, digest, number);
                (digest, number, finished.map(|()| Some(Outcome::Stored { digest, number })))
            }
            Work::Describe { digest, platforms } => {
                if let Err(error) = describe(directory, digest, &platforms) {
                    warn!(bundle = %digest, %error, "what a bundle was built for isn't kept");
                }
                continue;
            }
            Work::Abandon { digest, number } => {
                failed.remove(&number);
                remove_part(directory, digest, number);
                continue;
            }
            Work::Remove { digest } => {
                // Without the bundle it says nothing.
                let _ = fs::remove_file(description(directory, digest));
                if let Err(error) = fs::remove_file(directory.join(digest.to_string())) {
                    warn!(bundle = %digest, %error, "bundle not deleted");
                }
                continue;
            }
        };
        let outcome = match result {
            Ok(outcome) => outcome,
            Err(error) => {
                failed.insert(number);
                remove_part(directory, digest, number);
                let reason = format!("the scheduler can't store the bundle: {error}");
                Some(Outcome::Failed { digest, number, reason })
            }
        };
        if outcome.is_some_and(|outcome| outcomes.send(outcome).is_err()) {
            return;
        }
    }
}

/// If it can't be deleted, what is wrong with it shows when it is verified.
fn remove_part(directory: &Path, digest: BundleDigest, number: u64) {
    let _ = fs::remove_file(part(directory, digest, number));
}

/// Opens the file for each piece: what keeps files open is the number of peers.
fn write_piece(path: &Path, offset: u64, bytes: u32, compressed: &[u8]) -> io::Result<()> {
    let piece = restore_chunk(compressed, bytes)?;
    let file = private_dir::file_options().truncate(offset == 0).open(path)?;
    file.write_all_at(&piece, offset)
}

/// Verifies an upload and gives it its name.
fn finish(directory: &Path, digest: BundleDigest, number: u64) -> io::Result<()> {
    let path = part(directory, digest, number);
    let file = File::open(&path)?;
    let (found, _) = digest_file(&file)?;
    if found != digest {
        return Err(io::Error::other(format!(
            "the uploaded bytes have the digest {found}: upload the program again"
        )));
    }
    file.sync_all()?;
    fs::rename(path, directory.join(digest.to_string()))?;
    File::open(directory)?.sync_all()
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
        fs::write(description(directory, gone), "").unwrap();
        // Of schedulers before, and what a description was to be.
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
