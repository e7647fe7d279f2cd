use super::*;

const GROUP: &str = r#"
[group]
name = "vm0"
id = 7

[[group.nodes]]
id = 1
kind = "replica"
address = "10.9.0.1:7401"
public_key = "plover-public-1:JfKKRsOggBdAp4KxcnqPyRMEUaOBpUqUu6z2ghyEzDvShIKUbWtLF0kwd1Meq0H3pVebTC93722EqlaOEgBfNkAxDO4"
hasher = "10.9.1.1:7400"

[[group.nodes]]
id = 2
kind = "replica"
address = "10.9.0.2:7401"
public_key = "plover-public-1:D6rwvOHAkrY81LCPf4IpF2oaCJdrswt9lOCfHx-ChgOTaUPKPHzqCbHn3ZQPsEXZwZ2-arL6b-_o2bPSUIolN1vckC8"
hasher = "10.9.1.2:7400"

[[group.nodes]]
id = 3
kind = "witness"
address = "10.9.0.3:7401"
public_key = "plover-public-1:7MXrmPt0cwBdZhWGDMV3aiFQiK7hMrpvHaWGfWzipiMIj8kUJCZ_KliP0zl84oKjCNL5tmpHqw7978nk9H-aYb5pJJ0"

[replication.port]
vdev = "net_af_packet0,iface=repl0"
"#;

const REPLICA: &str = r#"
[uplink.port]
vdev = "net_tap0,iface=plover0"

[guest]
mac = "02:00:00:00:00:10"

[vmm]
kind = "qemu"
kernel = "/boot/vmlinuz"
initrd = "/srv/guest.cpio"
memory_mib = 256
ram_path = "/dev/shm/plover-vm0/ram"
"#;

fn replica() -> String {
    format!("name = \"a\"\nid = 1\nstate_dir = \"/var/lib/plover/vm0\"\n{GROUP}{REPLICA}")
}

fn witness() -> String {
    format!("name = \"w\"\nid = 3\nstate_dir = \"/var/lib/plover/vm0\"\n{GROUP}")
}

fn parse(text: &str) -> Result<NodeConfig, ConfigError> {
    NodeConfig::parse(Path::new("/etc/plover/vm0.toml"), text)
}

/// The error text of `text`, which must name the file.
fn error(text: &str) -> String {
    let error = parse(text).unwrap_err().to_string();
    assert!(
        error.contains("/etc/plover/vm0.toml"),
        "the file is not named: {error}"
    );
    error
}

/// The error text of the replica's configuration with `from` replaced by `to`.
fn error_with(from: &str, to: &str) -> String {
    let text = replica();
    assert!(text.contains(from), "{from:?} is not in the configuration");
    error(&text.replace(from, to))
}

fn assert_parts(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

#[test]
fn a_replica_and_a_witness_are_read_with_their_defaults() {
    let config = parse(&replica()).unwrap();
    assert_eq!(config.own().unwrap().kind, NodeKind::Replica);
    assert_eq!(config.sync, SyncConfig::default());
    assert_eq!(config.sync.interval_min_ms, 20);
    assert_eq!(config.sync.interval_max_ms, 200);
    assert_eq!(config.replication.tick().as_millis(), 5);
    assert_eq!(config.replication.election_ticks(), Some(15));
    assert_eq!(config.replication.detection_ms, 100);
    assert_eq!(config.poll.mode, PollMode::Adaptive);
    assert_eq!(config.poll.idle_sleep_us, 50);
    assert_eq!(config.on_backup_loss, OnBackupLoss::Continue);
    assert_eq!(config.vmm.as_ref().unwrap().vcpus, 1);
    assert_eq!(config.vmm.as_ref().unwrap().accel, Accel::Auto);
    assert!(config.debug.deliver_to_backup);
    let guest = config.guest.as_ref().unwrap();
    assert_eq!(
        (guest.mtu, guest.queue_pairs, guest.offloads),
        (1500, 1, true)
    );
    assert_eq!(
        config.vhost_socket(),
        Path::new("/var/lib/plover/vm0/vhost.sock")
    );
    assert_eq!(
        config.hasher_socket(),
        Path::new("/var/lib/plover/vm0/hasher.sock")
    );
    assert_eq!(config.hasher_binary().file_name().unwrap(), "plover-hasher");
    let config = parse(&witness()).unwrap();
    assert_eq!(config.own().unwrap().kind, NodeKind::Witness);
}

#[test]
fn every_key_can_be_written() {
    let more = r#"
[eal]
huge_pages = "on"
memory_mib = 128
main_core = 0
file_prefix = "a"
[hasher]
binary = "/usr/bin/plover-hasher"
socket = "/run/h.sock"
threads = 2
[sync]
interval_min_ms = 30
interval_max_ms = 300
held_packets_max = 100
quiet_max_ms = 5
timeout_ms = 1000
[poll]
mode = "busy"
idle_sleep_us = 10
core = 1
[debug]
verifier_socket = "/run/v.sock"
record_deliveries = "/run/d.log"
deliver_to_backup = false
die_at_step = "staged"
slice_pages = 64
"#;
    let card = "[guest]\nmtu = 9000\nqueue_pairs = 4\noffloads = false";
    let text = replica().replace("[guest]", card);
    let text = text.replace("memory_mib = 256", "memory_mib = 256\nvcpus = 4");
    let text = format!("on_backup_loss = \"stall\"\n{text}{more}");
    let config = parse(&text).unwrap();
    assert_eq!(config.on_backup_loss, OnBackupLoss::Stall);
    assert_eq!(config.debug.die_at_step.as_deref(), Some("staged"));
    assert_eq!(config.hasher_binary(), Path::new("/usr/bin/plover-hasher"));
    let again = parse(&toml::to_string(&config).unwrap()).unwrap();
    assert_eq!(again, config);
}

#[test]
fn an_unknown_key_is_named_with_its_line_in_every_section() {
    let text = error_with("memory_mib = 256", "memory_mib = 256\nmemroy = 1");
    assert_parts(
        &text,
        &[
            "unknown field `memroy`",
            "`memory_mib`",
            "correct the key's spelling",
        ],
    );
    assert_parts(&text, &["line 43"]);
    for section in ["eal", "hasher", "sync", "poll", "debug"] {
        let text = error(&format!("{}\n[{section}]\nno_such_key = 1\n", replica()));
        assert_parts(&text, &["unknown field `no_such_key`", "remove it"]);
    }
    for before in [
        "[uplink.port]",
        "[guest]",
        "[group]",
        "[[group.nodes]]",
        "[replication.port]",
    ] {
        let text = error_with(before, &format!("{before}\nno_such_key = 1"));
        assert_parts(&text, &["unknown field `no_such_key`"]);
    }
    let text = error(&format!("no_such_key = 1\n{}", replica()));
    assert_parts(&text, &["unknown field `no_such_key`", "line 1"]);
}

#[test]
fn a_missing_port_is_named() {
    let text = error_with(
        "[uplink.port]\nvdev = \"net_tap0,iface=plover0\"",
        "[uplink]",
    );
    assert_parts(
        &text,
        &["missing field `port`", "add the missing key", "[uplink]"],
    );
    let text = error_with("vdev = \"net_tap0,iface=plover0\"", "mtu = 1500");
    assert_parts(
        &text,
        &["uplink.port: names no device", "set exactly one of vdev"],
    );
    let text = error_with("vdev = \"net_af", "pci = \"0000:03:00.0\"\nvdev = \"net_af");
    assert_parts(&text, &["replication.port: names no device, or two"]);
    let text = error_with(
        "[replication.port]\nvdev = \"net_af_packet0,iface=repl0\"",
        "",
    );
    assert_parts(
        &text,
        &["replication.port: is missing", "[replication.port]"],
    );
}

#[test]
fn the_group_is_two_replicas_and_one_witness() {
    let text = error_with(
        "kind = \"witness\"",
        "kind = \"replica\"\nhasher = \"10.9.1.3:7400\"",
    );
    assert_parts(
        &text,
        &[
            "group.nodes: lists 0 witnesses",
            "exactly one node kind = \"witness\"",
        ],
    );
    let text = error_with("id = 2\nkind = \"replica\"", "id = 2\nkind = \"witness\"");
    assert_parts(&text, &["group.nodes: lists 2 witnesses"]);
    let fourth = "[[group.nodes]]\nid = 4\nkind = \"witness\"\naddress = \"10.9.0.4:7401\"\n";
    let text = error_with("[replication.port]", &format!("{fourth}[replication.port]"));
    assert_parts(&text, &["group.nodes: lists 4 nodes", "list three"]);
}

/// A group of one replica, which has no peer to reach and none to compare memory with.
fn alone(kind: &str) -> String {
    format!(
        "name = \"a\"\nid = 1\nstate_dir = \"/var/lib/plover/vm0\"\n\
         [group]\nname = \"vm0\"\nid = 7\n\
         [[group.nodes]]\nid = 1\nkind = {kind:?}\naddress = \"10.9.0.1:7401\"\n{REPLICA}"
    )
}

#[test]
fn a_replica_may_be_alone_and_needs_no_way_to_peers() {
    let config = parse(&alone("replica")).unwrap();
    assert!(config.is_alone() && !parse(&replica()).unwrap().is_alone());
    assert_eq!(config.replication, ReplicationConfig::default());
    let text = format!(
        "{}\n[replication.port]\nvdev = \"net_af_packet0,iface=repl0\"\n",
        alone("replica")
    );
    assert!(parse(&text).unwrap().replication.port.is_some());
    let text = error(&alone("witness"));
    assert_parts(&text, &["a witness alone", "kind = \"replica\""]);
    let second = "[[group.nodes]]\nid = 2\nkind = \"replica\"\naddress = \"10.9.0.2:7401\"\n";
    let text = error(&alone("replica").replace("[uplink.port]", &format!("{second}[uplink.port]")));
    assert_parts(
        &text,
        &["lists 2 nodes", "list one replica", "hasher: is missing"],
    );
}

#[test]
fn ids_are_unique_in_range_and_own() {
    let text = error_with("id = 2\n", "id = 3\n");
    assert_parts(
        &text,
        &[
            "group.nodes[2].id: 3 is used twice",
            "give each node its own",
        ],
    );
    let text = error_with("id = 2\n", "id = 64\n");
    assert_parts(
        &text,
        &["group.nodes[1].id: 64 is not an id", "use 1 to 63"],
    );
    let text = error_with("id = 2\n", "id = 0\n");
    assert_parts(&text, &["0 is not an id"]);
    let text = error_with("name = \"a\"\nid = 1", "name = \"a\"\nid = 9");
    assert_parts(
        &text,
        &["id: 9 is not among group.nodes", "this host's entry"],
    );
    let text = error_with("10.9.0.2:7401", "10.9.0.1:7401");
    assert_parts(
        &text,
        &["group.nodes: node 2 shares its address", "of its own"],
    );
    let text = error_with("10.9.1.2:7400", "10.9.1.1:7400");
    assert_parts(
        &text,
        &["group.nodes[1].hasher: 10.9.1.1:7400 is used twice"],
    );
}

#[test]
fn each_peer_has_an_address_and_there_is_a_way_to_it() {
    let address = "address = \"10.9.0.2:7401\"\n";
    let text = error_with(address, "");
    assert_parts(
        &text,
        &["group.nodes[1].address: is missing", "\"IP:PORT\""],
    );
    let text = error_with("10.9.0.2:7401", "[fd00::2]:7401");
    assert_parts(&text, &["group.nodes: node 2", "all IPv4 or all IPv6"]);
    let text = error_with("10.9.0.2:7401", "10.8.0.2:7401");
    assert_parts(
        &text,
        &["replication.gateway: node 2 is not on", "router's"],
    );
    let port = "[replication.port]";
    let with = |keys: &str| {
        let text = replica().replace("10.9.0.2:7401", "10.8.0.2:7401");
        text.replace(port, &format!("[replication]\n{keys}\n{port}"))
    };
    let config = parse(&with("gateway = \"10.9.0.254\"")).unwrap();
    let net = config.net([2, 0, 0, 0, 0, 1], 9000).unwrap();
    assert_eq!((net.prefix_len, net.mtu, net.peers.len()), (24, 1500, 2));
    assert!(parse(&with("prefix_len = 8")).is_ok());
    let text = error(&with("gateway = \"10.7.0.254\""));
    assert_parts(
        &text,
        &["replication.gateway: the gateway 10.7.0.254 is not"],
    );
    assert_eq!(parse(&alone("replica")).unwrap().net([2; 6], 1500), None);
}

#[test]
fn replicas_have_hashers_and_their_sections_and_witnesses_do_not() {
    let text = error_with("hasher = \"10.9.1.2:7400\"\n", "");
    assert_parts(
        &text,
        &[
            "group.nodes[1].hasher: is missing",
            "add hasher = \"IP:PORT\"",
        ],
    );
    let of_witness = "address = \"10.9.0.3:7401\"\n";
    let text = error_with(
        of_witness,
        &format!("{of_witness}hasher = \"10.9.1.3:7400\"\n"),
    );
    assert_parts(&text, &["a witness has no hasher"]);
    let text = error(&format!(
        "name = \"a\"\nid = 1\nstate_dir = \"/s\"\n{GROUP}"
    ));
    assert_parts(
        &text,
        &[
            "vmm: is missing on a replica",
            "uplink: is missing",
            "guest: is",
        ],
    );
    let text = error_with("name = \"a\"\nid = 1", "name = \"a\"\nid = 3");
    assert_parts(
        &text,
        &["vmm: is set, but this node is the witness", "remove [vmm]"],
    );
}

#[test]
fn values_that_make_no_sense_are_named_with_a_fix() {
    let text = error_with("memory_mib = 256", "memory_mib = 1");
    assert_parts(
        &text,
        &["vmm.memory_mib: 1 is no size", "use 64 to 1048576"],
    );
    let text = error_with("memory_mib = 256", "memory_mib = 256\nvcpus = 3");
    assert_parts(&text, &["vmm.vcpus: 3 is not possible", "use 1, 2 or 4"]);
    let text = error_with("\"/dev/shm/plover-vm0/ram\"", "\"ram\"");
    assert_parts(
        &text,
        &[
            "vmm.ram_path: is not an absolute path",
            "/dev/shm/plover-NAME/ram",
        ],
    );
    let text = error_with(
        "memory_mib = 256",
        "memory_mib = 256\nextra_args = [\"-hda\", \"d.raw\"]",
    );
    assert_parts(
        &text,
        &["vmm.extra_args: -hda d.raw: a writable disk is not replicated"],
    );
    let text = error_with("[guest]", "[sync]\ninterval_min_ms = 300\n[guest]");
    assert_parts(
        &text,
        &[
            "sync.interval_min_ms: is larger than sync.interval_max_ms",
            "swap",
        ],
    );
    let text = error_with(
        "[guest]",
        "[replication]\ndetection_ms = 40\ntick_ms = 10\n[guest]",
    );
    assert_parts(
        &text,
        &["replication.detection_ms: is shorter than fifteen ticks"],
    );
    let text = error_with("/var/lib/plover/vm0", &"/long".repeat(30));
    assert_parts(
        &text,
        &["guest.socket: is longer than a Unix socket's path"],
    );
    let text = error_with("02:00:00:00:00:10", "03:00:00:00:00:10");
    assert_parts(
        &text,
        &["no station's Ethernet address", "make the first byte even"],
    );
    let text = error_with("[guest]", "[guest]\nmtu = 9217\nqueue_pairs = 9");
    assert_parts(
        &text,
        &[
            "guest.mtu: 9217 is not possible; use 68 to 9216",
            "guest.queue_pairs: 9 is not possible; use 1 to 8",
        ],
    );
    let text = error_with("[guest]", "[guest]\nqueue_pairs = 2");
    assert_parts(&text, &["guest.queue_pairs: is more than vmm.vcpus"]);
    let text = error_with("[guest]", "[guest]\nmtu = 67\nqueue_pairs = 0");
    assert_parts(&text, &["guest.mtu: 67", "guest.queue_pairs: 0"]);
    let text = error_with("kind = \"qemu\"", "kind = \"xen\"");
    assert_parts(
        &text,
        &["unknown variant `xen`", "use one of the values named"],
    );
    let text = error_with("id = 7", "id = \"seven\"");
    assert_parts(&text, &["invalid type", "line 7", "correct this line"]);
}

#[test]
fn all_problems_are_told_at_once() {
    let text = error_with("memory_mib = 256", "memory_mib = 1\nvcpus = 3");
    assert_parts(&text, &["vmm.memory_mib", "vmm.vcpus"]);
    assert_eq!(text.lines().count(), 2, "{text}");
}

#[test]
fn a_file_that_is_not_there_or_not_text_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("node.toml");
    let text = NodeConfig::load(&path).unwrap_err().to_string();
    assert_parts(&text, &["reading configuration", "node.toml"]);
    fs::write(&path, [0xff, 0xfe, 0]).unwrap();
    assert!(matches!(
        NodeConfig::load(&path),
        Err(ConfigError::Read { .. })
    ));
    fs::write(&path, "this is no toml").unwrap();
    assert!(matches!(
        NodeConfig::load(&path),
        Err(ConfigError::Parse { .. })
    ));
    fs::write(&path, replica()).unwrap();
    let mut loaded = NodeConfig::load(&path).unwrap();
    assert_eq!(path.parent(), Some(loaded.folder.as_path()));
    loaded.folder = "/etc/plover".into();
    assert_eq!(loaded, parse(&replica()).unwrap());
    let file = fs::File::create(&path).unwrap();
    file.set_len(limits::CONFIG_BYTES_MAX + 1).unwrap();
    assert!(matches!(
        NodeConfig::load(&path),
        Err(ConfigError::TooLong { .. })
    ));
}

const PLAIN: &str = r#"
name = "nic0"
state_dir = "/var/lib/plover/nic0"
replication = "off"

[uplink.port]
vdev = "net_af_packet0,iface=eth1"

[guest]
mac = "02:00:00:00:00:10"
"#;

fn plain(text: &str) -> Result<PlainNicConfig, ConfigError> {
    match Config::parse(Path::new("/etc/plover/nic0.toml"), text)? {
        Config::PlainNic(config) => Ok(*config),
        Config::Node(_) => panic!("read as a node of a group"),
    }
}

#[test]
fn with_replication_off_a_file_describes_a_card_and_nothing_else() {
    let config = plain(PLAIN).unwrap();
    assert_eq!(
        config.vhost_socket(),
        Path::new("/var/lib/plover/nic0/vhost.sock")
    );
    assert_eq!(config.poll, PollConfig::default());
    let more = "[eal]\nhuge_pages = \"on\"\n[poll]\nmode = \"busy\"\ncore = 1\n";
    let text = format!("{PLAIN}socket = \"/run/nic0.sock\"\nqueue_pairs = 2\nmtu = 9000\n{more}");
    let config = plain(&text).unwrap();
    assert_eq!(config.vhost_socket(), Path::new("/run/nic0.sock"));
    assert_eq!(
        (config.poll.mode, config.poll.core),
        (PollMode::Busy, Some(1))
    );
    assert_eq!(plain(&toml::to_string(&config).unwrap()).unwrap(), config);
    let text = format!("{PLAIN}socket_mode = \"connect\"\n");
    assert_eq!(plain(&text).unwrap().guest.socket_mode, SocketMode::Connect);
    let error = error_with("[guest]", "[guest]\nsocket_mode = \"connect\"");
    assert_parts(&error, &["guest.socket_mode: is \"connect\"", "remove it"]);
    let parse = |text: &str| Config::parse(Path::new("/etc/plover/vm0.toml"), text);
    assert!(matches!(parse(&replica()).unwrap(), Config::Node(_)));
}

#[test]
fn with_replication_off_what_only_a_group_has_is_refused_by_name() {
    let top = "id = 1\non_backup_loss = \"stall\"\n";
    let text = format!("{top}{PLAIN}[group]\n[vmm]\n[hasher]\n[sync]\n[debug]\n");
    let error = plain(&text).unwrap_err().to_string();
    assert_parts(
        &error,
        &[
            "/etc/plover/nic0.toml",
            "id: is set, but a card without replication belongs to no group; remove id",
            "on_backup_loss: is set",
            "group: is set, but with replication off there are no other nodes; remove [group]",
            "vmm: is set",
            "hasher: is set",
            "sync: is set",
            "debug: is set",
        ],
    );
    assert_eq!(error.lines().count(), 7, "{error}");
    let error = plain(&PLAIN.replace("\"off\"", "\"on\"")).unwrap_err();
    assert_parts(
        &error.to_string(),
        &["replication: \"on\" is not known", "use \"off\""],
    );
}

#[test]
fn a_card_without_replication_is_checked_as_a_replicas_is() {
    let broken = [
        ("name = \"nic0\"", "name = \"\"", "name: is empty"),
        (
            "/var/lib/plover/nic0",
            "nic0",
            "state_dir: is not an absolute path",
        ),
        (
            "/var/lib/plover/nic0",
            &"/long".repeat(30),
            "guest.socket: is longer",
        ),
        (
            "vdev = \"net_af_packet0,iface=eth1\"",
            "mtu = 1500",
            "uplink.port: names no device",
        ),
        (
            "[guest]",
            "[eal]\nmemory_mib = 8\n[guest]",
            "eal.memory_mib: is below 16",
        ),
        (
            "[guest]",
            "[guest]\nqueue_pairs = 9",
            "guest.queue_pairs: 9 is not possible",
        ),
        ("[guest]", "[guest]\nsocet = 1", "unknown field `socet`"),
        (
            "[guest]\nmac = \"02:00:00:00:00:10\"",
            "",
            "missing field `guest`",
        ),
        ("[guest]", "[gest]\n[guest]", "unknown field `gest`"),
    ];
    for (from, to, named) in broken {
        assert!(PLAIN.contains(from), "{from:?} is not in the configuration");
        let error = plain(&PLAIN.replace(from, to)).unwrap_err().to_string();
        assert_parts(&error, &[named]);
    }
}

#[test]
fn a_secured_group_knows_each_node_by_a_key_of_its_own() {
    let config = parse(&replica()).unwrap();
    assert!(config.is_secured());
    assert_eq!(config.key_file(), Path::new("/etc/plover/a.key"));
    let named = parse(&format!("key_file = \"keys/k\"\n{}", replica())).unwrap();
    assert_eq!(named.key_file(), Path::new("/etc/plover/keys/k"));
    let named = parse(&format!("key_file = \"/k\"\n{}", replica())).unwrap();
    assert_eq!(named.key_file(), Path::new("/k"));

    let of_b = replica()
        .lines()
        .filter(|line| line.starts_with("public_key"))
        .nth(1)
        .unwrap()
        .to_owned();
    let text = error_with(&format!("{of_b}\n"), "");
    assert_parts(
        &text,
        &["group.nodes[1].public_key: is missing", "plover keygen"],
    );
    let text = replica();
    let of_a = text.lines().find(|line| line.starts_with("public_key"));
    let text = error_with(&of_b, of_a.unwrap());
    assert_parts(
        &text,
        &["group.nodes[1].public_key: is that of another node"],
    );
    let text = error_with(&of_b, &of_b.replace("D6rw", "D6rv"));
    assert_parts(&text, &["mistyped"]);

    let off = replica().replace(&of_b, "").replace(
        "[replication.port]",
        "[replication]\nsecurity = \"off\"\n[replication.port]",
    );
    assert!(!parse(&off).unwrap().is_secured());
    assert!(!parse(&alone("replica")).unwrap().is_secured());
}

#[test]
fn a_key_file_is_read_with_the_configuration_and_must_be_the_nodes_own() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vm0.toml");
    let of_a = replica();
    let of_a = of_a
        .lines()
        .find(|line| line.starts_with("public_key"))
        .unwrap();
    let load = |public: &str| {
        let text = replica().replace(of_a, &format!("public_key = \"{public}\""));
        NodeConfig::parse(&path, &text).unwrap().keys()
    };
    let made = crate::keygen::create(&dir.path().join("a.key")).unwrap();
    let keys = load(&made.public_key.to_string()).unwrap().unwrap();
    assert_eq!(*keys.identity.public(), made.public_key);
    assert_eq!(keys.peers.len(), 2);

    let other = crate::keygen::create(&dir.path().join("other.key")).unwrap();
    let refused = load(&other.public_key.to_string()).unwrap_err().to_string();
    assert_parts(
        &refused,
        &["is not this node's", &made.public_key.to_string()],
    );
    std::fs::remove_file(dir.path().join("a.key")).unwrap();
    let refused = load(&other.public_key.to_string()).unwrap_err().to_string();
    assert_parts(&refused, &["plover keygen", "a.key"]);
}
