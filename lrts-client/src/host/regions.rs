//! Which of the arena's regions are whose.

use std::collections::BTreeSet;

use lrts_core::progress::REGIONS;

/// Whose the arena's regions are: of nobody, of a job that runs, or of one that has ended and whose bars are still read.
#[derive(Default)]
pub(super) struct Regions {
    /// Regions from this one on were never used.
    next: u32,
    free: Vec<u32>,
    ended: BTreeSet<u32>,
}

impl Regions {
    /// A region for a job, as new; none if all are taken.
    pub(super) fn take(&mut self) -> Option<u32> {
        self.free.pop().or_else(|| {
            let fresh = (self.next < REGIONS).then_some(self.next)?;
            self.next += 1;
            Some(fresh)
        })
    }

    /// The job that had this region has ended.
    pub(super) fn end(&mut self, region: u32) {
        self.ended.insert(region);
    }

    /// Nobody reads this region any more. False unless its job has ended.
    pub(super) fn release(&mut self, region: u32) -> bool {
        self.ended.remove(&region)
    }

    /// Nobody reads the regions of ended jobs any more but these. Returns those that are released.
    pub(super) fn release_others(&mut self, held: &BTreeSet<u32>) -> Vec<u32> {
        self.ended.extract_if(.., |region| !held.contains(region)).collect()
    }

    /// Lets a region that is as new be taken again.
    pub(super) fn give_back(&mut self, region: u32) {
        self.free.push(region);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_used_again_and_never_twice_at_once() {
        let mut regions = Regions::default();
        assert_eq!((regions.take(), regions.take()), (Some(0), Some(1)));
        assert!(!regions.release(0));
        regions.end(0);
        assert!(regions.release(0) && !regions.release(0));
        regions.give_back(0);
        assert_eq!((regions.take(), regions.take()), (Some(0), Some(2)));
        assert_eq!(std::iter::from_fn(|| regions.take()).count(), REGIONS as usize - 3);
        (1..=3).for_each(|region| regions.end(region));
        assert_eq!(regions.release_others(&BTreeSet::from([0, 2])), [1, 3]);
        assert!(regions.release(2) && !regions.release(1));
    }
}
