//! What unit tests share: there is one EAL in a process, and tests may share a process.

use std::sync::OnceLock;

use crate::{Eal, EalConfig};

/// The EAL of all tests of this process.
pub(crate) fn eal() -> &'static Eal {
    static EAL: OnceLock<Eal> = OnceLock::new();
    EAL.get_or_init(|| Eal::init(&EalConfig::default()).expect("EAL starts without hugepages"))
}
