//! CRC32C and certificate tag of pages, against reading them.

use std::hint::black_box;
use std::time::Instant;

use hasher::certificate::{CertificateKey, Certifier};
use hasher::digest::digest_one;
use plover_types::limits::PAGE_BYTES;

use crate::measured::Measured;

/// What is measured unless told otherwise.
pub const MEMORY_MIB: usize = 256;
/// How often.
pub const ROUNDS: usize = 9;

type Page = [u8; PAGE_BYTES];

/// Measures; gigabytes a second, one thread.
pub fn run(memory_mib: usize, rounds: usize) -> Vec<Measured> {
    let count = (memory_mib << 20) / PAGE_BYTES;
    let memory: Vec<Page> = (0..count).map(filled).collect();
    let in_order: Vec<usize> = (0..count).collect();
    let scattered = shuffled(count);
    let certifier = Certifier::new(&CertificateKey(std::array::from_fn(|at| at as u8 + 1)));
    let mut rows = Vec::new();
    for (order, name) in [(&in_order, "in-order"), (&scattered, "scattered")] {
        let mut read = Vec::new();
        let mut crc = Vec::new();
        let mut both = Vec::new();
        for _ in 0..rounds {
            read.push(rate(&memory, order, plain_read));
            crc.push(rate(&memory, order, |page| u64::from(crc32c::crc32c(page))));
            both.push(rate(&memory, order, |page| {
                let (crc, tag) = digest_one(page, &certifier);
                black_box(tag);
                u64::from(crc.0)
            }));
        }
        let ratio = both
            .iter()
            .zip(&read)
            .map(|(both, read)| both / read)
            .collect();
        for (what, unit, samples) in [
            ("plain-read", "GB/s", read),
            ("crc32c", "GB/s", crc),
            ("digest", "GB/s", both),
            ("digest-of-plain-read", "ratio", ratio),
        ] {
            rows.push(Measured::new(
                format!("hasher/{what}/{name}"),
                unit,
                samples,
            ));
        }
    }
    rows
}

fn rate(memory: &[Page], order: &[usize], mut visit: impl FnMut(&Page) -> u64) -> f64 {
    let start = Instant::now();
    let sum = order.iter().fold(0u64, |sum, at| sum ^ visit(&memory[*at]));
    black_box(sum);
    (order.len() * PAGE_BYTES) as f64 / start.elapsed().as_secs_f64() / 1e9
}

fn plain_read(page: &Page) -> u64 {
    let (words, _) = page.as_chunks::<8>();
    words
        .iter()
        .fold(0, |sum, word| sum ^ u64::from_ne_bytes(*word))
}

/// Content that is no page of zeros, different in each page.
fn filled(number: usize) -> Page {
    let mut state = number as u64 * 2 + 1;
    std::array::from_fn(|_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 56) as u8
    })
}

/// The numbers below `count` in an order that the prefetchers do not see through.
fn shuffled(count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    let mut state = 88_172_645_463_325_252u64;
    for at in (1..count).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        order.swap(at, (state % (at as u64 + 1)) as usize);
    }
    order
}
