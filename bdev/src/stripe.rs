//! Who owns which part of a device: LBA space is cut into stripes, stripes fall into slices, and the slices are
//! dealt to the cores there are. The same for every device, and from the offset alone, so that any core can
//! tell without asking.

use reactor::Core;

/// A stripe's length on every device. A multiple of [`crate::io::PIECE_BYTES`], so a piece lies in one stripe.
pub const STRIPE_BYTES: u64 = 4 << 20;

/// How many slices the stripes fall into; also the largest number of cores.
pub const SLICES: u64 = 256;

const _: () = assert!(STRIPE_BYTES.is_multiple_of(crate::io::PIECE_BYTES));

/// How the slices are dealt: slice → core is slice modulo the number of cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deal {
    cores: u64,
}

impl Deal {
    /// A deal among `cores` cores.
    ///
    /// # Panics
    /// When `cores` is 0 or over [`SLICES`].
    pub fn among(cores: u16) -> Deal {
        assert!(cores != 0 && u64::from(cores) <= SLICES);
        Deal { cores: u64::from(cores) }
    }

    /// How many cores there are.
    pub fn cores(self) -> u16 {
        self.cores as u16
    }

    /// The core that owns the stripe of this byte.
    #[inline]
    pub fn owner(self, offset_bytes: u64) -> Core {
        if self.cores == 1 {
            return Core(0);
        }
        Core((offset_bytes / STRIPE_BYTES % SLICES % self.cores) as u16)
    }

    /// How far from `offset_bytes` on all bytes have the same owner, at most to `end_bytes`.
    pub fn run_end(self, offset_bytes: u64, end_bytes: u64) -> u64 {
        if self.cores == 1 {
            return end_bytes;
        }
        let owner = self.owner(offset_bytes);
        let mut edge = next_stripe(offset_bytes);
        // Neighbours differ but where slice 255 meets slice 0, so this goes round at most twice.
        while edge < end_bytes && self.owner(edge) == owner {
            edge = next_stripe(edge);
        }
        edge.min(end_bytes)
    }

    /// Where among its owner's stripes the stripe of this byte stands: these numbers have no gaps on any core.
    #[inline]
    pub fn local_stripe(self, offset_bytes: u64) -> u64 {
        let stripe = offset_bytes / STRIPE_BYTES;
        if self.cores == 1 {
            return stripe;
        }
        let slice = stripe % SLICES;
        stripe / SLICES * self.slices_of(slice % self.cores) + slice / self.cores
    }

    /// How many stripes of a device of `bytes` bytes `core` owns.
    pub fn stripes_of(self, core: Core, bytes: u64) -> u64 {
        let stripes = bytes.div_ceil(STRIPE_BYTES);
        let core = u64::from(core.0);
        let rest = stripes % SLICES;
        let of_rest = if rest > core { (rest - core).div_ceil(self.cores) } else { 0 };
        stripes / SLICES * self.slices_of(core) + of_rest
    }

    fn slices_of(self, core: u64) -> u64 {
        (SLICES - core).div_ceil(self.cores)
    }
}

/// The first byte of the stripe after the one of `offset_bytes`.
pub fn next_stripe(offset_bytes: u64) -> u64 {
    (offset_bytes / STRIPE_BYTES + 1) * STRIPE_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the stripes of a core are numbered from 0 without gaps, in the order of their addresses, and counted
    /// right. Method: walk 600 stripes (more than two rounds of slices) for several numbers of cores.
    #[test]
    fn local_stripes_have_no_gaps() {
        for cores in [1, 2, 3, 5, 16, 255, 256] {
            let deal = Deal::among(cores);
            let mut seen = vec![0u64; usize::from(cores)];
            for stripe in 0..600 {
                for core in 0..cores {
                    let counted = deal.stripes_of(Core(core), stripe * STRIPE_BYTES);
                    assert_eq!(counted, seen[usize::from(core)], "core {core} of {cores}, {stripe} stripes");
                }
                let offset = stripe * STRIPE_BYTES + stripe;
                let owner = deal.owner(offset).index();
                assert_eq!(deal.local_stripe(offset), seen[owner]);
                seen[owner] += 1;
            }
        }
    }

    /// Goal: runs of one owner cover a range without gaps and each has one owner. Method: three cores, where slices
    /// 255 and 0 are neighbours of one owner.
    #[test]
    fn runs_have_one_owner() {
        let deal = Deal::among(3);
        let (mut at, end) = (5, 520 * STRIPE_BYTES + 17);
        let mut longest = 0;
        while at < end {
            let run_end = deal.run_end(at, end);
            assert!(run_end > at);
            assert_eq!(deal.owner(at), deal.owner(run_end - 1));
            assert!(run_end == end || deal.owner(run_end) != deal.owner(at));
            longest = longest.max(run_end - at);
            at = run_end;
        }
        assert_eq!((at, longest), (end, 2 * STRIPE_BYTES));
    }
}
