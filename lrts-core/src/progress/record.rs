//! The layout of a region, version 1: a header page, then a record of 1 KiB for each bar.
//!
//! Atomics only, in the machine's own byte order. Loads are relaxed, with fences where order counts, so that they may be made
//! through read-only mappings too.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use crate::clock::Moment;
use crate::limits::{BAR_DESCRIPTION_BYTES, BAR_MESSAGE_BYTES, BAR_UNIT_BYTES, BARS_PER_ATTEMPT};
use crate::protocol::progress::{BarNumbers, BarText, Color};

/// Version of this layout; a header with another one has no bars.
pub(crate) const LAYOUT_VERSION: u64 = 1;

/// Size of a region's header; records follow it.
pub(crate) const HEADER_BYTES: usize = 4096;

/// Size of one bar's record.
pub(crate) const RECORD_BYTES: usize = size_of::<Record>();

/// Counters of a record for threads other than the one that started the bar.
pub(crate) const SHARDS: usize = 8;

/// How often a reader tries to get a text that is being written.
const TEXT_READS: usize = 8;

/// Stands for an unknown total.
const NO_TOTAL: u64 = u64::MAX;

const RUNNING: u64 = 1;
const CLOSED: u64 = 2;

/// A text's lengths, colour and leave flag, then its three parts.
const TEXT_BYTES: usize = 8 + BAR_DESCRIPTION_BYTES + BAR_MESSAGE_BYTES + BAR_UNIT_BYTES;
const TEXT_WORDS: usize = TEXT_BYTES / 8;

const COLORS: [Color; 8] = [
    Color::Default,
    Color::Red,
    Color::Green,
    Color::Yellow,
    Color::Blue,
    Color::Magenta,
    Color::Cyan,
    Color::White,
];

/// What a region starts with, on a page of its own.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct Header {
    /// [`LAYOUT_VERSION`], by the job process.
    pub(crate) version: AtomicU64,
    /// How many bars the job has started, by the job process.
    pub(crate) started: AtomicU64,
    /// Not zero once the attempt is to stop, by the host.
    pub(crate) cancelled: AtomicU64,
    /// Not zero once the job has said that it looks at `cancelled` or has a hook, by the job process.
    pub(crate) handles_cancel: AtomicU64,
    /// Until when an exclusive attempt may run, in nanoseconds of the boot-time clock, by the host. This and what follows lies
    /// where the header of an older host is zero and read by nobody, hence no new version.
    pub(crate) lease_until: AtomicU64,
    /// Not zero once the job's watchdog has found the lease to have ended, by the job process.
    pub(crate) lease_ended: AtomicU64,
}

impl Header {
    /// How many records may be in use.
    pub(crate) fn records(&self) -> u32 {
        if self.version.load(Ordering::Relaxed) != LAYOUT_VERSION {
            return 0;
        }
        let started = self.started.load(Ordering::Relaxed);
        u32::try_from(started).unwrap_or(BARS_PER_ATTEMPT).min(BARS_PER_ATTEMPT)
    }
}

/// One bar. Zero bytes are a record that isn't in use.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Record {
    /// The starting thread's counter, stored by that thread alone.
    pub(crate) position: AtomicU64,
    total: AtomicU64,
    state: AtomicU64,
    /// Odd while the text is being written.
    sequence: AtomicU64,
    /// Nanoseconds of the boot-time clock.
    started: AtomicU64,
    closed: AtomicU64,
    spare: [AtomicU64; 2],
    pub(crate) shards: [Shard; SHARDS],
    text: [AtomicU64; TEXT_WORDS],
    rest: [AtomicU64; 56 - TEXT_WORDS],
}

/// One counter on a cache line of its own.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub(crate) struct Shard(pub(crate) AtomicU64);

const _: () = {
    assert!(size_of::<Record>() == 1024 && size_of::<Shard>() == 64);
    assert!(TEXT_BYTES.is_multiple_of(8) && BAR_DESCRIPTION_BYTES < 256 && BAR_MESSAGE_BYTES < 256);
    assert!(size_of::<Header>() <= HEADER_BYTES);
};

impl Default for Record {
    fn default() -> Self {
        Self::from_bytes(&[0; RECORD_BYTES])
    }
}

impl Record {
    /// Where the fields that a host changes lie within a record: state, time of the close.
    pub(crate) const STATE_OFFSET: usize = std::mem::offset_of!(Record, state);
    /// See [`STATE_OFFSET`](Self::STATE_OFFSET).
    pub(crate) const CLOSED_OFFSET: usize = std::mem::offset_of!(Record, closed);
    /// How many of a record's first bytes change as its bar moves: all but the text, whose version is among them.
    pub(crate) const MOVING_BYTES: usize = std::mem::offset_of!(Record, text);
    /// The state of a closed bar, for a host that closes it by writing to the memfd.
    pub(crate) const CLOSED_STATE: u64 = CLOSED;

    /// A copy of a record that was read from the memfd.
    pub(crate) fn from_bytes(bytes: &[u8; RECORD_BYTES]) -> Self {
        let word = |index: usize| {
            let bytes = bytes[index * 8..][..8].try_into().expect("a slice of 8 bytes");
            AtomicU64::new(u64::from_ne_bytes(bytes))
        };
        Self {
            position: word(0),
            total: word(1),
            state: word(2),
            sequence: word(3),
            started: word(4),
            closed: word(5),
            spare: [word(6), word(7)],
            shards: std::array::from_fn(|shard| Shard(word(8 + 8 * shard))),
            text: std::array::from_fn(|index| word(8 + 8 * SHARDS + index)),
            rest: std::array::from_fn(|index| word(8 + 8 * SHARDS + TEXT_WORDS + index)),
        }
    }

    /// Whether a bar is here.
    pub(crate) fn is_used(&self) -> bool {
        let state = self.state.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        state == RUNNING || state == CLOSED
    }

    /// How far the bar is: the sum of all counters.
    ///
    /// Counters wrap. A sum that looks negative was read while one thread took back what another had counted: it is 0.
    pub(crate) fn position(&self) -> u64 {
        let own = self.position.load(Ordering::Relaxed);
        let sum =
            self.shards.iter().map(|shard| shard.0.load(Ordering::Relaxed)).fold(own, u64::wrapping_add);
        if i64::try_from(sum).is_ok() { sum } else { 0 }
    }

    /// How far the bar will go, if that is known.
    pub(crate) fn total(&self) -> Option<u64> {
        Some(self.total.load(Ordering::Relaxed)).filter(|&total| total != NO_TOTAL)
    }

    /// The bar's numbers at this moment.
    pub(crate) fn numbers(&self, now: Moment) -> BarNumbers {
        // The state first: the counters of a closed bar, read after it, are final.
        let closed = self.state.load(Ordering::Relaxed) == CLOSED;
        fence(Ordering::Acquire);
        let end = if closed { Moment::from_nanos(self.closed.load(Ordering::Relaxed)) } else { now };
        let started = Moment::from_nanos(self.started.load(Ordering::Relaxed));
        BarNumbers { position: self.position(), total: self.total(), closed, elapsed: end.since(started) }
    }

    /// The text and the even number of this version of it; none while it is being written, for ever if its writer died.
    pub(crate) fn text(&self) -> Option<(u64, BarText)> {
        for _ in 0..TEXT_READS {
            let before = self.sequence.load(Ordering::Relaxed);
            fence(Ordering::Acquire);
            let words = self.text.each_ref().map(|word| word.load(Ordering::Relaxed));
            fence(Ordering::Acquire);
            if before.is_multiple_of(2) && self.sequence.load(Ordering::Relaxed) == before {
                return Some((before, unpack(&words)));
            }
            std::hint::spin_loop();
        }
        None
    }

    /// The number of the present version of the text, without the text.
    pub(crate) fn text_version(&self) -> u64 {
        self.sequence.load(Ordering::Relaxed)
    }

    /// The text as it lies there, perhaps half written: for a record whose writer is dead.
    pub(crate) fn text_as_it_is(&self) -> BarText {
        unpack(&self.text.each_ref().map(|word| word.load(Ordering::Relaxed)))
    }

    /// Makes a bar of an unused record. The text must be [`bounded`](super::bounded).
    pub(crate) fn open(&self, text: &BarText, total: Option<u64>, now: Moment) {
        self.set_total(total);
        self.started.store(now.as_nanos(), Ordering::Relaxed);
        self.write_text(text);
        self.state.store(RUNNING, Ordering::Release);
    }

    /// Closes the bar. Every thread's counting must be over.
    pub(crate) fn close(&self, now: Moment) {
        self.closed.store(now.as_nanos(), Ordering::Relaxed);
        self.state.store(CLOSED, Ordering::Release);
    }

    pub(crate) fn set_total(&self, total: Option<u64>) {
        let total = total.map_or(NO_TOTAL, |total| total.min(NO_TOTAL - 1));
        self.total.store(total, Ordering::Relaxed);
    }

    /// Replaces the text, which must be [`bounded`](super::bounded). One writer at a time.
    pub(crate) fn write_text(&self, text: &BarText) {
        let sequence = self.begin_text();
        for (word, value) in self.text.iter().zip(pack(text)) {
            word.store(value, Ordering::Relaxed);
        }
        self.sequence.store(sequence.wrapping_add(1), Ordering::Release);
    }

    /// Makes the sequence odd, so that readers keep away.
    pub(crate) fn begin_text(&self) -> u64 {
        let sequence = self.sequence.load(Ordering::Relaxed) | 1;
        self.sequence.store(sequence, Ordering::Relaxed);
        fence(Ordering::Release);
        sequence
    }
}

fn pack(text: &BarText) -> [u64; TEXT_WORDS] {
    let mut bytes = [0; TEXT_BYTES];
    let color = COLORS.iter().position(|&color| color == text.color).unwrap_or(0);
    let length = |part: &str| u8::try_from(part.len()).expect("bounded to less than 256 bytes");
    bytes[0] = length(&text.description);
    bytes[1] = length(&text.message);
    bytes[2] = length(&text.unit);
    bytes[3] = u8::try_from(color).expect("there are 8 colours");
    bytes[4] = u8::from(text.leave);
    let (description, rest) = bytes[8..].split_at_mut(BAR_DESCRIPTION_BYTES);
    let (message, unit) = rest.split_at_mut(BAR_MESSAGE_BYTES);
    description[..text.description.len()].copy_from_slice(text.description.as_bytes());
    message[..text.message.len()].copy_from_slice(text.message.as_bytes());
    unit[..text.unit.len()].copy_from_slice(text.unit.as_bytes());
    let words = bytes.as_chunks::<8>().0;
    std::array::from_fn(|index| u64::from_ne_bytes(words[index]))
}

/// Makes a valid text of any bytes.
fn unpack(words: &[u64; TEXT_WORDS]) -> BarText {
    let mut bytes = [0; TEXT_BYTES];
    for (bytes, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        *bytes = word.to_ne_bytes();
    }
    let (description, rest) = bytes[8..].split_at(BAR_DESCRIPTION_BYTES);
    let (message, unit) = rest.split_at(BAR_MESSAGE_BYTES);
    let part = |part: &[u8], length: u8| {
        String::from_utf8_lossy(&part[..usize::from(length).min(part.len())]).into_owned()
    };
    super::bounded(&BarText {
        description: part(description, bytes[0]),
        message: part(message, bytes[1]),
        unit: part(unit, bytes[2]),
        color: COLORS.get(usize::from(bytes[3])).copied().unwrap_or_default(),
        leave: bytes[4] != 0,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn text() -> BarText {
        BarText {
            description: "x".repeat(BAR_DESCRIPTION_BYTES),
            message: "läuft".to_owned(),
            unit: "rows".to_owned(),
            color: Color::Cyan,
            leave: true,
        }
    }

    #[test]
    fn a_record_gives_back_what_was_put_in() {
        let record = Record::default();
        assert!(!record.is_used());
        record.open(&text(), Some(10), Moment::from_nanos(5));
        record.position.store(3, Ordering::Relaxed);
        record.shards[7].0.store(4, Ordering::Relaxed);
        assert!(record.is_used());
        assert_eq!(record.text(), Some((2, text())));
        let numbers =
            BarNumbers { position: 7, total: Some(10), closed: false, elapsed: Duration::from_nanos(95) };
        assert_eq!(record.numbers(Moment::from_nanos(100)), numbers);
        record.close(Moment::from_nanos(55));
        assert!(record.numbers(Moment::from_nanos(100)).closed);
        assert_eq!(record.numbers(Moment::from_nanos(100)).elapsed, Duration::from_nanos(50));
    }

    #[test]
    fn a_text_whose_writer_died_is_not_waited_for() {
        let record = Record::default();
        record.open(&text(), None, Moment::from_nanos(5));
        record.begin_text();
        assert_eq!(record.text(), None);
        assert_eq!(record.text_as_it_is(), text());
    }

    #[test]
    fn any_bytes_make_a_valid_record() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..2_000 {
            let mut bytes = [0; RECORD_BYTES];
            random.fill(&mut bytes);
            let record = Record::from_bytes(&bytes);
            assert!(super::super::is_bounded(&record.text_as_it_is()));
            assert!(i64::try_from(record.numbers(Moment::from_nanos(1)).position).is_ok());
        }
        let header = Header { version: AtomicU64::new(LAYOUT_VERSION), ..Header::default() };
        header.started.store(u64::MAX, Ordering::Relaxed);
        assert_eq!(header.records(), BARS_PER_ATTEMPT);
        header.version.store(9, Ordering::Relaxed);
        assert_eq!(header.records(), 0);
    }

    #[test]
    fn a_reader_never_sees_half_of_a_text() {
        let record = Record::default();
        let version = |digit: char| BarText {
            description: digit.to_string().repeat(BAR_DESCRIPTION_BYTES),
            message: digit.to_string().repeat(BAR_MESSAGE_BYTES),
            ..BarText::default()
        };
        record.open(&version('0'), None, Moment::from_nanos(0));
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for round in 0..50_000u32 {
                    record.write_text(&version(char::from_digit(round % 10, 10).unwrap()));
                }
            });
            let mut reads = 0;
            while !writer.is_finished() || reads == 0 {
                if let Some((_, text)) = record.text() {
                    let first = text.description.chars().next().unwrap();
                    assert_eq!(text, version(first));
                    reads += 1;
                }
            }
        });
    }
}
