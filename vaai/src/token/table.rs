//! The tokens of a target: a replica on every core, changed by [`Change`] alone, so that a token can be used on any path.
//! What is this core's only is where the tokens that were made here have their data, and when they were used last.
//!
//! Invariant: a token that is in use keeps its data, however it ends. Who is the last to leave one that has ended, or who
//! ends one that nobody uses, frees them; that is decided by the order of changes and so is the same on every core.

use crate::change::{Applied, Change};
use crate::limits::{
    TOKEN_ENDS_A_TICK, TOKEN_PLACE_BYTES, TOKENS_A_CORE, TOKENS_GONE_MAX, TOKENS_INITIATOR_MAX, TOKENS_MAX,
};
use crate::sense::Sense;
use crate::token::wire::RodToken;
use bdev::io::{BdevId, Done, Io, Op, Tag};
use bdev::pool::slot::BLOCK_BYTES;
use reactor::Core;
use reactor::clock::Time;
use smallvec::SmallVec;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::Duration;
use subtle::ConstantTimeEq;
use tracing::warn;

/// A token's name: the core that made it, its place there, and which token of that core it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenId(u64);

impl TokenId {
    fn new(core: Core, place: u16, serial: u32) -> TokenId {
        TokenId(u64::from(core.0) << 48 | u64::from(place) << 32 | u64::from(serial))
    }

    pub(crate) fn from_bits(bits: u64) -> TokenId {
        TokenId(bits)
    }

    pub(crate) fn to_bits(self) -> u64 {
        self.0
    }

    fn core(self) -> Core {
        Core((self.0 >> 48) as u16)
    }

    fn place(self) -> u16 {
        (self.0 >> 32) as u16
    }

    /// Where its data begin in its pool's volume for tokens.
    pub(crate) fn first_byte(self) -> u64 {
        (u64::from(self.core().0) * u64::from(TOKENS_A_CORE) + u64::from(self.place())) * TOKEN_PLACE_BYTES
    }
}

/// What nobody can guess of a token.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Secret([u8; 32]);

impl Secret {
    /// Of a token that is not made yet.
    pub(crate) fn none() -> Secret {
        Secret([0; 32])
    }

    /// # Errors
    /// The kernel gives no random numbers.
    pub(crate) fn random() -> Result<Secret, Sense> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(|_| Sense::INSUFFICIENT_RESOURCES_FOR_TOKEN)?;
        Ok(Secret(bytes))
    }

    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// In a time that tells nothing of how much is right.
    fn is(&self, other: &[u8; 32]) -> bool {
        self.0.ct_eq(other).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// A range of a device, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its first.
    pub first: u64,
    /// How many.
    pub bytes: u64,
}

/// A representation of data, as it was at a point in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Its name.
    pub id: TokenId,
    /// Who has that has the token.
    pub secret: Secret,
    /// The unit that it was made of.
    pub lun: u16,
    /// The same, as initiators know it.
    pub naa: [u8; 16],
    /// Whom it is counted for.
    pub initiator: String,
    /// Length of its blocks.
    pub block_bytes: u32,
    /// How that unit's capacity is told, from the block length on.
    pub capacity: [u8; 8],
    /// The volume that has its data.
    pub store: BdevId,
    /// Where they are there, in their order.
    pub spans: SmallVec<[Span; 1]>,
    /// It is kept so long without being used.
    pub timeout_s: u32,
}

impl Token {
    /// How much it stands for.
    pub(crate) fn bytes(&self) -> u64 {
        self.spans.iter().map(|span| span.bytes).sum()
    }

    /// All of the volume that may have something of it.
    pub(crate) fn extent(&self) -> Extent {
        let first = self.id.first_byte();
        let end = self.spans.iter().map(|span| span.first + span.bytes).max().unwrap_or(first);
        Extent { id: self.id, store: self.store, bytes: end - first }
    }
}

/// Why a token is none any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// Nobody used it for its time.
    Expired,
    /// DEL_TKN.
    Deleted,
    /// Its unit is gone.
    Revoked,
}

impl Gone {
    fn sense(self) -> Sense {
        match self {
            Gone::Expired => Sense::TOKEN_EXPIRED,
            Gone::Deleted => Sense::TOKEN_DELETED,
            Gone::Revoked => Sense::TOKEN_REVOKED,
        }
    }
}

#[derive(Debug)]
struct Entry {
    token: Token,
    /// Commands that read it.
    uses: u32,
    /// Counts uses that have begun or ended.
    activity: u32,
    /// It ends with its last use.
    gone: Option<Gone>,
    /// The core that made it: it was used since it was looked at last; when that was; its end was proposed.
    fresh: bool,
    seen: Time,
    is_ending: bool,
}

/// What a place has to be freed of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    pub(crate) id: TokenId,
    pub(crate) store: BdevId,
    /// From the place's start.
    pub(crate) bytes: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Tokens {
    core: Core,
    entries: BTreeMap<TokenId, Entry>,
    /// Those that ended last.
    gone: VecDeque<(TokenId, Secret, Gone)>,
    /// Which places of this core are taken.
    places: Vec<bool>,
    /// Tokens of this core so far.
    serial: u32,
    /// Places of this core that are to be freed, and the one that is being freed.
    to_free: VecDeque<Extent>,
    freeing: Option<TokenId>,
}

impl Tokens {
    pub(crate) fn new(core: Core) -> Tokens {
        Tokens {
            core,
            entries: BTreeMap::new(),
            gone: VecDeque::new(),
            places: vec![false; usize::from(TOKENS_A_CORE)],
            serial: 0,
            to_free: VecDeque::new(),
            freeing: None,
        }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Places that are taken.
    #[cfg(test)]
    pub(crate) fn places_taken(&self) -> usize {
        self.places.iter().filter(|&&taken| taken).count()
    }

    /// A place for the data of a token of this initiator.
    ///
    /// # Errors
    /// There are too many already.
    pub(crate) fn take_place(&mut self, initiator: &str) -> Result<TokenId, Sense> {
        self.check_room(initiator)?;
        let Some(place) = self.places.iter().position(|taken| !taken) else {
            return Err(Sense::INSUFFICIENT_RESOURCES_FOR_TOKEN);
        };
        self.places[place] = true;
        self.serial = self.serial.wrapping_add(1);
        Ok(TokenId::new(self.core, place as u16, self.serial))
    }

    /// A place that no token got: what may have been written there is to be freed.
    pub(crate) fn give_back(&mut self, extent: Extent) {
        self.to_free.push_back(extent);
    }

    fn check_room(&self, initiator: &str) -> Result<(), Sense> {
        let theirs = self.entries.values().filter(|entry| entry.token.initiator == initiator).count();
        if self.entries.len() >= TOKENS_MAX || theirs >= TOKENS_INITIATOR_MAX {
            return Err(Sense::INSUFFICIENT_RESOURCES_FOR_TOKEN);
        }
        Ok(())
    }

    /// The token of which this is a true copy.
    ///
    /// # Errors
    /// What it is instead.
    pub(crate) fn find(&self, presented: &RodToken, target_name: &str) -> Result<&Token, Sense> {
        presented.check_kind()?;
        let id = presented.id();
        if let Some(entry) = self.entries.get(&id) {
            if !entry.token.secret.is(presented.secret()) {
                return Err(Sense::TOKEN_UNKNOWN);
            }
            if RodToken::of(&entry.token, target_name) != *presented {
                return Err(Sense::TOKEN_CORRUPT);
            }
            return entry.gone.map_or(Ok(&entry.token), |gone| Err(gone.sense()));
        }
        let gone = self.gone.iter().find(|(of, secret, _)| *of == id && secret.is(presented.secret()));
        Err(match gone {
            Some((.., gone)) => gone.sense(),
            None if !presented.is_of(target_name) => Sense::REMOTE_TOKEN_USAGE_NOT_SUPPORTED,
            None => Sense::TOKEN_UNKNOWN,
        })
    }

    /// Those that can be used, in the order of their names.
    pub(crate) fn usable(&self) -> impl Iterator<Item = &Token> {
        self.entries.values().filter(|entry| entry.gone.is_none()).map(|entry| &entry.token)
    }

    pub(crate) fn make(&mut self, token: &Token) -> Applied {
        self.check_room(&token.initiator)?;
        let entry = Entry {
            token: token.clone(),
            uses: 0,
            activity: 0,
            gone: None,
            fresh: true,
            seen: Time::ZERO,
            is_ending: false,
        };
        self.entries.insert(token.id, entry);
        Ok(())
    }

    pub(crate) fn begin_use(&mut self, id: TokenId) -> Applied {
        let Some(entry) = self.entries.get_mut(&id) else {
            let gone = self.gone.iter().find(|(of, ..)| *of == id);
            return Err(gone.map_or(Sense::TOKEN_UNKNOWN, |(.., gone)| gone.sense()));
        };
        if let Some(gone) = entry.gone {
            return Err(gone.sense());
        }
        entry.uses += 1;
        entry.activity = entry.activity.wrapping_add(1);
        entry.fresh = true;
        Ok(())
    }

    pub(crate) fn end_use(&mut self, id: TokenId) {
        let Some(entry) = self.entries.get_mut(&id) else {
            debug_assert!(false, "what is in use is there");
            return;
        };
        entry.uses = entry.uses.saturating_sub(1);
        entry.activity = entry.activity.wrapping_add(1);
        entry.fresh = true;
        self.remove_if_over(id);
    }

    pub(crate) fn delete(&mut self, id: TokenId) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.gone.get_or_insert(Gone::Deleted);
            self.remove_if_over(id);
        }
    }

    /// Its time is over, unless it was used since that was found.
    pub(crate) fn expire(&mut self, id: TokenId, activity: u32) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.is_ending = false;
        if entry.uses == 0 && entry.activity == activity {
            entry.gone.get_or_insert(Gone::Expired);
            self.remove_if_over(id);
        }
    }

    /// A unit is gone, and what was made of it with it.
    pub(crate) fn revoke(&mut self, lun: u16) {
        let theirs = self.entries.values().filter(|entry| entry.token.lun == lun);
        let theirs: Vec<TokenId> = theirs.map(|entry| entry.token.id).collect();
        for id in theirs {
            if let Some(entry) = self.entries.get_mut(&id) {
                entry.gone.get_or_insert(Gone::Revoked);
            }
            self.remove_if_over(id);
        }
    }

    fn remove_if_over(&mut self, id: TokenId) {
        let is_over = self.entries.get(&id).is_some_and(|entry| entry.gone.is_some() && entry.uses == 0);
        if !is_over {
            return;
        }
        let Some(Entry { token, gone: Some(gone), .. }) = self.entries.remove(&id) else { return };
        if self.gone.len() == TOKENS_GONE_MAX {
            self.gone.pop_front();
        }
        self.gone.push_back((id, token.secret, gone));
        if id.core() == self.core {
            self.to_free.push_back(token.extent());
        }
    }

    /// What tokens of this core are to end because nobody has used them for their time.
    pub(crate) fn tick(&mut self, now: Time) -> SmallVec<[Change; 4]> {
        let mut changes = SmallVec::new();
        let core = self.core;
        for (&id, entry) in self.entries.iter_mut().filter(|(id, _)| id.core() == core) {
            if std::mem::take(&mut entry.fresh) {
                entry.seen = now;
            }
            let timeout = Duration::from_secs(u64::from(entry.token.timeout_s));
            let is_idle = entry.uses == 0 && entry.gone.is_none() && !entry.is_ending;
            if is_idle && now.since(entry.seen) > timeout && changes.len() < TOKEN_ENDS_A_TICK {
                entry.is_ending = true;
                changes.push(Change::TokenExpire { id, activity: entry.activity });
            }
        }
        changes
    }

    /// The next request that frees a place; one is out at a time.
    pub(crate) fn poll_free(&mut self) -> Option<Io> {
        while self.freeing.is_none() {
            let Extent { id, store, bytes } = self.to_free.pop_front()?;
            if bytes == 0 {
                self.freed(id);
                continue;
            }
            self.freeing = Some(id);
            return Some(Io {
                tag: Tag(0),
                from: self.core,
                bdev: store,
                op: Op::Unmap,
                fua: false,
                heartbeat: false,
                disposable: false,
                more_parts: 0,
                lba: id.first_byte() / STORE_BLOCK_BYTES,
                // All of the last one that the pool maps: of a part of it only zeroes would be left, and keep its space.
                blocks: bytes.next_multiple_of(BLOCK_BYTES) / STORE_BLOCK_BYTES,
                buf: None,
                scratch: None,
            });
        }
        None
    }

    /// It has come back. What could not be freed goes with the place's next token, or at the next start.
    pub(crate) fn free_done(&mut self, done: &Done) {
        if let Err(error) = done.result {
            warn!(?error, "what a token held could not be freed");
        }
        if let Some(id) = self.freeing.take() {
            self.freed(id);
        }
    }

    fn freed(&mut self, id: TokenId) {
        if let Some(taken) = self.places.get_mut(usize::from(id.place())) {
            *taken = false;
        }
    }
}

/// Blocks of the volume for tokens.
pub(crate) const STORE_BLOCK_BYTES: u64 = 512;
