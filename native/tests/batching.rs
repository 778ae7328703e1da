//! DESIGN's rules of batching, one test each; time is a number.

use std::sync::Arc;

use super::pace::Pace;
use super::{Batch, Batching, Limits};
use crate::status::{Code, Status};

const FAR: u64 = 10_000_000;

fn batching(max_batch_size: usize, max_queue_size: usize) -> Batching<&'static str> {
    Batching::new(Limits { max_batch_size, max_queue_size, hang_timeout_us: 1_000_000 })
}

/// A batching that knows its model's pace: 100 us and 10 us an image.
fn paced() -> Batching<&'static str> {
    paced_by(10, 4096)
}

fn paced_by(image_us: u64, max_queue_size: usize) -> Batching<&'static str> {
    let mut batching = batching(64, max_queue_size);
    for num_images in [1, 64, 1, 64] {
        batching.submit("rehearsal", num_images, FAR, 0, 0).unwrap();
        batching.take(0).batch.unwrap();
        batching.finish(true, 100 + image_us * num_images as u64);
    }
    batching
}

fn names(batch: &Arc<Batch<&'static str>>) -> Vec<(&'static str, usize, usize)> {
    batch.parts.iter().map(|part| (part.payload, part.start, part.stop)).collect()
}

fn word(status: &Status) -> &str {
    status.message.split(':').next().unwrap()
}

#[test]
fn a_free_device_takes_a_lone_request_at_once() {
    let mut batching = batching(8, 100);
    batching.submit("a", 1, FAR, 0, 5).unwrap();
    assert_eq!(names(&batching.take(5).batch.unwrap()), [("a", 0, 1)]);
}

#[test]
fn batches_grow_while_the_device_is_busy() {
    let mut batching = batching(8, 100);
    batching.submit("a", 1, FAR, 0, 0).unwrap();
    batching.take(0).batch.unwrap();
    batching.submit("b", 2, FAR, 0, 1).unwrap();
    batching.submit("c", 3, FAR, 0, 2).unwrap();
    assert!(batching.take(3).batch.is_none());
    batching.finish(true, 10);
    let batch = batching.take(10).batch.unwrap();
    assert_eq!((names(&batch), batch.num_images), (vec![("b", 0, 2), ("c", 0, 3)], 5));
}

// fault: S23
#[test]
fn the_queue_is_bounded_in_images_and_refuses_at_once() {
    let mut batching = batching(8, 10);
    batching.submit("a", 8, FAR, 0, 0).unwrap();
    let refusal = batching.submit("b", 3, FAR, 1, 0).unwrap_err();
    assert_eq!(refusal.code, Code::ResourceExhausted);
    assert_eq!(refusal.pushback_ms, Some(100));
    let expected = "QUEUE_FULL: 8 images wait and 3 more would exceed 10 (try again later, or raise --max-queue-size)";
    assert_eq!(refusal.message, expected);
    batching.submit("c", 2, FAR, 2, 0).unwrap();
}

// fault: S24
#[test]
fn nearly_full_nobody_gets_more_than_his_share_and_newcomers_find_room() {
    let mut batching = batching(8, 100);
    for _ in 0..75 {
        batching.submit("greedy", 1, FAR, 1, 0).unwrap();
    }
    batching.submit("modest", 1, FAR, 2, 0).unwrap();
    assert_eq!(word(&batching.submit("greedy", 1, FAR, 1, 0).unwrap_err()), "QUEUE_FULL");
    batching.submit("modest", 1, FAR, 2, 0).unwrap();
}

// fault: S24
#[test]
fn a_greedy_connection_costs_others_next_to_nothing() {
    let mut batching = paced(); // 86,000 images a second
    let (mut now_us, mut next_us, mut number) = (1000_u64, 1000_u64, 0_u64);
    let (mut asked, mut answered) = ([0_u64; 2], [0_u64; 2]);
    while now_us < 2_000_000 {
        let batch = batching.take(now_us).batch;
        let took_us = batch.as_ref().map_or(20, |batch| 100 + 10 * batch.num_images as u64);
        while next_us < now_us + took_us {
            // 30 every 200 us, or 150,000 a second: 20 of them of one connection, and one each of ten others.
            let peer = number % 30;
            let is_modest = usize::from(peer < 10);
            asked[is_modest] += 1;
            let name = if peer < 10 { "modest" } else { "greedy" };
            let _ = batching.submit(name, 1, next_us + 20_000, peer.min(10), next_us);
            next_us += if number % 3 == 0 { 6 } else { 7 };
            number += 1;
        }
        now_us += took_us;
        if let Some(batch) = batch {
            batching.finish(true, now_us);
            for part in batch.parts.iter().filter(|part| now_us <= part.arrived_us + 20_000) {
                answered[usize::from(part.payload == "modest")] += 1;
            }
        }
    }
    assert!(answered[1] * 100 >= asked[1] * 98, "{answered:?} of {asked:?}");
    assert!(answered[0] * 3 >= asked[0], "the rest is the greedy one's: {answered:?} of {asked:?}");
}

// fault: S21
#[test]
fn a_request_is_admitted_only_if_its_batch_can_end_before_its_deadline() {
    let mut batching = paced();
    for _ in 0..128 {
        batching.submit("ahead", 1, FAR, 0, 1000).unwrap(); // two batches of 740 us
    }
    batching.take(1000).batch.unwrap();
    // What runs, the 64 that wait, and its own batch, once full, take 2220 us; the margin is 1000 us and an eighth of what is left.
    let refusal = batching.submit("hasty", 1, 1000 + 3600, 0, 1000).unwrap_err();
    assert_eq!(
        refusal.message,
        "DEADLINE_TOO_SHORT: 4 ms are left, and its answer may take 4 ms (try again later, or allow more time)"
    );
    batching.submit("patient", 1, 1000 + 3800, 0, 1000).unwrap();
}

#[test]
fn an_estimate_drops_no_request_for_another_whose_time_is_over() {
    let mut batching = paced(); // found by simulation
    batching.submit("running", 64, FAR, 0, 1000).unwrap();
    batching.take(1000).batch.unwrap();
    batching.submit("hasty", 1, 20_000, 0, 1000).unwrap();
    batching.submit("hastier", 1, 19_000, 0, 1000).unwrap();
    batching.finish(true, 19_950); // in 50 us nothing runs, as far as is known
    let taken = batching.take(19_950);
    assert_eq!(names(&taken.batch.unwrap()), [("hasty", 0, 1)]);
    assert_eq!(taken.expired, ["hastier"]);
}

#[test]
fn requests_that_are_not_split_are_more_batches_than_their_images_would_fill() {
    let mut batching = paced(); // found by simulation
    batching.submit("running", 33, FAR, 0, 1000).unwrap();
    batching.take(1000);
    (0..6).for_each(|_| assert!(batching.submit("waiting", 33, FAR, 0, 1000).is_ok()));
    // What runs takes 430 us; then come seven batches, of 262 images at most, and not the five that these would fill: 3320 us.
    let refusal = batching.submit("hasty", 33, 1000 + 5300, 0, 1000).unwrap_err();
    assert_eq!(word(&refusal), "DEADLINE_TOO_SHORT");
    batching.submit("patient", 33, 1000 + 5500, 0, 1000).unwrap();
}

#[test]
fn the_batches_of_what_waits_are_counted_anew_when_one_of_them_is_cancelled() {
    let mut batching = paced();
    batching.submit("running", 1, FAR, 0, 1000).unwrap();
    batching.take(1000);
    batching.submit("waiting", 33, FAR, 0, 1000).unwrap();
    let number = batching.submit("cancelled", 33, FAR, 0, 1000).unwrap();
    assert!(batching.check(31, 1000 + 2150, 0, 1000).is_err());
    batching.cancel(number);
    batching.check(31, 1000 + 2150, 0, 1000).unwrap(); // 110 us and 740 us
}

#[test]
fn a_small_batch_is_thought_to_take_what_large_ones_took_until_one_is_seen() {
    let mut pace = Pace::default();
    (0..100).for_each(|_| pace.observe(64, 740, 0));
    assert_eq!(pace.batch_us(1, 0), 740); // and not 12 us, as if nothing but images took time
    pace.observe(1, 110, 0);
    assert!(pace.batch_us(1, 0) <= 110);
}

#[test]
fn the_bound_on_what_is_in_flight_follows_the_pace() {
    let admitted = |image_us: u64| {
        let mut batching = paced_by(image_us, 1_000_000);
        batching.submit("running", 1, FAR, 0, 0).unwrap();
        batching.take(0).batch.unwrap();
        (0..).take_while(|_| batching.submit("a", 1, 1_000_000, 0, 0).is_ok()).count() as u64
    };
    // Seven eighths of the second that each has, but for the margins; a batch of 64 takes 740 us, 6500 us or 64100 us.
    for (image_us, batch_us) in [(10, 740), (100, 6_500), (1_000, 64_100)] {
        let whole_us = admitted(image_us) * batch_us / 64;
        assert!((700_000..=880_000).contains(&whole_us), "{whole_us} us of work at {image_us} us an image");
    }
}

#[test]
fn what_can_no_longer_end_in_time_is_dropped_when_its_batch_forms() {
    let mut batching = paced();
    batching.submit("running", 64, FAR, 0, 1000).unwrap();
    batching.take(1000).batch.unwrap();
    batching.submit("hasty", 1, 1000 + 3000, 0, 1000).unwrap();
    batching.submit("patient", 1, FAR, 0, 1000).unwrap();
    batching.finish(true, 3950); // it took longer than its pace
    let taken = batching.take(3950);
    assert_eq!(taken.expired, ["hasty"]);
    assert_eq!(names(&taken.batch.unwrap()), [("patient", 0, 1)]);
    assert_eq!(batching.num_waiting(), 0);
}

#[test]
fn an_idle_device_takes_what_its_pace_would_refuse_for_only_that_can_set_the_pace_right() {
    let mut batching = paced();
    batching.submit("hasty", 1, 1000 + 50, 0, 1000).unwrap();
    assert!(batching.take(1000).batch.is_some());
}

#[test]
fn one_slow_batch_is_forgotten() {
    let mut pace = Pace::default();
    pace.observe(1, 900_000, 900_000);
    assert!(pace.batch_us(1, 900_000) > 800_000);
    assert!(pace.batch_us(1, 900_000 + 5_000_000) < 2_000);
}

// fault: S18, S20
#[test]
fn expired_and_cancelled_requests_are_never_run_and_free_their_places() {
    let mut batching = batching(8, 100);
    batching.submit("expires", 4, 100, 0, 0).unwrap();
    let number = batching.submit("cancelled", 4, FAR, 0, 0).unwrap();
    batching.submit("stays", 1, FAR, 0, 0).unwrap();
    batching.cancel(number);
    batching.cancel(number);
    assert_eq!(batching.num_waiting(), 5);
    let taken = batching.take(100);
    assert_eq!((taken.expired, names(&taken.batch.unwrap())), (vec!["expires"], vec![("stays", 0, 1)]));
    assert_eq!(batching.num_waiting(), 0);
}

#[test]
fn a_deadline_that_passes_while_the_device_is_busy_is_told_at_once() {
    let mut batching = batching(8, 10);
    batching.submit("running", 1, FAR, 0, 0).unwrap();
    batching.take(0);
    batching.submit("expires", 1, 5000, 0, 0).unwrap();
    assert!(batching.expire(4999).is_empty());
    assert_eq!(batching.expire(5000), ["expires"]);
    assert_eq!(word(&batching.submit("late", 1, 5000, 0, 5000).unwrap_err()), "EXPIRED");
}

#[test]
fn a_request_larger_than_a_batch_is_split_and_small_ones_share_the_rest() {
    let mut batching = batching(4, 100);
    batching.submit("large", 10, FAR, 0, 0).unwrap();
    batching.submit("small", 1, FAR, 0, 0).unwrap();
    batching.submit("whole", 3, FAR, 0, 0).unwrap();
    let mut batches = Vec::new();
    while let Some(batch) = batching.take(0).batch {
        batches.push(names(&batch));
        batching.finish(true, 0);
    }
    let expected = [vec![("large", 0, 4)], vec![("large", 4, 8)], vec![("large", 8, 10), ("small", 0, 1)]];
    assert_eq!(batches[..3], expected);
    assert_eq!(batches[3..], [vec![("whole", 0, 3)]]); // it fits into a batch, and so is not split
}

#[test]
fn of_a_request_whose_batch_failed_nothing_more_is_run() {
    let mut batching = batching(4, 100); // found by simulation
    batching.submit("large", 10, FAR, 0, 0).unwrap();
    batching.submit("small", 1, FAR, 0, 0).unwrap();
    assert_eq!(names(&batching.take(0).batch.unwrap()), [("large", 0, 4)]);
    batching.finish(false, 0);
    assert_eq!(batching.num_waiting(), 1);
    assert_eq!(names(&batching.take(0).batch.unwrap()), [("small", 0, 1)]);
}

// fault: S26
#[test]
fn a_failed_batch_fails_alone_and_three_in_a_row_end_the_device() {
    let mut batching = batching(1, 10);
    let mut run = |is_ok| {
        batching.submit("a", 1, FAR, 0, 0).unwrap();
        batching.take(0).batch.unwrap();
        batching.finish(is_ok, 1)
    };
    assert_eq!([run(false), run(false), run(true), run(false), run(false)], [None, None, None, None, None]);
    assert_eq!(run(false).unwrap().message, "BACKEND_BROKEN: 3 batches in a row failed (retry: another may serve)");
}

// fault: S27
#[test]
fn a_batch_that_runs_too_long_ends_the_device_and_all_that_was_admitted_is_told() {
    let mut batching = batching(1, 10);
    batching.submit("running", 1, FAR, 0, 0).unwrap();
    batching.take(0);
    batching.submit("waiting", 1, FAR, 0, 0).unwrap();
    assert_eq!(batching.hang(1_000_000), None);
    let reason = batching.hang(1_000_001).unwrap();
    assert_eq!((word(&reason), reason.code, reason.pushback_ms), ("BACKEND_HUNG", Code::Unavailable, Some(700)));
    assert_eq!(batching.abandon(reason), ["running", "waiting"]);
    assert_eq!(word(&batching.submit("late", 1, FAR, 0, 0).unwrap_err()), "BACKEND_HUNG");
}

// fault: S36
#[test]
fn in_a_drain_what_was_admitted_is_run_and_the_rest_refused() {
    let mut batching = batching(8, 10);
    batching.submit("admitted", 1, FAR, 0, 0).unwrap();
    batching.refuse(Status::draining());
    assert_eq!(batching.submit("new", 1, FAR, 0, 0).unwrap_err(), Status::draining());
    assert_eq!(names(&batching.take(0).batch.unwrap()), [("admitted", 0, 1)]);
}

#[test]
fn goodput_past_saturation_stays_flat_with_short_deadlines() {
    let goodput = |load: u64| {
        let mut batching = paced();
        let (mut now_us, mut next_us, mut good, mut admitted) = (1000_u64, 1000_u64, 0, 0);
        while now_us < 2_000_000 {
            let batch = batching.take(now_us).batch;
            let took_us = batch.as_ref().map_or(20, |batch| 100 + 10 * batch.num_images as u64);
            while next_us < now_us + took_us {
                // 86,000 images a second is what it can do
                admitted += u64::from(batching.submit("x", 1, next_us + 20_000, 0, next_us).is_ok());
                next_us += (12 / load).max(1);
            }
            now_us += took_us;
            if let Some(batch) = batch {
                batching.finish(true, now_us);
                good += batch.parts.iter().filter(|part| now_us <= part.arrived_us + 20_000).count() as u64;
            }
        }
        (good, admitted)
    };
    let ((peak, _), (good, admitted)) = (goodput(1), goodput(10));
    assert!(good * 10 >= peak * 9, "{good} of {peak}");
    assert!(good * 100 >= admitted * 99, "{good} of {admitted} admitted");
}

#[test]
fn quick_is_what_fits_one_batch_and_was_quick_when_it_was_measured_last() {
    let batching = paced();
    assert!(batching.is_quick(1, 150) && batching.is_quick(64, 1_000));
    assert!(!batching.is_quick(64, 500)); // which half a minute without a batch would not change
    assert!(!batching.is_quick(65, 1_000_000)); // its rest would wait for nobody
}
