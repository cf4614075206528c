//! What a program was built for, by the word of those who have it.

use lrts_core::spec::Platform;

/// So many accounts of one program are believed.
const MOST: usize = 8;

/// What applications say that a program was built for. Whoever has the program may say something wrong, so no account rules out
/// another one: a worker may try it that suits one of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Platforms {
    /// These accounts; any worker may try where there is none.
    Told(Vec<Platform>),
    /// There were too many, or some that nobody knows any more. Any worker may try, whatever is said later: one who didn't say what was
    /// said before would rule out the right workers.
    Any,
}

impl Platforms {
    /// Takes in an account. Returns whether it is news.
    pub(crate) fn add(&mut self, platform: Platform) -> bool {
        match self {
            Self::Any => return false,
            Self::Told(told) if told.contains(&platform) => return false,
            Self::Told(told) if told.len() < MOST => told.push(platform),
            Self::Told(_) => *self = Self::Any,
        }
        true
    }

    /// Takes in all accounts of others. Returns whether one is news.
    pub(crate) fn add_all(&mut self, others: Platforms) -> bool {
        match others {
            Self::Told(told) => {
                told.into_iter().fold(false, |is_news, platform| self.add(platform) | is_news)
            }
            Self::Any => std::mem::replace(self, Self::Any) != Self::Any,
        }
    }

    /// The accounts; none if any worker may try.
    pub(super) fn believed(&self) -> &[Platform] {
        match self {
            Self::Told(told) => told,
            Self::Any => &[],
        }
    }

    /// Whether the program may run there.
    pub(super) fn suit(&self, worker: &Platform) -> bool {
        let believed = self.believed();
        believed.is_empty() || believed.iter().any(|platform| worker.runs(platform))
    }
}

impl Default for Platforms {
    fn default() -> Self {
        Self::Told(Vec::new())
    }
}

impl From<Platform> for Platforms {
    fn from(platform: Platform) -> Self {
        Self::Told(vec![platform])
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
        let mut right = Platforms::from(worker.clone());
        assert!(right.add_all(platforms.clone()) && right == Platforms::Any, "one too many");
        let Platforms::Told(told) = &mut platforms else { panic!("so many are believed") };
        told.pop();
        assert!(platforms.add(worker.clone()) && platforms.suit(&worker) && !platforms.add(worker.clone()));
        assert!(platforms.add(platform("more")) && platforms.suit(&worker));
        assert!(!platforms.add(platform("sparc64-linux-gnu")), "there is no end of them");
    }

    #[test]
    fn what_is_not_known_any_more_is_not_narrowed_by_what_is_said_next() {
        let worker = platform("x86_64-linux-gnu");
        let wrong = platform("sparc64-linux-gnu");
        let mut any = Platforms::Any;
        assert!(!any.add(wrong.clone()) && !any.add_all(wrong.clone().into()) && any.suit(&worker));
        let mut told = Platforms::from(wrong);
        assert!(!told.suit(&worker) && told.add_all(any) && told.suit(&worker));
    }
}
