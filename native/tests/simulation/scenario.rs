//! What happens in one simulated life of a server, all of it drawn from a seed. Up to `swap` it is what the same seed is in
//! tests/serving/simulation/scenario.py.

use crate::batching::Limits;

/// Sebastiano Vigna's splitmix64.
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low + 1)
    }

    pub fn index(&mut self, low: usize, high: usize) -> usize {
        self.between(low as u64, high as u64) as usize
    }

    /// Never where n is 0.
    pub fn is_one_in(&mut self, n: OneIn) -> bool {
        n > 0 && self.next().is_multiple_of(n)
    }

    pub fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.index(0, choices.len() - 1)]
    }
}

/// Longer than any life.
pub const FOREVER_US: u64 = 1_000_000_000_000;

/// One event in so many; never if 0.
pub type OneIn = u64;

pub struct Scenario {
    pub limits: Limits,
    /// A constant pace, nothing fails or comes late: whoever is admitted must be answered in time.
    pub is_calm: bool,
    pub base_us: u64,
    pub image_us: u64,
    pub slow: OneIn,
    pub failure: OneIn,
    pub hang: OneIn,
    pub cancellation: OneIn,
    pub num_requests: usize,
    pub num_peers: u64,
    pub max_images: usize,
    pub max_burst: usize,
    /// Between two bursts, in the mean.
    pub gap_us: u64,
    pub short_us: u64,
    /// How late a thread may wake.
    pub max_lag_us: u64,
    pub tick_us: u64,
    /// Behind so many requests.
    pub drain: Option<usize>,
    pub swap: Option<usize>,
    pub probe_after_s: f64,
    pub lame_duck_us: u64,
    pub drain_timeout_us: u64,
    /// A request that has an image on which the model fails.
    pub bad_image: OneIn,
    /// A call whose message comes late, or whose pictures are decoded.
    pub pause: OneIn,
}

impl Scenario {
    pub fn draw(random: &mut Random) -> Self {
        let is_calm = random.is_one_in(3);
        let max_batch_size = random.one_of(&[1, 2, 4, 8, 32, 64]);
        let max_queue_size = max_batch_size * random.index(2, 12);
        let unit_us = random.one_of(&[10, 100, 1_000, 20_000]);
        let (base_us, image_us) = (random.between(1, 10) * unit_us, random.between(0, 10) * unit_us / 8);
        let batch_us = base_us + image_us * max_batch_size as u64;
        let max_images = random.one_of(&[1, max_batch_size.div_ceil(2) + 1, max_batch_size, 3 * max_batch_size]);
        let max_burst = random.one_of(&[1, 4, 4 * max_batch_size]);
        // From a tenth of what the device can do to ten times that.
        let burst_us = max_burst as u64 * max_images as u64 * batch_us / (4 * max_batch_size as u64);
        let faults = |random: &mut Random, rates: &[OneIn]| if is_calm { 0 } else { random.one_of(rates) };
        let num_requests = if random.is_one_in(50) { random.index(1_000, 4_000) } else { random.index(20, 160) };
        let behind = |random: &mut Random| random.is_one_in(2).then(|| random.index(0, num_requests));
        Self {
            limits: Limits { max_batch_size, max_queue_size, hang_timeout_us: batch_us * random.between(10, 1_000) },
            is_calm,
            base_us,
            image_us,
            slow: faults(random, &[0, 5, 30]),
            failure: faults(random, &[0, 3, 20]),
            hang: faults(random, &[0, 0, 40]),
            cancellation: random.one_of(&[0, 3, 20]),
            num_requests,
            num_peers: random.one_of(&[1, 3, 20]),
            max_images,
            max_burst,
            gap_us: 1 + burst_us * random.one_of(&[1, 5, 10, 100]) / 10,
            short_us: batch_us * random.between(1, 20) + random.between(0, 3_000),
            max_lag_us: faults(random, &[0, base_us / 4, batch_us * 3]),
            tick_us: batch_us * random.between(1, 20),
            drain: behind(random),
            swap: behind(random),
            probe_after_s: random.one_of(&[2.0, 10.0]),
            lame_duck_us: random.one_of(&[0, 2 * batch_us]),
            drain_timeout_us: if is_calm { FOREVER_US } else { random.one_of(&[FOREVER_US, 3 * batch_us, 0]) },
            bad_image: faults(random, &[0, 0, 3, 30]),
            pause: random.one_of(&[0, 4]),
        }
    }

    pub fn batch_us(&self, num_images: usize) -> u64 {
        self.base_us + self.image_us * num_images as u64
    }

    /// How long the device runs a batch.
    pub fn took_us(&self, num_images: usize, random: &mut Random) -> u64 {
        let usual_us = self.batch_us(num_images);
        match () {
            () if random.is_one_in(self.hang) => self.limits.hang_timeout_us * random.between(1, 4),
            () if random.is_one_in(self.slow) => usual_us * random.between(2, 30),
            () if self.is_calm => usual_us,
            () => usual_us * random.between(90, 130) / 100,
        }
    }

    /// So long anything may take: a full queue, each of its batches as slow as none may be.
    pub fn patience_us(&self) -> u64 {
        20 * self.limits.hang_timeout_us + 50 * self.short_us + 100_000_000
    }

    /// How much time a request has.
    pub fn left_us(&self, random: &mut Random) -> u64 {
        match random.between(0, 9) {
            0 => 0,
            1..=5 => random.between(1, self.short_us),
            _ => random.between(1, 50 * self.short_us),
        }
    }
}
