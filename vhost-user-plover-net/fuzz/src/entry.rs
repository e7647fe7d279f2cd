//! Log entries as a peer or a disk gives them: what is accepted is exactly what is encoded.

use bytes::Bytes;
use plover_types::LogEntry;

/// Decodes `data`.
pub fn run(data: &[u8]) {
    let bytes = Bytes::copy_from_slice(data);
    let Ok(entry) = LogEntry::decode(&bytes) else {
        return;
    };
    assert_eq!(entry.encode(), bytes, "two byte forms of one entry");
    if let LogEntry::Input(burst) = &entry {
        assert!(!burst.is_empty());
        assert_eq!(burst.iter().count(), burst.len());
    }
}
