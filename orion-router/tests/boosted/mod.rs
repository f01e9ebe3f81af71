//! A baseline for difficulty: gradient-boosted regression trees (Friedman 2001) on histograms of the embedding.

/// Values of a feature are told apart by this many steps of equal count.
const BINS: usize = 32;
const ROUNDS: usize = 150;
const DEPTH: usize = 3;
const RATE: f32 = 0.08;
/// Rows that a leaf needs.
const LEAF: usize = 40;

pub(crate) struct Boosted {
    edges: Vec<Vec<f32>>,
    start: f32,
    trees: Vec<Vec<Node>>,
}

#[derive(Clone, Copy)]
enum Node {
    Leaf(f32),
    /// Rows whose bin of the feature is at most `bin` go to `2 i + 1`, the others to `2 i + 2`.
    Split {
        feature: usize,
        bin: u8,
    },
}

impl Boosted {
    /// Fits the targets by squared error.
    pub(crate) fn fit(inputs: &[&[f32]], targets: &[f32]) -> Self {
        let features = inputs[0].len();
        let edges: Vec<Vec<f32>> = (0..features)
            .map(|feature| {
                let mut values: Vec<f32> = inputs.iter().map(|input| input[feature]).collect();
                values.sort_by(f32::total_cmp);
                let mut edges: Vec<f32> =
                    (1..BINS).map(|bin| values[bin * (values.len() - 1) / BINS]).collect();
                edges.dedup();
                edges
            })
            .collect();
        let mut model =
            Self { edges, start: targets.iter().sum::<f32>() / targets.len() as f32, trees: Vec::new() };
        let bins: Vec<Vec<u8>> = inputs.iter().map(|input| model.bins(input)).collect();
        let mut rest: Vec<f32> = targets.iter().map(|target| target - model.start).collect();
        for _ in 0..ROUNDS {
            let mut tree = vec![Node::Leaf(0.0); (2 << DEPTH) - 1];
            grow(&mut tree, 0, &bins, &rest, (0..inputs.len()).collect());
            for (rest, bins) in rest.iter_mut().zip(&bins) {
                *rest -= RATE * value(&tree, bins);
            }
            model.trees.push(tree);
        }
        model
    }

    fn bins(&self, input: &[f32]) -> Vec<u8> {
        let bin = |(value, edges): (&f32, &Vec<f32>)| edges.partition_point(|edge| edge < value) as u8;
        input.iter().zip(&self.edges).map(bin).collect()
    }

    pub(crate) fn predict(&self, input: &[f32]) -> f32 {
        let bins = self.bins(input);
        self.start + RATE * self.trees.iter().map(|tree| value(tree, &bins)).sum::<f32>()
    }
}

fn value(tree: &[Node], bins: &[u8]) -> f32 {
    let mut at = 0;
    loop {
        match tree[at] {
            Node::Leaf(value) => return value,
            Node::Split { feature, bin } => at = 2 * at + if bins[feature] <= bin { 1 } else { 2 },
        }
    }
}

fn grow(tree: &mut [Node], at: usize, bins: &[Vec<u8>], rest: &[f32], rows: Vec<usize>) {
    let sum: f32 = rows.iter().map(|&row| rest[row]).sum();
    tree[at] = Node::Leaf(sum / rows.len() as f32);
    if 2 * at + 2 >= tree.len() || rows.len() < 2 * LEAF {
        return;
    }
    let features = bins[0].len();
    let mut histogram = vec![(0.0_f32, 0_u32); features * BINS];
    for &row in &rows {
        for (feature, &bin) in bins[row].iter().enumerate() {
            let cell = &mut histogram[feature * BINS + usize::from(bin)];
            cell.0 += rest[row];
            cell.1 += 1;
        }
    }
    let mut best = (sum * sum / rows.len() as f32 + 1e-6, None);
    for (feature, cells) in histogram.chunks(BINS).enumerate() {
        let (mut left, mut count) = (0.0, 0);
        for (bin, cell) in cells.iter().enumerate() {
            left += cell.0;
            count += cell.1 as usize;
            if count < LEAF || rows.len() - count < LEAF {
                continue;
            }
            let gain = left * left / count as f32 + (sum - left) * (sum - left) / (rows.len() - count) as f32;
            if gain > best.0 {
                best = (gain, Some((feature, bin as u8)));
            }
        }
    }
    let Some((feature, bin)) = best.1 else { return };
    tree[at] = Node::Split { feature, bin };
    let (left, right): (Vec<usize>, Vec<usize>) =
        rows.into_iter().partition(|&row| bins[row][feature] <= bin);
    grow(tree, 2 * at + 1, bins, rest, left);
    grow(tree, 2 * at + 2, bins, rest, right);
}
