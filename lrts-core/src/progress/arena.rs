//! A host's arena: one sparse memfd with a region for each attempt that runs.
//!
//! The host creates it, reads and writes it by descriptor and never maps it, since children inherit mappings. A job process
//! maps its own region, the progress subprocess all of them, read-only.

use std::fs::File;
use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::atomic::Ordering;

use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use super::record::{HEADER_BYTES, Header, RECORD_BYTES, Record};
use crate::clock::Moment;
use crate::limits::{BARS_PER_ATTEMPT, SLOTS};
use crate::protocol::progress::BarRecord;

/// Size of one attempt's region: address space, of which only touched pages take memory.
pub const REGION_BYTES: usize = 1 << 20;

/// Most regions of an arena: one for each slot, and as many again whose attempts have ended but were not yet read.
pub const REGIONS: u32 = 2 * SLOTS;

const _: () = assert!(HEADER_BYTES + BARS_PER_ATTEMPT as usize * RECORD_BYTES <= REGION_BYTES);

/// The host's end of an arena.
#[derive(Debug)]
pub struct Arena {
    memory: File,
    regions: u32,
}

impl Arena {
    /// Makes an arena of 1 to [`REGIONS`] regions. Its size can't be changed by anybody.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for another number of regions; else those of `memfd_create(2)`.
    pub fn create(regions: u32) -> io::Result<Self> {
        if !(1..=REGIONS).contains(&regions) {
            let text = format!("an arena of {regions} regions");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let memory = memfd_create(c"lrts-arena", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        let memory = File::from(memory);
        memory.set_len(u64::from(regions) * REGION_BYTES as u64)?;
        let seals = SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
        fcntl(&memory, FcntlArg::F_ADD_SEALS(seals))?;
        Ok(Self { memory, regions })
    }

    /// How many regions it has, numbered from 0.
    pub fn regions(&self) -> u32 {
        self.regions
    }

    /// The memfd: for [`Region::map`](super::Region::map) in a job process, and for the worker. Closed on exec.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }

    /// Makes a region as new and gives its memory back. Nobody may be using it.
    ///
    /// # Errors
    ///
    /// Those of `fallocate(2)`; `InvalidInput` if there is no such region.
    pub fn clear(&self, region: u32) -> io::Result<()> {
        let start = i64::try_from(self.start(region)?).expect("an arena is smaller than 2^63 bytes");
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&self.memory, flags, start, REGION_BYTES as i64)?;
        Ok(())
    }

    /// Lets [`Region::is_cancelled`](super::Region::is_cancelled) answer yes.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if there is no such region; `StorageFull` if the machine has no memory for the page.
    pub fn set_cancelled(&self, region: u32) -> io::Result<()> {
        let offset = self.start(region)? + std::mem::offset_of!(Header, cancelled) as u64;
        self.memory.write_all_at(&1u64.to_ne_bytes(), offset)
    }

    /// Whether the job has a cancel hook or looks at its cancel flag.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if there is no such region.
    pub fn handles_cancel(&self, region: u32) -> io::Result<bool> {
        let offset = self.start(region)? + std::mem::offset_of!(Header, handles_cancel) as u64;
        Ok(self.word(offset)? != 0)
    }

    /// Lets an exclusive attempt run until this moment.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if there is no such region; `StorageFull` if the machine has no memory for the page.
    pub fn set_lease(&self, region: u32, until: Moment) -> io::Result<()> {
        let offset = self.start(region)? + std::mem::offset_of!(Header, lease_until) as u64;
        self.memory.write_all_at(&until.as_nanos().to_ne_bytes(), offset)
    }

    /// Whether the job's watchdog has ended it because its lease had ended.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if there is no such region.
    pub fn lease_ended(&self, region: u32) -> io::Result<bool> {
        let offset = self.start(region)? + std::mem::offset_of!(Header, lease_ended) as u64;
        Ok(self.word(offset)? != 0)
    }

    /// A number that is another one once any bar of a region has moved, changed or been started: for a look at whether a job
    /// makes progress, without making records of it.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if there is no such region.
    pub fn fingerprint(&self, region: u32) -> io::Result<u64> {
        let start = self.start(region)?;
        let records = self.records(start)?;
        let mut hasher = DefaultHasher::new();
        hasher.write_u32(records);
        let mut bytes = [0; Record::MOVING_BYTES];
        for index in 0..records as usize {
            self.memory.read_exact_at(&mut bytes, start + (HEADER_BYTES + index * RECORD_BYTES) as u64)?;
            hasher.write(&bytes);
        }
        Ok(hasher.finish())
    }

    /// The records of an attempt whose process is gone, as of the moment when it ended. Bars that it left open are closed,
    /// here and for the progress subprocess.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if there is no such region.
    pub fn final_bars(&self, region: u32, ended: Moment) -> io::Result<Vec<BarRecord>> {
        let start = self.start(region)?;
        let mut bars = Vec::new();
        let mut bytes = [0; RECORD_BYTES];
        for index in 0..self.records(start)? {
            let offset = start + (HEADER_BYTES + index as usize * RECORD_BYTES) as u64;
            self.memory.read_exact_at(&mut bytes, offset)?;
            let record = Record::from_bytes(&bytes);
            if !record.is_used() {
                continue;
            }
            let mut numbers = record.numbers(ended);
            if !numbers.closed {
                numbers.closed = true;
                let time = offset + Record::CLOSED_OFFSET as u64;
                self.memory.write_all_at(&ended.as_nanos().to_ne_bytes(), time)?;
                let state = offset + Record::STATE_OFFSET as u64;
                self.memory.write_all_at(&Record::CLOSED_STATE.to_ne_bytes(), state)?;
            }
            let text = record.text().map_or_else(|| record.text_as_it_is(), |(_, text)| text);
            bars.push(BarRecord { index, text, numbers });
        }
        Ok(bars)
    }

    /// How many records may be in use in the region that begins here.
    fn records(&self, start: u64) -> io::Result<u32> {
        let header = Header::default();
        header.version.store(self.word(start)?, Ordering::Relaxed);
        let started = start + std::mem::offset_of!(Header, started) as u64;
        header.started.store(self.word(started)?, Ordering::Relaxed);
        Ok(header.records())
    }

    fn start(&self, region: u32) -> io::Result<u64> {
        if region < self.regions {
            Ok(u64::from(region) * REGION_BYTES as u64)
        } else {
            Err(no_such_region(region))
        }
    }

    fn word(&self, offset: u64) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.memory.read_exact_at(&mut bytes, offset)?;
        Ok(u64::from_ne_bytes(bytes))
    }
}

/// How many regions the arena behind a descriptor has.
///
/// Checks what a mapping relies on: memory that shrinks under a mapping kills whoever reads there.
pub(crate) fn check(memory: BorrowedFd<'_>) -> io::Result<u32> {
    let invalid = |text: &str| io::Error::new(io::ErrorKind::InvalidData, text.to_owned());
    let seals = fcntl(memory, FcntlArg::F_GET_SEALS).map_err(|_| invalid("an arena that is no memfd"))?;
    if !SealFlag::from_bits_retain(seals).contains(SealFlag::F_SEAL_SHRINK) {
        return Err(invalid("an arena that may shrink"));
    }
    let bytes = File::from(memory.try_clone_to_owned()?).metadata()?.len();
    let regions = u32::try_from(bytes / REGION_BYTES as u64).unwrap_or(u32::MAX);
    if !bytes.is_multiple_of(REGION_BYTES as u64) || !(1..=REGIONS).contains(&regions) {
        return Err(invalid("an arena of a wrong size"));
    }
    Ok(regions)
}

pub(crate) fn no_such_region(region: u32) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("the arena has no region {region}"))
}

/// Some regions of an arena as memory of this process.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    regions: u32,
}

// SAFETY: the memory is accessed as atomics only, and stays until the mapping is dropped.
#[expect(unsafe_code, reason = "the mapping is a pointer")]
unsafe impl Send for Mapping {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "the mapping is a pointer")]
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps one region for reading and writing. The descriptor may be closed afterwards.
    pub(crate) fn one(memory: BorrowedFd<'_>, region: u32) -> io::Result<Self> {
        if region >= check(memory)? {
            return Err(no_such_region(region));
        }
        Self::shared(memory, region, 1, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)
    }

    /// Maps a whole arena for reading. The descriptor may be closed afterwards.
    pub(crate) fn all(memory: BorrowedFd<'_>) -> io::Result<Self> {
        Self::shared(memory, 0, check(memory)?, ProtFlags::PROT_READ)
    }

    fn shared(memory: BorrowedFd<'_>, first: u32, regions: u32, protection: ProtFlags) -> io::Result<Self> {
        let offset = i64::from(first) * REGION_BYTES as i64;
        // SAFETY: a new mapping at an address of the kernel's choice; `check` found that its memory can't shrink away.
        #[expect(unsafe_code, reason = "mmap is unsafe")]
        let start = unsafe { mmap(None, length(regions), protection, MapFlags::MAP_SHARED, memory, offset)? };
        Ok(Self { start: start.cast(), regions })
    }

    /// Memory of one region that nobody else sees.
    pub(crate) fn anonymous() -> io::Result<Self> {
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        #[expect(unsafe_code, reason = "mmap is unsafe")]
        let start = unsafe { mmap_anonymous(None, length(1), protection, MapFlags::MAP_PRIVATE)? };
        Ok(Self { start: start.cast(), regions: 1 })
    }

    pub(crate) fn regions(&self) -> u32 {
        self.regions
    }

    /// The header of a region, counted from the first that is mapped. Only a mapping for writing may be stored to.
    pub(crate) fn header(&self, region: u32) -> &Header {
        self.at(region, 0)
    }

    /// A record of a region, counted from the first that is mapped. Only a mapping for writing may be stored to.
    pub(crate) fn record(&self, region: u32, index: u32) -> &Record {
        assert!(index < BARS_PER_ATTEMPT, "record within its region");
        self.at(region, HEADER_BYTES + index as usize * RECORD_BYTES)
    }

    fn at<T>(&self, region: u32, offset: usize) -> &T {
        assert!(region < self.regions, "region within the mapping");
        debug_assert!(offset + size_of::<T>() <= REGION_BYTES);
        // SAFETY: inside the mapping, which outlives the borrow; pages and records are aligned for T; T is Header or Record,
        // both made of atomics, for which any bytes are valid.
        #[expect(unsafe_code, reason = "shared memory is reached by address")]
        unsafe {
            self.start.add(region as usize * REGION_BYTES + offset).cast().as_ref()
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this mapping was made by mmap with this length, and borrows of it have ended.
        #[expect(unsafe_code, reason = "munmap is unsafe")]
        let unmapped = unsafe { munmap(self.start.cast(), length(self.regions).get()) };
        unmapped.expect("a mapping of our own can be unmapped");
    }
}

fn length(regions: u32) -> NonZeroUsize {
    NonZeroUsize::new(regions as usize * REGION_BYTES).expect("an arena has regions")
}
