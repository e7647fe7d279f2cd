//! The server on a real socket, driven by the `vhost` crate's frontend and by raw bytes; the poll
//! core is a thread of the test, or the test itself.

mod bench;
mod malformed;
mod traffic;
