//! In which order the bytes of a model are needed.

use std::ops::Range;

use orion_core::TensorInfo;

/// Another place in the file is gone to when more than this lies between: less is fetched along.
pub(crate) const JUMP: u64 = 4 << 20;

/// For each of `files` files, ranges in order of need.
pub(crate) fn runs(tensors: &[TensorInfo], order: &[usize], files: usize) -> Vec<Vec<Range<u64>>> {
    let mut runs: Vec<Vec<Range<u64>>> = vec![Vec::new(); files];
    for info in order.iter().filter_map(|&index| tensors.get(index)) {
        let range = info.offset..info.offset.saturating_add(info.bytes);
        let of_file = &mut runs[info.file];
        match of_file.last_mut() {
            Some(run) if near(run, &range) => *run = run.start.min(range.start)..run.end.max(range.end),
            _ => of_file.push(range),
        }
    }
    runs
}

/// Whether fetching both in one go costs little more than fetching them one after the other.
fn near(run: &Range<u64>, next: &Range<u64>) -> bool {
    if next.start >= run.start {
        next.start <= run.end.saturating_add(JUMP)
    } else {
        // Backwards: only what is short anyway, such as a layer whose tensors stand in another order.
        run.end - next.start <= JUMP
    }
}

/// The number of the layer a tensor belongs to, by its name: `blk.3.attn_q.weight`, `model.layers.3.mlp…`.
pub(crate) fn layer_of(name: &str) -> Option<usize> {
    let mut parts = name.split('.');
    while let Some(part) = parts.next() {
        if matches!(part, "blk" | "layers" | "layer" | "h") {
            return parts.next()?.parse().ok();
        }
    }
    None
}

/// The order with the tensors of some layers first.
pub(crate) fn prioritise(tensors: &[TensorInfo], order: &[usize], first: &[usize]) -> Vec<usize> {
    let rank = |index: &usize| {
        let layer = tensors.get(*index).and_then(|info| layer_of(&info.name));
        layer.and_then(|layer| first.iter().position(|&wanted| wanted == layer)).unwrap_or(first.len())
    };
    let mut order = order.to_vec();
    order.sort_by_key(rank);
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use orion_core::{TensorType, TileLayout};

    const MB: u64 = 1 << 20;

    fn tensor(name: &str, file: usize, range: Range<u64>) -> TensorInfo {
        let bytes = range.end - range.start;
        let (ty, layout) = (TensorType::F32, TileLayout::RowMajor);
        TensorInfo { name: name.into(), shape: vec![bytes / 4], ty, layout, file, offset: range.start, bytes }
    }

    #[test]
    fn an_embedding_in_front_becomes_a_run_of_its_own_behind() {
        let tensors = [
            tensor("token_embd.weight", 0, MB..20 * MB),
            tensor("blk.0.ffn_down.weight", 0, 20 * MB..23 * MB),
            tensor("blk.0.attn_q.weight", 0, 23 * MB..24 * MB),
            tensor("blk.1.attn_q.weight", 0, 24 * MB..25 * MB),
        ];
        let runs = runs(&tensors, &[2, 1, 3, 0], 1);
        assert_eq!(runs, [[20 * MB..25 * MB, MB..20 * MB]]);
    }

    #[test]
    fn layers_in_alphabetical_order_are_gone_to_one_by_one() {
        let at = [("layers.0.w", 0), ("layers.10.w", 10), ("layers.2.w", 20)];
        let tensors = at.map(|(name, start)| tensor(name, 0, start * MB..(start + 10) * MB));
        assert_eq!(runs(&tensors, &[0, 2, 1], 1), [[0..10 * MB, 20 * MB..30 * MB, 10 * MB..20 * MB]]);
    }

    #[test]
    fn layers_with_priority_come_first_and_the_rest_keeps_its_order() {
        let names = ["token_embd.weight", "blk.0.a", "model.layers.1.a", "blk.2.a", "blk.1.b"];
        let tensors = names.map(|name| tensor(name, 0, 0..4));
        assert_eq!(prioritise(&tensors, &[0, 1, 2, 3, 4], &[2, 1]), [3, 2, 4, 0, 1]);
        assert_eq!(layer_of("blk.x.a"), None);
    }
}
