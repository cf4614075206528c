//! Bundles on this machine: fetched by digest into a bounded cache, or installed by the operator under a name.
//!
//! A fetched one is read and compared with its digest each time that a host of it is started, and then executed through the
//! descriptor that it was read by, so that there is no moment in which another file could take its place. That nobody has
//! written to it from the reading on is looked at once it runs: the kernel lets nobody write to a program that does.
//!
//! An installed one is the operator's: it is started by its path, and what is there is not looked at.
//!
//! All work on files waits for the disk, so it runs on blocking threads; the event loop only hands pieces over.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, mpsc};

use bytes::Bytes;
use lrts_core::bundle::{check_chunk, chunk_bytes, digest_file, restore_chunk};
use lrts_core::ids::BundleDigest;
use lrts_core::limits::BUNDLE_BYTES;
use nix::sys::stat::futimens;
use nix::sys::time::TimeSpec;
use tracing::{debug, info, warn};

/// An executable that hosts can be started of. While it exists, the cache doesn't drop the file.
#[derive(Debug)]
pub(crate) struct Program {
    /// Where it is.
    pub(crate) path: PathBuf,
    /// None for one that the operator has installed.
    fetched: Option<Fetched>,
}

/// A file whose content has the right digest.
#[derive(Debug)]
struct Fetched {
    file: File,
    /// As it was before it was read.
    fingerprint: Fingerprint,
    _lease: Lease,
}

impl Program {
    /// One that the operator has installed.
    pub(crate) fn installed(path: PathBuf) -> Self {
        Self { path, fetched: None }
    }

    /// What a child of this process is to execute. Valid while this exists.
    pub(crate) fn executable(&self) -> PathBuf {
        match &self.fetched {
            Some(Fetched { file, .. }) => format!("/proc/self/fd/{}", file.as_raw_fd()).into(),
            None => self.path.clone(),
        }
    }

    /// Whether it is one that was fetched and needs an interpreter, which would look for it by a path.
    ///
    /// # Errors
    ///
    /// Those of `read(2)`.
    pub(crate) fn is_fetched_script(&self) -> io::Result<bool> {
        let mut start = [0; 2];
        Ok(match &self.fetched {
            Some(Fetched { file, .. }) => file.read_at(&mut start, 0)? == start.len() && start == *b"#!",
            None => false,
        })
    }

    /// Whether nobody has written to it since its digest was found to be right, as far as that is looked at.
    ///
    /// # Errors
    ///
    /// Those of `fstat(2)`.
    pub(crate) fn is_unchanged(&self) -> io::Result<bool> {
        match &self.fetched {
            Some(Fetched { file, fingerprint, .. }) => Ok(Fingerprint::of(file)? == *fingerprint),
            None => Ok(true),
        }
    }
}

/// Why a bundle didn't arrive.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    /// The event loop has given it up.
    #[error("given up")]
    Abandoned,
    /// The pieces aren't the bundle.
    #[error("the fetched bundle is damaged: {0}")]
    Damaged(&'static str),
    /// The disk says no.
    #[error("cannot keep the fetched bundle")]
    Io(#[from] io::Error),
}

/// Fetched bundles, one file each, named by digest.
#[derive(Debug)]
pub(crate) struct BundleCache {
    directory: PathBuf,
    capacity_bytes: u64,
    /// Counts fetches, so that one that was given up and the next one don't share a file.
    fetches: AtomicU64,
    /// How many programs there are of each.
    in_use: Mutex<BTreeMap<BundleDigest, usize>>,
}

/// Tells whether a file has been touched since. Its owner can set any of its times but the last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Fingerprint {
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Fingerprint {
    fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self {
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

/// Keeps a bundle in the cache.
#[derive(Debug)]
pub(crate) struct Lease {
    cache: Arc<BundleCache>,
    digest: BundleDigest,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut in_use = self.cache.lock();
        if let Some(count) = in_use.get_mut(&self.digest) {
            *count -= 1;
            if *count == 0 {
                in_use.remove(&self.digest);
            }
        }
    }
}

impl BundleCache {
    /// The cache in this directory, which exists. What is beyond `capacity_bytes` goes when the next bundle comes.
    pub(crate) fn new(directory: PathBuf, capacity_bytes: u64) -> Arc<Self> {
        Arc::new(Self { directory, capacity_bytes, fetches: AtomicU64::new(0), in_use: Mutex::default() })
    }

    /// The bundle, if it is here and undamaged. A damaged one is deleted. Waits for the disk.
    ///
    /// # Errors
    ///
    /// Those of reading.
    pub(crate) fn find(self: &Arc<Self>, digest: BundleDigest) -> io::Result<Option<Program>> {
        let path = self.path(digest);
        // First, so that nobody drops the file while it is looked at.
        let lease = self.lease(digest);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        // Before it is read: that is a change too.
        touch(&file);
        let fingerprint = Fingerprint::of(&file)?;
        if digest_file(&file)?.0 != digest {
            warn!(bundle = %digest, "cached bundle is damaged and fetched again");
            fs::remove_file(&path)?;
            return Ok(None);
        }
        Ok(Some(Program { path, fetched: Some(Fetched { file, fingerprint, _lease: lease }) }))
    }

    /// Writes a bundle's pieces as they come, verifies it and makes room for it. Waits for the disk and for the pieces.
    ///
    /// # Errors
    ///
    /// [`FetchError`]. What was written is deleted.
    pub(crate) fn receive(
        self: &Arc<Self>,
        digest: BundleDigest,
        pieces: &mpsc::Receiver<Piece>,
    ) -> Result<Program, FetchError> {
        let number = self.fetches.fetch_add(1, Ordering::Relaxed);
        let part = self.directory.join(format!("{digest}.{number}.part"));
        let result = self.receive_into(&part, digest, pieces);
        if result.is_err() {
            let _never_made = fs::remove_file(&part);
        }
        result
    }

    fn receive_into(
        self: &Arc<Self>,
        part: &Path,
        digest: BundleDigest,
        pieces: &mpsc::Receiver<Piece>,
    ) -> Result<Program, FetchError> {
        let mut file =
            File::options().read(true).write(true).create(true).truncate(true).mode(0o700).open(part)?;
        loop {
            let piece = pieces.recv().map_err(|_| FetchError::Abandoned)?;
            let restored = restore_chunk(&piece.compressed, piece.bytes)
                .map_err(|_| FetchError::Damaged("a piece can't be restored"))?;
            file.write_all(&restored)?;
            if piece.is_last {
                break;
            }
        }
        let (found, bytes) = digest_file(&file)?;
        if found != digest {
            return Err(FetchError::Damaged("it has another digest"));
        }
        file.sync_all()?;
        let _lease = self.lease(digest);
        fs::rename(part, self.path(digest))?;
        File::open(&self.directory)?.sync_all()?;
        info!(bundle = %digest, bytes, "bundle fetched");
        if let Err(error) = self.make_room() {
            warn!(%error, "cannot clear the bundle cache");
        }
        // Nobody can execute it while it is open to be written to, and what was hashed may have been written to since.
        drop(file);
        self.find(digest)?.ok_or(FetchError::Damaged("it was changed on the disk"))
    }

    /// Deletes the least recently used bundles until the rest fits. Those in use stay, even if that is too much.
    fn make_room(&self) -> io::Result<()> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let digest = entry.file_name().to_str().and_then(|name| name.parse::<BundleDigest>().ok());
            if let Some(digest) = digest {
                let metadata = entry.metadata()?;
                entries.push(((metadata.atime(), metadata.atime_nsec()), metadata.len(), digest));
            }
        }
        entries.sort_unstable();
        let mut total: u64 = entries.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, bytes, digest) in entries {
            if total <= self.capacity_bytes {
                break;
            }
            // The lock is held over the deletion: else somebody could find the bundle in between.
            let in_use = self.lock();
            if !in_use.contains_key(&digest) {
                fs::remove_file(self.path(digest))?;
                total -= bytes;
                debug!(bundle = %digest, bytes, "bundle dropped from the cache");
            }
        }
        Ok(())
    }

    /// Keeps a bundle, whether or not it is here, until the lease is dropped.
    pub(crate) fn lease(self: &Arc<Self>, digest: BundleDigest) -> Lease {
        *self.lock().entry(digest).or_default() += 1;
        Lease { cache: self.clone(), digest }
    }

    fn path(&self, digest: BundleDigest) -> PathBuf {
        self.directory.join(digest.to_string())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<BundleDigest, usize>> {
        self.in_use.lock().expect("nothing panics while it holds this lock")
    }
}

/// Marks a file as used now. The time of reading serves, since that of writing tells whether the content may have changed.
fn touch(file: &File) {
    if let Err(error) = futimens(file, &TimeSpec::UTIME_NOW, &TimeSpec::UTIME_OMIT) {
        debug!(%error, "cannot mark the bundle as used");
    }
}

/// A piece under way to the disk.
#[derive(Debug)]
pub(crate) struct Piece {
    compressed: Bytes,
    bytes: u32,
    is_last: bool,
}

/// What a scheduler has sent that is no piece of the bundle.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum BadPiece {
    /// The bundle is larger than any may be.
    #[error("a bundle of {total} bytes is larger than any may be")]
    TooLarge {
        /// As announced.
        total: u64,
    },
    /// It isn't what comes next.
    #[error("the scheduler sent {bytes} bytes at {offset} of a bundle of {total}, which is no piece of it")]
    Wrong {
        /// Where.
        offset: u64,
        /// How many.
        bytes: u32,
        /// The bundle's length, as announced.
        total: u64,
    },
}

/// The event loop's end of a fetch. Dropping it abandons the fetch.
#[derive(Debug)]
pub(crate) struct Fetch {
    next_offset: u64,
    /// The bundle's length, once a piece has come.
    total: Option<u64>,
    /// Not bounded by itself: it never holds more than the one bundle.
    pieces: mpsc::Sender<Piece>,
}

impl Fetch {
    /// A fetch from the start, and where its pieces come out.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Piece>) {
        let (pieces, receiver) = mpsc::channel();
        (Self { next_offset: 0, total: None, pieces }, receiver)
    }

    /// Where to go on after a lost connection.
    pub(crate) fn next_offset(&self) -> u64 {
        self.next_offset
    }

    /// Hands over a piece. One that is out of place is passed over.
    ///
    /// # Errors
    ///
    /// [`BadPiece`]: the bundle can't become whole any more.
    pub(crate) fn accept(
        &mut self,
        offset: u64,
        bytes: u32,
        total: u64,
        body: Bytes,
    ) -> Result<(), BadPiece> {
        if total > BUNDLE_BYTES {
            return Err(BadPiece::TooLarge { total });
        }
        if offset != self.next_offset || self.total == Some(offset) {
            return Ok(());
        }
        let is_next = bytes > 0 && bytes == chunk_bytes(offset, total);
        if !is_next || *self.total.get_or_insert(total) != total || check_chunk(&body, bytes).is_err() {
            return Err(BadPiece::Wrong { offset, bytes, total });
        }
        self.next_offset += u64::from(bytes);
        let is_last = self.next_offset == total;
        // A receiver that is gone has reported why.
        let _ = self.pieces.send(Piece { compressed: body, bytes, is_last });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lrts_core::bundle::read_chunk;
    use lrts_core::clock::Moment;
    use lrts_core::limits::BUNDLE_CHUNK_BYTES;

    use super::*;

    fn bundle(content: &[u8]) -> (BundleDigest, File) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        (digest_file(&file).unwrap().0, file)
    }

    fn fetch(cache: &Arc<BundleCache>, digest: BundleDigest, file: &File) -> Result<Program, FetchError> {
        let total = file.metadata().unwrap().len();
        let (mut fetch, pieces) = Fetch::new();
        while fetch.next_offset() < total {
            let (body, bytes) = read_chunk(file, fetch.next_offset()).unwrap();
            let offset = fetch.next_offset();
            fetch.accept(offset, bytes, total, body.clone()).unwrap();
            fetch.accept(offset, bytes, total, body).unwrap();
        }
        cache.receive(digest, &pieces)
    }

    fn files(directory: &Path) -> usize {
        fs::read_dir(directory).unwrap().count()
    }

    #[test]
    fn a_fetched_bundle_is_executable_and_found_again() {
        let directory = tempfile::tempdir().unwrap();
        let cache = BundleCache::new(directory.path().to_owned(), 10 << 20);
        let (digest, file) = bundle(&vec![7; 2_500_000]);
        assert!(cache.find(digest).unwrap().is_none());
        let program = fetch(&cache, digest, &file).unwrap();
        assert_eq!(fs::read(&program.path).unwrap(), vec![7; 2_500_000]);
        assert_eq!(fs::metadata(&program.path).unwrap().mode() & 0o777, 0o700);
        assert_eq!(cache.find(digest).unwrap().unwrap().path, program.path);
        assert_eq!(files(directory.path()), 1);
    }

    #[test]
    fn a_bundle_that_was_damaged_on_disk_is_not_started() {
        let directory = tempfile::tempdir().unwrap();
        let cache = BundleCache::new(directory.path().to_owned(), 10 << 20);
        let (digest, file) = bundle(b"program");
        let path = fetch(&cache, digest, &file).unwrap().path;
        fs::write(&path, b"damaged").unwrap();
        assert!(cache.find(digest).unwrap().is_none());
        assert!(!path.exists());
    }

    #[test]
    fn what_is_executed_is_what_was_read() {
        let directory = tempfile::tempdir().unwrap();
        let cache = BundleCache::new(directory.path().to_owned(), 10 << 20);
        let (digest, file) = bundle(b"program");
        let program = fetch(&cache, digest, &file).unwrap();
        assert!(program.is_unchanged().unwrap() && !program.is_fetched_script().unwrap());

        // Another file in its place is never looked at.
        fs::rename(&program.path, directory.path().join("aside")).unwrap();
        fs::write(&program.path, b"another").unwrap();
        assert_eq!(fs::read(program.executable()).unwrap(), b"program");
        assert!(cache.find(digest).unwrap().is_none(), "nor taken for the bundle later");

        // Written to after it was read, and its time of writing set back.
        fs::rename(directory.path().join("aside"), &program.path).unwrap();
        let program = cache.find(digest).unwrap().unwrap();
        let written = fs::metadata(&program.path).unwrap().modified().unwrap();
        let writer = File::options().write(true).open(&program.path).unwrap();
        let start = Moment::now();
        loop {
            writer.write_all_at(b"P", 0).unwrap();
            writer.set_modified(written).unwrap();
            if !program.is_unchanged().unwrap() {
                break;
            }
            assert!(start.elapsed() < Duration::from_secs(30), "the clock of the file system stands still");
        }
        assert!(cache.find(digest).unwrap().is_none());
    }

    #[test]
    fn scripts_are_told_from_programs() {
        let directory = tempfile::tempdir().unwrap();
        let cache = BundleCache::new(directory.path().to_owned(), 10 << 20);
        for (content, is_script) in [(&b"#!/bin/sh\n"[..], true), (b"#", false), (b"\x7fELF", false)] {
            let (digest, file) = bundle(content);
            assert_eq!(fetch(&cache, digest, &file).unwrap().is_fetched_script().unwrap(), is_script);
        }
    }

    #[test]
    fn pieces_that_make_no_bundle_are_refused_before_they_wait() {
        let piece = |bytes: usize| read_chunk(&bundle(&vec![7; bytes]).1, 0).unwrap().0;
        let whole = BUNDLE_CHUNK_BYTES as u32;
        let total = BUNDLE_CHUNK_BYTES as u64 + 5;
        let wrong = |offset, bytes, total| Err(BadPiece::Wrong { offset, bytes, total });

        let (mut fetch, pieces) = Fetch::new();
        let huge = BUNDLE_BYTES + 1;
        assert_eq!(fetch.accept(0, whole, huge, piece(1)), Err(BadPiece::TooLarge { total: huge }));
        for (bytes, total, body) in [
            (0, 0, Bytes::new()),
            (0, total, piece(0)),
            (5, total, piece(5)),
            (u32::MAX, total, piece(5)),
            (whole, total, piece(5)),
            (whole, total, Bytes::from_static(b"no zstd")),
            (6, 5, piece(6)),
        ] {
            let (mut fetch, _pieces) = Fetch::new();
            assert_eq!(fetch.accept(0, bytes, total, body), wrong(0, bytes, total));
        }
        fetch.accept(u64::MAX, whole, total, piece(1)).unwrap();
        fetch.accept(0, whole, total, piece(BUNDLE_CHUNK_BYTES)).unwrap();
        assert_eq!(
            fetch.accept(u64::from(whole), 6, total + 1, piece(6)),
            wrong(u64::from(whole), 6, total + 1)
        );
        fetch.accept(u64::from(whole), 5, total, piece(5)).unwrap();
        fetch.accept(total, 5, total, piece(5)).unwrap();
        assert_eq!((fetch.next_offset(), pieces.try_iter().count()), (total, 2), "the rest was passed over");
    }

    #[test]
    fn what_has_another_digest_is_refused_and_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let cache = BundleCache::new(directory.path().to_owned(), 10 << 20);
        let (_, file) = bundle(b"program");
        let (other, _) = bundle(b"other");
        assert!(matches!(fetch(&cache, other, &file), Err(FetchError::Damaged(_))));
        let (fetch, pieces) = Fetch::new();
        drop(fetch);
        assert!(matches!(cache.receive(other, &pieces), Err(FetchError::Abandoned)));
        assert_eq!(files(directory.path()), 0);
    }

    #[test]
    fn the_least_recently_used_bundle_goes_unless_it_is_in_use() {
        let directory = tempfile::tempdir().unwrap();
        let cache = BundleCache::new(directory.path().to_owned(), 2_500);
        let bundles: Vec<_> = (0..4u8).map(|number| bundle(&[number; 1_000])).collect();
        let get = |number: usize| fetch(&cache, bundles[number].0, &bundles[number].1).unwrap();
        let path = |number: usize| cache.path(bundles[number].0);
        let used_at = |number: usize, second: i64| {
            let (time, keep) = (TimeSpec::new(second, 0), TimeSpec::UTIME_OMIT);
            futimens(File::open(path(number)).unwrap(), &time, &keep).unwrap();
        };
        let used = get(0);
        drop(get(1));
        used_at(0, 10);
        used_at(1, 20);
        drop(get(2));
        assert!(path(0).exists() && !path(1).exists() && path(2).exists(), "the oldest one is in use");

        drop(used);
        used_at(0, 30);
        used_at(2, 20);
        drop(get(3));
        assert!(path(0).exists() && !path(2).exists() && path(3).exists());

        drop(cache.find(bundles[0].0).unwrap().unwrap());
        assert!(fs::metadata(path(0)).unwrap().atime() > 30, "to be found is to be used");
    }
}
