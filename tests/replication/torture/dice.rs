//! Chance that can be repeated: a small generator (splitmix64), one for each thread, all from one seed.

use std::time::{Duration, SystemTime};

pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }

    /// Dice for another thread.
    pub fn split(&mut self) -> Dice {
        Dice(self.next())
    }

    /// One of 0 … n - 1.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len() as u64) as usize]
    }

    /// A pause of up to so many milliseconds: what makes the threads meet in ever other ways.
    pub fn rest(&mut self, most: u64) {
        std::thread::sleep(Duration::from_millis(self.below(most + 1)));
    }
}

/// A seed where none is given.
pub fn by_the_clock() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(1, |now| now.as_secs() % 1_000_000)
}
