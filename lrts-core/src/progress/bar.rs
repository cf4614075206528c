//! The job's side: its region, and the bars that it counts there.

use std::cell::Cell;
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::arena::Mapping;
use super::record::{LAYOUT_VERSION, Record, SHARDS};
use crate::clock::Moment;
use crate::limits::BARS_PER_ATTEMPT;
use crate::protocol::progress::BarText;

/// A job's own region of its host's arena, mapped as long as this or one of its bars lives.
#[derive(Clone, Debug)]
pub struct Region(Arc<Mapping>);

impl Region {
    /// Maps one region of an arena, in the job process. The descriptor may be closed afterwards.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the arena has no such region, `InvalidData` if it is no arena; else those of `mmap(2)`.
    pub fn map(arena: BorrowedFd<'_>, region: u32) -> io::Result<Self> {
        Ok(Self::new(Mapping::one(arena, region)?))
    }

    /// A region that nobody reads: for a service that runs without a worker, in tests of its own.
    ///
    /// # Errors
    ///
    /// Those of `mmap(2)`: the process has no address space left.
    pub fn anonymous() -> io::Result<Self> {
        Ok(Self::new(Mapping::anonymous()?))
    }

    fn new(mapping: Mapping) -> Self {
        mapping.header(0).version.store(LAYOUT_VERSION, Ordering::Relaxed);
        Self(Arc::new(mapping))
    }

    /// Whether the attempt is to stop. Costs a load from memory.
    pub fn is_cancelled(&self) -> bool {
        self.0.header(0).cancelled.load(Ordering::Relaxed) != 0
    }

    /// Sets the cancel flag from within, as [`Arena::set_cancelled`](super::Arena::set_cancelled) does from outside.
    pub fn set_cancelled(&self) {
        self.0.header(0).cancelled.store(1, Ordering::Relaxed);
    }

    /// Tells the host that this job stops by itself when it is cancelled, so that it gets its grace period without SIGTERM's
    /// default action.
    pub fn declare_handles_cancel(&self) {
        self.0.header(0).handles_cancel.store(1, Ordering::Relaxed);
    }

    /// Until when an exclusive attempt may run: what [`Arena::set_lease`](super::Arena::set_lease) has set.
    pub fn lease(&self) -> Moment {
        Moment::from_nanos(self.0.header(0).lease_until.load(Ordering::Relaxed))
    }

    /// Tells the host that this process ends itself because its lease has ended.
    pub fn declare_lease_ended(&self) {
        self.0.header(0).lease_ended.store(1, Ordering::Relaxed);
    }

    /// Starts a bar, owned by the calling thread. Its text is cut to the bounds of [`limits`](crate::limits).
    ///
    /// A bar beyond [`BARS_PER_ATTEMPT`] counts nowhere and isn't shown.
    pub fn start_bar(&self, text: &BarText, total: Option<u64>) -> BarWriter {
        let started = self.0.header(0).started.fetch_add(1, Ordering::Relaxed);
        let index = u32::try_from(started).ok().filter(|&index| index < BARS_PER_ATTEMPT);
        let (record, memory) = if let Some(index) = index {
            (NonNull::from_ref(self.0.record(0, index)), Memory::Shared { _region: Arc::clone(&self.0) })
        } else {
            let record = Arc::new(Record::default());
            (NonNull::from_ref(&*record), Memory::Own { _record: record })
        };
        let bar = BarWriter {
            counter: Cell::new(0),
            owner: this_thread(),
            record,
            text: Mutex::new(super::bounded(text)),
            _memory: memory,
        };
        bar.record().open(&bar.lock_text(), total, Moment::now());
        bar
    }
}

/// What keeps a bar's record where it is.
#[derive(Debug)]
enum Memory {
    Shared { _region: Arc<Mapping> },
    Own { _record: Arc<Record> },
}

/// One bar of a job, closed when it is dropped.
///
/// Counting costs about a nanosecond on the thread that started the bar and a few on others. No count is lost, whichever
/// threads count at the same time. Positions end at 2^63 - 1.
#[derive(Debug)]
pub struct BarWriter {
    /// The owner's count, touched by no other thread; the record's first word is a copy.
    counter: Cell<u64>,
    owner: u64,
    record: NonNull<Record>,
    text: Mutex<BarText>,
    _memory: Memory,
}

// SAFETY: the record is made of atomics and kept by `_memory`, which is Send.
#[expect(unsafe_code, reason = "the record is a pointer")]
unsafe impl Send for BarWriter {}
// SAFETY: as above; and `counter` is touched by the owner's thread alone: thread numbers are never used twice.
#[expect(unsafe_code, reason = "the counter is a Cell")]
unsafe impl Sync for BarWriter {}

impl BarWriter {
    /// Counts on.
    #[inline]
    pub fn inc(&self, count: u64) {
        if THREAD.get() == self.owner {
            let sum = self.counter.get().wrapping_add(count);
            self.counter.set(sum);
            self.record().position.store(sum, Ordering::Relaxed);
        } else {
            self.inc_elsewhere(count);
        }
    }

    /// Moves the bar to this position.
    ///
    /// What other threads count meanwhile is added to it or replaced by it; of two threads that set positions at the same
    /// time neither may get its own. One thread alone gets exactly what it sets.
    pub fn set_position(&self, position: u64) {
        self.inc(position.wrapping_sub(self.position()));
    }

    /// How far the bar is, over all threads.
    pub fn position(&self) -> u64 {
        self.record().position()
    }

    /// How far the bar will go, if that is known.
    pub fn total(&self) -> Option<u64> {
        self.record().total()
    }

    /// Sets how far the bar will go; none if that is unknown.
    pub fn set_total(&self, total: Option<u64>) {
        self.record().set_total(total);
    }

    /// Sets the text behind the bar, cut to its bound.
    pub fn set_message(&self, message: &str) {
        let mut text = self.lock_text();
        text.message = super::bounded_line(message, crate::limits::BAR_MESSAGE_BYTES);
        self.record().write_text(&text);
    }

    /// Closes the bar: it doesn't change any more.
    pub fn close(self) {}

    #[cold]
    fn inc_elsewhere(&self, count: u64) {
        let shard = this_thread() as usize % SHARDS;
        self.record().shards[shard].0.fetch_add(count, Ordering::Relaxed);
    }

    fn lock_text(&self) -> std::sync::MutexGuard<'_, BarText> {
        self.text.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[inline]
    fn record(&self) -> &Record {
        // SAFETY: `_memory` keeps the record where it is, and any bytes are a valid one.
        #[expect(unsafe_code, reason = "the record lies in shared memory")]
        unsafe {
            self.record.as_ref()
        }
    }
}

impl Drop for BarWriter {
    fn drop(&mut self) {
        self.record().close(Moment::now());
    }
}

thread_local! {
    /// This thread's number; 0 until it is asked for.
    static THREAD: Cell<u64> = const { Cell::new(0) };
}

/// This thread's number, from 1, never given to another thread of the process.
fn this_thread() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    if THREAD.get() == 0 {
        THREAD.set(NEXT.fetch_add(1, Ordering::Relaxed));
    }
    THREAD.get()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use super::*;
    use crate::limits::BAR_MESSAGE_BYTES;
    use crate::progress::Arena;
    use crate::protocol::progress::{BarNumbers, Color};

    const WRITER: &str = "LRTS_TEST_BAR_WRITER";

    fn text(description: &str) -> BarText {
        BarText {
            description: description.to_owned(),
            color: Color::Green,
            leave: true,
            ..BarText::default()
        }
    }

    fn positions(arena: &Arena, region: u32) -> Vec<u64> {
        let bars = arena.final_bars(region, Moment::now()).unwrap();
        bars.into_iter().map(|bar| bar.numbers.position).collect()
    }

    #[test]
    fn what_a_job_writes_its_host_reads() {
        let arena = Arena::create(3).unwrap();
        let region = Region::map(arena.descriptor(), 1).unwrap();
        let done = region.start_bar(&text("done"), Some(7));
        done.inc(7);
        done.set_message("ok");
        done.close();
        let open = region.start_bar(&text("open"), None);
        open.set_position(5);
        open.inc(2);
        open.set_total(Some(20));

        let bars = arena.final_bars(1, Moment::now() + Duration::from_secs(5)).unwrap();
        assert_eq!(bars.len(), 2);
        assert_eq!(bars[0].text, BarText { message: "ok".to_owned(), ..text("done") });
        let BarNumbers { position, total, closed, elapsed } = bars[0].numbers;
        assert_eq!((position, total, closed), (7, Some(7), true));
        assert!(elapsed < Duration::from_secs(5));
        let BarNumbers { position, total, closed, elapsed } = bars[1].numbers;
        assert_eq!((position, total, closed), (7, Some(20), true));
        assert!(elapsed >= Duration::from_secs(5));
        // The open bar was closed in memory too, at that moment.
        assert_eq!(arena.final_bars(1, Moment::now()).unwrap(), bars);

        assert!(positions(&arena, 0).is_empty());
        drop(open);
        arena.clear(1).unwrap();
        assert!(positions(&arena, 1).is_empty());
        assert_eq!(arena.final_bars(3, Moment::now()).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert!(Region::map(arena.descriptor(), 3).is_err());
    }

    #[test]
    fn cancel_flags_cross_between_host_and_job() {
        let arena = Arena::create(2).unwrap();
        let region = Region::map(arena.descriptor(), 1).unwrap();
        assert!(!region.is_cancelled() && !arena.handles_cancel(1).unwrap());
        region.declare_handles_cancel();
        arena.set_cancelled(1).unwrap();
        assert!(region.is_cancelled() && arena.handles_cancel(1).unwrap());
        assert!(!arena.handles_cancel(0).unwrap());
    }

    #[test]
    fn leases_cross_between_host_and_job() {
        let arena = Arena::create(2).unwrap();
        let region = Region::map(arena.descriptor(), 1).unwrap();
        assert_eq!(region.lease(), Moment::default());
        arena.set_lease(1, Moment::from_nanos(7)).unwrap();
        assert_eq!(region.lease(), Moment::from_nanos(7));
        assert!(!arena.lease_ended(1).unwrap());
        region.declare_lease_ended();
        assert!(arena.lease_ended(1).unwrap() && !arena.lease_ended(0).unwrap());
        assert!(arena.set_lease(2, Moment::default()).is_err());
    }

    #[test]
    fn whatever_moves_in_a_region_shows_in_its_fingerprint() {
        let arena = Arena::create(2).unwrap();
        let region = Region::map(arena.descriptor(), 1).unwrap();
        let mut seen = vec![arena.fingerprint(1).unwrap()];
        let mut moved = |what: &str| {
            let fingerprint = arena.fingerprint(1).unwrap();
            assert!(!seen.contains(&fingerprint), "{what}");
            assert_eq!(arena.fingerprint(1).unwrap(), fingerprint);
            seen.push(fingerprint);
        };
        let bars = [region.start_bar(&text("first"), None), region.start_bar(&text("second"), None)];
        moved("started");
        bars[1].inc(1);
        moved("counted");
        std::thread::scope(|scope| scope.spawn(|| bars[0].inc(1)).join().unwrap());
        moved("counted on another thread");
        bars[0].set_total(Some(9));
        moved("total");
        bars[0].set_message("on");
        moved("message");
        drop(bars);
        moved("closed");
        assert!(arena.fingerprint(2).is_err());
    }

    #[test]
    fn threads_count_exactly() {
        const EACH: u64 = 200_000;
        let arena = Arena::create(1).unwrap();
        let region = Region::map(arena.descriptor(), 0).unwrap();
        let bar = region.start_bar(&text("shared"), None);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..EACH).for_each(|_| bar.inc(1)));
            }
            (0..EACH).for_each(|_| bar.inc(1));
        });
        assert_eq!(bar.position(), 5 * EACH);
        assert_eq!(positions(&arena, 0), [5 * EACH]);
    }

    #[test]
    fn a_set_position_holds_on_any_thread() {
        let region = Region::anonymous().unwrap();
        let bar = region.start_bar(&text("moved"), None);
        bar.inc(10);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                bar.inc(5);
                bar.set_position(3);
                assert_eq!(bar.position(), 3);
            });
        });
        bar.inc(1);
        assert_eq!(bar.position(), 4);
        bar.set_position(100);
        assert_eq!(bar.position(), 100);
    }

    #[test]
    fn bars_beyond_the_bound_count_nowhere() {
        let arena = Arena::create(1).unwrap();
        let region = Region::map(arena.descriptor(), 0).unwrap();
        let bars: Vec<_> = (0..BARS_PER_ATTEMPT + 10).map(|_| region.start_bar(&text("x"), None)).collect();
        bars.iter().for_each(|bar| bar.inc(1));
        assert_eq!(positions(&arena, 0), vec![1; BARS_PER_ATTEMPT as usize]);
    }

    #[test]
    fn text_is_cut_to_its_bounds() {
        let arena = Arena::create(1).unwrap();
        let region = Region::map(arena.descriptor(), 0).unwrap();
        let bar = region.start_bar(&text(&"d\n".repeat(1_000)), None);
        bar.set_message(&"ü".repeat(1_000));
        let bars = arena.final_bars(0, Moment::now()).unwrap();
        assert!(crate::progress::is_bounded(&bars[0].text));
        assert_eq!(bars[0].text.message.len(), BAR_MESSAGE_BYTES);
    }

    /// What the test below runs in a process of its own: descriptor 0 is an arena.
    #[test]
    fn second_process() {
        if std::env::var_os(WRITER).is_none() {
            return;
        }
        let region = Region::map(std::io::stdin().as_fd(), 1).unwrap();
        let bar = region.start_bar(&text("crashes"), Some(1_000));
        (0..500).for_each(|_| bar.inc(1));
        bar.set_message("half");
        bar.record().begin_text();
        std::process::abort();
    }

    #[test]
    fn a_job_that_dies_while_it_writes_a_text_leaves_a_true_record() {
        let arena = Arena::create(2).unwrap();
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "progress::bar::tests::second_process"])
            .env(WRITER, "1")
            .stdin(Stdio::from(arena.descriptor().try_clone_to_owned().unwrap()))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(!status.success());
        let bars = arena.final_bars(1, Moment::now()).unwrap();
        assert_eq!(bars.len(), 1);
        assert_eq!(bars[0].text, BarText { message: "half".to_owned(), ..text("crashes") });
        let BarNumbers { position, total, closed, .. } = bars[0].numbers;
        assert_eq!((position, total, closed), (500, Some(1_000), true));
    }

    #[test]
    #[ignore = "a measurement, for a release build"]
    fn time_of_an_increment() {
        const COUNT: u64 = 200_000_000;
        let region = Region::anonymous().unwrap();
        let bar = region.start_bar(&text("timed"), None);
        let time = |name: &str| {
            let start = Moment::now();
            (0..COUNT).for_each(|_| std::hint::black_box(&bar).inc(1));
            println!("{name}: {:.2} ns", start.elapsed().as_nanos() as f64 / COUNT as f64);
        };
        time("owner");
        std::thread::scope(|scope| {
            scope.spawn(|| time("other thread"));
        });
        assert_eq!(bar.position(), 2 * COUNT);
    }
}
