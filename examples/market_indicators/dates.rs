//! Calendar dates, as far as prices need them.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, ensure};

/// A day of the Gregorian calendar, counted from 1970-01-01.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Date {
    days: i32,
}

impl Date {
    /// The day that lies `days` after 1970-01-01. Any value is a date.
    pub(crate) fn from_days(days: i32) -> Date {
        Date { days }
    }

    /// How many days after 1970-01-01 it lies.
    pub(crate) fn days(self) -> i32 {
        self.days
    }

    /// Number of its week, for weeks that run from Saturday to Friday: the same for all days of one week.
    pub(crate) fn week_ending_friday(self) -> i64 {
        // 1970-01-01 was a Thursday, so Saturday the 3rd began week 0.
        (i64::from(self.days) - 2).div_euclid(7)
    }

    /// Year and month: the same for all days of one month.
    pub(crate) fn month(self) -> (i64, u32) {
        let (year, month, _) = self.civil();
        (year, month)
    }

    /// Year, month (1 to 12) and day of the month (1 to 31).
    fn civil(self) -> (i64, u32, u32) {
        let days = i64::from(self.days);
        // 400 years have 146,097 days; the estimate may be a year too high or too low.
        let mut year = 1970 + (days * 400).div_euclid(146_097);
        while days_before_year(year) > days {
            year -= 1;
        }
        while days_before_year(year + 1) <= days {
            year += 1;
        }
        let mut rest = days - days_before_year(year);
        let mut month = 1;
        while rest >= i64::from(days_in_month(year, month)) {
            rest -= i64::from(days_in_month(year, month));
            month += 1;
        }
        let day = u32::try_from(rest + 1).expect("less than the days of a month are left");
        (year, month, day)
    }
}

/// Reads `2013-03-01`.
impl FromStr for Date {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Date, Self::Err> {
        let wrong = || format!("'{text}' is not a date such as 2013-03-01");
        let mut parts = text.split('-').map(str::parse::<u32>);
        let mut next = || parts.next().and_then(Result::ok).with_context(wrong);
        let (year, month, day) = (i64::from(next()?), next()?, next()?);
        ensure!(parts.next().is_none() && (1..=9999).contains(&year) && (1..=12).contains(&month), wrong());
        ensure!((1..=days_in_month(year, month)).contains(&day), wrong());
        let before: u32 = (1..month).map(|earlier| days_in_month(year, earlier)).sum();
        let days = days_before_year(year) + i64::from(before + day - 1);
        Ok(Date { days: i32::try_from(days).expect("years up to 9999 fit") })
    }
}

/// Writes `2013-03-01`.
impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = self.civil();
        write!(f, "{year:04}-{month:02}-{day:02}")
    }
}

/// Days from 1970-01-01 to the first of January of `year`.
fn days_before_year(year: i64) -> i64 {
    let leap_days_before = |year: i64| {
        let past = year - 1;
        past.div_euclid(4) - past.div_euclid(100) + past.div_euclid(400)
    };
    (year - 1970) * 365 + leap_days_before(year) - leap_days_before(1970)
}

fn days_in_month(year: i64, month: u32) -> u32 {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn date(text: &str) -> Date {
        text.parse().expect("a date")
    }

    #[test]
    fn dates_count_days_and_read_back() {
        assert_eq!(date("1970-01-01").days(), 0);
        assert_eq!(date("2000-03-01").days(), 11_017);
        assert_eq!(date("1969-12-31").days(), -1);
        for days in (-700_000..2_900_000).step_by(97) {
            let there = Date::from_days(days);
            assert_eq!(date(&there.to_string()), there, "{there}");
        }
        for wrong in ["", "2013", "2013-02-29", "2013-13-01", "2013-00-01", "2013-01-01-01", "x-01-01"] {
            assert!(wrong.parse::<Date>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn weeks_run_from_saturday_to_friday() {
        assert_eq!(date("2013-02-23").week_ending_friday(), date("2013-03-01").week_ending_friday());
        assert_ne!(date("2013-03-01").week_ending_friday(), date("2013-03-02").week_ending_friday());
    }
}
