//! A client's call: what a front end does for it, and what must come of it.

use std::future::{pending, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;

use tokio::task::JoinSet;

use super::device::images;
use super::registry::{Call, End};
use super::world::World;
use crate::job::{Settled, Wanted, Work};
use crate::life::Life;
use crate::response::NUM_CLASSES;
use crate::status::Status;
use crate::versions::Served;

/// Begins one.
pub fn call(world: &Arc<World>, calls: &mut JoinSet<()>, num_images: usize, left_us: u64) {
    let mut state = world.state();
    let id = state.calls.len();
    let first_image = state.calls.last().map_or(0, |last| last.first_image + last.num_images);
    let (begun_us, deadline_us) = (state.now_us, state.now_us + left_us);
    let mut call = Call { num_images, begun_us, deadline_us, first_image, ..Call::default() };
    let mut leaves_us = None;
    if state.is_healed {
        call.peer = 1_000 + id as u64; // as many as there are: none is greedy
    } else {
        let (scenario, random) = (&world.scenario, &mut state.random);
        call.peer = random.between(1, scenario.num_peers);
        call.bad_image = random.is_one_in(scenario.bad_image).then(|| random.index(0, num_images - 1));
        call.comes_late = random.is_one_in(2 * scenario.pause);
        call.has_pictures = random.is_one_in(2 * scenario.pause);
        call.asks_for_previous = random.is_one_in(5);
        if random.is_one_in(scenario.cancellation) {
            leaves_us = Some(random.between(0, left_us));
        } else if random.is_one_in(2) {
            leaves_us = Some(left_us + 1 + random.between(0, scenario.max_lag_us)); // its call ends at its deadline
        }
    }
    state.note(|| format!("call {id}: {num_images} images until {deadline_us}"));
    state.calls.push(call);
    calls.spawn(live(world.clone(), id, leaves_us));
}

async fn live(world: Arc<World>, id: usize, leaves_us: Option<u64>) {
    let leave = async {
        match leaves_us {
            Some(leaves_us) => world.clock.sleep_us(leaves_us).await,
            None => pending().await,
        }
    };
    let outcome = tokio::select! {
        biased;
        outcome = answer(&world, id) => Some(outcome),
        () = leave => None,
    };
    let mut state = world.state();
    let end = match outcome {
        None => End::Cancelled,
        Some(Ok((message, _))) => {
            state.check_answer(id, &message);
            End::Answered
        }
        Some(Err(status)) => state.end_from(&world.scenario, id, &status),
    };
    state.settle(id, end);
}

/// As call.rs, routes.rs and classify.rs do it: its message may come late, and its pictures are decoded.
async fn answer(world: &World, id: usize) -> Settled {
    let nobody = || Status::unavailable("NO_PROCESS", "nobody listens", "");
    let process = world.state().process.clone().ok_or_else(nobody)?;
    let life = &process.life;
    let under_way = UnderWay::begin(life);
    world.state().calls[id].process = Some(process.number);
    let call = world.state().calls[id];
    let deadline_us = life.now_us() + call.deadline_us.saturating_sub(world.clock.now_us());
    let current = life.versions.current();
    world.ask(id, &current, 1);
    if let Err(refusal) = current.engine.check_has_room(deadline_us, call.peer) {
        life.check_is_serving()?;
        return Err(refusal);
    }
    drop(current);
    life.check_is_serving()?;
    world.pause(call.comes_late).await;
    life.check_is_serving()?;
    let previous = life.versions.loaded().get(1).map(|served| served.model.version.clone());
    let asked = previous.filter(|_| call.asks_for_previous).unwrap_or_default();
    let served = life.versions.find("", &asked)?;
    world.state().check_version(id, &served.model.version, &asked);
    world.pause(call.has_pictures).await;
    let is_lone = under_way.is_lone && life.num_calls.load(Relaxed) == 1;
    submit(world, id, &served, deadline_us, is_lone).await
}

async fn submit(world: &World, id: usize, served: &Served, deadline_us: u64, is_lone: bool) -> Settled {
    let call = world.state().calls[id];
    world.ask(id, served, call.num_images);
    let images = images(call.first_image, call.num_images);
    let work = Work { images, wanted: Wanted::Logits, deadline_us, peer: call.peer, is_lone };
    world.state().submit(id);
    let mut answer = pin!(served.engine.classify(work));
    let first = poll_fn(|context| Poll::Ready(answer.as_mut().poll(context))).await;
    world.state().submitted(&world.scenario, id, &first);
    match first {
        Poll::Ready(outcome) => outcome,
        Poll::Pending => answer.await,
    }
}

/// Counted while it is under way.
struct UnderWay<'a> {
    life: &'a Life,
    is_lone: bool,
}

impl<'a> UnderWay<'a> {
    fn begin(life: &'a Life) -> Self {
        Self { life, is_lone: life.num_calls.fetch_add(1, Relaxed) == 0 }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.life.num_calls.fetch_sub(1, Relaxed);
    }
}

/// What the device writes of an image: which it is, and the version.
pub fn row_of(image: usize, device: usize) -> [f32; NUM_CLASSES] {
    let mut row = [0.0; NUM_CLASSES];
    (row[0], row[1]) = (image as f32, device as f32);
    row
}
