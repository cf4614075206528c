//! What a program was built for, by the word of those who have it.

use lrts_core::spec::Platform;
use serde::{Deserialize, Serialize};

/// So many accounts of one program are believed.
const MOST: usize = 8;

/// What applications say that a program was built for. Whoever has the program may say something wrong, so no account rules out
/// another one: a worker may try it that suits one of them. Of too many, or none, any may.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Platforms(Vec<Platform>);

impl Platforms {
    /// Takes in an account. Returns whether it is news.
    pub(crate) fn add(&mut self, platform: Platform) -> bool {
        // One more than are believed stands for all others.
        let is_news = self.0.len() <= MOST && !self.0.contains(&platform);
        if is_news {
            self.0.push(platform);
        }
        is_news
    }

    /// Takes in all accounts of others. Returns whether one is news.
    pub(crate) fn add_all(&mut self, others: Platforms) -> bool {
        others.0.into_iter().fold(false, |is_news, platform| self.add(platform) | is_news)
    }

    /// The accounts; none if any worker may try.
    pub(super) fn believed(&self) -> &[Platform] {
        if self.0.len() > MOST { &[] } else { &self.0 }
    }

    /// Whether the program may run there.
    pub(super) fn suit(&self, worker: &Platform) -> bool {
        let believed = self.believed();
        believed.is_empty() || believed.iter().any(|platform| worker.runs(platform))
    }
}

impl From<Platform> for Platforms {
    fn from(platform: Platform) -> Self {
        Self(vec![platform])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(target: &str) -> Platform {
        Platform { target: target.to_owned(), glibc: None }
    }

    #[test]
    fn one_account_in_so_many_is_enough_and_of_too_many_none_counts() {
        let worker = platform("x86_64-linux-gnu");
        let mut platforms = Platforms::default();
        assert!(platforms.suit(&worker));
        for number in 0..MOST {
            assert!(platforms.add(platform(&format!("wrong{number}"))));
            assert!(!platforms.suit(&worker));
        }
        let mut right = platforms.clone();
        right.0.pop();
        assert!(right.add(worker.clone()) && right.suit(&worker) && !right.add(worker.clone()));
        for number in 0..3 {
            platforms.add(platform(&format!("more{number}")));
        }
        assert!(platforms.suit(&worker) && platforms.0.len() == MOST + 1);
        assert!(!platforms.add_all(right), "there is no end of them");
    }
}
