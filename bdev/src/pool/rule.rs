//! Rules that a test may break on purpose, to see that it finds out.

/// A rule of the pool. Broken only by tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// Chunk counts are what the maps say (invariant 1): a copied leaf's names are not counted.
    CountsAreExact,
    /// Data before records (2): the record is written while the data are on their way.
    DataBeforeRecord,
    /// GOOD when the record is durable (2): answered when it is appended.
    AnswerAfterRecord,
    /// Reuse only when no durable map reaches it (3): given up when the record is appended.
    ReuseAfterRecord,
    /// Reuse only when no IO is on its way (3).
    ReuseAfterReads,
    /// A chunk that is being punched is not used (3).
    ReuseAfterPunch,
    /// What is shared is not written in place (4).
    SharedIsFrozen,
    /// A copy freezes the original, too (4).
    FlagBoth,
    /// Blocks nobody wrote read as zeroes (5): a new chunk's blocks are all taken for own.
    UnwrittenIsZero,
    /// Writes into one block are ordered (6).
    BlocksAreOrdered,
    /// An increment is counted before its pointer leaves.
    CountBeforePointer,
    /// Unfilled blocks of a shared chunk are nobody's.
    SharedIsNotFilled,
    /// A snapshot holds all cores' writes before it freezes one.
    HoldBeforeFreeze,
    /// No write to a new root is answered before the catalog is durable.
    CatalogBeforeRelease,
    /// SYNCHRONIZE CACHE flushes every member.
    FlushEveryMember,
    /// Metadata carry checksums (9).
    ChecksumsAreChecked,
    /// A full pool waits for names that are being given up.
    FullWaitsForPending,
    /// A checkpoint ends only when what it saw is durable.
    CheckpointAfterJournal,
    /// The last free chunks are the heartbeats' own.
    HeartbeatsHaveTheirOwn,
    /// A compare and write over a stripe's edge writes on both sides or on none (7).
    EdgesDecideTogether,
    /// A record is durable when all before it are, too (2): a commit that is written before an earlier one answers.
    JournalIsAPrefix,
    /// Pointers from a leaf that has several parents are frozen before one of those has it for its own (4).
    SharedLeafIsNobodys,
    /// A leaf's edition ends when it changes (4): what another core has of it is not what it is now.
    EditionEndsWithAChange,
    /// Other cores see that a stripe changes before it does: what they were told of it holds no longer.
    ChangesAreTold,
    /// An atomic write goes to new blocks.
    AtomicGoesElsewhere,
    /// All parts of an atomic write that are one shard's are one entry of its journal.
    AtomicIsOneEntry,
    /// What another shard's journal says is obeyed once.
    DecreesAreObeyedOnce,
    /// A decree that may not be obeyed durably outlives the checkpoint that forgets its entry.
    DecreesAreRenewed,
}

impl Rule {
    /// All of them.
    pub const ALL: [Rule; 28] = [
        Rule::CountsAreExact,
        Rule::DataBeforeRecord,
        Rule::AnswerAfterRecord,
        Rule::ReuseAfterRecord,
        Rule::ReuseAfterReads,
        Rule::ReuseAfterPunch,
        Rule::SharedIsFrozen,
        Rule::FlagBoth,
        Rule::UnwrittenIsZero,
        Rule::BlocksAreOrdered,
        Rule::CountBeforePointer,
        Rule::SharedIsNotFilled,
        Rule::HoldBeforeFreeze,
        Rule::CatalogBeforeRelease,
        Rule::FlushEveryMember,
        Rule::ChecksumsAreChecked,
        Rule::FullWaitsForPending,
        Rule::CheckpointAfterJournal,
        Rule::HeartbeatsHaveTheirOwn,
        Rule::EdgesDecideTogether,
        Rule::JournalIsAPrefix,
        Rule::SharedLeafIsNobodys,
        Rule::EditionEndsWithAChange,
        Rule::ChangesAreTold,
        Rule::AtomicGoesElsewhere,
        Rule::AtomicIsOneEntry,
        Rule::DecreesAreObeyedOnce,
        Rule::DecreesAreRenewed,
    ];
}
