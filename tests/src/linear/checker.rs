//! Is a history linearizable? The search of Wing and Gong (1993) with Lowe's memory of what was
//! tried (2017), on the linked list of Horn and Kroening (2015), key by key: what Porcupine does.
//!
//! It walks the requests and answers in the order of time. At a request it tries to let it take
//! effect now; at an answer whose request did not take effect yet it goes back and tries another
//! order. A set of requests that took effect, together with the value they led to, is tried once.
//!
//! A request whose outcome nobody knows may take effect at any time after it was sent, or never.

use std::collections::HashSet;

use super::history::{Operation, by_key};
use super::model::{self, Value};

/// Tries after which a search is given up. A violation in a history of hot keys is found within a
/// small part of it; more means too many requests of unknown outcome.
const TRIES_MAX: usize = 20_000_000;
/// Requests shown around a violation.
const SHOWN_MAX: usize = 24;

/// What the checker found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// One server that does one request at a time could have answered so.
    Linearizable,
    /// It could not.
    Violation(Violation),
    /// The search took too long for this key.
    Undecided(String),
}

/// Where no order of the requests explains the answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The key.
    pub key: String,
    /// The request whose answer cannot be explained, on the best try.
    pub stuck: Operation,
    /// The value that the best try had led to.
    pub value: Option<String>,
    /// Requests that were under way when that answer came.
    pub around: Vec<Operation>,
}

/// Judges a history.
#[must_use]
pub fn check(operations: &[Operation]) -> Verdict {
    for (key, operations) in by_key(operations) {
        match check_key(key, &operations, TRIES_MAX) {
            Verdict::Linearizable => {}
            other => return other,
        }
    }
    Verdict::Linearizable
}

/// Judges the history of one key, in the order in which its requests were invoked.
#[must_use]
pub fn check_key(key: &str, operations: &[&Operation], tries_max: usize) -> Verdict {
    let mut search = Search::new(operations);
    match search.run(tries_max) {
        Some(true) => Verdict::Linearizable,
        Some(false) => Verdict::Violation(search.explain(key)),
        None => Verdict::Undecided(key.to_owned()),
    }
}

/// A request or an answer in the list.
#[derive(Clone, Copy, Debug)]
struct Entry {
    operation: usize,
    is_request: bool,
}

/// Entries in the order of time; those of requests that took effect are taken out.
struct Timeline {
    entries: Vec<Entry>,
    /// Place of each operation's answer.
    answer_of: Vec<usize>,
    next: Vec<usize>,
    previous: Vec<usize>,
}

/// The place before the first entry, and after the last.
const ENDS: usize = 0;

impl Timeline {
    fn new(operations: &[&Operation]) -> Self {
        // At the same time a request comes first: the two may have overlapped.
        let mut times: Vec<(u64, bool, usize)> = Vec::with_capacity(operations.len() * 2);
        for (number, operation) in operations.iter().enumerate() {
            times.push((operation.invoked_ns, false, number));
            times.push((operation.returned_ns(), true, number));
        }
        times.sort_unstable();
        let mut entries = vec![Entry {
            operation: usize::MAX,
            is_request: false,
        }];
        let mut answer_of = vec![0; operations.len()];
        for (place, (_, is_answer, operation)) in (1..).zip(times) {
            entries.push(Entry {
                operation,
                is_request: !is_answer,
            });
            if is_answer {
                answer_of[operation] = place;
            }
        }
        let count = entries.len();
        Self {
            next: (1..=count).map(|place| place % count).collect(),
            previous: (0..count)
                .map(|place| (place + count - 1) % count)
                .collect(),
            entries,
            answer_of,
        }
    }

    fn take_out(&mut self, place: usize) {
        let (before, after) = (self.previous[place], self.next[place]);
        self.next[before] = after;
        self.previous[after] = before;
    }

    fn put_back(&mut self, place: usize) {
        let (before, after) = (self.previous[place], self.next[place]);
        self.next[before] = place;
        self.previous[after] = place;
    }

    /// Takes a request and its answer out.
    fn lift(&mut self, place: usize) {
        let answer = self.answer_of[self.entries[place].operation];
        self.take_out(place);
        self.take_out(answer);
    }

    /// Undoes the last [`Self::lift`] that is not undone.
    fn unlift(&mut self, place: usize) {
        let answer = self.answer_of[self.entries[place].operation];
        self.put_back(answer);
        self.put_back(place);
    }
}

struct Search<'a> {
    operations: &'a [&'a Operation],
    timeline: Timeline,
    /// Bit per operation: it took effect.
    done: Vec<u64>,
    value: Value,
    /// Requests that took effect, in that order, with the value before each.
    order: Vec<(usize, Value)>,
    tried: HashSet<(Box<[u64]>, Value)>,
    /// Answered requests that have not taken effect.
    answered_left: usize,
    best: Option<Best>,
}

/// The try that explained most.
struct Best {
    explained: usize,
    stuck: usize,
    value: Value,
}

impl<'a> Search<'a> {
    fn new(operations: &'a [&'a Operation]) -> Self {
        let answered = operations.iter().filter(|op| is_answered(op)).count();
        Self {
            timeline: Timeline::new(operations),
            done: vec![0; operations.len().div_ceil(64)],
            value: None,
            order: Vec::new(),
            tried: HashSet::new(),
            answered_left: answered,
            best: None,
            operations,
        }
    }

    /// `None`: given up.
    fn run(&mut self, tries_max: usize) -> Option<bool> {
        let mut place = self.timeline.next[ENDS];
        while self.answered_left > 0 {
            let entry = self.timeline.entries[place];
            if entry.is_request {
                if self.take_effect(place, entry.operation) {
                    place = self.timeline.next[ENDS];
                } else {
                    place = self.timeline.next[place];
                }
                if self.tried.len() > tries_max {
                    return None;
                }
                continue;
            }
            self.remember(entry.operation);
            match self.go_back() {
                Some(last) => place = self.timeline.next[last],
                None => return Some(false),
            }
        }
        Some(true)
    }

    /// Lets a request take effect now, if its answer allows and it was not tried yet.
    fn take_effect(&mut self, place: usize, number: usize) -> bool {
        let operation = self.operations[number];
        let (next, answer) = model::step(&self.value, &operation.action);
        if !model::fits(&operation.outcome, &answer) {
            return false;
        }
        self.done[number / 64] |= 1 << (number % 64);
        if !self
            .tried
            .insert((self.done.as_slice().into(), next.clone()))
        {
            self.done[number / 64] &= !(1 << (number % 64));
            return false;
        }
        self.order
            .push((place, std::mem::replace(&mut self.value, next)));
        self.timeline.lift(place);
        self.answered_left -= usize::from(is_answered(operation));
        true
    }

    /// Takes the last effect back; its place.
    fn go_back(&mut self) -> Option<usize> {
        let (place, value) = self.order.pop()?;
        let number = self.timeline.entries[place].operation;
        self.timeline.unlift(place);
        self.done[number / 64] &= !(1 << (number % 64));
        self.value = value;
        self.answered_left += usize::from(is_answered(self.operations[number]));
        Some(place)
    }

    fn remember(&mut self, stuck: usize) {
        let explained = self.order.len();
        if self
            .best
            .as_ref()
            .is_none_or(|best| best.explained < explained)
        {
            self.best = Some(Best {
                explained,
                stuck,
                value: self.value.clone(),
            });
        }
    }

    fn explain(&self, key: &str) -> Violation {
        let (stuck, value) = match &self.best {
            Some(best) => (self.operations[best.stuck], best.value.clone()),
            None => (self.operations[0], None),
        };
        let under_way = |op: &&&Operation| {
            op.invoked_ns <= stuck.returned_ns() && op.returned_ns() >= stuck.invoked_ns
        };
        let around = self.operations.iter().filter(under_way).take(SHOWN_MAX);
        Violation {
            key: key.to_owned(),
            stuck: stuck.clone(),
            value: value.map(|value| value.to_string()),
            around: around.map(|operation| (*operation).clone()).collect(),
        }
    }
}

fn is_answered(operation: &Operation) -> bool {
    operation.returned_ns() != u64::MAX
}

#[cfg(test)]
mod tests;
