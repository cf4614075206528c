//! Records addressed by small numbers, which are used again once a record is gone.

use std::ops::{Index, IndexMut};

/// Where a linked list ends.
pub(super) const NONE: u32 = u32::MAX;

/// Records of one kind. Whoever keeps an index must know that its record is alive, or check with [`Slab::get`].
#[derive(Debug)]
pub(super) struct Slab<T> {
    entries: Vec<Option<T>>,
    vacant: Vec<u32>,
    /// How often a record was looked up: what a test knows of the work that was done.
    #[cfg(test)]
    pub(super) looks: std::cell::Cell<u64>,
}

impl<T> Slab<T> {
    pub(super) fn new() -> Self {
        Self {
            entries: Vec::new(),
            vacant: Vec::new(),
            #[cfg(test)]
            looks: std::cell::Cell::default(),
        }
    }

    pub(super) fn insert(&mut self, record: T) -> u32 {
        if let Some(index) = self.vacant.pop() {
            self.entries[index as usize] = Some(record);
            return index;
        }
        let index = u32::try_from(self.entries.len()).expect("memory ends before 4 billion records do");
        self.entries.push(Some(record));
        index
    }

    pub(super) fn remove(&mut self, index: u32) -> T {
        self.vacant.push(index);
        self.entries[index as usize].take().expect("only live records are removed")
    }

    pub(super) fn get(&self, index: u32) -> Option<&T> {
        self.entries.get(index as usize)?.as_ref()
    }

    /// How many records there are.
    pub(super) fn len(&self) -> usize {
        self.entries.len() - self.vacant.len()
    }

    /// All records, by index.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.entries.iter().enumerate().filter_map(|(index, entry)| Some((index as u32, entry.as_ref()?)))
    }

    /// All records with this index or a higher one.
    pub(super) fn iter_from(&self, from: u32) -> impl Iterator<Item = (u32, &T)> {
        let rest = self.entries.iter().enumerate().skip(from as usize);
        rest.filter_map(|(index, entry)| Some((index as u32, entry.as_ref()?)))
    }

    /// Indices of all records, as they are now.
    pub(super) fn indices(&self) -> Vec<u32> {
        self.iter().map(|(index, _)| index).collect()
    }
}

impl<T> Index<u32> for Slab<T> {
    type Output = T;

    fn index(&self, index: u32) -> &T {
        #[cfg(test)]
        self.looks.update(|looks| looks + 1);
        self.entries[index as usize].as_ref().expect("kept indices are those of live records")
    }
}

impl<T> IndexMut<u32> for Slab<T> {
    fn index_mut(&mut self, index: u32) -> &mut T {
        #[cfg(test)]
        self.looks.update(|looks| looks + 1);
        self.entries[index as usize].as_mut().expect("kept indices are those of live records")
    }
}
