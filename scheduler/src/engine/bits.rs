//! Sets of small numbers that are stepped through without a look at what isn't in them.

/// Numbers in one word of either level.
const WORD: usize = u64::BITS as usize;

/// `N` sets of numbers from 0 on, side by side.
#[derive(Clone, Debug)]
pub(super) struct Bits<const N: usize> {
    words: Vec<[u64; N]>,
    /// Which words aren't empty.
    summary: Vec<[u64; N]>,
}

impl<const N: usize> Bits<N> {
    pub(super) fn new() -> Self {
        Self { words: Vec::new(), summary: Vec::new() }
    }

    /// Puts a number into the sets that are named by `true`, and takes it out of the others.
    pub(super) fn put(&mut self, number: usize, sets: [bool; N]) {
        let word = number / WORD;
        if word >= self.words.len() {
            self.words.resize(word + 1, [0; N]);
            self.summary.resize(word / WORD + 1, [0; N]);
        }
        for (set, &is_in) in sets.iter().enumerate() {
            put(&mut self.words[word][set], number % WORD, is_in);
            let is_used = self.words[word][set] != 0;
            put(&mut self.summary[word / WORD][set], word % WORD, is_used);
        }
    }

    /// Which sets a number is in.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn get(&self, number: usize) -> [bool; N] {
        match self.words.get(number / WORD) {
            Some(words) => words.map(|word| word & (1 << (number % WORD)) != 0),
            None => [false; N],
        }
    }

    /// The first number of a set from this one on.
    pub(super) fn next(&self, set: usize, from: usize) -> Option<usize> {
        let start = from / WORD;
        if let Some(bit) = first(self.words.get(start)?[set], from % WORD) {
            return Some(start * WORD + bit);
        }
        let (mut word, mut after) = ((start + 1) / WORD, (start + 1) % WORD);
        loop {
            if let Some(bit) = first(self.summary.get(word)?[set], after) {
                let found = word * WORD + bit;
                return Some(found * WORD + self.words[found][set].trailing_zeros() as usize);
            }
            (word, after) = (word + 1, 0);
        }
    }
}

fn put(word: &mut u64, bit: usize, is_in: bool) {
    *word = *word & !(1 << bit) | u64::from(is_in) << bit;
}

/// The first bit of a word from this one on.
fn first(word: u64, from: usize) -> Option<usize> {
    let rest = word & (u64::MAX << from);
    (rest != 0).then_some(rest.trailing_zeros() as usize)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::Bits;

    proptest! {
        #[test]
        fn it_is_like_sets(
            // Few and far between, so that words of both levels are empty, and many close by.
            steps in prop::collection::vec(
                (prop_oneof![0usize..300, 0usize..70_000], any::<[bool; 2]>(), 0usize..70_000), 1..300,
            ),
        ) {
            let mut bits = Bits::<2>::new();
            let mut sets = [BTreeSet::new(), BTreeSet::new()];
            for (number, is_in, from) in steps {
                bits.put(number, is_in);
                for (index, set) in sets.iter_mut().enumerate() {
                    if is_in[index] { set.insert(number) } else { set.remove(&number) };
                    for from in [from, number, number + 1, 0] {
                        prop_assert_eq!(bits.next(index, from), set.range(from..).next().copied());
                    }
                }
                prop_assert_eq!(bits.get(number), is_in);
            }
            for (index, set) in sets.iter().enumerate() {
                let (mut found, mut from) = (Vec::new(), 0);
                while let Some(number) = bits.next(index, from) {
                    found.push(number);
                    from = number + 1;
                }
                prop_assert!(set.iter().copied().eq(found));
            }
        }
    }
}
