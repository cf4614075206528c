//! Large bodies in append-only files, which the database refers to.
//!
//! What a commit will refer to is appended and synced before it. Space is freed once a commit that no longer refers to it is
//! durable: as a hole in its file, and with the last body of a file the file goes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{FallocateFlags, fallocate};
use tracing::warn;

use super::body::Body;
use super::error::{Damage, StoreError};

/// A file that has this much takes no more bodies.
const SEGMENT_BYTES: u64 = 64 << 20;

/// Space that the dead bodies of a file may hold at a start before they are looked for.
const SLACK_BYTES: u64 = 1 << 20;

/// No segment has a higher number. Nobody lives to see it made.
const LAST_SEGMENT: u64 = u64::MAX - 1;

/// Where a body is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Place {
    pub(super) segment: u64,
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

impl Place {
    fn end(self) -> u64 {
        self.offset.saturating_add(self.bytes)
    }

    /// Whether there may be such a place: numbers of segments and offsets in them are counted on from it.
    pub(super) fn is_sound(self) -> bool {
        self.segment <= LAST_SEGMENT && self.offset.checked_add(self.bytes).is_some()
    }
}

/// What is known of a file.
#[derive(Clone, Copy, Debug, Default)]
struct Segment {
    /// Bodies that a durable commit refers to.
    live: u64,
    /// Where the last of them ends.
    end: u64,
}

/// The file that bodies are appended to.
#[derive(Debug)]
struct Active {
    number: u64,
    file: File,
    /// Where the next body goes.
    end: u64,
}

/// The directory of segments.
#[derive(Debug)]
pub(super) struct Segments {
    path: PathBuf,
    /// Files with bodies in them.
    files: BTreeMap<u64, Segment>,
    active: Option<Active>,
    /// Files that became full since the last commit.
    filled: Vec<File>,
    /// Appended since the last commit.
    pending: Vec<Place>,
    next: u64,
    /// Whether a file was made since the directory was synced.
    made: bool,
}

/// The file of a segment.
pub(super) fn segment_file(directory: &Path, segment: u64) -> PathBuf {
    directory.join(format!("{segment:016x}.bodies"))
}

fn segment_of(name: &str) -> Option<u64> {
    let number = u64::from_str_radix(name.strip_suffix(".bodies")?, 16).ok()?;
    (number <= LAST_SEGMENT).then_some(number)
}

impl Segments {
    /// Opens the directory, which is made if need be, where these are all bodies that the database refers to: removes and
    /// cuts off what it doesn't refer to.
    ///
    /// # Errors
    ///
    /// [`StoreError::Damaged`] if a file is missing or shorter than what it should hold.
    pub(super) fn open(path: PathBuf, mut places: Vec<Place>) -> Result<Self, StoreError> {
        places.sort_unstable();
        let failed = |source| StoreError::from_io(&path, source);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(failed)?;
        let mut files: BTreeMap<u64, Segment> = BTreeMap::new();
        for place in &places {
            let file = files.entry(place.segment).or_default();
            file.live += 1;
            file.end = file.end.max(place.end());
        }
        let mut next = 0;
        for entry in fs::read_dir(&path).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let Some(number) = name.to_str().and_then(segment_of) else { continue };
            next = next.max(number + 1);
            if !files.contains_key(&number) {
                fs::remove_file(segment_file(&path, number)).map_err(failed)?;
            }
        }
        let mut rest = places.as_slice();
        let mut active = None;
        for (&number, segment) in &files {
            let split = rest.partition_point(|place| place.segment == number);
            let (bodies, others) = rest.split_at(split);
            rest = others;
            let file = check(&path, number, *segment, bodies)?;
            // The newest one goes on where its last body ends.
            active = (segment.end < SEGMENT_BYTES).then_some(Active { number, file, end: segment.end });
        }
        next = next.max(files.keys().next_back().map_or(0, |last| last + 1));
        Ok(Self { path, files, active, filled: Vec::new(), pending: Vec::new(), next, made: false })
    }

    /// Appends a body. [`Segments::sync`] it before it is referred to.
    pub(super) fn append(&mut self, body: &Body) -> io::Result<Place> {
        let active = match self.active.take() {
            Some(active) if active.end < SEGMENT_BYTES => active,
            full => {
                self.filled.extend(full.map(|full| full.file));
                self.make()?
            }
        };
        let active = self.active.insert(active);
        let place = Place { segment: active.number, offset: active.end, bytes: body.length };
        // Before it is there, so that it is undone if only a part of it comes there.
        self.pending.push(place);
        for piece in &body.pieces {
            active.file.write_all_at(piece, active.end)?;
            active.end += piece.len() as u64;
        }
        Ok(place)
    }

    fn make(&mut self) -> io::Result<Active> {
        let number = self.next;
        let path = segment_file(&self.path, number);
        let file =
            File::options().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
        self.next += 1;
        self.made = true;
        Ok(Active { number, file, end: 0 })
    }

    /// Makes what was appended durable.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        for file in self.filled.iter().chain(self.active.as_ref().map(|active| &active.file)) {
            file.sync_data()?;
        }
        if self.made {
            File::open(&self.path)?.sync_all()?;
            self.made = false;
        }
        Ok(())
    }

    /// What was appended is referred to by a durable commit.
    pub(super) fn keep(&mut self) {
        self.filled.clear();
        for place in self.pending.drain(..) {
            let file = self.files.entry(place.segment).or_default();
            file.live += 1;
            file.end = file.end.max(place.end());
        }
    }

    /// Takes back what was appended since the last [`Segments::keep`]. The file isn't appended to again: after a failed sync
    /// nobody knows what of it has reached the disk.
    pub(super) fn undo(&mut self) {
        self.active = None;
        self.filled.clear();
        let mut touched: Vec<u64> = self.pending.drain(..).map(|place| place.segment).collect();
        touched.dedup();
        for number in touched {
            let path = segment_file(&self.path, number);
            let undone = match self.files.get(&number) {
                Some(file) => File::options().write(true).open(&path).and_then(|f| f.set_len(file.end)),
                None => fs::remove_file(&path),
            };
            // What stays behind is cut off at the next start.
            if let Err(error) = undone {
                warn!(path = %path.display(), %error, "cannot take back what was written");
            }
        }
    }

    /// Frees the space of a body that was kept and that no durable commit refers to any more. What fails is tried again at
    /// the next start.
    pub(super) fn free(&mut self, place: Place) {
        let Some(file) = self.files.get_mut(&place.segment) else { return };
        file.live -= 1;
        let path = segment_file(&self.path, place.segment);
        let appending = |active: &Active| active.number == place.segment;
        let freed = if file.live == 0 {
            self.files.remove(&place.segment);
            self.active.take_if(|active| appending(active));
            fs::remove_file(&path)
        } else {
            match &self.active {
                Some(active) if appending(active) => punch(&active.file, place.offset, place.bytes),
                _ => File::options()
                    .write(true)
                    .open(&path)
                    .and_then(|file| punch(&file, place.offset, place.bytes)),
            }
        };
        if let Err(error) = freed {
            warn!(path = %path.display(), %error, "cannot free the space of a body");
        }
    }
}

/// Opens a file, cuts off what is behind its last body, and frees what is dead among its bodies (ascending) if that is much.
fn check(directory: &Path, number: u64, segment: Segment, bodies: &[Place]) -> Result<File, StoreError> {
    let path = segment_file(directory, number);
    let failed = |source| StoreError::from_io(&path, source);
    let short = |offset| StoreError::Damaged(Damage::Segment { file: path.clone(), offset });
    let file = match File::options().read(true).write(true).open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(short(0)),
        Err(error) => return Err(failed(error)),
    };
    let metadata = file.metadata().map_err(failed)?;
    if metadata.len() < segment.end {
        return Err(short(metadata.len()));
    }
    if metadata.len() > segment.end {
        file.set_len(segment.end).map_err(failed)?;
    }
    let live: u64 = bodies.iter().map(|place| place.bytes).sum();
    if metadata.blocks() * 512 > live + SLACK_BYTES {
        let mut end = 0;
        for place in bodies {
            if place.offset > end {
                punch(&file, end, place.offset - end).map_err(failed)?;
            }
            end = place.end();
        }
    }
    Ok(file)
}

/// Gives the space of a part of a file back, where the file system can.
fn punch(file: &File, offset: u64, bytes: u64) -> io::Result<()> {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let signed = |number: u64| i64::try_from(number).map_err(io::Error::other);
    match fallocate(file, flags, signed(offset)?, signed(bytes)?) {
        Ok(()) | Err(nix::errno::Errno::EOPNOTSUPP) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::body::unseal;
    use super::*;

    fn body(byte: u8, bytes: usize) -> Body {
        Body::whole([Bytes::from(vec![byte; bytes])])
    }

    fn read(directory: &Path, place: Place) -> Option<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(place.bytes).unwrap()];
        File::open(segment_file(directory, place.segment))
            .ok()?
            .read_exact_at(&mut bytes, place.offset)
            .ok()?;
        unseal(&bytes).map(<[u8]>::to_vec)
    }

    fn append(segments: &mut Segments, byte: u8, bytes: usize) -> Place {
        let place = segments.append(&body(byte, bytes)).unwrap();
        segments.sync().unwrap();
        segments.keep();
        place
    }

    fn length(directory: &Path, segment: u64) -> u64 {
        fs::metadata(segment_file(directory, segment)).unwrap().len()
    }

    #[test]
    fn bodies_stay_over_a_reopening_and_torn_tails_go() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let mut segments = Segments::open(path.to_owned(), Vec::new()).unwrap();
        let first = append(&mut segments, 1, 100_000);
        let second = append(&mut segments, 2, 50_000);
        segments.append(&body(3, 70_000)).unwrap();
        drop(segments);
        assert_eq!(length(path, 0), 220_012);

        let mut segments = Segments::open(path.to_owned(), vec![second, first]).unwrap();

        assert_eq!(length(path, 0), second.end(), "what no commit refers to is cut off");
        assert_eq!(read(path, first).unwrap(), vec![1; 100_000]);
        let third = append(&mut segments, 4, 10);
        assert_eq!((third.segment, third.offset), (0, second.end()));
        assert_eq!(read(path, third).unwrap(), vec![4; 10]);
    }

    #[test]
    fn short_and_missing_files_are_damage_with_its_offset() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let mut segments = Segments::open(path.to_owned(), Vec::new()).unwrap();
        let place = append(&mut segments, 1, 100_000);
        drop(segments);
        let offset_of = || {
            let error = Segments::open(path.to_owned(), vec![place]).unwrap_err();
            let StoreError::Damaged(Damage::Segment { file, offset }) = error else { panic!("{error}") };
            assert_eq!(file, segment_file(path, 0));
            offset
        };
        File::options().write(true).open(segment_file(path, 0)).unwrap().set_len(70_000).unwrap();
        assert_eq!(offset_of(), 70_000);
        fs::remove_file(segment_file(path, 0)).unwrap();
        assert_eq!(offset_of(), 0);
    }

    #[test]
    fn dead_bodies_take_no_space() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let blocks = || fs::metadata(segment_file(path, 0)).unwrap().blocks() * 512;
        let mut segments = Segments::open(path.to_owned(), Vec::new()).unwrap();
        let places: Vec<Place> = (0..4).map(|byte| append(&mut segments, byte, 4 << 20)).collect();
        segments.free(places[1]);
        assert!(blocks() < 13 << 20, "{} bytes are taken", blocks());
        drop(segments);

        // What a crash has kept from being freed is freed at the next start.
        let live = vec![places[0], places[3]];
        let mut segments = Segments::open(path.to_owned(), live).unwrap();
        assert!(blocks() < 9 << 20, "{} bytes are taken", blocks());
        assert_eq!(read(path, places[0]).unwrap(), vec![0; 4 << 20]);
        assert_eq!(read(path, places[3]).unwrap(), vec![3; 4 << 20]);
        segments.free(places[0]);
        segments.free(places[3]);
        assert!(!segment_file(path, 0).exists());
        assert_eq!(append(&mut segments, 9, 20_000).segment, 1);
        drop(segments);
        Segments::open(path.to_owned(), Vec::new()).unwrap();
        assert!(!segment_file(path, 1).exists(), "nothing refers to it");
    }

    #[test]
    fn what_was_appended_can_be_taken_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let mut segments = Segments::open(path.to_owned(), Vec::new()).unwrap();
        let kept = append(&mut segments, 1, 20_000);
        segments.append(&body(2, 65 << 20)).unwrap();
        segments.append(&body(3, 20_000)).unwrap();
        assert!(segment_file(path, 1).exists(), "the first file is full");
        segments.undo();
        assert_eq!((length(path, 0), segment_file(path, 1).exists()), (kept.end(), false));
        let next = append(&mut segments, 4, 20_000);
        assert_eq!(next.segment, 2, "a file that may have failed is not appended to");
        assert_eq!((read(path, kept).unwrap()[0], read(path, next).unwrap()[0]), (1, 4));
    }
}
