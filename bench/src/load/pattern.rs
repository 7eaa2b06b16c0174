//! Which block the next command is for, and in which direction.
//!
//! Deterministic for a seed. Called by `ledger`, once a command.

/// Random or in order; reads, writes or both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Pattern {
    /// Reads of random blocks.
    Randread,
    /// Writes of random blocks.
    Randwrite,
    /// Reads in order, each session its own part.
    Read,
    /// Writes in order, each session its own part.
    Write,
    /// Reads and writes of random blocks; see --mix.
    Randrw,
}

impl Pattern {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Pattern::Randread => "randread",
            Pattern::Randwrite => "randwrite",
            Pattern::Read => "read",
            Pattern::Write => "write",
            Pattern::Randrw => "randrw",
        }
    }

    /// Percent of reads, of which only `Randrw` leaves the choice.
    pub fn read_percent(self, mix: u8) -> u8 {
        match self {
            Pattern::Randread | Pattern::Read => 100,
            Pattern::Randwrite | Pattern::Write => 0,
            Pattern::Randrw => mix,
        }
    }

    fn is_random(self) -> bool {
        matches!(self, Pattern::Randread | Pattern::Randwrite | Pattern::Randrw)
    }
}

/// A direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Data comes in.
    Read,
    /// Data goes out.
    Write,
}

/// A small fast generator (xorshift64*). Its zero state is unreachable.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Any seed will do; near seeds give unlike sequences.
    pub fn new(seed: u64) -> Random {
        Random(mix(seed) | 1)
    }

    /// The next 64 bits.
    pub fn draw(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `limit`, which isn't zero.
    pub fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.draw()) * u128::from(limit)) >> 64) as u64
    }
}

/// Spreads every bit over all (splitmix64's finish).
pub fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

/// Picks blocks out of one thread's part of the range. A block is one command's worth.
#[derive(Debug)]
pub struct Picker {
    pattern: Pattern,
    read_percent: u8,
    first_block: u64,
    blocks: u64,
    random: Random,
    /// For each session, how far it is in its own part.
    cursors: Vec<u64>,
}

impl Picker {
    /// Over `blocks` blocks from `first_block`, for `sessions` sessions; both at least one.
    pub fn new(
        pattern: Pattern,
        mix: u8,
        first_block: u64,
        blocks: u64,
        sessions: usize,
        seed: u64,
    ) -> Picker {
        assert!(blocks > 0);
        assert!(sessions > 0);
        Picker {
            pattern,
            read_percent: pattern.read_percent(mix),
            first_block,
            blocks,
            random: Random::new(seed),
            cursors: vec![0; sessions],
        }
    }

    /// Direction and block of the next command of `session`.
    pub fn next(&mut self, session: usize) -> (Op, u64) {
        let block = if self.pattern.is_random() {
            self.random.below(self.blocks)
        } else {
            let sessions = self.cursors.len() as u64;
            let part = (self.blocks / sessions).max(1);
            let at = self.cursors[session];
            self.cursors[session] = (at + 1) % part;
            (part * session as u64 + at) % self.blocks
        };
        let read = match self.read_percent {
            0 => false,
            100 => true,
            percent => self.random.below(100) < u64::from(percent),
        };
        (if read { Op::Read } else { Op::Write }, self.first_block + block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: random blocks cover the whole part and nothing else, and the mix is kept. Method: many draws.
    #[test]
    fn random_blocks_cover_their_part() {
        let mut picker = Picker::new(Pattern::Randrw, 70, 100, 50, 2, 1);
        let mut seen = [0_u32; 50];
        let mut reads = 0;
        for _ in 0..10_000 {
            let (op, block) = picker.next(0);
            seen[(block - 100) as usize] += 1;
            reads += u32::from(op == Op::Read);
        }
        assert!(seen.iter().all(|times| (120..300).contains(times)), "{seen:?}");
        assert!((6_700..7_300).contains(&reads), "{reads}");
    }

    /// Goal: sessions in order have a part each, and go round in it. Method: two sessions, ten blocks.
    #[test]
    fn sessions_in_order_keep_to_their_parts() {
        let mut picker = Picker::new(Pattern::Read, 50, 0, 10, 2, 1);
        let first: Vec<u64> = (0..6).map(|_| picker.next(0).1).collect();
        let second: Vec<u64> = (0..6).map(|_| picker.next(1).1).collect();
        assert_eq!(first, [0, 1, 2, 3, 4, 0]);
        assert_eq!(second, [5, 6, 7, 8, 9, 5]);
    }
}
