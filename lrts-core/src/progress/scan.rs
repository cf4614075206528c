//! What is new in the watched regions. Reads shared memory, decides what to send, does no other I/O.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::arena::{Mapping, no_such_region};
use super::record::Record;
use crate::clock::Moment;
use crate::ids::{AttemptId, BarId};
use crate::limits::BARS_PER_BATCH;
use crate::protocol::progress::{BarUpdate, OwnedApplication};

/// A region of an arena.
type Place = (u32, u32);

/// Updates of several applications.
pub(crate) type Updates = Vec<(OwnedApplication, Vec<BarUpdate>)>;

/// The mapped arenas and what was last told of each bar.
#[derive(Debug, Default)]
pub(crate) struct Scanner {
    arenas: BTreeMap<u32, Mapping>,
    watches: BTreeMap<Place, Watch>,
    /// Where a pass goes on that a full batch has interrupted.
    cursor: Option<Place>,
}

#[derive(Debug)]
struct Watch {
    attempt: AttemptId,
    application: OwnedApplication,
    rtt_test: Duration,
    bars: Vec<Told>,
}

/// What the receiver knows of a bar.
#[derive(Clone, Debug, Default)]
enum Told {
    #[default]
    Nothing,
    State {
        text_version: u64,
        position: u64,
        total: Option<u64>,
        closed: bool,
    },
}

/// The last of an attempt.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) application: OwnedApplication,
    pub(crate) attempt: AttemptId,
    /// What the receiver doesn't know yet.
    pub(crate) updates: Vec<BarUpdate>,
    /// Whether there was any bar.
    pub(crate) had_bars: bool,
}

impl Scanner {
    /// Maps an arena.
    ///
    /// # Errors
    ///
    /// `InvalidData` if it is no arena; else those of `mmap(2)`.
    pub(crate) fn add_arena(&mut self, arena: u32, memory: &OwnedFd) -> io::Result<()> {
        self.arenas.insert(arena, Mapping::all(memory.as_fd())?);
        Ok(())
    }

    /// Ends all attempts of an arena and unmaps it.
    pub(crate) fn remove_arena(&mut self, arena: u32, now: Moment) -> Vec<Ended> {
        let regions: Vec<_> = self.watches.range((arena, 0)..=(arena, u32::MAX)).map(|(&at, _)| at).collect();
        let ended = regions.into_iter().filter_map(|place| self.end(place, now)).collect();
        self.arenas.remove(&arena);
        ended
    }

    /// Watches a region for an attempt, from its first bar on.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if there is no such region.
    pub(crate) fn watch(
        &mut self,
        place: Place,
        attempt: AttemptId,
        application: OwnedApplication,
        rtt_test: Duration,
    ) -> io::Result<()> {
        let known = self.arenas.get(&place.0).is_some_and(|arena| place.1 < arena.regions());
        if !known {
            return Err(no_such_region(place.1));
        }
        self.watches.insert(place, Watch { attempt, application, rtt_test, bars: Vec::new() });
        Ok(())
    }

    /// Reads a region for the last time; none if it isn't watched for this attempt.
    pub(crate) fn unwatch(&mut self, place: Place, attempt: AttemptId, now: Moment) -> Option<Ended> {
        let watched = self.watches.get(&place).is_some_and(|watch| watch.attempt == attempt);
        if watched { self.end(place, now) } else { None }
    }

    /// Whether nothing is watched.
    pub(crate) fn is_idle(&self) -> bool {
        self.watches.is_empty()
    }

    /// The smallest interval between measurements that a watched attempt asks for.
    pub(crate) fn rtt_test(&self) -> Option<Duration> {
        self.watches.values().map(|watch| watch.rtt_test).min()
    }

    /// The receiver is another one, or has forgotten everything: every bar is new again.
    pub(crate) fn forget_told(&mut self) {
        self.cursor = None;
        for watch in self.watches.values_mut() {
            watch.bars.clear();
        }
    }

    /// What has changed since it was last told, at most [`BARS_PER_BATCH`] bars. True if the pass over all regions is not
    /// complete: call again.
    pub(crate) fn changes(&mut self, now: Moment) -> (Updates, bool) {
        let mut updates = Updates::new();
        let mut room = BARS_PER_BATCH;
        let from = self.cursor.take().map_or(Bound::Unbounded, Bound::Included);
        for (&place, watch) in self.watches.range_mut((from, Bound::Unbounded)) {
            if room == 0 {
                self.cursor = Some(place);
                break;
            }
            let Some(arena) = self.arenas.get(&place.0) else { continue };
            let mut changed = Vec::new();
            for index in 0..arena.header(place.1).records() {
                if changed.len() == room {
                    // What the receiver was told is known, so the next pass over this region goes on where this one ended.
                    self.cursor = Some(place);
                    break;
                }
                changed.extend(watch.change(index, arena.record(place.1, index), now, false));
            }
            room -= changed.len();
            if !changed.is_empty() {
                updates.push((watch.application.clone(), changed));
            }
            if self.cursor.is_some() {
                break;
            }
        }
        (updates, self.cursor.is_some())
    }

    fn end(&mut self, place: Place, now: Moment) -> Option<Ended> {
        let mut watch = self.watches.remove(&place)?;
        let arena = self.arenas.get(&place.0)?;
        let records = arena.header(place.1).records();
        let changes =
            (0..records).filter_map(|index| watch.change(index, arena.record(place.1, index), now, true));
        let updates = changes.collect();
        let Watch { attempt, application, bars, .. } = watch;
        let had_bars = bars.iter().any(|told| matches!(told, Told::State { .. }));
        Some(Ended { application, attempt, updates, had_bars })
    }
}

impl Watch {
    /// What the receiver doesn't know of a bar. Of a bar that has ended (`last`) the text is taken as it is, and it is closed.
    fn change(&mut self, index: u32, record: &Record, now: Moment, last: bool) -> Option<BarUpdate> {
        if !record.is_used() {
            return None;
        }
        if self.bars.len() <= index as usize {
            self.bars.resize(index as usize + 1, Told::Nothing);
        }
        let told = &mut self.bars[index as usize];
        let mut numbers = record.numbers(now);
        numbers.closed |= last;
        let (known_version, same) = match *told {
            Told::Nothing => (None, false),
            Told::State { text_version, position, total, closed } => {
                let known = (position, total, closed);
                (Some(text_version), known == (numbers.position, numbers.total, numbers.closed))
            }
        };
        let text = if known_version == Some(record.text_version()) {
            None
        } else {
            match record.text() {
                Some(text) => Some(text),
                // Being written. What is known of it stays until the next pass; without any text there is nothing to show.
                None if last => Some((record.text_version(), record.text_as_it_is())),
                None => None,
            }
        };
        if text.is_none() && (same || known_version.is_none()) {
            return None;
        }
        let (version, text) =
            text.map_or((known_version, None), |(version, text)| (Some(version), Some(text)));
        *told = Told::State {
            text_version: version?,
            position: numbers.position,
            total: numbers.total,
            closed: numbers.closed,
        };
        Some(BarUpdate { bar: BarId { attempt: self.attempt, index }, text, numbers })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{JobId, SessionId};
    use crate::progress::{Arena, Region};
    use crate::protocol::progress::{BarNumbers, BarText};

    const RTT_TEST: Duration = Duration::from_secs(10);
    const ATTEMPT: AttemptId = AttemptId { job: JobId { session: SessionId(1), sequence: 1 }, attempt: 1 };

    fn text(description: &str) -> BarText {
        BarText { description: description.to_owned(), leave: true, ..BarText::default() }
    }

    fn app() -> OwnedApplication {
        OwnedApplication { owner: Some("ann".parse().unwrap()), application: "app".parse().unwrap() }
    }

    fn watched(regions: u32) -> (Arena, Scanner) {
        let arena = Arena::create(regions).unwrap();
        let mut scanner = Scanner::default();
        scanner.add_arena(0, &arena.descriptor().try_clone_to_owned().unwrap()).unwrap();
        for region in 0..regions {
            let attempt = AttemptId { job: SessionId(1).job(u64::from(region) + 1), attempt: 1 };
            scanner.watch((0, region), attempt, app(), RTT_TEST).unwrap();
        }
        (arena, scanner)
    }

    /// One pass, as (index, text, position, closed).
    fn pass(scanner: &mut Scanner) -> Vec<(u32, Option<String>, u64, bool)> {
        let (updates, more) = scanner.changes(Moment::now());
        assert!(!more);
        let bars = updates.into_iter().flat_map(|(_, bars)| bars);
        bars.map(|update| {
            let BarNumbers { position, closed, .. } = update.numbers;
            (update.bar.index, update.text.map(|text| text.description), position, closed)
        })
        .collect()
    }

    #[test]
    fn only_what_changed_is_told_and_text_only_once() {
        let (arena, mut scanner) = watched(1);
        let region = Region::map(arena.descriptor(), 0).unwrap();
        assert_eq!(pass(&mut scanner), []);
        let bar = region.start_bar(&text("load"), None);
        assert_eq!(pass(&mut scanner), [(0, Some("load".to_owned()), 0, false)]);
        assert_eq!(pass(&mut scanner), []);
        bar.inc(3);
        assert_eq!(pass(&mut scanner), [(0, None, 3, false)]);
        bar.set_message("half");
        assert_eq!(pass(&mut scanner), [(0, Some("load".to_owned()), 3, false)]);
        bar.close();
        assert_eq!(pass(&mut scanner), [(0, None, 3, true)]);
        scanner.forget_told();
        assert_eq!(pass(&mut scanner), [(0, Some("load".to_owned()), 3, true)]);
    }

    #[test]
    fn an_attempt_that_ended_is_told_whole_and_closed() {
        let (arena, mut scanner) = watched(1);
        let region = Region::map(arena.descriptor(), 0).unwrap();
        let bar = region.start_bar(&text("load"), None);
        pass(&mut scanner);
        bar.inc(5);
        let other = AttemptId { attempt: 2, ..ATTEMPT };
        assert!(scanner.unwatch((0, 0), other, Moment::now()).is_none());
        let ended = scanner.unwatch((0, 0), ATTEMPT, Moment::now()).unwrap();
        assert!(ended.had_bars && ended.updates.len() == 1);
        assert_eq!((ended.updates[0].numbers.position, ended.updates[0].numbers.closed), (5, true));
        assert!(scanner.is_idle() && pass(&mut scanner).is_empty());
    }

    #[test]
    fn a_pass_goes_on_where_a_full_batch_ended() {
        let bars_each = 1_000;
        let regions = 5;
        let (arena, mut scanner) = watched(regions);
        let mut bars = Vec::new();
        for number in 0..regions {
            let region = Region::map(arena.descriptor(), number).unwrap();
            bars.extend((0..bars_each).map(|_| region.start_bar(&text("x"), None)));
        }
        let mut told = 0;
        loop {
            let (updates, more) = scanner.changes(Moment::now());
            let batch: usize = updates.iter().map(|(_, bars)| bars.len()).sum();
            assert!(batch <= BARS_PER_BATCH);
            told += batch;
            if !more {
                break;
            }
        }
        assert_eq!(told, bars.len());
        assert_eq!(scanner.changes(Moment::now()), (Vec::new(), false));
    }

    #[test]
    fn what_is_no_arena_is_refused() {
        let mut scanner = Scanner::default();
        let file = OwnedFd::from(tempfile::tempfile().unwrap());
        assert_eq!(scanner.add_arena(0, &file).unwrap_err().kind(), io::ErrorKind::InvalidData);
        let place = (0, 0);
        assert!(scanner.watch(place, ATTEMPT, app(), RTT_TEST).is_err());
        let (_arena, mut scanner) = watched(1);
        assert!(scanner.watch((0, 1), ATTEMPT, app(), RTT_TEST).is_err());
    }

    #[test]
    fn the_end_of_an_arena_ends_its_attempts() {
        let (arena, mut scanner) = watched(2);
        let region = Region::map(arena.descriptor(), 1).unwrap();
        let _bar = region.start_bar(&text("load"), None);
        let ended = scanner.remove_arena(0, Moment::now());
        assert_eq!(ended.iter().map(|ended| ended.had_bars).collect::<Vec<_>>(), [false, true]);
        assert!(scanner.is_idle());
    }
}
