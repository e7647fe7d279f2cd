//! What `plover status` prints of a node's answer, and its exit code.

use serde_json::Value;

/// A peer that was not heard for longer is not there.
const PEER_AGE_MAX_MS: u64 = 1000;

/// Whether another copy stands ready. A protected role is not enough: with `on_backup_loss = "stall"` it stays while the backup is
/// gone. The other replica must have been heard of, with a copy.
#[must_use]
pub fn is_protected(answer: &Value) -> bool {
    let status = &answer["status"];
    let has_copy = |peer: &Value| {
        let copy = peer["copy"].as_str().unwrap_or_default();
        !["absent", "void", "ready to be filled"].contains(&copy)
            && peer["age_ms"]
                .as_u64()
                .is_some_and(|age| age < PEER_AGE_MAX_MS)
    };
    let peers = status["peers"].as_array();
    let own_is_witness = status["copy"] == "absent";
    let copies = peers
        .into_iter()
        .flatten()
        .filter(|peer| has_copy(peer))
        .count();
    status["role"]["mode"] == "protected" && copies >= if own_is_witness { 2 } else { 1 }
}

/// The status in lines.
#[must_use]
pub fn of(answer: &Value) -> String {
    if answer["replication"] == "off" {
        of_plain_nic(answer)
    } else {
        of_node(answer)
    }
}

fn word(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn of_plain_nic(answer: &Value) -> String {
    let status = &answer["status"];
    let path = &status["path"];
    let yes =
        |value: &Value, yes: &'static str, no: &'static str| if value == true { yes } else { no };
    let mut text = format!(
        "card      {}, replication off: this VM is not protected\n",
        word(&answer["name"])
    );
    text.push_str(&format!(
        "socket    {}, VMM {}\n",
        word(&answer["socket"]),
        yes(&status["connected"], "connected", "not there"),
    ));
    text.push_str(&format!(
        "rings     receive {}, transmit {}, {} queue pairs\n",
        yes(&status["receive_runs"], "runs", "stopped"),
        yes(&status["transmit_runs"], "runs", "stopped"),
        word(&status["pairs_running"]),
    ));
    text.push_str(&format!(
        "uplink    link {}; input {} received, {} for others, {} delivered, {} without a guest\n",
        yes(&status["uplink_up"], "up", "down"),
        word(&path["received"]),
        word(&path["dropped_foreign"]),
        word(&path["delivered"]),
        word(&path["dropped_guest_down"]),
    ));
    text.push_str(&format!(
        "output    {} taken, {} sent\n",
        word(&path["taken"]),
        word(&path["sent"]),
    ));
    text.push_str(&queues(status));
    text.push_str(&fault(status));
    text
}

/// The queue pairs, where there are several.
fn queues(status: &Value) -> String {
    let pairs = status["pairs"].as_array();
    let Some(pairs) = pairs.filter(|pairs| pairs.len() > 1) else {
        return String::new();
    };
    let line = |(number, pair): (usize, &Value)| {
        let (delivered, taken) = (word(&pair["delivered"]), word(&pair["taken"]));
        format!("{number}: {delivered} delivered, {taken} taken")
    };
    let lines: Vec<_> = pairs.iter().enumerate().map(line).collect();
    format!("queues    {}\n", lines.join("; "))
}

fn fault(status: &Value) -> String {
    let fault = &status["ring_fault"];
    if fault.is_null() {
        return String::new();
    }
    format!("FAULT     a ring was stopped: {}\n", word(fault))
}

/// The members, if one is being replaced, and what keeps this node from voting.
fn members(status: &Value) -> String {
    let mut text = String::new();
    let members = status["members"].as_array();
    for member in members.into_iter().flatten() {
        if member["standing"] != "voter" {
            text.push_str(&format!(
                "member    node {}: {}, for node {}\n",
                word(&member["node"]),
                word(&member["standing"]),
                word(&member["replaces"])
            ));
        }
    }
    if status["is_mute"] == true {
        text.push_str(
            "MUTE      this node votes no more: its disk failed, or another took its place; see \
             its log\n",
        );
    } else if status["has_vote"] == false {
        text.push_str("vote      none: this node waits to be let into the group\n");
    }
    let gone = status["core"]["messages_of_gone"].as_u64();
    if let Some(gone) = gone.filter(|gone| *gone > 0) {
        text.push_str(&format!(
            "gone      {gone} messages of a node that was replaced and still runs: stop it\n"
        ));
    }
    text
}

fn of_node(answer: &Value) -> String {
    let (host, status) = (&answer["host"], &answer["status"]);
    let mut text = format!(
        "node      {} (id {}) of group {}{}\n",
        word(&answer["name"]),
        word(&answer["id"]),
        word(&answer["group"]),
        if answer["nodes"] == 1 {
            ", its only node: this VM is not protected"
        } else {
            ""
        },
    );
    if answer["is_insecure"] == true {
        text.push_str(
            "INSECURE  replication.security is off: whoever reaches the links is let in\n",
        );
    }
    let role = &status["role"];
    if role.is_null() {
        text.push_str("role      none yet\n");
    } else {
        text.push_str(&format!(
            "role      primary is node {}, {}, generation {}\n",
            word(&role["primary"]),
            word(&role["mode"]),
            word(&role["generation"])
        ));
    }
    text.push_str(&format!(
        "leader    node {}, term {}\nhere      copy {}, serving {}\n",
        word(&status["leader"]),
        word(&status["term"]),
        word(&status["copy"]),
        word(&status["is_serving"]),
    ));
    text.push_str(&format!(
        "sync      last {}, in flight {}\noutput    {} packets held, {} released, {} discarded\n",
        word(&status["last_sync"]),
        word(&status["sync"]["sync"]),
        word(&status["held"]),
        word(&status["path"]["released"]),
        word(&status["path"]["discarded"]),
    ));
    text.push_str(&format!(
        "input     {} admitted, {} delivered, {} dropped for want of room\n",
        word(&status["path"]["admitted"]),
        word(&status["path"]["delivered"]),
        word(&status["path"]["dropped_no_room"]),
    ));
    if !host["vmm_pid"].is_null() {
        text.push_str(&format!(
            "VMM       pid {}, {}; written pages by {}\n",
            word(&host["vmm_pid"]),
            word(&host["vmm_version"]),
            word(&host["tracker"])
        ));
    }
    text.push_str(&queues(status));
    text.push_str(&fault(status));
    text.push_str(&members(status));
    text.push_str(&format!(
        "detection {} ms at most; {} failovers here, {} of them false ({:.2} an hour); watchdog: {}\n",
        word(&status["detection_ms"]),
        word(&status["core"]["failovers"]),
        word(&status["core"]["false_failovers"]),
        status["false_failovers_per_hour"]
            .as_f64()
            .unwrap_or_default(),
        word(&status["core"]["guest_stood"]),
    ));
    for peer in status["peers"].as_array().into_iter().flatten() {
        text.push_str(&format!(
            "peer      node {}: copy {}, heard {} ms ago\n",
            word(&peer["node"]),
            word(&peer["copy"]),
            word(&peer["age_ms"])
        ));
    }
    text.push_str(&links(status));
    text
}

/// The way to each peer, and whether what is said there is protected.
fn links(status: &Value) -> String {
    let mut text = String::new();
    for link in status["links"].as_array().into_iter().flatten() {
        let round_trip = match &link["round_trip_us"] {
            Value::Null => "not measured".to_owned(),
            time => format!("{time} us"),
        };
        text.push_str(&format!(
            "link      node {} at {} by {}: MAC {} ({}), session {}, round trip {round_trip}, {} \
             losses repaired\n",
            word(&link["node"]),
            word(&link["address"]),
            word(&link["hop"]),
            word(&link["hop_mac"]),
            word(&link["neighbour"]),
            if link["has_session"] == true {
                "open"
            } else {
                "none"
            },
            word(&link["repaired"]),
        ));
    }
    if !text.is_empty() && status["guard"]["is_secured"] == false {
        text.push_str("WARNING   replication.security is off: the links are not protected\n");
    }
    text
}
