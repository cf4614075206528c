//! The files of bundles, and the thread that writes them.

use std::collections::BTreeMap;
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
    Write { digest: BundleDigest, file: u64, offset: u64, bytes: u32, compressed: Bytes },
    Finish { digest: BundleDigest, file: u64, platforms: Platforms },
    Describe { digest: BundleDigest, platforms: Platforms },
    Abandon { digest: BundleDigest },
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

fn part(directory: &Path, digest: BundleDigest) -> PathBuf {
    directory.join(format!("{digest}{PART}"))
}

fn describe(directory: &Path, digest: BundleDigest, platforms: &Platforms) -> io::Result<()> {
    let path = description(directory, digest);
    private_dir::write(&path, codec::encode(platforms))?;
    File::open(path)?.sync_all()
}

/// None if it isn't there or can't be read: an application that has the bundle says it again.
fn read_platforms(path: &Path) -> Option<Platforms> {
    let bytes = fs::read(path).ok()?;
    // Schedulers before kept one account only.
    let one = || codec::decode_local::<Platform>(&bytes).map(Platforms::from);
    codec::decode_local(&bytes).or_else(|_| one()).ok()
}

/// The bundles that earlier schedulers left in a directory, and the halves. Halves that nobody has gone on with for long are
/// deleted, and descriptions of what isn't there.
///
/// # Errors
///
/// Those of `readdir(3)`, `stat(2)` and `unlink(2)`.
pub(super) fn scan(
    directory: &Path,
) -> io::Result<(BTreeMap<BundleDigest, Complete>, BTreeMap<BundleDigest, Half>)> {
    let (mut complete, mut halves, mut described) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
    let now = wall_clock();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let digest_before = |suffix: &str| name.strip_suffix(suffix).and_then(|name| name.parse().ok());
        let metadata = entry.metadata()?;
        let modified = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
        if let Some(digest) = digest_before(PART) {
            if now.saturating_sub(modified) > KEPT {
                fs::remove_file(entry.path())?;
            } else {
                halves.insert(digest, Half { bytes: metadata.len(), left: modified, file: 0 });
            }
        } else if let Some(digest) = digest_before(DESCRIPTION) {
            described.push(digest);
        } else if let Some(digest) = digest_before("") {
            let platforms = read_platforms(&description(directory, digest)).unwrap_or_default();
            complete.insert(digest, Complete { bytes: metadata.len(), last_used: modified, platforms });
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
    // Of which nothing more is written.
    let mut failed: BTreeMap<BundleDigest, u64> = BTreeMap::new();
    for work in work {
        let (digest, file, result) = match work {
            Work::Write { digest, file, offset, bytes, compressed } => {
                backlog.fetch_sub(bytes as usize, Ordering::Relaxed);
                if failed.get(&digest) == Some(&file) {
                    continue;
                }
                let written = write_piece(directory, digest, offset, bytes, &compressed);
                (digest, file, written.map(|()| None))
            }
            Work::Finish { digest, file, .. } if failed.get(&digest) == Some(&file) => continue,
            Work::Finish { digest, file, platforms } => {
                let finished = finish(directory, digest, &platforms);
                (digest, file, finished.map(|()| Some(Outcome::Stored { digest })))
            }
            Work::Describe { digest, platforms } => {
                if let Err(error) = describe(directory, digest, &platforms) {
                    warn!(bundle = %digest, %error, "what a bundle was built for isn't kept");
                }
                continue;
            }
            Work::Abandon { digest } => {
                failed.remove(&digest);
                remove_half(directory, digest);
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
                failed.insert(digest, file);
                remove_half(directory, digest);
                let reason = format!("the scheduler can't store the bundle: {error}");
                Some(Outcome::Failed { digest, file, reason })
            }
        };
        if outcome.is_some_and(|outcome| outcomes.send(outcome).is_err()) {
            return;
        }
    }
}

/// What can't be continued is of no use. If it can't be deleted, what is wrong with it shows when it is verified.
fn remove_half(directory: &Path, digest: BundleDigest) {
    let _ = fs::remove_file(part(directory, digest));
    if !directory.join(digest.to_string()).exists() {
        let _ = fs::remove_file(description(directory, digest));
    }
}

/// Opens the file for each piece: what keeps files open is the number of peers.
fn write_piece(
    directory: &Path,
    digest: BundleDigest,
    offset: u64,
    bytes: u32,
    compressed: &[u8],
) -> io::Result<()> {
    let piece = restore_chunk(compressed, bytes)?;
    let file = private_dir::file_options().truncate(offset == 0).open(part(directory, digest))?;
    file.write_all_at(&piece, offset)
}

/// Verifies an upload and gives it its name.
fn finish(directory: &Path, digest: BundleDigest, platforms: &Platforms) -> io::Result<()> {
    let file = File::open(part(directory, digest))?;
    let (found, _) = digest_file(&file)?;
    if found != digest {
        return Err(io::Error::other(format!(
            "the uploaded bytes have the digest {found}: upload the program again"
        )));
    }
    file.sync_all()?;
    // First, so that whoever finds the bundle finds this too.
    describe(directory, digest, platforms)?;
    fs::rename(part(directory, digest), directory.join(digest.to_string()))?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uploads_that_nobody_goes_on_with_are_deleted_at_the_next_start() {
        let directory = tempfile::tempdir().unwrap();
        let [old, new, gone] = [1, 2, 3].map(|byte| BundleDigest([byte; 32]));
        for digest in [old, new] {
            fs::write(part(directory.path(), digest), "half").unwrap();
        }
        fs::write(description(directory.path(), gone), "").unwrap();
        let file = File::options().write(true).open(part(directory.path(), old)).unwrap();
        file.set_modified(UNIX_EPOCH + wall_clock() - 2 * KEPT).unwrap();
        let (complete, halves) = scan(directory.path()).unwrap();
        assert!(complete.is_empty());
        assert_eq!(
            halves.into_iter().map(|(digest, half)| (digest, half.bytes)).collect::<Vec<_>>(),
            [(new, 4)]
        );
        assert!(!part(directory.path(), old).exists() && part(directory.path(), new).exists());
        assert!(!description(directory.path(), gone).exists());
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
