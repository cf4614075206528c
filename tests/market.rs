//! The market example computes what `tests/data/market_expected.py` computed independently: its parts here, and the example
//! itself on a cluster, whose files are read back.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../examples/market_indicators/dates.rs"]
mod dates;
#[path = "support/example.rs"]
mod example;
#[path = "../examples/market_indicators/indicators.rs"]
mod indicators;
#[path = "../examples/market_indicators/series.rs"]
mod series;
#[path = "../examples/market_indicators/table.rs"]
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use example::{describe, run_example, run_example_well};
use indicators::Indicator;
use series::{Scale, read_prices};
use table::Table;

const PRICES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/market/stocks.csv");
const SYMBOLS: [&str; 5] = ["AAPL", "FB", "GOOG", "IBM", "MSFT"];
const TOLERANCE: f64 = 1e-9;
const DEADLINE: Duration = Duration::from_secs(120);

/// What is expected of one table.
struct Expected {
    rows: usize,
    /// By column.
    empty: Vec<usize>,
    /// By row: the date and the values.
    samples: BTreeMap<usize, (String, Vec<Option<f64>>)>,
}

/// The fixture, by the stem of the file that the example writes, such as `AAPL_sma20_daily`.
fn expected() -> BTreeMap<String, Expected> {
    let mut tables = BTreeMap::new();
    for line in include_str!("data/market_expected.csv").lines() {
        let fields: Vec<&str> = line.split(',').collect();
        let [kind, symbol, indicator, scale, row, rest @ ..] = fields.as_slice() else {
            panic!("a short line: {line}")
        };
        let name = format!("{symbol}_{indicator}_{scale}");
        let row: usize = row.parse().unwrap();
        if *kind == "rows" {
            let empty = rest.iter().map(|count| count.parse().unwrap()).collect();
            tables.insert(name, Expected { rows: row, empty, samples: BTreeMap::new() });
        } else {
            let values = rest[1..].iter().map(|value| number(value)).collect();
            let table = tables.get_mut(&name).expect("the counts come first");
            table.samples.insert(row, (rest[0].to_owned(), values));
        }
    }
    assert_eq!(tables.len(), 90);
    assert!(tables.values().all(|table| table.samples.len() >= 8), "there is something to compare");
    tables
}

fn number(field: &str) -> Option<f64> {
    (!field.is_empty()).then(|| field.parse().unwrap())
}

fn indicator_and_scale(name: &str) -> (Indicator, Scale) {
    let mut parts = name.rsplit('_');
    let (scale, indicator) = (parts.next().unwrap(), parts.next().unwrap());
    let indicator = Indicator::ALL.into_iter().find(|known| known.name() == indicator).unwrap();
    (indicator, Scale::ALL.into_iter().find(|known| known.name() == scale).unwrap())
}

/// Compares a table, given as the text that the example writes, with what is expected of it.
fn check(name: &str, text: &str, expected: &Expected) {
    let (indicator, _) = indicator_and_scale(name);
    let mut lines = text.lines();
    assert_eq!(lines.next().unwrap(), format!("date,{}", indicator.columns().join(",")), "{name}");

    let rows: Vec<(&str, Vec<Option<f64>>)> = lines
        .map(|line| {
            let (date, values) = line.split_once(',').unwrap();
            (date, values.split(',').map(number).collect())
        })
        .collect();
    assert_eq!(rows.len(), expected.rows, "rows of {name}");
    let empty: Vec<usize> = (0..expected.empty.len())
        .map(|column| rows.iter().filter(|(_, values)| values[column].is_none()).count())
        .collect();
    assert_eq!(empty, expected.empty, "empty values of {name}");

    for (&row, (date, values)) in &expected.samples {
        let (date_here, values_here) = &rows[row];
        assert_eq!(date_here, date, "{name}, row {row}");
        assert_eq!(values_here.len(), values.len(), "{name}, row {row}");
        for (&here, &there) in values_here.iter().zip(values) {
            let same = match (here, there) {
                (Some(here), Some(there)) => (here - there).abs() <= TOLERANCE * there.abs(),
                (here, there) => here == there,
            };
            assert!(same, "{name}, {date}: {here:?} where {there:?} is expected");
        }
    }
}

#[test]
fn indicators_agree_with_an_independent_calculation() {
    let prices = read_prices(Path::new(PRICES)).unwrap();
    assert_eq!(prices.keys().collect::<Vec<_>>(), SYMBOLS);
    for (name, expected) in &expected() {
        let symbol = name.split('_').next().unwrap();
        let (indicator, scale) = indicator_and_scale(name);
        let mut counted = 0;
        let table = indicator.over(&prices[symbol].at_scale(scale), || counted += 1);
        assert_eq!(counted, expected.rows);
        check(name, &table.to_csv(indicator.columns()), expected);
    }
}

#[test]
fn results_are_the_same_after_packing_and_as_text() {
    let prices = read_prices(Path::new(PRICES)).unwrap();
    for indicator in Indicator::ALL {
        let table = indicator.over(&prices["IBM"], || {});
        let packed = table.encode().unwrap();
        assert!(packed.len() < table.dates.len() * (4 + 8 * table.columns.len()), "it is compressed");
        assert_eq!(Table::decode(&packed).unwrap(), table);

        let text = table.to_csv(indicator.columns());
        let values: Vec<Option<f64>> =
            text.lines().skip(1).flat_map(|line| line.split(',').skip(1).map(number)).collect();
        let rows = (0..table.dates.len()).flat_map(|row| table.columns.iter().map(move |column| column[row]));
        assert!(rows.eq(values), "every digit of {indicator:?} is there");
    }
}

#[test]
fn the_example_computes_and_writes_all_of_it_on_a_cluster() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("made/on/demand");
    let printed =
        run_example_well("market_indicators", &["--local", "--out", out.to_str().unwrap()], DEADLINE);
    assert!(printed.contains("90 indicators"), "{printed}");

    let expected = expected();
    let written: BTreeSet<String> = fs::read_dir(&out)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .map(|name| name.strip_suffix(".csv").unwrap_or_else(|| panic!("{name} is no CSV file")).to_owned())
        .collect();
    assert!(written.iter().eq(expected.keys()), "{written:?}");
    for (name, expected) in &expected {
        check(name, &fs::read_to_string(out.join(format!("{name}.csv"))).unwrap(), expected);
    }
}

#[test]
fn the_example_names_what_is_wrong() {
    let fails = |arguments: &[&str], words: &[&str]| {
        let output = run_example("market_indicators", arguments, DEADLINE);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{arguments:?}: {}", describe(&output));
        for word in words {
            assert!(stderr.contains(word), "{arguments:?} without '{word}': {}", describe(&output));
        }
    };
    fails(&["--local", "--colour"], &["--colour"]);
    fails(&["--local", "--data"], &["--data"]);
    fails(&["--local", "--data", "/no/such/prices.csv"], &["/no/such/prices.csv", "No such file"]);

    let directory = tempfile::tempdir().unwrap();
    let bad = directory.path().join("bad.csv");
    fs::write(&bad, "Ticker,Date,Adj Close\nA,2013-03-01,cheap\n").unwrap();
    fails(&["--local", "--data", bad.to_str().unwrap()], &["bad.csv", "line 2", "'cheap' is not a price"]);
    fails(&["--local", "--out", bad.to_str().unwrap()], &["bad.csv"]);
}
