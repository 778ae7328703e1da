//! How long a batch takes: a line, `base + each * images`, fitted to the batches of the last moments.

/// What one batch weighs against all before it.
const WEIGHT: f64 = 0.05;
/// Batches until there is a line to be far from.
const LEARNING: u64 = 4;
/// An estimate that no batch has confirmed for so long is halved, again and again: one slow batch must not have
/// everything refused that would set it right.
const HALVED_EVERY_US: f64 = 500_000.0;

#[derive(Clone, Debug, Default)]
pub struct Pace {
    /// Exponentially weighted means.
    images: f64,
    images_squared: f64,
    us: f64,
    images_us: f64,
    /// How far a batch was from the line, in the mean.
    deviation_us: f64,
    num_observed: u64,
    last_us: u64,
}

impl Pace {
    pub fn observe(&mut self, num_images: usize, took_us: u64, now_us: u64) {
        let (n, t) = (num_images as f64, took_us as f64);
        let weight = if self.images == 0.0 { 1.0 } else { WEIGHT };
        // One batch of many that were faster says nothing: a pause of the whole process is not the model's pace.
        let expected = self.line_us(n);
        self.num_observed += 1;
        if self.num_observed > LEARNING {
            self.deviation_us += ((t - expected).abs() - self.deviation_us) * WEIGHT;
        }
        let t = if self.images == 0.0 { t } else { t.min(4.0 * expected + 200.0) };
        for (mean, value) in
            [(&mut self.images, n), (&mut self.images_squared, n * n), (&mut self.us, t), (&mut self.images_us, n * t)]
        {
            *mean += (value - *mean) * weight;
        }
        self.last_us = now_us;
    }

    /// What a batch of so many images is expected to take; 0 where nothing is known.
    pub fn batch_us(&self, num_images: usize, now_us: u64) -> u64 {
        self.batches_us(1, num_images, now_us)
    }

    /// The same of several batches that hold so many images together.
    pub fn batches_us(&self, num_batches: usize, num_images: usize, now_us: u64) -> u64 {
        let age = now_us.saturating_sub(self.last_us) as f64;
        let belief = if age <= HALVED_EVERY_US { 1.0 } else { 0.5_f64.powf(age / HALVED_EVERY_US - 1.0) };
        (self.lines_us(num_batches as f64, num_images as f64) * belief) as u64
    }

    /// By how much a batch may miss what is expected of it; thrice the mean, as a time-out of TCP allows (RFC 6298).
    pub fn margin_us(&self) -> u64 {
        (3.0 * self.deviation_us) as u64
    }

    /// What a batch was expected to take when the last one ended, however long ago that was.
    pub fn line_us(&self, n: f64) -> f64 {
        self.lines_us(1.0, n)
    }

    fn lines_us(&self, num_batches: f64, n: f64) -> f64 {
        if self.images == 0.0 {
            return 0.0;
        }
        let spread = self.images_squared - self.images * self.images;
        let through_zero = self.us / self.images;
        if spread < 0.01 * self.images_squared {
            // All were of one size, and what a smaller one saves is unknown.
            return through_zero * n.max(num_batches * self.images);
        }
        let each = ((self.images_us - self.images * self.us) / spread).clamp(0.0, through_zero);
        let base = self.us - each * self.images;
        base * num_batches + each * n
    }
}
