//! The bars that a running service shows.

use std::ops::Range;

use lrts_core::progress::{BarWriter, Region};
use lrts_core::protocol::progress::{BarText, Color};

/// A bar that isn't there yet: from [`JobContext::progress`](crate::JobContext::progress).
#[derive(Clone, Debug)]
#[must_use = "a bar appears once it is started"]
pub struct ProgressBuilder {
    region: Region,
    text: BarText,
    total: Option<u64>,
}

impl ProgressBuilder {
    pub(crate) fn new(region: Region, description: String) -> Self {
        Self { region, text: BarText { description, leave: true, ..BarText::default() }, total: None }
    }

    /// How far the bar will go. Without it, only the count is shown.
    pub fn total(mut self, total: u64) -> Self {
        self.total = Some(total);
        self
    }

    /// What is counted, for example `rows`; up to 16 bytes are shown.
    pub fn unit(mut self, unit: impl Into<String>) -> Self {
        self.text.unit = unit.into();
        self
    }

    /// The bar's colour; the terminal's own by default.
    pub fn color(mut self, color: Color) -> Self {
        self.text.color = color;
        self
    }

    /// Whether the bar stays on the screen after it was closed, which is the default.
    pub fn leave(mut self, leave: bool) -> Self {
        self.text.leave = leave;
        self
    }

    /// Shows the bar. The calling thread is the one on which it counts fastest.
    ///
    /// A job may start 1,000 bars. Later ones can be used like all others but aren't shown.
    pub fn start(self) -> ProgressBar {
        ProgressBar(self.region.start_bar(&self.text, self.total))
    }
}

/// A bar of a running service. It closes when it is dropped, or when the job ends.
///
/// It may be shared between threads: counting costs about a nanosecond on the thread that started it, a few on others, and no
/// count is lost. Neither depends on whether anybody watches.
#[derive(Debug)]
pub struct ProgressBar(BarWriter);

impl ProgressBar {
    /// Counts on.
    #[inline]
    pub fn inc(&self, count: u64) {
        self.0.inc(count);
    }

    /// Moves the bar to this position; at most 2^63 - 1.
    ///
    /// What other threads count at the same time is added to it or replaced by it.
    pub fn set_position(&self, position: u64) {
        self.0.set_position(position);
    }

    /// Sets how far the bar will go.
    pub fn set_total(&self, total: u64) {
        self.0.set_total(Some(total));
    }

    /// Sets the text behind the bar; up to 120 bytes are shown.
    pub fn set_message(&self, message: impl Into<String>) {
        self.0.set_message(&message.into());
    }

    /// Counts the items of an iterator, each once it is done: when the next one is asked for.
    ///
    /// A bar without a total takes it from the iterator, if that knows how many items it has at most.
    ///
    /// ```
    /// # let job = lrts_client::JobContext::detached();
    /// let bar = job.progress("Reading").unit("rows").start();
    /// let sum: u64 = bar.wrap_iter(1..=100).sum();
    /// # assert_eq!(sum, 5_050);
    /// ```
    pub fn wrap_iter<I: IntoIterator>(&self, iter: I) -> ProgressIter<'_, I::IntoIter> {
        let iter = iter.into_iter();
        if let (None, Some(most)) = (self.0.total(), iter.size_hint().1) {
            self.set_total(most as u64);
        }
        ProgressIter { iter, bar: self, begun: false }
    }

    /// Splits a range into pieces of `size` (the last may be shorter; 0 counts as 1), each counted once it is done: when the
    /// next one is asked for. For inner loops that the compiler vectorises, which a count in each round would prevent.
    ///
    /// A bar without a total takes the range's length.
    ///
    /// ```
    /// # let job = lrts_client::JobContext::detached();
    /// let prices = vec![1.0_f32; 10_000];
    /// let bar = job.progress("Adding").start();
    /// let mut sum = 0.0;
    /// for piece in bar.chunks(0..prices.len(), 1024) {
    ///     sum += prices[piece].iter().sum::<f32>();
    /// }
    /// ```
    pub fn chunks<T: ChunkIndex>(&self, range: Range<T>, size: usize) -> ProgressChunks<'_, T> {
        let rest = range.start..range.end.max(range.start);
        if self.0.total().is_none() {
            self.set_total(rest.start.distance(rest.end));
        }
        ProgressChunks { bar: self, rest, size: size.max(1) as u64, under_way: 0 }
    }

    /// Closes the bar.
    pub fn close(self) {
        self.0.close();
    }
}

/// An iterator whose items a bar counts; see [`ProgressBar::wrap_iter`].
#[derive(Debug)]
#[must_use = "iterators do nothing until they are consumed"]
pub struct ProgressIter<'a, I> {
    iter: I,
    bar: &'a ProgressBar,
    /// Whether the caller works on an item: it counts when the next one is asked for.
    begun: bool,
}

impl<I: Iterator> Iterator for ProgressIter<'_, I> {
    type Item = I::Item;

    #[inline]
    fn next(&mut self) -> Option<I::Item> {
        if self.begun {
            self.bar.inc(1);
        }
        let item = self.iter.next();
        self.begun = item.is_some();
        item
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.iter.size_hint()
    }
}

impl<I: ExactSizeIterator> ExactSizeIterator for ProgressIter<'_, I> {}

/// Whole numbers that [`ProgressBar::chunks`] can split a range of.
pub trait ChunkIndex: Copy + Ord + sealed::Sealed {
    /// How far it is to a later one.
    #[doc(hidden)]
    fn distance(self, later: Self) -> u64;

    /// The one this much later, which must exist.
    #[doc(hidden)]
    fn later(self, by: u64) -> Self;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! chunk_index {
    ($($number:ty as $unsigned:ty),*) => {$(
        impl sealed::Sealed for $number {}

        impl ChunkIndex for $number {
            #[inline]
            fn distance(self, later: Self) -> u64 {
                later.wrapping_sub(self) as $unsigned as u64
            }

            #[inline]
            fn later(self, by: u64) -> Self {
                self.wrapping_add(by as Self)
            }
        }
    )*};
}

chunk_index!(usize as usize, u64 as u64, u32 as u32, i64 as u64, i32 as u32);

/// Pieces of a range; see [`ProgressBar::chunks`].
#[derive(Debug)]
#[must_use = "iterators do nothing until they are consumed"]
pub struct ProgressChunks<'a, T> {
    bar: &'a ProgressBar,
    rest: Range<T>,
    size: u64,
    /// Length of the piece that the caller works on.
    under_way: u64,
}

impl<T: ChunkIndex> Iterator for ProgressChunks<'_, T> {
    type Item = Range<T>;

    #[inline]
    fn next(&mut self) -> Option<Range<T>> {
        self.bar.inc(self.under_way);
        let start = self.rest.start;
        self.under_way = start.distance(self.rest.end).min(self.size);
        self.rest.start = start.later(self.under_way);
        (self.under_way > 0).then_some(start..self.rest.start)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let pieces = self.rest.start.distance(self.rest.end).div_ceil(self.size);
        let pieces = usize::try_from(pieces).ok();
        (pieces.unwrap_or(usize::MAX), pieces)
    }
}

#[cfg(test)]
mod tests {
    use lrts_core::clock::Moment;
    use lrts_core::progress::Arena;
    use lrts_core::protocol::progress::BarRecord;

    use super::*;

    fn arena() -> (Arena, ProgressBuilder) {
        let arena = Arena::create(1).unwrap();
        let region = Region::map(arena.descriptor(), 0).unwrap();
        (arena, ProgressBuilder::new(region, "Doing work".to_owned()))
    }

    fn only_bar(arena: &Arena) -> BarRecord {
        let mut bars = arena.final_bars(0, Moment::now()).unwrap();
        assert_eq!(bars.len(), 1);
        bars.remove(0)
    }

    #[test]
    fn bars_show_what_was_asked_for() {
        let (arena, builder) = arena();
        let bar = builder.total(10).unit("rows").color(Color::Green).leave(false).start();
        bar.inc(2);
        bar.set_message("half");
        bar.set_position(7);
        bar.close();
        let BarRecord { text, numbers, .. } = only_bar(&arena);
        assert_eq!((numbers.position, numbers.total, numbers.closed), (7, Some(10), true));
        let expected = BarText {
            description: "Doing work".to_owned(),
            message: "half".to_owned(),
            unit: "rows".to_owned(),
            color: Color::Green,
            leave: false,
        };
        assert_eq!(text, expected);
    }

    #[test]
    fn bars_stay_on_the_screen_by_default() {
        let (arena, builder) = arena();
        let _bar = builder.start();
        assert!(only_bar(&arena).text.leave);
    }

    #[test]
    fn wrapped_iterators_count_what_is_done() {
        let (arena, builder) = arena();
        let bar = builder.start();
        let mut items = bar.wrap_iter(vec![1, 2, 3]);
        assert_eq!((items.len(), items.next(), items.next()), (3, Some(1), Some(2)));
        assert_eq!(bar.0.position(), 1);
        assert_eq!(items.collect::<Vec<_>>(), [3]);
        let numbers = only_bar(&arena).numbers;
        assert_eq!((numbers.position, numbers.total), (3, Some(3)));
    }

    #[test]
    fn chunks_cover_the_range_exactly() {
        let (arena, builder) = arena();
        let bar = builder.start();
        let pieces: Vec<_> = bar.chunks(5..2_500, 1_024).collect();
        assert_eq!(pieces, [5..1_029, 1_029..2_053, 2_053..2_500]);
        assert_eq!(bar.chunks(7..7, 1_024).next(), None);
        #[expect(clippy::reversed_empty_ranges, reason = "a caller may pass one")]
        let reversed = 9..7;
        assert_eq!(bar.chunks(reversed, 0).next(), None);
        assert_eq!(bar.chunks(0..3, 0).count(), 3);
        assert_eq!(bar.chunks(0..usize::MAX, usize::MAX).next(), Some(0..usize::MAX));
        assert_eq!(bar.chunks(i32::MIN..i32::MAX, 1 << 31).collect::<Vec<_>>(), [i32::MIN..0, 0..i32::MAX]);
        assert_eq!(bar.chunks(-2..3_i64, 4).collect::<Vec<_>>(), [-2..2, 2..3]);
        let numbers = only_bar(&arena).numbers;
        assert_eq!((numbers.position, numbers.total), (2_495 + 3 + u64::from(u32::MAX) + 5, Some(2_495)));
    }

    #[test]
    fn a_loop_that_is_left_counts_only_what_was_done() {
        let (arena, builder) = arena();
        let bar = builder.start();
        for piece in bar.chunks(0..10_000, 1_000) {
            if piece.start == 3_000 {
                break;
            }
        }
        assert_eq!(only_bar(&arena).numbers.position, 3_000);
    }
}
