//! The indicators. Each takes one price after another and says what it amounts to so far.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::series::Series;
use crate::table::Table;

/// What can be computed from a series of prices.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub(crate) enum Indicator {
    /// Mean of the last 20 prices.
    Sma20,
    /// Exponential mean with a span of 20 that starts from the mean of the first 20 prices.
    Ema20,
    /// Wilder's relative strength index over 14 changes.
    Rsi14,
    /// Mean of the last 20 prices and the bands two standard deviations (of the population) below and above it.
    Bollinger20,
    /// Exponential mean of span 12 less that of span 26; its own exponential mean of span 9; and the difference.
    Macd,
    /// Standard deviation (of a sample) of the last 20 logarithmic returns.
    Volatility20,
}

/// The values at one price: as many as [`Indicator::columns`] names, the rest `None`; `None` also until there are enough
/// prices.
type Values = [Option<f64>; 3];

impl Indicator {
    pub(crate) const ALL: [Indicator; 6] = [
        Indicator::Sma20,
        Indicator::Ema20,
        Indicator::Rsi14,
        Indicator::Bollinger20,
        Indicator::Macd,
        Indicator::Volatility20,
    ];

    /// As it stands in file names.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Indicator::Sma20 => "sma20",
            Indicator::Ema20 => "ema20",
            Indicator::Rsi14 => "rsi14",
            Indicator::Bollinger20 => "bollinger20",
            Indicator::Macd => "macd",
            Indicator::Volatility20 => "volatility20",
        }
    }

    /// The names of its values, one to three.
    pub(crate) fn columns(self) -> &'static [&'static str] {
        match self {
            Indicator::Sma20 | Indicator::Ema20 | Indicator::Rsi14 | Indicator::Volatility20 => &["value"],
            Indicator::Bollinger20 => &["lower", "middle", "upper"],
            Indicator::Macd => &["macd", "signal", "histogram"],
        }
    }

    /// Its values at each price of a series; calls `done_one` after each.
    pub(crate) fn over(self, series: &Series, mut done_one: impl FnMut()) -> Table {
        let mut calculation = self.start();
        let mut columns = vec![Vec::with_capacity(series.closes.len()); self.columns().len()];
        for &close in &series.closes {
            for (column, value) in columns.iter_mut().zip(calculation(close)) {
                column.push(value);
            }
            done_one();
        }
        Table { dates: series.dates.clone(), columns }
    }

    /// A calculation that has seen no price yet. It is to be called with each price in turn.
    fn start(self) -> Box<dyn FnMut(f64) -> Values> {
        match self {
            Indicator::Sma20 => {
                let mut window = Window::of(20);
                Box::new(move |price| [window.push(price).map(mean), None, None])
            }
            Indicator::Ema20 => {
                let mut average = Ema::of(20);
                Box::new(move |price| [average.push(price), None, None])
            }
            Indicator::Rsi14 => {
                let mut rsi = Rsi::of(14);
                Box::new(move |price| [rsi.push(price), None, None])
            }
            Indicator::Bollinger20 => {
                let mut window = Window::of(20);
                Box::new(move |price| {
                    let Some(prices) = window.push(price) else { return [None; 3] };
                    let middle = mean(prices);
                    let two_deviations = 2.0 * (squared_deviations(prices) / prices.len() as f64).sqrt();
                    [Some(middle - two_deviations), Some(middle), Some(middle + two_deviations)]
                })
            }
            Indicator::Macd => {
                let (mut fast, mut slow, mut signal) = (Ema::of(12), Ema::of(26), Ema::of(9));
                Box::new(move |price| {
                    // Both must see every price, the signal every difference.
                    let (fast, slow) = (fast.push(price), slow.push(price));
                    let macd = fast.zip(slow).map(|(fast, slow)| fast - slow);
                    let signal = macd.and_then(|macd| signal.push(macd));
                    [macd, signal, macd.zip(signal).map(|(macd, signal)| macd - signal)]
                })
            }
            Indicator::Volatility20 => {
                let (mut window, mut before) = (Window::of(20), None);
                Box::new(move |price| {
                    let log_return = before.replace(price).map(|before: f64| (price / before).ln());
                    let returns = log_return.and_then(|log_return| window.push(log_return));
                    let deviation = returns
                        .map(|returns| (squared_deviations(returns) / (returns.len() - 1) as f64).sqrt());
                    [deviation, None, None]
                })
            }
        }
    }
}

/// The last `length` values.
struct Window {
    values: VecDeque<f64>,
    length: usize,
}

impl Window {
    fn of(length: usize) -> Window {
        Window { values: VecDeque::with_capacity(length), length }
    }

    /// The last values with this one, once there are enough.
    fn push(&mut self, value: f64) -> Option<&[f64]> {
        if self.values.len() == self.length {
            self.values.pop_front();
        }
        self.values.push_back(value);
        (self.values.len() == self.length).then(|| &*self.values.make_contiguous())
    }
}

/// Exponential moving average: each value counts 2 / (span + 1), what came before the rest.
struct Ema {
    span: usize,
    /// How many of the first values have come, up to `span`.
    seen: usize,
    /// Their sum until there are `span` of them, the average from then on.
    state: f64,
}

impl Ema {
    fn of(span: usize) -> Ema {
        Ema { span, seen: 0, state: 0.0 }
    }

    /// The average with this value, once there are `span` of them; it starts as their mean.
    fn push(&mut self, value: f64) -> Option<f64> {
        if self.seen == self.span {
            self.state += (value - self.state) * 2.0 / (self.span as f64 + 1.0);
            return Some(self.state);
        }
        self.seen += 1;
        self.state += value;
        if self.seen < self.span {
            return None;
        }
        self.state /= self.span as f64;
        Some(self.state)
    }
}

/// Relative strength index: the share of gains in all recent change, 0 to 100.
struct Rsi {
    length: f64,
    before: Option<f64>,
    /// How many of the first changes have come, up to `length`.
    seen: f64,
    /// Sums of gains and of losses until there are `length` changes, Wilder's averages from then on.
    gain: f64,
    loss: f64,
}

impl Rsi {
    fn of(length: u32) -> Rsi {
        Rsi { length: f64::from(length), before: None, seen: 0.0, gain: 0.0, loss: 0.0 }
    }

    /// The index with this price, once there are `length` changes. A price that has stood still gives 50.
    fn push(&mut self, price: f64) -> Option<f64> {
        let change = price - self.before.replace(price)?;
        let (gain, loss) = (change.max(0.0), (-change).max(0.0));
        if self.seen == self.length {
            self.gain = (self.gain * (self.length - 1.0) + gain) / self.length;
            self.loss = (self.loss * (self.length - 1.0) + loss) / self.length;
        } else {
            self.seen += 1.0;
            self.gain += gain;
            self.loss += loss;
            if self.seen < self.length {
                return None;
            }
            self.gain /= self.length;
            self.loss /= self.length;
        }
        let all = self.gain + self.loss;
        Some(if all > 0.0 { 100.0 * self.gain / all } else { 50.0 })
    }
}

/// Of at least one value.
fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Sum of the squared distances from the mean.
fn squared_deviations(values: &[f64]) -> f64 {
    let mean = mean(values);
    values.iter().map(|value| (value - mean).powi(2)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last(indicator: Indicator, prices: impl IntoIterator<Item = f64>) -> Values {
        prices.into_iter().map(indicator.start()).last().expect("there are prices")
    }

    #[test]
    fn values_start_with_the_price_that_completes_the_first_window() {
        let first_at = |indicator: Indicator, column: usize| {
            let mut calculation = indicator.start();
            (1..).find(|&price| calculation(f64::from(price))[column].is_some())
        };
        let firsts = Indicator::ALL.map(|indicator| first_at(indicator, 0));
        assert_eq!(firsts, [20, 20, 15, 20, 26, 21].map(Some));
        assert_eq!([1, 2].map(|column| first_at(Indicator::Macd, column)), [34, 34].map(Some));
    }

    #[test]
    fn steady_prices_have_neither_spread_nor_direction() {
        let still = |indicator| last(indicator, [7.0; 50]);
        assert_eq!(still(Indicator::Bollinger20), [Some(7.0); 3]);
        assert_eq!(still(Indicator::Macd), [Some(0.0); 3]);
        assert_eq!(still(Indicator::Rsi14)[0], Some(50.0));
        assert_eq!(still(Indicator::Volatility20)[0], Some(0.0));
    }

    #[test]
    fn rising_prices_have_full_strength() {
        let rising = || (1..=40).map(f64::from);
        assert_eq!(last(Indicator::Rsi14, rising())[0], Some(100.0));
        assert_eq!(last(Indicator::Rsi14, rising().map(|price| 100.0 - price))[0], Some(0.0));
        assert_eq!(last(Indicator::Sma20, rising())[0], Some(30.5));
    }
}
