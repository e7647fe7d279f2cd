//! A peer that speaks the protocol and lies in it: each lie costs the round, by name, and nothing
//! else. Without TLS: a peer with the right key may lie as well as one without.

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use bytes::Bytes;
use common::*;
use hasher::certificate::{CertificateKey, KEY_BYTES};
use hasher::control::Side;
use hasher::page_set::PageSet;
use hasher::protocol::{AbortCode, Begin, FrameHeader, HEADER_BYTES, Message, WireSet};
use plover_types::SyncKind::{Delta, Fill};
use plover_types::{NodeId, PageDigest, PageIndex, SyncId};

const PAGES: u64 = 400;

/// A peer that speaks the protocol as it likes.
struct Liar {
    stream: TcpStream,
}

impl Liar {
    fn connect(listen: SocketAddr) -> Self {
        let stream = TcpStream::connect(listen).expect("connect");
        stream.set_read_timeout(Some(WAIT)).expect("timeout");
        let mut liar = Self { stream };
        liar.say(
            sync(0),
            &Message::Hello {
                group: "g0".to_owned(),
                node: NodeId(1),
            },
        );
        assert!(matches!(liar.hear(), Some(Message::Hello { .. })));
        liar.say(sync(0), &Message::Key(CertificateKey([1; KEY_BYTES])));
        liar
    }

    fn accept(listener: &TcpListener) -> Self {
        let (stream, _) = listener.accept().expect("accept");
        stream.set_read_timeout(Some(WAIT)).expect("timeout");
        let mut liar = Self { stream };
        assert!(matches!(liar.hear(), Some(Message::Hello { .. })));
        liar.say(
            sync(0),
            &Message::Hello {
                group: "g0".to_owned(),
                node: NodeId(2),
            },
        );
        assert!(matches!(liar.hear(), Some(Message::Key(_))));
        liar
    }

    fn say(&mut self, id: SyncId, message: &Message) {
        let (header, payload) = message.encode(id);
        // Whoever does not listen any more has noticed the lie.
        let _ = self.stream.write_all(&header);
        let _ = self.stream.write_all(&payload);
    }

    fn hear(&mut self) -> Option<Message> {
        let mut header = [0; HEADER_BYTES];
        self.stream.read_exact(&mut header).ok()?;
        let header = FrameHeader::decode(&header).expect("good header");
        let mut payload = vec![0; header.payload_bytes()];
        self.stream.read_exact(&mut payload).ok()?;
        Some(header.message(Bytes::from(payload)).expect("good message"))
    }

    fn begin(host: &Host) -> Begin {
        let map = host.ram.regions();
        let page = PAGE as u64;
        let map = map
            .iter()
            .map(|r| (r.guest_phys_addr / page, r.size / page))
            .collect();
        Begin {
            kind: Fill,
            whole: false,
            base: None,
            map,
            slice_cursor: 0,
            slice_pages: 1,
        }
    }
}

#[test]
fn a_primary_that_lies_costs_the_round_and_no_more() {
    let listen = free_address();
    let mut host = Host::new(PAGES, listen, free_address(), 2).insecure();
    host.start();
    host.attach(false, false);
    let outside: PageSet = [PageIndex(PAGES / 2 + 1)].into_iter().collect();
    let beyond: PageSet = [PageIndex(1 << 25)].into_iter().collect();
    let good = Liar::begin(&host);
    let other_map = Begin {
        map: vec![(0, PAGES)],
        ..good.clone()
    };
    let no_map = Begin {
        map: vec![],
        ..good.clone()
    };
    let delta = Begin {
        kind: Delta,
        ..good.clone()
    };
    let pages = || Message::Pages(WireSet::All);
    let blocks = |page: u32| {
        let mut record = page.to_le_bytes().to_vec();
        record.extend_from_slice(&[0; 8]);
        Message::Blocks(record.into())
    };
    let cut = Message::Blocks(Bytes::from_static(&[0xff; 100]));
    let lies: Vec<(Vec<Message>, &str)> = vec![
        (vec![Message::Done], "due"),
        (vec![Message::Begin(other_map), pages()], "layout"),
        (vec![Message::Begin(no_map), pages()], "layout"),
        (vec![Message::Begin(delta), pages()], "fill"),
        (
            vec![
                Message::Begin(good.clone()),
                Message::Pages(WireSet::Pages(outside.clone())),
            ],
            "not in",
        ),
        (
            vec![
                Message::Begin(good.clone()),
                Message::Pages(WireSet::Pages(beyond)),
            ],
            "not in",
        ),
        (
            vec![
                Message::Begin(good.clone()),
                pages(),
                Message::Ask(WireSet::Pages(outside)),
            ],
            "not in",
        ),
        (
            vec![Message::Begin(good.clone()), pages(), blocks(1)],
            "ask was due",
        ),
        (
            vec![
                Message::Begin(good.clone()),
                pages(),
                Message::Ask(WireSet::Pages(PageSet::new())),
                blocks(u32::MAX),
            ],
            "not in",
        ),
        (
            vec![
                Message::Begin(good.clone()),
                pages(),
                Message::Ask(WireSet::Pages(PageSet::new())),
                blocks(2),
                blocks(1),
            ],
            "not in",
        ),
        (
            vec![
                Message::Begin(good.clone()),
                pages(),
                Message::Ask(WireSet::Pages(PageSet::new())),
                cut,
            ],
            "record ends",
        ),
        (
            vec![
                Message::Begin(good.clone()),
                pages(),
                Message::Abort {
                    code: AbortCode::Failed,
                    reason: "no".to_owned(),
                },
            ],
            "gave the round up: no",
        ),
        (
            vec![
                Message::Begin(good.clone()),
                pages(),
                Message::Digests(vec![PageDigest(1)]),
            ],
            "due",
        ),
        (
            vec![
                Message::Begin(good.clone()),
                pages(),
                Message::Ask(WireSet::Pages(PageSet::new())),
                blocks(2),
                seal(1),
            ],
            "another digest",
        ),
        // After a mismatch the union comes whole: nothing is asked.
        (
            vec![Message::Begin(good.clone()), pages(), blocks(2), seal(2)],
            "arrived",
        ),
        (
            vec![Message::Begin(good), pages(), seal(0)],
            "the certificate is another",
        ),
    ];
    let untouched = host.ram.bytes();
    for (n, (messages, named)) in lies.into_iter().enumerate() {
        let id = sync(n as u64 + 1);
        host.begin(id, Side::Backup, Fill);
        let mut liar = Liar::connect(listen);
        for message in &messages {
            liar.say(id, message);
        }
        let reason = host.wait_failed(id);
        assert!(reason.contains(named), "{named}: {reason}");
        assert!(host.is_alive());
        assert_equal(&untouched, &host.ram.bytes());
    }
    // The wrong sync in mid-round, and noise instead of frames.
    let id = sync(100);
    host.begin(id, Side::Backup, Fill);
    let mut liar = Liar::connect(listen);
    liar.say(id, &Message::Begin(Liar::begin(&host)));
    liar.say(sync(99), &pages());
    assert!(host.wait_failed(id).contains("sync 99"));
    let mut noise = TcpStream::connect(listen).expect("connect");
    let _ = noise.write_all(&[0xa5; 10_000]);
    assert!(host.is_alive());
}

#[test]
fn a_backup_that_lies_costs_the_round_and_no_more() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address");
    let mut host = Host::new(PAGES, free_address(), address, 1).insecure();
    host.start();
    host.attach(false, false);
    host.ram.write(0, b"differs");
    let good = Liar::begin(&host);
    let pages = || Message::Pages(WireSet::All);
    let digests = |count: usize| Message::Digests(vec![PageDigest(7); count]);
    let all = PAGES as usize;
    let begun = || vec![Message::Begin(good.clone()), pages()];
    let with = |more: Vec<Message>| [begun(), more].concat();
    let lies: Vec<(Vec<Message>, &str)> = vec![
        (vec![Message::Done], "begin was due"),
        (
            vec![Message::Begin(Begin {
                map: vec![(0, 1)],
                ..good.clone()
            })],
            "layout",
        ),
        (with(vec![digests(all + 1)]), "count"),
        (with(vec![digests(all - 1), digests(2)]), "count"),
        (with(vec![digests(1), Message::Done]), "digests was due"),
        (
            with(vec![digests(all), Message::Done]),
            "block digests was due",
        ),
        (
            with(vec![digests(all), Message::BlockDigests(Bytes::new())]),
            "block digests ends",
        ),
        (
            with(vec![
                digests(all),
                Message::BlockDigests(Bytes::from_static(&[0; 129])),
            ]),
            "block digests",
        ),
        (
            with(vec![
                digests(all),
                Message::BlockDigests(Bytes::from_static(&[0; 128])),
                Message::Begin(good.clone()),
            ]),
            "nothing was due",
        ),
    ];
    for (n, (messages, named)) in lies.into_iter().enumerate() {
        let id = sync(n as u64 + 1);
        host.begin(id, Side::Primary, Fill);
        let mut liar = Liar::accept(&listener);
        for message in &messages {
            liar.say(id, message);
        }
        let reason = host.wait_failed(id);
        assert!(reason.contains(named), "{named}: {reason}");
        assert!(host.is_alive());
    }
}

fn seal(records: u64) -> Message {
    Message::Seal(hasher::protocol::Seal {
        position: plover_types::Position::default(),
        certificate: plover_types::Certificate([1; 16]),
        state_tag: hasher::certificate::StateTag([1; 16]),
        state_bytes: 0,
        records,
    })
}
