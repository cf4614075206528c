//! Every example runs on a cluster of its own, succeeds and prints what it promises. (`market_indicators` has `market.rs`.)

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/example.rs"]
mod example;

use std::time::Duration;

use example::{describe, run_example, run_example_well};

/// Much longer than any of them takes on a machine with two busy cores.
const DEADLINE: Duration = Duration::from_secs(120);

fn run(name: &str) -> String {
    run_example_well(name, &["--local"], DEADLINE)
}

/// The lines of a text that contain `part`.
fn lines<'a>(text: &'a str, part: &str) -> Vec<&'a str> {
    text.lines().filter(|line| line.contains(part)).collect()
}

/// What the seed's examples print: `Service ID finished with result: NUMBER`, here the numbers in order of lines. Ids differ.
fn products(text: &str) -> Vec<f64> {
    let mut ids = Vec::new();
    let mut products = Vec::new();
    for line in lines(text, "finished with result") {
        let (id, product) = line.split_once(" finished with result: ").unwrap();
        ids.push(id.strip_prefix("Service ").unwrap());
        products.push(product.parse().unwrap());
    }
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), products.len(), "each job has an id of its own: {text}");
    products
}

#[test]
fn quickstart_prints_twelve_results() {
    let printed = run_example_well("quickstart", &[], DEADLINE);
    assert!(printed.contains("12 jobs done"), "{printed}");
    assert_eq!(lines(&printed, " in ").len(), 12, "{printed}");
    assert_eq!(lines(&printed, "Sequencing a genome   1000 reads").len(), 1, "{printed}");
}

#[test]
fn synchronous_prints_the_product() {
    assert_eq!(products(&run("synchronous")), [54.0]);
}

#[test]
fn synchronous_multi_prints_the_products_in_order() {
    assert_eq!(products(&run("synchronous_multi")), [54.0, 0.0]);
}

#[test]
fn async_as_completed_prints_each_product_once() {
    let mut products = products(&run("async_as_completed"));
    products.sort_by(f64::total_cmp);
    assert_eq!(products, [0.0, 8.0, 54.0]);
}

#[test]
fn detailed_progress_bars_prints_how_many_naps_were_taken() {
    let printed = run("detailed_progress_bars");
    for name in ["Cat", "Dog", "Owl"] {
        let line = lines(&printed, &format!("{name} took")).concat();
        let naps: u64 = line.split(' ').nth(2).unwrap().parse().unwrap();
        assert!((25..=100).contains(&naps), "{printed}");
    }
}

#[test]
fn example_application_goes_through_its_three_stages() {
    let printed = run("example_application");
    assert_eq!(lines(&printed, "One service: 6 x 9 = 54").len(), 1, "{printed}");
    let together =
        ["6 x 9 = 54", "1 x 0 = 0", "2 x 4 = 8"].map(|product| format!("Three together: {product}"));
    assert_eq!(lines(&printed, "Three together"), together);
    assert_eq!(lines(&printed, "With progress: ").len(), 3, "{printed}");
}

#[test]
fn own_renderer_logs_stage_and_counters() {
    let printed = run("own_renderer");
    assert_eq!(lines(&printed, "stage: Waiting For Results").len(), 1, "{printed}");
    for name in ["Cat", "Dog", "Owl"] {
        assert_eq!(lines(&printed, &format!("{name} begins: ")).len(), 1, "{printed}");
        assert_eq!(lines(&printed, &format!("success  {name} ends: ")).len(), 1, "{printed}");
    }
    assert!(printed.contains("every counter ended where its service did"), "{printed}");
}

#[test]
fn examples_name_arguments_that_they_do_not_know() {
    let output = run_example("synchronous", &["--locl"], DEADLINE);
    assert_eq!(output.status.code(), Some(1), "{}", describe(&output));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--locl"), "{}", describe(&output));
}

#[test]
fn evolve_prints_the_same_of_each_island_whenever_it_runs() {
    let evolve =
        || run_example_well("evolve", &["--local", "--islands", "2", "--generations", "3"], DEADLINE);
    let first = evolve();
    for island in 1..=2 {
        let line = format!("Island {island}: resumed from generation 0 of 3, best fitness ");
        assert_eq!(lines(&first, &line).len(), 1, "{first}");
    }
    assert_eq!(evolve(), first);
}
