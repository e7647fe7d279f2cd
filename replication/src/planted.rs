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
}

impl Bug {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self::ReleaseBeforeCommit,
        Self::LeaseWithoutMargin,
        Self::VoteAfterRestart,
        Self::TakeOverWhileLoading,
        Self::FillUnequalHost,
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
