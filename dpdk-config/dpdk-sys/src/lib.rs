//! Raw bindings to libdpdk: what bindgen makes of `wrapper.h`, restricted to what Plover calls.
//!
//! No logic here. Safe types over these live in `dpdk-config`; why this crate exists is said in
//! `docs/decisions/0001-own-dpdk-bindings.md`.

// Generated code follows C's names and has no docs or SAFETY comments of its own.
#[allow(
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    clippy::semicolon_if_nothing_returned,
    clippy::cast_lossless,
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unsafe_op_in_unsafe_fn
)]
mod bindings {
    include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
}

pub use bindings::*;
