//! Lives of a server in virtual time: its life, versions, engines and queues are those that serve; clock and device are the
//! simulation's, and the loops of the front end and of the device's thread are retold. Arrivals, deadlines, cancellations,
//! faults, swaps, a drain and restarts are drawn from a seed.
//!
//! Rules are checked where clients hear of their calls, the device is given batches, and a process ends. Not simulated:
//! a start that takes its time, versions that are only kept, other logits of a probe, and a hang of the calls' own thread.
//! `ATELIER_SIMULATION_SEED=7 cargo test simulation -- --nocapture` tells one life, `ATELIER_SIMULATION_SEEDS=1000000
//! cargo test --release simulation -- --nocapture` goes through many.

mod client;
mod device;
mod process;
mod registry;
mod rules;
mod scenario;
mod world;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind, set_hook, take_hook};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, Once};
use std::thread;

use tokio::runtime::Builder;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::shared::locked;
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
    let num_panics = NUM_PANICS.get();
    let _ = catch_unwind(AssertUnwindSafe(|| runtime.block_on(live(&world))));
    drop(runtime);
    world.outcome(NUM_PANICS.get() > num_panics) // of any task
}

thread_local! {
    static NUM_PANICS: Cell<u64> = const { Cell::new(0) };
}

fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let tell = take_hook();
        set_hook(Box::new(move |panic| {
            NUM_PANICS.set(NUM_PANICS.get() + 1);
            tell(panic);
        }));
    });
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
    let has_ended = timeout(us(world.scenario.patience_us()), supervisor).await.is_ok();
    world.state().ensure(has_ended, || "the drain never ends".into());
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
    let healed_us = {
        let mut state = world.state();
        state.is_healed = true;
        state.now_us
    };
    world.clock.sleep_us(FORGOTTEN_US + world.scenario.max_lag_us).await; // a thread may be about to wake
    let is_ready = async {
        while !world.state().is_ready() {
            let look_us = world.draw(|random| random.between(1, world.scenario.tick_us)); // or it might look with every probe
            world.clock.sleep_us(look_us).await;
        }
    };
    let in_time = timeout(us(world.scenario.patience_us()), is_ready).await.is_ok();
    world.state().ensure(in_time, || "behind all faults it is not ready".into());
    let first = world.state().calls.len();
    world.state().check_probes(healed_us);
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
fn checked(seed: u64, is_traced: bool) -> Lived {
    lived(seed, is_traced).unwrap_or_else(|_| {
        let told = lived(seed, true).err().unwrap_or_else(|| "another life with the same seed".into());
        panic!("{told}\nATELIER_SIMULATION_SEED={seed} cargo test simulation")
    })
}

/// What came of many lives.
#[derive(Debug, Default)]
struct Total {
    lived_us: u64,
    num_promised: u64,
    ends: BTreeMap<End, u64>,
}

impl Total {
    fn add(&mut self, life: Lived) {
        self.lived_us += life.lived_us;
        self.num_promised += life.num_promised;
        life.ends.into_iter().for_each(|end| *self.ends.entry(end).or_default() += 1);
    }
}

/// All lives, by as many threads as there are cores, until a rule is broken.
fn many(num_seeds: u64) -> Total {
    let (next, total) = (AtomicU64::new(0), Mutex::new(Total::default()));
    let share = || {
        while let seed = next.fetch_add(1, Relaxed)
            && seed < num_seeds
        {
            let life = catch_unwind(|| checked(seed, false)).inspect_err(|_| next.store(num_seeds, Relaxed));
            locked(&total).add(life.unwrap_or_else(|broken| resume_unwind(broken)));
        }
    };
    let num_threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| (0..num_threads).for_each(|_| drop(scope.spawn(share))));
    total.into_inner().expect("no rule is broken")
}

// fault: S19, S32
#[test]
fn simulation_of_many_lives_breaks_no_rule() {
    count_panics();
    if let Some(seed) = number_from("ATELIER_SIMULATION_SEED") {
        println!("{}", checked(seed, true).trace.join("\n"));
        return;
    }
    let num_seeds = number_from("ATELIER_SIMULATION_SEEDS").unwrap_or(DEFAULT_SEEDS);
    let Total { lived_us, num_promised, ends } = many(num_seeds);
    println!("{num_seeds} lives, {} simulated hours, {ends:?}, {num_promised} in time", lived_us / 3_600_000_000);
    assert_eq!(ends.len(), 6, "some end was never seen: {ends:?}");
    assert!(num_promised > 0);
}

#[test]
fn simulation_has_the_same_life_again_for_the_same_seed() {
    count_panics();
    let trace = |seed| lived(seed, true).expect("no rule is broken").trace;
    let traces: Vec<_> = (0..20).map(trace).collect();
    assert_eq!(traces, (0..20).map(trace).collect::<Vec<_>>());
    let text = traces.concat().join("\n");
    for word in ["swap", "drain", "process 1", "BACKEND_"] {
        assert!(text.contains(word), "no {word} in twenty lives");
    }
}
