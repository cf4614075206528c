//! How do I spread a large computation over the cluster and collect compact results?
//!
//! For what lrts was first made: one job for each symbol, indicator and time scale of real daily stock prices. Each job gets
//! the prices of its symbol, computes one indicator at one scale, and sends its table back compressed.
//!
//! `cargo run --example market_indicators -- --local` brings its own cluster and prints the latest values; without `--local`
//! the example uses the cluster whose scheduler `LRTS_SCHEDULER` names. `--out DIR` writes all tables as
//! `SYMBOL_indicator_scale.csv`; `--data FILE` reads other prices.
//!
//! The modules: `series` (prices, and weeks and months of them), `indicators` (the mathematics), `table` (results, and the
//! binary form in which prices and results travel), `dates`. They know nothing of lrts.

#![expect(clippy::print_stdout, reason = "an example prints its results")]

mod dates;
mod indicators;
mod series;
#[path = "../support/mod.rs"]
mod support;
mod table;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Parser;
use lrts::LocalConfig;
use lrts_client::blocking::ClientApplication;
use lrts_client::{Bytes, Color, JobContext, Service, ServiceError};
use serde::{Deserialize, Serialize};

use indicators::Indicator;
use series::{Scale, Series, read_prices};
use support::Cluster;
use table::Table;

/// Computes technical indicators of stock prices, each in a job of its own.
#[derive(Parser)]
struct Arguments {
    /// Start a cluster inside this process instead of using the one that LRTS_SCHEDULER names
    #[arg(long)]
    local: bool,
    /// Daily prices as CSV with the columns Ticker, Date and Adj Close
    #[arg(long, value_name = "FILE", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/market/stocks.csv"))]
    data: PathBuf,
    /// Write the results to this directory, as SYMBOL_indicator_scale.csv
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// One indicator of one symbol at one scale.
#[derive(Serialize, Deserialize)]
struct IndicatorJob {
    symbol: String,
    indicator: Indicator,
    scale: Scale,
    /// The symbol's daily prices, [encoded](Series::encode).
    daily: Bytes,
}

impl Service for IndicatorJob {
    const NAME: &'static str = "indicator";
    /// A [`Table`], encoded.
    type Output = Bytes;

    fn run(self, job: &JobContext) -> Result<Bytes, ServiceError> {
        let periods = Series::decode(&self.daily)?.at_scale(self.scale);
        let title = format!("{} {} {}", self.symbol, self.indicator.name(), self.scale.name());
        let rows = periods.closes.len() as u64;
        let bar = job.progress(title).total(rows).unit("rows").color(Color::Cyan).start();
        let table = self.indicator.over(&periods, || bar.inc(1));
        Ok(table.encode()?.into())
    }
}

fn main() -> anyhow::Result<()> {
    lrts_client::host_services!(IndicatorJob);

    let arguments = Arguments::parse();
    // What can go wrong on this side goes wrong before any job is scheduled.
    let symbols = read_prices(&arguments.data)?;
    if let Some(out) = &arguments.out {
        fs::create_dir_all(out).with_context(|| format!("can't make the directory {}", out.display()))?;
    }

    let cluster = Cluster::choose(arguments.local.then(LocalConfig::default))?;
    let application = ClientApplication::start(cluster.application_information())?;

    application.set_stage("Scheduling");
    let mut jobs = Vec::new();
    let mut wanted = BTreeMap::new();
    for (symbol, series) in &symbols {
        let daily = Bytes::from(series.encode()?);
        for indicator in Indicator::ALL {
            for scale in Scale::ALL {
                let service = IndicatorJob { symbol: symbol.clone(), indicator, scale, daily: daily.clone() };
                let job = application.schedule_service(&service)?;
                wanted.insert(job.id(), (symbol.as_str(), indicator, scale));
                jobs.push(job);
            }
        }
    }

    application.set_stage("Waiting for results");
    let mut tables = BTreeMap::new();
    let mut received_bytes = 0;
    for result in application.as_completed(jobs) {
        let result = result?;
        let (symbol, indicator, scale) =
            wanted.remove(&result.job_id).context("a result came that no job belongs to")?;
        let name = format!("{symbol}_{}_{}", indicator.name(), scale.name());
        let packed = result.into_output().with_context(|| format!("{name} failed"))?;
        let table = Table::decode(&packed).with_context(|| format!("the result of {name} is damaged"))?;
        if let Some(out) = &arguments.out {
            write_table(&out.join(name + ".csv"), &table, indicator)?;
        }
        received_bytes += packed.len();
        tables.insert((symbol, indicator, scale), table);
    }
    ensure!(wanted.is_empty(), "{} jobs gave no result", wanted.len());
    application.stop()?;

    let count = tables.len();
    println!("{count} indicators of {} symbols, received as {} KiB", symbols.len(), received_bytes / 1024);
    match &arguments.out {
        Some(out) => println!("written to {}", out.display()),
        None => print_latest(&symbols, &tables),
    }
    Ok(())
}

fn write_table(path: &Path, table: &Table, indicator: Indicator) -> anyhow::Result<()> {
    fs::write(path, table.to_csv(indicator.columns()))
        .with_context(|| format!("can't write to {}", path.display()))
}

/// Prints the latest daily value of each indicator, a line a symbol; of an indicator with several values the first.
fn print_latest(symbols: &BTreeMap<String, Series>, tables: &BTreeMap<(&str, Indicator, Scale), Table>) {
    print!("{:<18}", "latest daily");
    for indicator in Indicator::ALL {
        print!("{:>14}", indicator.name());
    }
    println!();
    for (symbol, series) in symbols {
        let date = series.dates.last().map(ToString::to_string).unwrap_or_default();
        print!("{symbol:<6} {date:<11}");
        for indicator in Indicator::ALL {
            let table = &tables[&(symbol.as_str(), indicator, Scale::Daily)];
            match table.columns[0].last().copied().flatten() {
                Some(value) => print!("{value:>14.4}"),
                None => print!("{:>14}", "-"),
            }
        }
        println!();
    }
}
