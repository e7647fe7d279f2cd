//! What clients did and were told: one [`Operation`] per request.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Read the value.
    Get,
    /// Replace the value.
    Set(String),
    /// Add one to a number.
    Incr,
    /// Add to the end of a string.
    Append(String),
}

/// What the server says to a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The value; `None`: there is none.
    Value(Option<String>),
    /// It is set.
    Done,
    /// The number, or the string's length, that it is now.
    Number(i64),
    /// The value is not of the kind that the request needs; nothing changed.
    Refused,
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was answered.
    Answered {
        /// When the answer had arrived.
        at_ns: u64,
        /// The answer.
        answer: Answer,
    },
    /// Nobody knows whether it was done, or will be.
    Unknown,
}

/// One request of a client. A client has one under way at a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// The client: a connection.
    pub client: u32,
    /// The key that it is about.
    pub key: String,
    /// What it asks for.
    pub action: Action,
    /// Right before it was sent.
    pub invoked_ns: u64,
    /// How it ended.
    pub outcome: Outcome,
}

impl Operation {
    /// When its answer had arrived; the end of time if it never did.
    #[must_use]
    pub fn returned_ns(&self) -> u64 {
        match self.outcome {
            Outcome::Answered { at_ns, .. } => at_ns,
            Outcome::Unknown => u64::MAX,
        }
    }
}

/// The operations on each key, in the order in which they were invoked: a history is linearizable
/// exactly if that of each key is (Herlihy and Wing, 1990).
#[must_use]
pub fn by_key(operations: &[Operation]) -> BTreeMap<&str, Vec<&Operation>> {
    let mut keys: BTreeMap<&str, Vec<&Operation>> = BTreeMap::new();
    for operation in operations {
        keys.entry(&operation.key).or_default().push(operation);
    }
    for operations in keys.values_mut() {
        operations.sort_by_key(|operation| operation.invoked_ns);
    }
    keys
}
