//! How does a job that runs for days survive a crash?
//!
//! It keeps checkpoints. Here islands, a job each, evolve populations of small neural networks that learn from real prices to
//! forecast how much a stock moves tomorrow. After each generation an island keeps its state; whatever ends its process, its
//! host or its machine, the next attempt goes on from there, and comes to the same result as if nothing had happened.
//!
//! `cargo run --example evolve -- --local` brings its own cluster. Without `--local` the example uses the cluster whose
//! scheduler `LRTS_SCHEDULER` names: kill a job's process there (`lrts jobs` shows it), or this program. Started again with the
//! same `--application-id` it comes back to the same jobs, since they have keys.

#![expect(clippy::print_stdout, reason = "an example prints its results")]

mod support;

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Parser;
use lrts::LocalConfig;
use lrts_client::blocking::ClientApplication;
use lrts_client::{Color, JobContext, JobOptions, Service, ServiceError};
use serde::{Deserialize, Serialize};

use support::Cluster;

/// So many days a network looks at.
const DAYS: usize = 10;
const HIDDEN: usize = 3;
/// Each hidden neuron has a weight for each day, a bias, and a weight at the output, which has a bias.
const WEIGHTS: usize = HIDDEN * (DAYS + 2) + 1;

const POPULATION: usize = 40;
/// The best, which live on unchanged and are the parents of the others.
const PARENTS: usize = 10;

/// Evolves networks that forecast how much a stock moves tomorrow, on islands that keep checkpoints.
#[derive(Parser)]
struct Arguments {
    /// Start a cluster inside this process instead of using the one that LRTS_SCHEDULER names
    #[arg(long)]
    local: bool,
    /// The name under which another start comes back to the same jobs
    #[arg(long, value_name = "ID")]
    application_id: Option<String>,
    /// How many islands there are, a job each
    #[arg(long, default_value_t = 4)]
    islands: u64,
    /// How long each evolves
    #[arg(long, default_value_t = 60)]
    generations: u64,
    /// Daily prices as CSV with the columns Ticker and Adj Close
    #[arg(long, value_name = "FILE", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/market/stocks.csv"))]
    data: PathBuf,
    /// The stock
    #[arg(long, default_value = "IBM")]
    ticker: String,
}

/// One island.
#[derive(Serialize, Deserialize)]
struct Island {
    number: u64,
    generations: u64,
    /// By how much the price changed each day, in percent, up or down.
    moves: Vec<f64>,
}

/// What an island brings.
#[derive(Serialize, Deserialize)]
struct Evolved {
    /// Generations that the last attempt found done.
    resumed_from: u64,
    /// How well the best network forecasts the days that it has learnt from, and days that it has never seen.
    known: f64,
    unseen: f64,
}

impl Service for Island {
    const NAME: &'static str = "island";
    type Output = Evolved;

    fn run(self, job: &JobContext) -> Result<Evolved, ServiceError> {
        let (known, unseen) = lessons(&self.moves);
        // What an earlier attempt has kept; none in the first one.
        let mut state = match job.last_checkpoint::<State>()? {
            Some(state) => state,
            None => State::new(self.number, &known),
        };
        let resumed_from = state.generation;
        let title = format!("Island {}", self.number);
        let bar = job
            .progress(title)
            .total(self.generations)
            .unit("generations")
            .color(Color::Green)
            .leave(true)
            .start();
        bar.set_position(state.generation);
        while state.generation < self.generations {
            state.evolve(&known);
            // Returns at once. From here on a crash of this process costs less than the next generation.
            job.checkpoint(&state)?;
            bar.inc(1);
        }
        let best = &state.population[0];
        Ok(Evolved { resumed_from, known: best.fitness, unseen: fitness(&best.weights, &unseen) })
    }
}

/// All that an island needs to go on: with the random numbers' state in it, an interruption changes nothing.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
struct State {
    generation: u64,
    random: u64,
    /// The best first.
    population: Vec<Network>,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
struct Network {
    fitness: f64,
    weights: Vec<f64>,
}

/// How much a stock moved on some days, and on the day after them.
struct Lesson<'a> {
    before: &'a [f64],
    after: f64,
}

impl State {
    fn new(seed: u64, lessons: &[Lesson<'_>]) -> State {
        let mut random = fastrand::Rng::with_seed(seed);
        let weights = |random: &mut fastrand::Rng| (0..WEIGHTS).map(|_| normal(random) / 4.0).collect();
        let mut population: Vec<_> =
            (0..POPULATION).map(|_| Network::new(weights(&mut random), lessons)).collect();
        rank(&mut population);
        State { generation: 0, random: random.get_seed(), population }
    }

    /// The best live on, children of theirs replace the others.
    fn evolve(&mut self, lessons: &[Lesson<'_>]) {
        let mut random = fastrand::Rng::with_seed(self.random);
        let (parents, others) = self.population.split_at_mut(PARENTS);
        for child in others {
            let [mother, father] = [0, 1].map(|_| &parents[random.usize(0..PARENTS)].weights);
            // Some children differ little from their parents, some much.
            let step = [0.01, 0.05, 0.25][random.usize(0..3)];
            let weights = mother.iter().zip(father).map(|(&mother, &father)| {
                let inherited = if random.bool() { mother } else { father };
                inherited + step * normal(&mut random)
            });
            *child = Network::new(weights.collect(), lessons);
        }
        self.random = random.get_seed();
        self.generation += 1;
        rank(&mut self.population);
    }
}

fn rank(population: &mut [Network]) {
    population.sort_by(|a, b| b.fitness.total_cmp(&a.fitness));
}

impl Network {
    fn new(weights: Vec<f64>, lessons: &[Lesson<'_>]) -> Network {
        Network { fitness: fitness(&weights, lessons), weights }
    }
}

/// A normally distributed number, nearly: from sums alone, which are the same on every machine.
fn normal(random: &mut fastrand::Rng) -> f64 {
    (0..12).map(|_| random.f64()).sum::<f64>() - 6.0
}

/// What a network expects after these days.
fn forecast(weights: &[f64], before: &[f64]) -> f64 {
    let (bias, neurons) = weights.split_last().expect("there are weights");
    let outputs = neurons.chunks_exact(DAYS + 2).map(|neuron| {
        let sum = neuron[DAYS] + before.iter().zip(neuron).map(|(day, weight)| day * weight).sum::<f64>();
        neuron[DAYS + 1] * (sum / (1.0 + sum.abs()))
    });
    bias + outputs.sum::<f64>()
}

/// The share of the variance that a network's forecasts explain: 1 at best, 0 for one that always forecasts the mean.
fn fitness(weights: &[f64], lessons: &[Lesson<'_>]) -> f64 {
    let count = lessons.len() as f64;
    let mean = lessons.iter().map(|lesson| lesson.after).sum::<f64>() / count;
    let variance: f64 = lessons.iter().map(|lesson| (lesson.after - mean).powi(2)).sum();
    let error: f64 =
        lessons.iter().map(|lesson| (lesson.after - forecast(weights, lesson.before)).powi(2)).sum();
    1.0 - error / variance
}

/// Days to learn from, and every fifth one, to be tested with.
fn lessons(moves: &[f64]) -> (Vec<Lesson<'_>>, Vec<Lesson<'_>>) {
    let (mut known, mut unseen) = (Vec::new(), Vec::new());
    for (day, days) in moves.windows(DAYS + 1).enumerate() {
        let lesson = Lesson { before: &days[..DAYS], after: days[DAYS] };
        if day % 5 == 4 { unseen.push(lesson) } else { known.push(lesson) }
    }
    (known, unseen)
}

fn read_moves(path: &Path, ticker: &str) -> anyhow::Result<Vec<f64>> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("can't read prices from {}", path.display()))?;
    let header: Vec<&str> = text.lines().next().unwrap_or_default().split(',').collect();
    let column = |name: &str| {
        let found = header.iter().position(|&column| column == name);
        found.with_context(|| format!("the header line of {} names no column '{name}'", path.display()))
    };
    let (tickers, closes) = (column("Ticker")?, column("Adj Close")?);
    let mut prices = Vec::new();
    for (number, line) in text.lines().enumerate().skip(1) {
        let fields: Vec<&str> = line.split(',').collect();
        if fields.get(tickers) == Some(&ticker) {
            let price = fields.get(closes).and_then(|price| price.parse::<f64>().ok());
            let price = price.filter(|price| price.is_finite() && *price > 0.0);
            prices.push(
                price.with_context(|| format!("line {} of {} has no price", number + 1, path.display()))?,
            );
        }
    }
    ensure!(prices.len() >= 20 * DAYS, "{} has too few prices of {ticker}", path.display());
    Ok(prices.windows(2).map(|days| 100.0 * (days[1] / days[0] - 1.0).abs()).collect())
}

fn main() -> anyhow::Result<()> {
    lrts_client::host_services!(Island);

    let Arguments { local, application_id, islands, generations, data, ticker } = Arguments::parse();
    let moves = read_moves(&data, &ticker)?;
    let cluster = Cluster::choose(local.then(LocalConfig::default))?;
    let mut information = cluster.application_information();
    if let Some(id) = application_id {
        information = information.application_id(id);
    }
    let application = ClientApplication::start(information)?;

    application.set_stage("Evolving");
    let mut jobs = Vec::new();
    for number in 1..=islands {
        // The key makes it the same job when this program is started again; other settings make another one.
        let key = format!("{ticker}, island {number}, {generations} generations");
        let options = JobOptions::new().label(format!("island {number}")).key(key);
        let island = Island { number, generations, moves: moves.clone() };
        jobs.push(application.schedule_service_with(&island, options)?);
    }
    let results = application.wait_for_multi(&jobs)?;
    application.stop()?;

    for (number, result) in (1..=islands).zip(results) {
        let Evolved { resumed_from, known, unseen } = result.into_output()?;
        println!(
            "Island {number}: resumed from generation {resumed_from} of {generations}, best fitness {known:.6} ({unseen:.6} on \
             unseen days)"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use lrts_core::protocol::codec;

    use super::*;

    fn moves() -> Vec<f64> {
        let mut random = fastrand::Rng::with_seed(1);
        let mut level = 1.0;
        let mut day = || {
            level = 0.9 * level + 0.2 * random.f64();
            level * random.f64()
        };
        (0..300).map(|_| day()).collect()
    }

    #[test]
    fn an_interrupted_evolution_comes_to_the_same_result() {
        let moves = moves();
        let (known, _) = lessons(&moves);
        let mut whole = State::new(7, &known);
        let first = whole.population[0].fitness;
        (0..6).for_each(|_| whole.evolve(&known));

        let mut state = State::new(7, &known);
        (0..4).for_each(|_| state.evolve(&known));
        let mut state: State = codec::decode(&codec::encode(&state)).expect("it can be read");
        (0..2).for_each(|_| state.evolve(&known));

        assert_eq!(state.generation, 6);
        assert!(state == whole, "the interruption made a difference");
        assert!(whole.population[0].fitness > first, "it has learnt something");
    }

    #[test]
    fn prices_become_moves() {
        let file = std::env::temp_dir().join(format!("evolve-{}.csv", std::process::id()));
        let rows: String =
            (0..300).map(|day| format!("A,{}\nB,1\n", if day % 2 == 0 { 100 } else { 110 })).collect();
        std::fs::write(&file, format!("Ticker,Adj Close\n{rows}")).expect("a file");
        let moves = read_moves(&file, "A").expect("moves");
        let missing = read_moves(&file, "C").expect_err("no such stock");
        std::fs::remove_file(&file).expect("it is there");
        assert_eq!(moves.len(), 299);
        assert!((moves[0] - 10.0).abs() < 1e-9 && (moves[1] - 100.0 / 11.0).abs() < 1e-9);
        assert!(missing.to_string().contains("too few prices of C"), "{missing}");
    }
}
