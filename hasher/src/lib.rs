//! Finds, sends, checks and applies what differs between two copies of a VM.
