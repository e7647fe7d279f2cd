use super::*;

const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7},
    "package": "Debian"}, "capabilities": []}}"#;

fn greeting() -> String {
    GREETING.replace('\n', " ")
}

/// A monitor that sends `lines` at once and reads what is sent to it.
fn connected(lines: &[&str]) -> (Qmp, UnixStream) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let text = format!("{}\n{}\n", greeting(), r#"{"return": {}, "id": 1}"#);
    theirs.write_all(text.as_bytes()).unwrap();
    let (qmp, version) = Qmp::connect(ours).unwrap();
    assert_eq!(version, "7.2.22 (Debian)");
    for line in lines {
        theirs.write_all(format!("{line}\n").as_bytes()).unwrap();
    }
    (qmp, theirs)
}

#[test]
fn an_answer_is_found_among_events_and_late_answers() {
    let lines = [
        r#"{"event": "STOP"}"#,
        r#"{"return": {"late": true}, "id": 1}"#,
        r#"{"return": {"x": 1}, "id": 2}"#,
    ];
    let (mut qmp, _theirs) = connected(&lines);
    let answer = qmp
        .execute("stop", &json!({}), Duration::from_secs(1))
        .unwrap();
    assert_eq!(answer, json!({"x": 1}));
    assert_eq!(qmp.take_events(), vec![json!({"event": "STOP"})]);
    assert!(qmp.take_events().is_empty());
}

#[test]
fn an_error_carries_qemu_s_own_words() {
    let line = r#"{"error": {"class": "GenericError", "desc": "no such node"}, "id": 2}"#;
    let (mut qmp, _theirs) = connected(&[line]);
    let error = qmp
        .execute("blockdev-del", &json!({}), Duration::from_secs(1))
        .unwrap_err();
    assert_eq!(error.to_string(), "blockdev-del: no such node");
}

#[test]
fn a_silent_monitor_is_a_timeout() {
    let (mut qmp, _theirs) = connected(&[]);
    let error = qmp
        .execute("stop", &json!({}), Duration::from_millis(30))
        .unwrap_err();
    assert_eq!(error.to_string(), "stop: no answer within 30 ms");
}

#[test]
fn a_closed_monitor_and_a_bad_line_are_errors() {
    let (mut qmp, theirs) = connected(&["{not json"]);
    let error = qmp
        .execute("stop", &json!({}), Duration::from_secs(1))
        .unwrap_err();
    assert!(matches!(error, VmmError::Malformed { .. }), "{error}");
    drop(theirs);
    let error = qmp
        .execute("stop", &json!({}), Duration::from_secs(1))
        .unwrap_err();
    assert!(matches!(error, VmmError::Io { .. }), "{error}");
}

#[test]
fn events_are_taken_without_waiting_and_bounded() {
    let (mut qmp, mut theirs) = connected(&[]);
    assert!(qmp.take_events().is_empty());
    // In one piece: many small ones would fill the socket.
    let lines: String = (0..limits::EVENTS_MAX + 5)
        .map(|index| format!("{{\"event\": \"E{index}\"}}\n"))
        .collect();
    theirs.write_all(lines.as_bytes()).unwrap();
    let deadline = Deadline::after(Duration::from_millis(50));
    qmp.wait_event("nothing", deadline, |_| None::<()>)
        .unwrap_err();
    let events = qmp.take_events();
    assert_eq!(events.len(), limits::EVENTS_MAX);
    assert_eq!(events[0], json!({"event": "E5"}));
}

#[test]
fn an_answer_asked_for_later_survives_other_calls_and_looks_for_events() {
    let lines = [
        r#"{"return": {"first": 1}, "id": 2}"#,
        r#"{"event": "STOP"}"#,
        r#"{"return": {"second": 2}, "id": 3}"#,
    ];
    for look_for_events_first in [false, true] {
        let (mut qmp, _theirs) = connected(&lines);
        qmp.execute_later("blockdev-add", &json!({})).unwrap();
        if look_for_events_first {
            assert_eq!(qmp.take_events().len(), 1);
            assert_eq!(
                qmp.answer_later("blockdev-add").unwrap(),
                json!({"first": 1})
            );
            continue;
        }
        let second = qmp
            .execute("stop", &json!({}), Duration::from_secs(1))
            .unwrap();
        assert_eq!(second, json!({"second": 2}));
        assert_eq!(
            qmp.answer_later("blockdev-add").unwrap(),
            json!({"first": 1})
        );
        assert!(qmp.answer_later("blockdev-add").is_err());
    }
}
