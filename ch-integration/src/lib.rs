//! Drives the VMM, and the plover command.
