//! Raw bindings to libdpdk, no logic.
