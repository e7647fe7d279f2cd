//! The input log, epochs, roles and the output rule.
