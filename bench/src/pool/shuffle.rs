//! Every number below a limit, once each, in an order that looks random, without a list.
//!
//! A bijection on the next power of two; numbers past the limit are walked over.

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Shuffle {
    limit: u64,
    mask: u64,
    shift: u32,
    seed: u64,
}

impl Shuffle {
    /// The numbers below `limit`, in the order of `seed`.
    pub fn new(limit: u64, seed: u64) -> Shuffle {
        let bits = 64 - limit.saturating_sub(1).leading_zeros();
        Shuffle { limit, mask: (1u64 << bits).wrapping_sub(1), shift: bits / 2 + 1, seed }
    }

    /// The number at place `nth`, which is below the limit.
    pub fn at(&self, nth: u64) -> u64 {
        debug_assert!(nth < self.limit);
        let mut number = nth;
        loop {
            number = self.step(number);
            if number < self.limit {
                return number;
            }
        }
    }

    fn step(&self, mut number: u64) -> u64 {
        for odd in [0x9E37_79B9_7F4A_7C15u64, 0xBF58_476D_1CE4_E5B9, 0x94D0_49BB_1331_11EB] {
            number = number.wrapping_mul(odd).wrapping_add(self.seed) & self.mask;
            number ^= number >> self.shift;
        }
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: each number comes once. Method: several limits, all their numbers.
    #[test]
    fn each_number_once() {
        for limit in [1, 2, 3, 64, 1000, 4097] {
            let shuffle = Shuffle::new(limit, 7);
            let mut numbers: Vec<u64> = (0..limit).map(|nth| shuffle.at(nth)).collect();
            numbers.sort_unstable();
            assert_eq!(numbers, (0..limit).collect::<Vec<_>>());
        }
    }
}
