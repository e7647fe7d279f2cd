//! Sets of guest pages as bits, and the layout of guest memory that bounds them.
//!
//! No IO and no memory access here; see `guest_memory` for the pages' content.

use plover_types::PageIndex;

use crate::limits::PAGES_MAX;

/// A set of pages: bit n is page n, from guest physical address 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageSet {
    words: Vec<u64>,
}

impl PageSet {
    /// The empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The set with these bits.
    #[must_use]
    pub fn from_words(words: Vec<u64>) -> Self {
        Self { words }
    }

    /// The bits, 64 pages a word.
    #[must_use]
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Adds pages `start` to `start + count`. Callers bound both by [`PAGES_MAX`].
    pub fn insert_range(&mut self, start: u64, count: u64) {
        let end = start + count;
        assert!(end <= PAGES_MAX, "page range past the limit");
        let words = end.div_ceil(64) as usize;
        if self.words.len() < words {
            self.words.resize(words, 0);
        }
        let mut page = start;
        while page < end {
            let bit = page % 64;
            let take = (64 - bit).min(end - page);
            let mask = if take == 64 {
                u64::MAX
            } else {
                ((1 << take) - 1) << bit
            };
            self.words[(page / 64) as usize] |= mask;
            page += take;
        }
    }

    /// Adds one page.
    pub fn insert(&mut self, page: PageIndex) {
        self.insert_range(page.0, 1);
    }

    /// Whether a page is in the set.
    #[must_use]
    pub fn contains(&self, page: PageIndex) -> bool {
        let word = usize::try_from(page.0 / 64)
            .ok()
            .and_then(|at| self.words.get(at));
        word.is_some_and(|word| word & (1 << (page.0 % 64)) != 0)
    }

    /// Adds all of another set.
    pub fn union_with(&mut self, other: &Self) {
        if self.words.len() < other.words.len() {
            self.words.resize(other.words.len(), 0);
        }
        for (own, theirs) in self.words.iter_mut().zip(&other.words) {
            *own |= theirs;
        }
    }

    /// Keeps only what is in the other set, too.
    pub fn intersect_with(&mut self, other: &Self) {
        self.words.truncate(other.words.len());
        for (own, theirs) in self.words.iter_mut().zip(&other.words) {
            *own &= theirs;
        }
    }

    /// The first page that is not in `other`.
    #[must_use]
    pub fn first_outside(&self, other: &Self) -> Option<PageIndex> {
        self.words.iter().enumerate().find_map(|(at, word)| {
            let extra = word & !other.words.get(at).copied().unwrap_or(0);
            (extra != 0).then(|| PageIndex(at as u64 * 64 + u64::from(extra.trailing_zeros())))
        })
    }

    /// How many pages.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.words
            .iter()
            .map(|word| u64::from(word.count_ones()))
            .sum()
    }

    /// Whether no page is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// The pages in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = PageIndex> + '_ {
        self.words.iter().enumerate().flat_map(|(at, word)| {
            let mut rest = *word;
            std::iter::from_fn(move || {
                let bit = (rest != 0).then(|| rest.trailing_zeros())?;
                rest &= rest - 1;
                Some(PageIndex(at as u64 * 64 + u64::from(bit)))
            })
        })
    }

    /// Maximal runs of neighbouring pages as (first, count).
    pub fn runs(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let mut pages = self.iter().map(|page| page.0).peekable();
        std::iter::from_fn(move || {
            let first = pages.next()?;
            let mut end = first + 1;
            while pages.next_if_eq(&end).is_some() {
                end += 1;
            }
            Some((first, end - first))
        })
    }
}

impl FromIterator<PageIndex> for PageSet {
    fn from_iter<T: IntoIterator<Item = PageIndex>>(pages: T) -> Self {
        let mut set = Self::new();
        for page in pages {
            set.insert(page);
        }
        set
    }
}

/// Which pages a guest has: ascending ranges (first page, count) that do not touch each other's
/// pages. Both copies of a guest must have equal ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryMap {
    ranges: Vec<(u64, u64)>,
    all: PageSet,
}

impl MemoryMap {
    /// Checks the ranges. Neighbouring ranges are merged, so that equal layouts are equal.
    ///
    /// # Errors
    /// Says which range is empty, out of order or past [`PAGES_MAX`].
    pub fn new(ranges: &[(u64, u64)]) -> Result<Self, String> {
        let mut merged: Vec<(u64, u64)> = Vec::with_capacity(ranges.len());
        let mut end = 0;
        for (start, count) in ranges.iter().copied() {
            let this_end = start.checked_add(count).filter(|end| *end <= PAGES_MAX);
            let this_end =
                this_end.ok_or_else(|| format!("{count} pages at page {start} pass the limit"))?;
            if count == 0 || start < end {
                return Err(format!(
                    "{count} pages at page {start} are empty or out of order"
                ));
            }
            match merged.last_mut() {
                Some(last) if start == end => last.1 += count,
                _ => merged.push((start, count)),
            }
            end = this_end;
        }
        if merged.is_empty() {
            return Err("no memory at all".to_owned());
        }
        let mut all = PageSet::new();
        for (start, count) in &merged {
            all.insert_range(*start, *count);
        }
        Ok(Self {
            ranges: merged,
            all,
        })
    }

    /// The ranges, ascending, merged.
    #[must_use]
    pub fn ranges(&self) -> &[(u64, u64)] {
        &self.ranges
    }

    /// Every page of the guest.
    #[must_use]
    pub fn all(&self) -> &PageSet {
        &self.all
    }

    /// How many pages the guest has.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.ranges.iter().map(|range| range.1).sum()
    }

    /// One past the last page, holes counted.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.ranges.last().map_or(0, |range| range.0 + range.1)
    }

    /// `count` pages from the `cursor`th of the guest's pages on, wrapping at the end.
    #[must_use]
    pub fn slice(&self, cursor: u64, count: u64) -> PageSet {
        let total = self.pages();
        let cursor = cursor % total;
        let count = count.min(total);
        let mut set = PageSet::new();
        let head = count.min(total - cursor);
        self.insert_ordinals(&mut set, cursor, head);
        self.insert_ordinals(&mut set, 0, count - head);
        set
    }

    fn insert_ordinals(&self, set: &mut PageSet, mut first: u64, mut count: u64) {
        for (start, length) in self.ranges.iter().copied() {
            if first >= length {
                first -= length;
                continue;
            }
            let take = count.min(length - first);
            if take == 0 {
                return;
            }
            set.insert_range(start + first, take);
            count -= take;
            first = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_page_set_is_a_set(ranges in proptest::collection::vec((0u64..900, 0u64..200), 0..8)) {
            let mut set = PageSet::new();
            let mut model = BTreeSet::new();
            for (start, count) in ranges {
                set.insert_range(start, count);
                model.extend(start..start + count);
            }
            prop_assert_eq!(set.iter().map(|p| p.0).collect::<Vec<_>>(),
                model.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(set.len(), model.len() as u64);
            let from_runs: Vec<u64> = set.runs().flat_map(|(s, n)| s..s + n).collect();
            prop_assert_eq!(from_runs, model.iter().copied().collect::<Vec<_>>());
            for page in 0..1200 {
                prop_assert_eq!(set.contains(PageIndex(page)), model.contains(&page));
            }
        }
    }

    #[test]
    fn slices_cover_memory_with_holes_and_wrap() {
        let map = MemoryMap::new(&[(0, 10), (100, 7)]).expect("valid");
        let mut seen = PageSet::new();
        for cursor in (0..20).step_by(5) {
            seen.union_with(&map.slice(cursor, 5));
        }
        assert_eq!(&seen, map.all());
        let wrapped: Vec<u64> = map.slice(15, 4).iter().map(|p| p.0).collect();
        assert_eq!(wrapped, [0, 1, 105, 106]);
    }

    #[test]
    fn a_bad_layout_is_refused() {
        assert!(MemoryMap::new(&[]).is_err());
        assert!(MemoryMap::new(&[(0, 0)]).is_err());
        assert!(MemoryMap::new(&[(0, 5), (4, 2)]).is_err());
        assert!(MemoryMap::new(&[(u64::MAX, 2)]).is_err());
        assert_eq!(MemoryMap::new(&[(0, 5), (5, 2)]), MemoryMap::new(&[(0, 7)]));
    }
}
