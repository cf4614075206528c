//! When a person is told that a server can't be reached, and that it is back. Pure: a link's ups and downs and times come in.
//!
//! A program waits for its servers for ever, so that all may start in any order. Whoever sits before it must be able to tell
//! that from work.

use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::transport::Role;

use crate::display::LogLevel;

/// How long a link may be down, or not up yet, before that is told: a server that restarts is back sooner.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long a link must last until its outage is over: one that is up and down all the time is of no use.
const STEADY: Duration = Duration::from_secs(1);

/// How often it is looked whether the reason has become another one.
const LOOK: Duration = Duration::from_secs(1);

/// How long another reason must wait after the one before, doubled each time up to the second of these: reasons that take
/// turns would fill the screen.
const PAUSE: Duration = Duration::from_secs(2);
const PAUSE_MAX: Duration = Duration::from_mins(5);

/// What is to be told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum News {
    /// It can't be reached, for this reason.
    Away {
        /// Whether it was reached before.
        lost: bool,
        reason: String,
    },
    /// It is back, after it was told to be away.
    Back,
}

impl News {
    /// The line for a person, of the server of this role at this address.
    pub(super) fn line(&self, server: Role, address: &str) -> (LogLevel, String) {
        let (lost, reason) = match self {
            Self::Back => return (LogLevel::Info, format!("connected to the {server} at {address}")),
            Self::Away { lost, reason } => (*lost, reason),
        };
        let meanwhile = match (server == Role::ProgressServer, lost) {
            (false, false) => "",
            (false, true) => "; jobs go on, and their numbers stand still until then",
            (true, false) => "; jobs go on, without bars until then",
            (true, true) => "; jobs go on, and their bars stand still until then",
        };
        let line = format!("not connected to the {server} at {address}: {reason} (trying again{meanwhile})");
        (LogLevel::Warning, line)
    }
}

/// A link as a person sees it.
#[derive(Debug)]
pub(super) struct Outage {
    phase: Phase,
    /// It was up for long enough to be of use.
    was_up: bool,
}

#[derive(Debug)]
enum Phase {
    /// Nothing is to be told.
    Fine,
    Away(Away),
    /// Up again since then, after it was away.
    Returning(Moment, Away),
}

#[derive(Clone, Debug)]
struct Away {
    /// When it is time to look.
    look: Moment,
    /// What was told last.
    told: Option<String>,
    /// Until when nothing more is told, and how long that is next time.
    quiet: Moment,
    pause: Duration,
}

impl Outage {
    /// Of a link that was opened just now.
    pub(super) fn new(now: Moment) -> Self {
        Self { phase: Phase::Away(Away::since(now)), was_up: false }
    }

    /// The link is up.
    pub(super) fn up(&mut self, now: Moment) {
        self.phase = match std::mem::replace(&mut self.phase, Phase::Fine) {
            Phase::Away(away) => Phase::Returning(now, away),
            phase @ (Phase::Fine | Phase::Returning(..)) => phase,
        };
    }

    /// The link is down.
    pub(super) fn down(&mut self, now: Moment) {
        self.phase = match std::mem::replace(&mut self.phase, Phase::Fine) {
            Phase::Fine => Phase::Away(Away::since(now)),
            // It has not been of use: the same outage goes on.
            Phase::Returning(_, away) | Phase::Away(away) => Phase::Away(away),
        };
    }

    /// The link has ended for good, which others tell.
    pub(super) fn ended(&mut self) {
        self.phase = Phase::Fine;
    }

    /// When [`news`](Self::news) may have some.
    pub(super) fn deadline(&self) -> Option<Moment> {
        match &self.phase {
            Phase::Fine => None,
            Phase::Away(away) => Some(away.look),
            Phase::Returning(since, _) => Some(*since + STEADY),
        }
    }

    /// What is to be told now. `reason` says why the link is down, unless that is not to be told yet.
    pub(super) fn news(&mut self, now: Moment, reason: impl FnOnce() -> Option<String>) -> Option<News> {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return None;
        }
        match &mut self.phase {
            Phase::Fine => None,
            Phase::Away(away) => {
                away.look = now + LOOK;
                let reason = reason()?;
                if now < away.quiet || away.told.as_ref() == Some(&reason) {
                    return None;
                }
                away.told = Some(reason.clone());
                away.quiet = now + away.pause;
                away.pause = (away.pause * 2).min(PAUSE_MAX);
                Some(News::Away { lost: self.was_up, reason })
            }
            Phase::Returning(_, away) => {
                let told = away.told.is_some();
                self.phase = Phase::Fine;
                self.was_up = true;
                told.then_some(News::Back)
            }
        }
    }
}

impl Away {
    fn since(now: Moment) -> Self {
        Self { look: now + PATIENCE, told: None, quiet: now, pause: PAUSE }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Moment = Moment::from_nanos(1_000);

    fn at(millis: u64) -> Moment {
        START + Duration::from_millis(millis)
    }

    fn away(lost: bool, reason: &str) -> Option<News> {
        Some(News::Away { lost, reason: reason.to_owned() })
    }

    /// What is told from one time to another while the reason stays the same, with the times.
    fn told(
        outage: &mut Outage,
        from: u64,
        to: u64,
        reason: impl Fn(u64) -> &'static str,
    ) -> Vec<(u64, News)> {
        let look = |now| Some((now, outage.news(at(now), || Some(reason(now).to_owned()))?));
        (from..=to).step_by(100).filter_map(look).collect()
    }

    #[test]
    fn a_server_that_is_soon_there_is_no_news() {
        let mut outage = Outage::new(START);
        assert_eq!(outage.deadline(), Some(at(2_000)));
        assert_eq!(outage.news(at(1_999), || Some("refused".to_owned())), None);
        outage.up(at(1_999));
        assert_eq!(outage.news(at(9_000), || None), None);
        assert_eq!(outage.deadline(), None);
        outage.down(at(20_000));
        outage.up(at(21_900));
        assert_eq!(told(&mut outage, 21_900, 60_000, |_| "unused"), []);
    }

    #[test]
    fn the_reason_is_told_once_and_another_one_too_and_that_it_is_back() {
        let mut outage = Outage::new(START);
        let reason = |now| if now < 30_000 { "no key" } else { "refused" };
        let [(2_000, first), (second_at, second)] = &told(&mut outage, 0, 90_000, reason)[..] else {
            panic!("not the two reasons, or the first one at another time");
        };
        assert_eq!(
            (Some(first.clone()), Some(second.clone())),
            (away(false, "no key"), away(false, "refused"))
        );
        assert!((30_000..=31_000).contains(second_at), "{second_at}");
        outage.up(at(90_000));
        assert_eq!(told(&mut outage, 90_000, 120_000, |_| "unused"), [(91_000, News::Back)]);

        outage.down(at(120_000));
        assert_eq!(outage.news(at(122_000), || None), None, "it is not to be told yet");
        assert_eq!(outage.deadline(), Some(at(123_000)));
        assert_eq!(outage.news(at(123_000), || Some("refused".to_owned())), away(true, "refused"));
    }

    #[test]
    fn a_link_that_is_up_for_moments_only_is_away() {
        let mut outage = Outage::new(START);
        for now in (0..20_000).step_by(200) {
            outage.up(at(now));
            assert_eq!(outage.news(at(now + 50), || None), None);
            outage.down(at(now + 50));
            let news = outage.news(at(now + 100), || Some("broke the protocol".to_owned()));
            assert_eq!(news.is_some(), now == 2_000, "at {now}: {news:?}");
        }
    }

    #[test]
    fn reasons_that_take_turns_become_rare() {
        let mut outage = Outage::new(START);
        let turns = |now: u64| if (now / 1_000).is_multiple_of(2) { "refused" } else { "timed out" };
        let count = told(&mut outage, 0, 3_600_000, turns).len();
        assert!((5..25).contains(&count), "{count} lines in an hour");
    }

    #[test]
    fn a_person_is_told_who_is_away_and_what_that_means() {
        let line = |server, lost| News::Away { lost, reason: "no key".to_owned() }.line(server, "node7:1").1;
        let never = "not connected to the scheduler at node7:1: no key (trying again)";
        assert_eq!(line(Role::Scheduler, false), never);
        assert!(line(Role::Scheduler, true).contains("their numbers stand still"));
        assert!(line(Role::ProgressServer, false).contains("progress server at node7:1: no key"));
        assert!(line(Role::ProgressServer, true).contains("their bars stand still"));
        let back = News::Back.line(Role::Scheduler, "node7:1");
        assert_eq!(back, (LogLevel::Info, "connected to the scheduler at node7:1".to_owned()));
    }

    #[test]
    fn a_link_that_has_ended_is_told_by_others() {
        let mut outage = Outage::new(START);
        outage.ended();
        assert_eq!(outage.deadline(), None);
        assert_eq!(told(&mut outage, 0, 10_000, |_| "unused"), []);
    }
}
