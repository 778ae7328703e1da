//! Lives of a server in virtual time: arrivals, deadlines, cancellations, a device with its faults, drain and swap are
//! drawn from a seed, and go through the queue by the calls of engine.rs. Behind every event the rules must hold.
//!
//! `ATELIER_SIMULATION_SEED=7 cargo test simulation` replays one life, `ATELIER_SIMULATION_SEEDS=1000000 cargo test
//! --release simulation -- --nocapture` goes through many.
#![forbid(unsafe_code)]

mod checked;
mod engine;
mod life;
mod scenario;

use std::collections::BTreeMap;

use checked::End;
use life::{BEGIN_US, Life};

macro_rules! ensure {
    ($condition:expr, $($what:tt)*) => {
        if !$condition {
            return Err(format!($($what)*));
        }
    };
}
use ensure;

const DEFAULT_SEEDS: u64 = 1_000;

/// Panics with what happened last where a rule is broken.
fn live(seed: u64) -> Life {
    let mut life = Life::new(seed, false);
    if life.outcome().is_err() {
        life = Life::new(seed, true);
        let broken = life.outcome().expect_err("the same seed, the same life");
        let trace = life.trace.unwrap_or_default();
        let last = trace[trace.len().saturating_sub(40)..].join("\n");
        panic!("{last}\n{broken}\nATELIER_SIMULATION_SEED={seed} cargo test simulation");
    }
    life
}

fn number_from(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect(variable))
}

// fault: S19, S32
#[test]
fn simulation_of_many_lives_breaks_no_rule() {
    if let Some(seed) = number_from("ATELIER_SIMULATION_SEED") {
        live(seed);
        return;
    }
    let num_seeds = number_from("ATELIER_SIMULATION_SEEDS").unwrap_or(DEFAULT_SEEDS);
    let (mut simulated_us, mut num_promised, mut ends) = (0, 0, BTreeMap::new());
    for seed in 0..num_seeds {
        let life = live(seed);
        simulated_us += life.now_us - BEGIN_US;
        for request in &life.all {
            *ends.entry(format!("{:?}", request.end)).or_insert(0_u64) += 1;
            num_promised += u64::from(request.is_promised && request.end == Some(End::Answered));
        }
    }
    println!("{num_seeds} lives, {} simulated hours, {ends:?}, {num_promised} in time", simulated_us / 3_600_000_000);
    assert_eq!(ends.len(), 6, "some end was never seen: {ends:?}");
    assert!(num_promised > 0);
}
