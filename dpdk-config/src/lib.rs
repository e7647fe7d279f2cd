//! DPDK for Plover: a safe wrapper, typed configuration and preflight checks.
