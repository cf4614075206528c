//! Prices of one symbol: read from a file, joined to weeks and months, packed for a job.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::dates::Date;
use crate::table::Table;

/// Adjusted closes of one symbol, one a trading day or period, oldest first.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Series {
    pub(crate) dates: Vec<Date>,
    pub(crate) closes: Vec<f64>,
}

/// How much time one value stands for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub(crate) enum Scale {
    /// A trading day.
    Daily,
    /// A week that ends on Friday.
    Weekly,
    /// A calendar month.
    Monthly,
}

impl Scale {
    pub(crate) const ALL: [Scale; 3] = [Scale::Daily, Scale::Weekly, Scale::Monthly];

    /// As it stands in file names.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Scale::Daily => "daily",
            Scale::Weekly => "weekly",
            Scale::Monthly => "monthly",
        }
    }
}

impl Series {
    /// The same prices at a coarser scale: each period's last close, dated by its last trading day. The last period
    /// counts even if it isn't over.
    pub(crate) fn at_scale(&self, scale: Scale) -> Series {
        let same_period = |a: Date, b: Date| match scale {
            Scale::Daily => a == b,
            Scale::Weekly => a.week_ending_friday() == b.week_ending_friday(),
            Scale::Monthly => a.month() == b.month(),
        };
        let mut periods = Series::default();
        for (day, (&date, &close)) in self.dates.iter().zip(&self.closes).enumerate() {
            let last_of_period = self.dates.get(day + 1).is_none_or(|&next| !same_period(date, next));
            if last_of_period {
                periods.dates.push(date);
                periods.closes.push(close);
            }
        }
        periods
    }

    /// Packed for the way to a job; [`Series::decode`] reads it.
    ///
    /// # Errors
    ///
    /// When the compressor fails.
    pub(crate) fn encode(&self) -> anyhow::Result<Vec<u8>> {
        let closes = self.closes.iter().copied().map(Some).collect();
        Table { dates: self.dates.clone(), columns: vec![closes] }.encode()
    }

    /// # Errors
    ///
    /// When the bytes aren't an encoded series.
    pub(crate) fn decode(bytes: &[u8]) -> anyhow::Result<Series> {
        let Table { dates, columns } = Table::decode(bytes)?;
        let [closes] = <[_; 1]>::try_from(columns).ok().context("a series has one column")?;
        let closes = closes.into_iter().collect::<Option<_>>().context("a series has no empty values")?;
        Ok(Series { dates, closes })
    }
}

/// Reads a file of daily prices with a header line that names the columns `Ticker`, `Date` and `Adj Close` among others;
/// gives the series by symbol.
///
/// # Errors
///
/// When the file can't be read or a line is wrong (too short, bad date or price, days not in order): says where.
pub(crate) fn read_prices(path: &Path) -> anyhow::Result<BTreeMap<String, Series>> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("can't read prices from {}", path.display()))?;
    parse_prices(&text).with_context(|| format!("can't use the prices in {}", path.display()))
}

fn parse_prices(text: &str) -> anyhow::Result<BTreeMap<String, Series>> {
    let mut lines = text.lines();
    let header: Vec<&str> = lines.next().context("the file is empty")?.split(',').map(str::trim).collect();
    let column = |name: &str| {
        let found = header.iter().position(|&column| column == name);
        found.with_context(|| format!("the header line names no column '{name}'"))
    };
    let (ticker, date, close) = (column("Ticker")?, column("Date")?, column("Adj Close")?);

    let mut symbols: BTreeMap<String, Series> = BTreeMap::new();
    for (number, line) in lines.enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let fields: Vec<&str> = line.split(',').map(str::trim).collect();
        let mut add = || {
            ensure!(
                fields.len() == header.len(),
                "{} fields where the header has {}",
                fields.len(),
                header.len()
            );
            let symbol = fields[ticker];
            // It becomes part of a file's name.
            ensure!(
                !symbol.is_empty()
                    && symbol.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-".contains(&byte)),
                "'{symbol}' is not a ticker"
            );
            let day = fields[date].parse::<Date>()?;
            let price = fields[close].parse::<f64>().ok().filter(|price| price.is_finite() && *price > 0.0);
            let price = price.with_context(|| format!("'{}' is not a price", fields[close]))?;
            let series = symbols.entry(symbol.to_owned()).or_default();
            if let Some(&before) = series.dates.last()
                && before >= day
            {
                bail!("{symbol} on {day} comes after {symbol} on {before}");
            }
            series.dates.push(day);
            series.closes.push(price);
            Ok(())
        };
        // The header is line 1.
        add().with_context(|| format!("line {}", number + 2))?;
    }
    ensure!(!symbols.is_empty(), "there are no prices below the header line");
    Ok(symbols)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_lines_are_named() {
        let wrong = |text: &str| format!("{:#}", parse_prices(text).expect_err("it is wrong"));
        assert!(wrong("").contains("empty"));
        assert!(wrong("Ticker,Date\n").contains("no column 'Adj Close'"));
        assert!(wrong("Ticker,Date,Adj Close\n").contains("no prices"));
        assert!(wrong("Ticker,Date,Adj Close\nA,2013-03-01\n").contains("line 2: 2 fields"));
        assert!(wrong("Ticker,Date,Adj Close\nA,2013-03-01,1\nA,2013-03-04,x\n").contains("line 3: 'x'"));
        assert!(wrong("Ticker,Date,Adj Close\nA,2013-03-01,-1\n").contains("'-1' is not a price"));
        assert!(wrong("Ticker,Date,Adj Close\n../A,2013-03-01,1\n").contains("not a ticker"));
        assert!(wrong("Ticker,Date,Adj Close\nA,2013-03-01,1\nA,2013-03-01,1\n").contains("comes after"));
    }

    #[test]
    fn a_series_survives_the_way_to_a_job() {
        let text = "Ticker,Date,Adj Close\nA,2013-02-28,1.5\nA,2013-03-01,0.1\n";
        let series = parse_prices(text).expect("good prices").remove("A").expect("A is there");
        assert_eq!(series.closes, [1.5, 0.1]);
        let bytes = series.encode().expect("it encodes");
        assert_eq!(Series::decode(&bytes).expect("it decodes"), series);
        assert!(Series::decode(&bytes[..bytes.len() - 1]).is_err());
    }
}
