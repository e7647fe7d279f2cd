//! Histories that are known to be good or bad, and all small ones against a checker that tries
//! every order.

use proptest::prelude::*;

use super::*;
use crate::linear::history::{Action, Answer, Outcome};
use crate::linear::model;

/// Client, request, when sent and answered, the answer.
fn answered(client: u32, action: Action, from: u64, to: u64, answer: Answer) -> Operation {
    Operation {
        client,
        key: "k".to_owned(),
        action,
        invoked_ns: from,
        outcome: Outcome::Answered { at_ns: to, answer },
    }
}

fn unknown(client: u32, action: Action, from: u64) -> Operation {
    Operation {
        client,
        key: "k".to_owned(),
        action,
        invoked_ns: from,
        outcome: Outcome::Unknown,
    }
}

fn set(client: u32, value: &str, from: u64, to: u64) -> Operation {
    answered(
        client,
        Action::Set(value.to_owned()),
        from,
        to,
        Answer::Done,
    )
}

fn get(client: u32, value: Option<&str>, from: u64, to: u64) -> Operation {
    let answer = Answer::Value(value.map(str::to_owned));
    answered(client, Action::Get, from, to, answer)
}

fn incr(client: u32, value: i64, from: u64, to: u64) -> Operation {
    answered(client, Action::Incr, from, to, Answer::Number(value))
}

fn append(client: u32, text: &str, length: i64, from: u64, to: u64) -> Operation {
    let action = Action::Append(text.to_owned());
    answered(client, action, from, to, Answer::Number(length))
}

fn is_good(operations: &[Operation]) -> bool {
    match check(operations) {
        Verdict::Linearizable => true,
        Verdict::Violation(_) => false,
        Verdict::Undecided(key) => panic!("undecided for {key}"),
    }
}

#[test]
fn what_overlaps_may_take_effect_in_either_order() {
    let overlap = [
        set(1, "x", 0, 100),
        get(2, None, 10, 20),
        get(3, Some("x"), 30, 40),
    ];
    assert!(is_good(&overlap));
    assert!(is_good(&[
        incr(1, 2, 0, 10),
        incr(2, 1, 5, 15),
        append(3, "!", 2, 20, 30)
    ]));
    assert!(is_good(&[]));
}

#[test]
fn a_stale_read_is_found() {
    // The old primary answers after the new one has.
    assert!(!is_good(&[
        set(1, "old", 0, 10),
        set(1, "new", 20, 30),
        get(2, Some("old"), 40, 50),
    ]));
}

#[test]
fn a_value_that_was_read_and_is_gone_is_found() {
    // The write overlaps both reads; once it was seen it stays.
    assert!(!is_good(&[
        set(1, "x", 0, 100),
        get(2, Some("x"), 10, 20),
        get(3, None, 30, 40),
    ]));
}

#[test]
fn a_lost_increment_is_found() {
    assert!(!is_good(&[
        incr(1, 1, 0, 10),
        incr(2, 2, 20, 30),
        incr(1, 2, 40, 50),
    ]));
}

#[test]
fn an_acknowledged_write_that_is_gone_is_found() {
    assert!(!is_good(&[set(1, "x", 0, 10), get(1, None, 20, 30)]));
}

#[test]
fn an_append_done_twice_is_found() {
    // As after a request that both copies did.
    assert!(!is_good(&[
        append(1, "ab", 2, 0, 10),
        get(2, Some("abab"), 20, 30),
    ]));
    assert!(!is_good(&[
        append(1, "ab", 2, 0, 10),
        append(2, "c", 5, 20, 30),
    ]));
}

#[test]
fn two_primaries_are_found() {
    // Each side counts on alone.
    assert!(!is_good(&[
        incr(1, 1, 0, 10),
        incr(1, 2, 20, 30),
        incr(2, 2, 40, 50),
        incr(1, 3, 60, 70),
        incr(2, 3, 80, 90),
    ]));
}

#[test]
fn appends_in_another_order_than_their_lengths_say_are_found() {
    assert!(!is_good(&[
        append(1, "a", 1, 0, 50),
        append(2, "b", 2, 0, 50),
        get(3, Some("ba"), 60, 70),
    ]));
}

#[test]
fn a_value_that_nobody_wrote_is_found() {
    assert!(!is_good(&[set(1, "x", 0, 10), get(2, Some("y"), 5, 20)]));
}

#[test]
fn a_request_of_unknown_outcome_may_take_effect_late_or_never() {
    let lost = unknown(1, Action::Set("x".to_owned()), 0);
    assert!(is_good(&[lost.clone(), get(2, None, 10, 20)]));
    assert!(is_good(&[lost.clone(), get(2, Some("x"), 10, 20)]));
    assert!(is_good(&[
        lost.clone(),
        get(2, None, 10, 20),
        get(2, Some("x"), 30, 40),
    ]));
    // But once only, not before it was sent, and it stays.
    let late = unknown(1, Action::Set("x".to_owned()), 25);
    assert!(!is_good(&[late, get(2, Some("x"), 10, 20)]));
    assert!(!is_good(&[
        lost,
        get(2, Some("x"), 10, 20),
        get(2, None, 30, 40),
    ]));
    assert!(!is_good(&[
        unknown(1, Action::Incr, 0),
        get(2, Some("1"), 10, 20),
        get(2, Some("2"), 30, 40),
    ]));
}

#[test]
fn keys_are_judged_apart_and_the_bad_one_is_named() {
    let mut other = get(2, Some("x"), 20, 30);
    other.key = "another".to_owned();
    let Verdict::Violation(violation) = check(&[set(1, "x", 0, 10), other.clone()]) else {
        panic!("not found");
    };
    assert_eq!(
        (violation.key.as_str(), &violation.stuck),
        ("another", &other)
    );
    assert_eq!(violation.around, vec![other]);
}

#[test]
fn a_long_history_of_many_clients_is_judged_at_once() {
    // Eight clients, each request overlapping seven others; the last answer is wrong or right.
    let history = |last: i64| -> Vec<Operation> {
        let mut all: Vec<Operation> = (0..20_000)
            .map(|n: i64| {
                let from = n.unsigned_abs() * 10;
                incr((n % 8) as u32, n + 1, from, from + 75)
            })
            .collect();
        all.push(incr(9, last, 300_000, 300_010));
        all
    };
    assert!(is_good(&history(20_001)));
    assert!(!is_good(&history(20_000)));
}

/// Tries every order.
fn is_good_by_force(operations: &[&Operation]) -> bool {
    fn any_order(left: &[&Operation], value: &model::Value) -> bool {
        if left.iter().all(|op| !is_answered(op)) {
            return true;
        }
        let first_answer = left.iter().map(|op| op.returned_ns()).min().unwrap_or(0);
        (0..left.len()).any(|at| {
            let mut rest = left.to_vec();
            let operation = rest.remove(at);
            let (next, answer) = model::step(value, &operation.action);
            operation.invoked_ns <= first_answer
                && model::fits(&operation.outcome, &answer)
                && any_order(&rest, &next)
        })
    }
    any_order(operations, &None)
}

fn small_operation() -> impl Strategy<Value = Operation> {
    let text = prop_oneof![Just("1".to_owned()), Just("2".to_owned())];
    let action = prop_oneof![
        Just(Action::Get),
        text.clone().prop_map(Action::Set),
        Just(Action::Incr),
        text.prop_map(Action::Append),
    ];
    let value = prop_oneof![
        Just(None),
        Just(Some("1")),
        Just(Some("2")),
        Just(Some("12"))
    ];
    (0u32..3, action, 0u64..20, 0u64..8, value, 1i64..4, 0u8..8).prop_map(
        |(client, action, from, takes, value, number, kind)| {
            let answer = match action {
                Action::Get => Answer::Value(value.map(str::to_owned)),
                Action::Set(_) => Answer::Done,
                Action::Incr | Action::Append(_) => Answer::Number(number),
            };
            match kind {
                0 => unknown(client, action, from),
                _ => answered(client, action, from, from + takes, answer),
            }
        },
    )
}

/// The answers that one server gives, each somewhere within its request's time.
fn told_by_one_server(times: &[(u64, u64, u64, Action)]) -> Vec<Operation> {
    let mut order: Vec<usize> = (0..times.len()).collect();
    order.sort_by_key(|n| times[*n].0);
    let mut value = None;
    let mut operations = Vec::new();
    for n in order {
        let (at, before, after, action) = &times[n];
        let (next, answer) = model::step(&value, action);
        value = next;
        let from = at.saturating_sub(*before);
        operations.push(answered(n as u32, action.clone(), from, at + after, answer));
    }
    operations
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn it_says_what_trying_every_order_says(
        mut operations in proptest::collection::vec(small_operation(), 0..7)
    ) {
        operations.sort_by_key(|operation| operation.invoked_ns);
        let borrowed: Vec<&Operation> = operations.iter().collect();
        prop_assert_eq!(is_good(&operations), is_good_by_force(&borrowed));
    }

    #[test]
    fn what_one_server_told_is_good(
        times in proptest::collection::vec(
            (0u64..400, 0u64..60, 0u64..60, prop_oneof![
                Just(Action::Get),
                Just(Action::Incr),
                "[0-9]{1,2}".prop_map(Action::Set),
                "[0-9]".prop_map(Action::Append),
            ]),
            0..40,
        )
    ) {
        // No two at the same moment.
        let mut times = times;
        for (n, time) in times.iter_mut().enumerate() {
            time.0 = time.0 * 64 + n as u64;
        }
        prop_assert!(is_good(&told_by_one_server(&times)));
    }
}
