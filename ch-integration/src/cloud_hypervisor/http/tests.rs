use std::os::unix::net::UnixListener;

use serde_json::json;

use super::*;

/// Serves `answers`, one per request, on one connection after another, and returns the requests.
fn serve(answers: Vec<Vec<u8>>) -> (tempfile::TempDir, Api, std::thread::JoinHandle<Vec<String>>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let server = std::thread::spawn(move || {
        let mut requests = Vec::new();
        let (mut connection, _) = listener.accept().unwrap();
        for answer in answers {
            let mut bytes = [0; 4096];
            let mut count = connection.read(&mut bytes).unwrap();
            if count == 0 {
                connection = listener.accept().unwrap().0;
                count = connection.read(&mut bytes).unwrap();
            }
            requests.push(String::from_utf8_lossy(&bytes[..count]).into_owned());
            connection.write_all(&answer).unwrap();
        }
        requests
    });
    (folder, Api::new(path), server)
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn one_connection_carries_calls_with_and_without_bodies() {
    let (_folder, mut api, server) = serve(vec![
        b"HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{\"version\":\"1\"}".to_vec(),
        b"HTTP/1.1 204 \r\nServer: x\r\nConnection: keep-alive\r\n\r\n".to_vec(),
        b"HTTP/1.1 204 \r\n\r\n".to_vec(),
    ]);
    assert_eq!(
        api.get("vmm.ping", SECOND).unwrap(),
        json!({"version": "1"})
    );
    api.put(
        "vm.restore",
        Some(&json!({"source_url": "file:///x"})),
        SECOND,
    )
    .unwrap();
    api.put("vm.resume", None, SECOND).unwrap();
    let requests = server.join().unwrap();
    assert!(
        requests[0].starts_with("GET /api/v1/vmm.ping HTTP/1.1\r\n"),
        "{}",
        requests[0]
    );
    assert!(requests[1].ends_with("Content-Length: 26\r\n\r\n{\"source_url\":\"file:///x\"}"));
    assert!(requests[2].ends_with("\r\n\r\n") && !requests[2].contains("Content-Length"));
}

#[test]
fn an_error_carries_the_vmm_s_own_words() {
    let (_folder, mut api, _server) = serve(vec![
        b"HTTP/1.1 500 \r\nContent-Length: 23\r\n\r\n[\"no boot\",\"no kernel\"]".to_vec(),
        b"HTTP/1.1 404 \r\nContent-Length: 4\r\n\r\ngone".to_vec(),
    ]);
    let text = api.put("vm.boot", None, SECOND).unwrap_err().to_string();
    assert_eq!(text, "vm.boot: no boot: no kernel (500)");
    let text = api.put("vm.boot", None, SECOND).unwrap_err().to_string();
    assert_eq!(text, "vm.boot: gone (404)");
}

#[test]
fn a_silent_vmm_is_a_timeout_and_its_late_answer_is_not_taken() {
    let (_folder, mut api, _server) = serve(vec![
        b"HTTP/1.1 2".to_vec(),
        b"HTTP/1.1 204 \r\n\r\n".to_vec(),
    ]);
    let text = api
        .put("vm.pause", None, Duration::from_millis(50))
        .unwrap_err()
        .to_string();
    assert_eq!(text, "vm.pause: no answer within 50 ms");
    api.put("vm.pause", None, SECOND).unwrap();
}

#[test]
fn malformed_answers_are_errors() {
    let long_head = [b"HTTP/1.1 204 \r\nX: ".to_vec(), vec![b'x'; 10_000]].concat();
    for answer in [
        b"SMTP ready\r\n\r\n".to_vec(),
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n".to_vec(),
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n".to_vec(),
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}{}".to_vec(),
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{{".to_vec(),
        long_head,
    ] {
        let (_folder, mut api, _server) = serve(vec![answer.clone()]);
        let error = api.get("vm.info", SECOND).unwrap_err();
        let text = String::from_utf8_lossy(&answer[..answer.len().min(60)]).into_owned();
        assert!(
            matches!(error, VmmError::Malformed { .. }),
            "{text}: {error:?}"
        );
    }
}

#[test]
fn an_answer_cut_short_is_an_error() {
    let (_folder, mut api, server) = serve(vec![
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}".to_vec(),
    ]);
    let error = api.get("vm.info", SECOND).unwrap_err();
    server.join().unwrap();
    assert!(matches!(error, VmmError::Io { .. }), "{error:?}");
}
