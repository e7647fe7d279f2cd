//! The checker on hand-made histories.

use super::*;
use crate::demo::history::parse_lines;

const MS: u64 = 1_000_000;

fn write(conn: u32, seq: u64, acked_ms: Option<u64>) -> ClientEvent {
    let acked_ns = acked_ms.map(|ms| ms * MS);
    let t_ns = acked_ns.map_or(0, |ns| ns - MS);
    ClientEvent::Write {
        t_ns,
        acked_ns,
        conn,
        seq,
        value: format!("v{conn}-{seq}"),
    }
}

fn read(conn: u32, seq: u64, value: Option<&str>) -> ClientEvent {
    ClientEvent::Read {
        t_ns: 0,
        conn,
        seq,
        value: value.map(ToOwned::to_owned),
    }
}

fn done(conn: u32) -> ClientEvent {
    ClientEvent::Done { t_ns: 0, conn }
}

fn count(sent_ms: u64, acked_ms: u64, counter: u64) -> ClientEvent {
    let acked_ns = Some(acked_ms * MS);
    ClientEvent::Count {
        t_ns: sent_ms * MS,
        acked_ns,
        conn: 0,
        seq: 0,
        counter: Some(counter),
    }
}

fn of_client(client: Vec<ClientEvent>) -> Report {
    check(&Records {
        client,
        ..Records::default()
    })
}

fn kill_at(ms: u64) -> Kill {
    Kill {
        t_ns: ms * MS,
        node: "a".into(),
        what: "host".into(),
        step: None,
        processes: 3,
    }
}

fn events(text: &str) -> Vec<NodeEvent> {
    parse_lines(text.as_bytes()).unwrap()
}

#[test]
fn a_run_in_which_everything_is_read_back_is_fine() {
    let report = of_client(vec![
        write(0, 0, Some(10)),
        write(0, 1, None),
        read(0, 0, Some("v0-0")),
        read(0, 1, None),
        done(0),
    ]);
    assert!(report.ok, "{report:?}");
    assert_eq!((report.sent, report.acknowledged, report.lost), (2, 1, 0));
}

#[test]
fn a_write_that_is_gone_and_one_that_differs_are_both_lost() {
    let report = of_client(vec![
        write(0, 0, Some(10)),
        write(0, 1, Some(11)),
        read(0, 0, None),
        read(0, 1, Some("other")),
        done(0),
    ]);
    assert!(!report.ok);
    assert_eq!(report.lost, 2);
    assert!(
        report.lost_examples[0].starts_with("c0:0 "),
        "{:?}",
        report.lost_examples
    );
}

#[test]
fn an_acknowledged_write_that_nobody_read_back_is_not_fine() {
    let report = of_client(vec![write(0, 0, Some(10)), done(0)]);
    assert!(!report.ok);
    assert_eq!((report.lost, report.not_read_back), (0, 1));
}

#[test]
fn a_broken_connection_is_not_fine_even_with_nothing_lost() {
    let broken = ClientEvent::Broken {
        t_ns: 5,
        conn: 1,
        error: "reset by peer".into(),
    };
    let report = of_client(vec![
        write(0, 0, Some(10)),
        read(0, 0, Some("v0-0")),
        done(0),
        broken,
    ]);
    assert!(!report.ok);
    assert_eq!((report.connections, report.broken_connections), (2, 1));
    assert_eq!(report.broken_reasons, ["connection 1: reset by peer"]);
}

#[test]
fn a_connection_that_never_appears_in_the_history_is_broken() {
    let run = RunRecord {
        connections: 3,
        ..RunRecord::default()
    };
    let client = vec![write(0, 0, Some(10)), read(0, 0, Some("v0-0")), done(0)];
    let report = check(&Records {
        run,
        client,
        ..Records::default()
    });
    assert_eq!(report.broken_connections, 2);
    assert!(!report.ok);
}

#[test]
fn an_empty_history_proves_nothing() {
    assert!(!of_client(Vec::new()).ok);
}

#[test]
fn a_count_that_is_taken_back_is_lost() {
    let fine = of_client(vec![
        count(1, 3, 5),
        count(2, 4, 6),
        count(5, 6, 7),
        done(0),
    ]);
    assert!(fine.ok, "{fine:?}");
    let taken_back = of_client(vec![count(1, 3, 5), count(4, 6, 5), done(0)]);
    assert_eq!(taken_back.lost, 1);
    let overlapping = of_client(vec![count(1, 5, 6), count(2, 4, 5), done(0)]);
    assert_eq!(
        overlapping.lost, 0,
        "requests under way at once may be counted in any order"
    );
}

#[test]
fn the_outage_is_the_gap_that_spans_the_kill_and_is_split_by_the_survivors_events() {
    let client = vec![
        write(0, 0, Some(100)),
        write(0, 1, Some(103)),
        write(0, 2, Some(603)),
        write(0, 3, Some(604)),
        // A longer gap, long after the kill, is another matter.
        write(0, 4, Some(2604)),
        read(0, 0, Some("v0-0")),
        read(0, 1, Some("v0-1")),
        read(0, 2, Some("v0-2")),
        read(0, 3, Some("v0-3")),
        read(0, 4, Some("v0-4")),
        done(0),
    ];
    let survivor = events(concat!(
        r#"{"t_ns":95000000,"event":"step","sync":9,"step":"exchange"}"#,
        "\n",
        r#"{"t_ns":300000000,"event":"campaign","term":2,"last_heartbeat_t_ns":90000000}"#,
        "\n",
        r#"{"t_ns":310000000,"event":"leader","term":2,"leader":2}"#,
        "\n",
        r#"{"t_ns":350000000,"event":"serving"}"#,
        "\n",
        r#"{"t_ns":351000000,"event":"first_release"}"#,
        "\n",
    ));
    let nodes = BTreeMap::from([("b".to_owned(), survivor)]);
    let kills = vec![kill_at(102)];
    let report = check(&Records {
        client,
        kills,
        nodes,
        ..Records::default()
    });
    assert!(report.ok, "{report:?}");
    let outage = &report.outages[0];
    assert_eq!(outage.gap_us, Some(500_000));
    assert_eq!(outage.survivor.as_deref(), Some("b"));
    assert_eq!(outage.detection_us, Some(198_000));
    assert_eq!(outage.heartbeat_to_campaign_us, Some(210_000));
    assert_eq!(outage.election_us, Some(10_000));
    assert_eq!(outage.takeover_us, Some(40_000));
    assert_eq!(outage.first_answer_us, Some(253_000));
    assert_eq!(outage.inside.get("b").map(String::as_str), Some("exchange"));
    assert_eq!(report.acknowledged_after_kill, 4);
}

#[test]
fn a_run_without_a_kill_has_no_outage() {
    let report = of_client(vec![
        write(0, 0, Some(10)),
        read(0, 0, Some("v0-0")),
        done(0),
    ]);
    assert!(report.outages.is_empty() && report.ok);
}

#[test]
fn a_kill_after_which_nothing_is_acknowledged_is_not_fine() {
    let client = vec![write(0, 0, Some(10)), read(0, 0, Some("v0-0")), done(0)];
    let report = check(&Records {
        client,
        kills: vec![kill_at(20)],
        ..Records::default()
    });
    assert!(!report.ok);
}

#[test]
fn a_sync_told_by_both_replicas_counts_once_and_its_bytes_add_up() {
    let of_a = events(concat!(
        r#"{"t_ns":1,"event":"sync","sync":7,"kind":"delta","result":"ended","union":10,"divergent":4,"bytes_sent":300,"bytes_dirty":40960,"pause_us":900}"#,
        "\n",
        r#"{"t_ns":2,"event":"sync","sync":8,"kind":"delta","result":"aborted","reason":"hasher","bytes_sent":5}"#,
        "\n",
        r#"{"t_ns":3,"event":"sync","sync":6,"kind":"fill","result":"ended","union":65536,"divergent":65536,"bytes_sent":9000}"#,
        "\n",
    ));
    let of_b = events(concat!(
        r#"{"t_ns":1,"event":"sync","sync":7,"kind":"delta","result":"ended","union":10,"divergent":4,"bytes_sent":100,"bytes_dirty":40960,"pause_us":1100}"#,
        "\n",
    ));
    let nodes = BTreeMap::from([("a".to_owned(), of_a), ("b".to_owned(), of_b)]);
    let syncs = check(&Records {
        nodes,
        ..Records::default()
    })
    .syncs;
    assert_eq!((syncs.ended, syncs.aborted), (2, 1));
    assert_eq!(syncs.abort_reasons.get("hasher"), Some(&1));
    assert_eq!((syncs.bytes_sent, syncs.bytes_dirty), (405, 40960));
    assert_eq!(syncs.fill_bytes_sent, 9000);
    assert_eq!(syncs.same_page_rate, Some(0.6));
    assert_eq!(
        (syncs.union_median, syncs.divergent_median),
        (Some(10), Some(4))
    );
    assert_eq!(syncs.pause_max_us, Some(1100));
}

#[test]
fn a_folder_is_read_with_torn_ends_and_without_the_files_that_a_run_may_lack() {
    let folder = tempfile::tempdir().unwrap();
    let client = format!(
        "{}\n{}\n{}\n{{\"event\":\"wri",
        serde_json::to_string(&write(0, 0, Some(10))).unwrap(),
        serde_json::to_string(&read(0, 0, Some("v0-0"))).unwrap(),
        serde_json::to_string(&done(0)).unwrap(),
    );
    std::fs::write(folder.path().join(CLIENT_FILE), client).unwrap();
    std::fs::create_dir(folder.path().join("a")).unwrap();
    let torn = "{\"t_ns\":1,\"event\":\"serving\"}\n{\"t_ns\":2,\"ev";
    std::fs::write(folder.path().join("a").join(EVENTS_FILE), torn).unwrap();
    let records = Records::load(folder.path()).unwrap();
    assert_eq!(records.nodes["a"].len(), 1);
    assert!(check(&records).ok);

    std::fs::remove_file(folder.path().join(CLIENT_FILE)).unwrap();
    assert!(
        Records::load(folder.path()).is_err(),
        "without a history there is no verdict"
    );
}
