//! Compares what two guests were given, from the records of `debug.record_deliveries`.
//!
//! A backup that takes over the primary's position at a sync may get a packet a second time; each
//! replica may have packets that the other has not, for their records start and end at other times.

use std::collections::BTreeMap;

use serde::Deserialize;

/// A packet that a guest was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Delivery {
    /// Its entry in the log.
    pub index: u64,
    /// Its number in the entry.
    pub packet: u64,
    /// Its queue pair.
    pub pair: u8,
    /// Its length.
    pub bytes: u64,
    /// Of its bytes.
    pub crc32c: u32,
}

/// Two records side by side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Agreement {
    /// Positions recorded on both sides.
    pub shared: usize,
    /// Positions between the first and the last shared one that only one side recorded.
    pub alone: usize,
    /// Positions with another packet on each side, or with two packets on one.
    pub different: Vec<(u64, u64)>,
    /// Times that a side went back to an earlier position.
    pub jumps_back: usize,
}

/// Compares two records.
#[must_use]
pub fn compare(first: &[Delivery], second: &[Delivery]) -> Agreement {
    let mut agreement = Agreement::default();
    let [first, second] = [first, second].map(|record| by_position(record, &mut agreement));
    let shared: Vec<_> = first
        .keys()
        .filter(|at| second.contains_key(at))
        .copied()
        .collect();
    agreement.shared = shared.len();
    for at in &shared {
        if first[at] != second[at] {
            agreement.different.push(*at);
        }
    }
    if let (Some(from), Some(to)) = (shared.first(), shared.last()) {
        let within = |record: &BTreeMap<_, _>| record.range(*from..=*to).count();
        agreement.alone = within(&first) + within(&second) - 2 * shared.len();
    }
    agreement
}

/// (length, CRC32C) by position; repeated packets must be the same.
fn by_position(record: &[Delivery], agreement: &mut Agreement) -> BTreeMap<(u64, u64), (u64, u32)> {
    let mut packets = BTreeMap::new();
    let mut last = None;
    for delivery in record {
        let at = (delivery.index, delivery.packet);
        let content = (delivery.bytes, delivery.crc32c);
        agreement.jumps_back += usize::from(last.is_some_and(|last| at <= last));
        last = Some(at);
        if packets
            .insert(at, content)
            .is_some_and(|earlier| earlier != content)
        {
            agreement.different.push(at);
        }
    }
    packets
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(packets: &[(u64, u64, u32)]) -> Vec<Delivery> {
        let delivery = |(index, packet, crc32c): &(u64, u64, u32)| Delivery {
            index: *index,
            packet: *packet,
            pair: 0,
            bytes: 60,
            crc32c: *crc32c,
        };
        packets.iter().map(delivery).collect()
    }

    #[test]
    fn equal_records_agree_whatever_is_repeated_or_cut_off() {
        let primary = record(&[(5, 0, 1), (5, 1, 2), (6, 0, 3), (7, 0, 4)]);
        let backup = record(&[(5, 1, 2), (6, 0, 3), (5, 1, 2), (6, 0, 3)]);
        let agreement = compare(&primary, &backup);
        let expected = Agreement {
            shared: 2,
            jumps_back: 1,
            ..Agreement::default()
        };
        assert_eq!(agreement, expected);
    }

    #[test]
    fn swapped_changed_and_missing_packets_are_found() {
        let primary = record(&[(5, 0, 1), (5, 1, 2), (6, 0, 3), (7, 0, 4)]);
        let swapped = record(&[(5, 0, 2), (5, 1, 1), (6, 0, 3), (7, 0, 4)]);
        assert_eq!(compare(&primary, &swapped).different, [(5, 0), (5, 1)]);
        let missing = record(&[(5, 0, 1), (6, 0, 3), (7, 0, 4)]);
        assert_eq!(compare(&primary, &missing).alone, 1);
        let mut longer = primary.clone();
        longer[2].bytes = 61;
        assert_eq!(compare(&primary, &longer).different, [(6, 0)]);
    }

    #[test]
    fn two_packets_at_one_position_of_one_side_are_found() {
        let twice = record(&[(5, 0, 1), (5, 0, 9)]);
        assert_eq!(compare(&twice, &[]).different, [(5, 0)]);
    }
}
