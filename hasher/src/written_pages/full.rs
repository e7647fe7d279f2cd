//! The last resort: no source tells what the VMM wrote, so every round compares all memory by
//! digest. Correct on any kernel; no pause is promised for it.

/// All memory, every round, and why.
#[derive(Clone, Debug)]
pub struct FullScan {
    reason: String,
}

impl FullScan {
    /// `reason` says what is missing for something better.
    #[must_use]
    pub fn new(reason: String) -> Self {
        Self { reason }
    }

    /// What is missing for something better.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }
}
