//! Which denoising steps are captured as a graph of the device's, and for how long: bookkeeping that knows no device.
//!
//! A small network's step is a few hundred kernels of a few microseconds each: the device waits for the host to launch
//! them. Captured once and replayed, they are one launch. A capture is for one batch size, so that sizes are rounded
//! up to a few ([`bucket`]) and the rows in excess are computed for nothing; each holds memory of the device, so
//! that a few are kept ([`GraphCache`]).
//!
//! The first step of a size is computed without: many sizes are seen once, while requests come and go.

use std::collections::BTreeSet;

use crate::{Error, Result};

/// The batch size that `batch` images are computed in, at most `most`: a power of two or one and a half of one, so that
/// at most a third of the rows are for nothing.
pub fn bucket(batch: usize, most: usize) -> usize {
    let batch = batch.max(1);
    let power = batch.next_power_of_two();
    let between = power / 4 * 3;
    let size = if batch <= between { between } else { power };
    size.min(most).max(batch)
}

/// What records work of the device and plays it back: CUDA, or a test's pretence.
pub trait Capture {
    /// A recording.
    type Graph;

    /// Records what `work` asks of the device, which does not compute it now.
    fn capture(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Self::Graph>;

    /// Has the device compute what was recorded, on the memory that it was recorded with.
    fn replay(&self, graph: &Self::Graph) -> Result<()>;
}

/// What to do with a step.
pub enum Plan<'a, G> {
    /// Compute it as it comes.
    Eager,
    /// Capture it, and say with [`GraphCache::keep`] or [`GraphCache::refuse`] what came of it.
    Capture,
    /// Replay this.
    Replay(&'a G),
}

/// The captured steps of one network with one set of weights; the one that was not used for longest gives way.
pub struct GraphCache<G> {
    capacity: usize,
    /// By size, the last used one last.
    graphs: Vec<(usize, G)>,
    /// Sizes that came once.
    seen: BTreeSet<usize>,
    /// Sizes whose capture failed: another try would fail as slowly.
    refused: BTreeSet<usize>,
}

impl<G> GraphCache<G> {
    /// A cache of at most `capacity` graphs; 0: none is ever captured.
    pub fn new(capacity: usize) -> Self {
        GraphCache { capacity, graphs: Vec::new(), seen: BTreeSet::new(), refused: BTreeSet::new() }
    }

    /// What to do with a step of this size, which is noted.
    pub fn plan(&mut self, size: usize) -> Plan<'_, G> {
        if let Some(found) = self.graphs.iter().position(|(other, _)| *other == size) {
            let used = self.graphs.remove(found);
            self.graphs.push(used);
        } else if self.capacity == 0 || self.refused.contains(&size) || self.seen.insert(size) {
            return Plan::Eager;
        }
        match self.graphs.last() {
            Some((last, graph)) if *last == size => Plan::Replay(graph),
            _ => Plan::Capture,
        }
    }

    /// How many graphs there are.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.graphs.len()
    }

    /// Whether keeping one more means dropping one first.
    pub fn is_full(&self) -> bool {
        self.graphs.len() >= self.capacity
    }

    /// Drops the graph that was not used for longest.
    pub fn drop_oldest(&mut self) {
        if !self.graphs.is_empty() {
            drop(self.graphs.remove(0));
        }
    }

    /// Keeps a graph that was captured.
    pub fn keep(&mut self, size: usize, graph: G) {
        while self.is_full() && !self.graphs.is_empty() {
            self.drop_oldest();
        }
        self.graphs.push((size, graph));
    }

    /// Notes that this size cannot be captured: from now on it is [`Plan::Eager`].
    pub fn refuse(&mut self, size: usize) {
        self.refused.insert(size);
    }

    /// Drops all graphs, which were of weights or memory that are no longer there; what was refused stays so. The
    /// answer is whether there were any.
    pub fn clear(&mut self) -> bool {
        self.seen.clear();
        let any = !self.graphs.is_empty();
        self.graphs.clear();
        any
    }
}

/// Refuses every capture: where there is no CUDA.
pub struct NoCapture;

impl Capture for NoCapture {
    type Graph = std::convert::Infallible;

    fn capture(&self, _work: &mut dyn FnMut() -> Result<()>) -> Result<Self::Graph> {
        Err(Error::Internal("this device captures nothing".into()))
    }

    fn replay(&self, graph: &Self::Graph) -> Result<()> {
        match *graph {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_waste_at_most_a_third_and_are_few() {
        let mut sizes = BTreeSet::new();
        for batch in 1..=1024 {
            let size = bucket(batch, 1024);
            assert!(size >= batch && size <= 1024, "{batch} in {size}");
            assert!(3 * (size - batch) <= size, "{batch} in {size} wastes more than a third");
            assert!(bucket(size, 1024) == size, "{size} is a bucket");
            sizes.insert(size);
        }
        assert_eq!(sizes.iter().take(7).copied().collect::<Vec<_>>(), [1, 2, 3, 4, 6, 8, 12]);
        assert_eq!(sizes.len(), 20);
        // No batch is larger than what was allowed, nor is one refused that is.
        assert_eq!(
            [bucket(90, 100), bucket(97, 100), bucket(100, 100), bucket(120, 100)],
            [96, 100, 100, 120]
        );
        assert_eq!(bucket(0, 8), 1);
    }

    /// What was asked of a size: 'e'ager, 'c'apture or 'r'eplay.
    fn ask(cache: &mut GraphCache<usize>, size: usize) -> char {
        match cache.plan(size) {
            Plan::Eager => 'e',
            Plan::Replay(graph) => {
                assert_eq!(*graph, size, "another size's graph");
                'r'
            }
            Plan::Capture => {
                cache.keep(size, size);
                'c'
            }
        }
    }

    fn all(cache: &mut GraphCache<usize>, sizes: &[usize]) -> String {
        sizes.iter().map(|&size| ask(cache, size)).collect()
    }

    #[test]
    fn a_size_is_captured_when_it_comes_again() {
        let mut cache = GraphCache::new(4);
        assert_eq!(all(&mut cache, &[8, 8, 8, 4, 8, 4, 4, 8]), "ecrercrr");
    }

    #[test]
    fn the_least_recently_used_graph_gives_way() {
        let mut cache = GraphCache::new(2);
        assert_eq!(all(&mut cache, &[1, 1, 2, 2, 1, 3, 3]), "ececrec");
        // 2 went for 3, and is captured at once when it comes back, since it was seen; 1 goes for it.
        assert_eq!(all(&mut cache, &[3, 2, 3, 2, 1]), "rcrrc");
        assert_eq!(cache.graphs.len(), 2);
    }

    #[test]
    fn a_refused_size_is_never_tried_again() {
        let mut cache: GraphCache<usize> = GraphCache::new(2);
        assert!(matches!(cache.plan(5), Plan::Eager));
        assert!(matches!(cache.plan(5), Plan::Capture));
        cache.refuse(5);
        cache.clear();
        assert_eq!(all(&mut cache, &[5, 5, 5, 6, 6]), "eeeec");
    }

    #[test]
    fn new_weights_drop_all_graphs() {
        let mut cache = GraphCache::new(3);
        assert_eq!(all(&mut cache, &[1, 1, 2, 2]), "ecec");
        assert!(cache.clear());
        assert!(!cache.clear());
        assert_eq!(all(&mut cache, &[1, 1, 1]), "ecr");
    }

    #[test]
    fn without_room_nothing_is_captured() {
        let mut cache = GraphCache::new(0);
        assert_eq!(all(&mut cache, &[1, 1, 1]), "eee");
    }
}
