//! Lives of a server in virtual time: its life, versions, engines and queues are those that serve; clock and device are the
//! simulation's. Arrivals, deadlines, cancellations, faults, swaps, a drain and restarts are drawn from a seed.
//!
//! Nothing is looked into: rules are checked where clients hear of their calls and the device is given batches.
//! `ATELIER_SIMULATION_SEED=7 cargo test simulation` replays one life, `ATELIER_SIMULATION_SEEDS=1000000 cargo test
//! --release simulation -- --nocapture` goes through many.
#![forbid(unsafe_code)]

mod client;
mod device;
mod process;
mod registry;
mod rules;
mod scenario;
mod world;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;

use tokio::runtime::Builder;
use tokio::task::JoinSet;
use tokio::time::timeout;

use registry::End;
use scenario::FOREVER_US;
use world::{Lived, World, us};

const DEFAULT_SEEDS: u64 = 300;
/// For so long an engine remembers what was.
const FORGOTTEN_US: u64 = 11_000_000;

/// Some life, and what of it is worth knowing; Err has the rule that was broken, and what happened before.
fn lived(seed: u64, is_traced: bool) -> Result<Lived, String> {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    let world = Arc::new(runtime.block_on(async { World::new(seed, is_traced) }));
    let outcome = catch_unwind(AssertUnwindSafe(|| runtime.block_on(live(&world))));
    drop(runtime);
    outcome.map_err(|_| world.panicked()).and_then(|()| world.outcome())
}

async fn live(world: &Arc<World>) {
    let supervisor = tokio::spawn(process::supervise(world.clone()));
    let mut calls = JoinSet::new();
    arrive(world, &mut calls).await;
    all_ended(world, &mut calls).await;
    if !world.state().is_draining {
        recover(world, &mut calls).await;
        world.drain();
    }
    supervisor.await.expect("the supervisor lives on");
}

async fn arrive(world: &Arc<World>, calls: &mut JoinSet<()>) {
    let scenario = &world.scenario;
    let mut number = 0;
    while number < scenario.num_requests {
        let num_calls = world.draw(|random| random.index(1, scenario.max_burst));
        for _ in 0..num_calls.min(scenario.num_requests - number) {
            begin(world, number);
            number += 1;
            let (num_images, left_us) =
                world.draw(|random| (random.index(1, scenario.max_images), scenario.left_us(random)));
            client::call(world, calls, num_images, left_us);
        }
        let gap_us = world.draw(|random| {
            let factor = if random.is_one_in(20) { 40 } else { 2 };
            random.between(0, factor * scenario.gap_us)
        });
        world.clock.sleep_us(gap_us).await;
    }
}

/// A swap or the drain, if it is time for it.
fn begin(world: &Arc<World>, number: usize) {
    let process = world.state().process.clone();
    if let (Some(swap), Some(process)) = (world.scenario.swap, process)
        && [swap, swap + 5, swap + 20].contains(&number)
    {
        process.swap(world);
    }
    if world.scenario.drain == Some(number) {
        world.drain();
    }
}

async fn all_ended(world: &World, calls: &mut JoinSet<()>) {
    let patience = us(world.scenario.patience_us());
    while let Some(ended) = timeout(patience, calls.join_next()).await.unwrap_or_else(|_| {
        world.state().never_ended();
        None
    }) {
        ended.expect("a client lives on");
    }
}

/// Behind all faults it must be as at first: a lone call is answered, and then as many as the queue has room for.
async fn recover(world: &Arc<World>, calls: &mut JoinSet<()>) {
    world.state().is_healed = true;
    world.clock.sleep_us(FORGOTTEN_US).await;
    let is_ready = async {
        while !world.state().is_ready() {
            let look_us = world.draw(|random| random.between(1, world.scenario.tick_us)); // or it might look with every probe
            world.clock.sleep_us(look_us).await;
        }
    };
    let in_time = timeout(us(world.scenario.patience_us()), is_ready).await.is_ok();
    world.state().ensure(in_time, || "behind all faults it is not ready".into());
    let first = world.state().calls.len();
    client::call(world, calls, 1, FOREVER_US);
    all_ended(world, calls).await;
    let limits = &world.scenario.limits;
    for _ in 0..limits.max_queue_size / limits.max_batch_size {
        client::call(world, calls, limits.max_batch_size, FOREVER_US);
    }
    all_ended(world, calls).await;
    let mut state = world.state();
    let unanswered =
        state.calls[first..].iter().find(|call| call.end != Some(End::Answered)).map(|call| format!("{call:?}"));
    state.ensure(unanswered.is_none(), || format!("behind all faults no answer: {unanswered:?}"));
}

fn number_from(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect(variable))
}

/// What happened last, where a rule was broken.
fn checked(seed: u64) -> Lived {
    lived(seed, false).unwrap_or_else(|_| {
        let told = lived(seed, true).err().unwrap_or_else(|| "another life with the same seed".into());
        panic!("{told}\nATELIER_SIMULATION_SEED={seed} cargo test simulation")
    })
}

/// All lives, by as many threads as there are cores.
fn many(num_seeds: u64) -> Vec<Lived> {
    let next = AtomicU64::new(0);
    let share = || {
        let mut all = Vec::new();
        while let seed = next.fetch_add(1, Relaxed)
            && seed < num_seeds
        {
            all.push(checked(seed));
        }
        all
    };
    let num_threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..num_threads).map(|_| scope.spawn(share)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("a rule was broken, as is told above")).collect()
    })
}

// fault: S19, S32
#[test]
fn simulation_of_many_lives_breaks_no_rule() {
    if let Some(seed) = number_from("ATELIER_SIMULATION_SEED") {
        println!("{:?}", checked(seed));
        return;
    }
    let num_seeds = number_from("ATELIER_SIMULATION_SEEDS").unwrap_or(DEFAULT_SEEDS);
    let (mut lived_us, mut num_promised, mut ends) = (0, 0, BTreeMap::new());
    for life in many(num_seeds) {
        lived_us += life.lived_us;
        num_promised += life.num_promised;
        life.ends.into_iter().for_each(|end| *ends.entry(end).or_insert(0_u64) += 1);
    }
    println!("{num_seeds} lives, {} simulated hours, {ends:?}, {num_promised} in time", lived_us / 3_600_000_000);
    assert_eq!(ends.len(), 6, "some end was never seen: {ends:?}");
    assert!(num_promised > 0);
}

#[test]
fn simulation_has_the_same_life_again_for_the_same_seed() {
    let trace = |seed| lived(seed, true).expect("no rule is broken").trace;
    let traces: Vec<_> = (0..20).map(trace).collect();
    assert_eq!(traces, (0..20).map(trace).collect::<Vec<_>>());
    let text = traces.concat().join("\n");
    for word in ["swap", "drain", "process 1", "BACKEND_"] {
        assert!(text.contains(word), "no {word} in twenty lives");
    }
}
