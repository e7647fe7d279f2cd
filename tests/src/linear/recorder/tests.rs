//! The clients against a server of the test's own: one that is right, and some that are not.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use super::*;
use crate::linear::checker::{Verdict, check};
use crate::linear::model;

type Store = Arc<Mutex<HashMap<String, String>>>;

/// What is wrong with a server, now and then.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wrong {
    Nothing,
    ForgetsIncrements,
    AppendsTwice,
    /// Closes the connection instead of an answer, with the request done.
    Closes,
}

/// Requests until the fault shows again.
const EVERY: u64 = 40;

fn server(wrong: Wrong) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let store = Store::default();
    let count = Arc::new(AtomicU64::new(0));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (store, count) = (Arc::clone(&store), Arc::clone(&count));
            std::thread::spawn(move || serve(stream, wrong, &store, &count));
        }
    });
    address
}

fn serve(stream: TcpStream, wrong: Wrong, store: &Store, count: &AtomicU64) -> Option<()> {
    let mut out = stream.try_clone().ok()?;
    let mut input = BufReader::new(stream);
    loop {
        let words = read_words(&mut input)?;
        let is_time = count.fetch_add(1, Ordering::Relaxed) % EVERY == EVERY - 1;
        let text = || words.get(2).cloned().unwrap_or_default();
        let action = match words[0].as_str() {
            "GET" => Action::Get,
            "SET" => Action::Set(text()),
            "INCR" => Action::Incr,
            _ => Action::Append(text()),
        };
        let answer = {
            let mut store = lock(store);
            let value = store.get(&words[1]).map(|text| text.as_str().into());
            let (mut next, answer) = model::step(&value, &action);
            match (&action, wrong) {
                (Action::Incr, Wrong::ForgetsIncrements) if is_time => next = value,
                (Action::Append(_), Wrong::AppendsTwice) if is_time => {
                    next = model::step(&next, &action).0;
                }
                _ => {}
            }
            if let Some(next) = next {
                store.insert(words[1].clone(), next.to_string());
            }
            answer
        };
        if wrong == Wrong::Closes && is_time {
            return None;
        }
        let reply = match answer {
            Answer::Value(None) => "$-1\r\n".to_owned(),
            Answer::Value(Some(text)) => format!("${}\r\n{text}\r\n", text.len()),
            Answer::Done => "+OK\r\n".to_owned(),
            Answer::Number(number) => format!(":{number}\r\n"),
            Answer::Refused => "-ERR value is not an integer\r\n".to_owned(),
        };
        out.write_all(reply.as_bytes()).ok()?;
    }
}

fn read_words(input: &mut impl BufRead) -> Option<Vec<String>> {
    let count = read_number(input)?;
    let mut words = Vec::new();
    for _ in 0..count {
        let mut word = vec![0; read_number(input)? + 2];
        input.read_exact(&mut word).ok()?;
        word.truncate(word.len() - 2);
        words.push(String::from_utf8(word).ok()?);
    }
    Some(words)
}

fn read_number(input: &mut impl BufRead) -> Option<usize> {
    let mut line = String::new();
    input.read_line(&mut line).ok()?;
    line.get(1..)?.trim_end().parse().ok()
}

fn record(wrong: Wrong, requests: u64) -> Recorded {
    let load = Load {
        server: server(wrong),
        clients: 4,
        pause_max: Duration::ZERO,
        seed: 1,
    };
    let recorder = Recorder::start(&load, &Entrance::here());
    let start = Instant::now();
    while recorder.answered() < requests && start.elapsed() < Duration::from_secs(30) {
        std::thread::sleep(Duration::from_millis(1));
    }
    recorder.finish().unwrap()
}

#[test]
fn a_server_that_is_right_is_found_right() {
    let recorded = record(Wrong::Nothing, 2000);
    assert!(recorded.broken.is_empty() && recorded.operations.len() >= 2000);
    assert_eq!(check(&recorded.operations), Verdict::Linearizable);
}

#[test]
fn a_server_that_forgets_or_does_something_twice_is_found() {
    for wrong in [Wrong::ForgetsIncrements, Wrong::AppendsTwice] {
        let recorded = record(wrong, 2000);
        let verdict = check(&recorded.operations);
        assert!(matches!(verdict, Verdict::Violation(_)), "{verdict:?}");
    }
}

#[test]
fn a_request_whose_connection_broke_is_of_unknown_outcome_and_another_client_takes_over() {
    let recorded = record(Wrong::Closes, 600);
    assert!(recorded.broken.len() >= 5, "{:?}", recorded.broken);
    let unknown = recorded
        .operations
        .iter()
        .filter(|operation| operation.outcome == Outcome::Unknown);
    assert_eq!(unknown.count(), recorded.broken.len());
    assert_eq!(check(&recorded.operations), Verdict::Linearizable);
}
