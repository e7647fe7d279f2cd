//! Bugs that the simulation must find: each is one line where a rule of the design is broken.
//!
//! They exist only with the feature `planted-bugs`, which nothing but the simulation's own build
//! turns on. Without it [`planted`] is the constant `false`, and the compiler drops every call.
//! What is planted is chosen per thread ([`plant`]), so that tests can look for different bugs at
//! once.

#[cfg(feature = "planted-bugs")]
use std::cell::Cell;

/// A rule that is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// An epoch leaves when its `SyncEnd` is proposed, not when it is committed and applied.
    ReleaseBeforeCommit,
    /// The lease is as long as the election timeout: nothing is taken off for clocks that drift
    /// and hosts that notice ticks late.
    LeaseWithoutMargin,
    /// A voter that restarted grants votes at once.
    VoteAfterRestart,
    /// A replica makes the other copy void while its own is still being loaded.
    TakeOverWhileLoading,
    /// A copy is filled although its host is not like the primary's.
    FillUnequalHost,
    /// A vote is given, and not written to disk.
    VoteNotWritten,
    /// What goes to disk is acknowledged before it is there.
    AcknowledgeBeforeSync,
    /// A sync ends although both sides have different certificates.
    EndOtherCertificate,
    /// What is staged is applied at once, before the end is committed.
    ApplyBeforeCommit,
    /// Output leaves without a lease.
    LeaseIgnored,
    /// A leader acts before it has applied an entry of its own term.
    LeadBeforeOwnTerm,
    /// A copy that the new role does not list goes on.
    RoleWithoutVoid,
    /// The backup goes on one packet after the primary's position.
    ReplayOffByOne,
    /// A new primary gives its guest the last entry again.
    DeliverTwiceAfterTakeover,
    /// A report that was overtaken by a newer one counts.
    StaleReport,
    /// A sync that is given up lets its epoch leave.
    AbortReleases,
    /// A primary that asks another node to lead goes on transmitting.
    HandOverWithOpenUplink,
    /// Output leaves after the pause of a fill, though the new copy will not have it.
    FillPassesAfterPause,
    /// The log is compacted up to the own position, whatever the backup still needs.
    CompactPastBackup,
}

impl Bug {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self::ReleaseBeforeCommit,
        Self::LeaseWithoutMargin,
        Self::VoteAfterRestart,
        Self::TakeOverWhileLoading,
        Self::FillUnequalHost,
        Self::VoteNotWritten,
        Self::AcknowledgeBeforeSync,
        Self::EndOtherCertificate,
        Self::ApplyBeforeCommit,
        Self::LeaseIgnored,
        Self::LeadBeforeOwnTerm,
        Self::RoleWithoutVoid,
        Self::ReplayOffByOne,
        Self::DeliverTwiceAfterTakeover,
        Self::StaleReport,
        Self::AbortReleases,
        Self::HandOverWithOpenUplink,
        Self::FillPassesAfterPause,
        Self::CompactPastBackup,
    ];
}

#[cfg(feature = "planted-bugs")]
thread_local! {
    static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
}

/// Plants a bug for everything that this thread runs from now on, or none.
#[cfg(feature = "planted-bugs")]
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// Whether this bug is planted.
#[cfg(feature = "planted-bugs")]
pub(crate) fn planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Nothing is planted.
#[cfg(not(feature = "planted-bugs"))]
#[inline(always)]
pub(crate) const fn planted(_bug: Bug) -> bool {
    false
}
