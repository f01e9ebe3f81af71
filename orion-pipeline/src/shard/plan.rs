//! Which tensors go into which shard.

use std::num::NonZero;
use std::ops::Range;

use orion_core::{Error, Result, TensorInfo};

/// How large shards are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ShardSize {
    /// So many shards, as even as whole layers allow.
    Count(NonZero<usize>),
    /// As few shards as hold at most so many bytes of tensors each. A tensor that is larger stands alone.
    Bytes(NonZero<u64>),
}

/// Where in a forward pass a tensor is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// Small tables that every layer uses, then the embedding.
    Before(u8),
    Layer(u64),
    /// The last norm, then the head.
    After(u8),
}

impl Stage {
    pub(crate) fn of(name: &str) -> Self {
        // The first number in a name is its layer: `blk.7.…`, `model.layers.7.…`, `bert.encoder.layer.7.…`.
        let layer = name.split('.').find_map(|part| part.parse().ok());
        match (layer, name) {
            (Some(layer), _) => Self::Layer(layer),
            (None, "output.weight" | "lm_head.weight") => Self::After(1),
            (None, name) if name.contains("embd") || name.contains("embed") => Self::Before(1),
            (None, name) if name.contains("norm") || name.starts_with("output") => Self::After(0),
            _ => Self::Before(0),
        }
    }
}

/// Parts of a layer in the order a forward pass needs them, by what their names contain.
const WITHIN: [&[&str]; 13] = [
    &["attn_norm", "input_layernorm"],
    &["attn_qkv", "qkv_proj"],
    &["attn_q.", "q_proj"],
    &["attn_k.", "k_proj"],
    &["attn_v.", "v_proj"],
    &["attn_q_norm", "attn_k_norm", "q_norm", "k_norm"],
    &["attn_output", "o_proj"],
    &["post_attention_norm"],
    &["ffn_norm", "post_attention_layernorm", "pre_feedforward_layernorm"],
    &["ffn_gate", "gate_up_proj", "gate_proj"],
    &["ffn_up", "up_proj"],
    &["ffn_down", "down_proj"],
    &["post_ffw_norm", "post_feedforward_layernorm"],
];

/// The tensors in the order a forward pass needs them. What is not known keeps its place in the table.
pub(crate) fn order_of_need(tensors: &[TensorInfo]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|&index| {
        let name = &tensors[index].name;
        let within = WITHIN.iter().position(|parts| parts.iter().any(|part| name.contains(part)));
        (Stage::of(name), within.unwrap_or(WITHIN.len()))
    });
    order
}

/// Cuts tensors of these sizes, in this order, into shards. `units` are runs that belong together: layers.
pub(crate) fn cut(sizes: &[u64], units: &[Range<usize>], size: ShardSize) -> Result<Vec<Range<usize>>> {
    match size {
        ShardSize::Count(count) => even(sizes, units, count.get()),
        ShardSize::Bytes(most) => Ok(bounded(sizes, units, most.get())),
    }
}

fn sum(sizes: &[u64], range: &Range<usize>) -> u64 {
    sizes[range.clone()].iter().sum()
}

/// `count` shards whose largest is as small as possible.
fn even(sizes: &[u64], units: &[Range<usize>], count: usize) -> Result<Vec<Range<usize>>> {
    if count > sizes.len() {
        return Err(Error::invalid(format!("{count} shards for {} tensors", sizes.len())));
    }
    // More shards than layers: tensors are what is shared out.
    let single: Vec<Range<usize>> = (0..sizes.len()).map(|index| index..index + 1).collect();
    let units = if count > units.len() { &single[..] } else { units };
    let weights: Vec<u64> = units.iter().map(|unit| sum(sizes, unit)).collect();
    let (mut low, mut high) = (weights.iter().copied().max().unwrap_or(0), weights.iter().sum::<u64>());
    while low < high {
        let middle = low + (high - low) / 2;
        if groups(&weights, middle, 1).len() <= count { high = middle } else { low = middle + 1 }
    }
    let groups = groups(&weights, low, count);
    Ok(groups.into_iter().map(|group| units[group.start].start..units[group.end - 1].end).collect())
}

/// Runs of weights that are at most `most` together, filled front to back; at least `count` of them.
fn groups(weights: &[u64], most: u64, count: usize) -> Vec<Range<usize>> {
    let mut groups: Vec<Range<usize>> = Vec::new();
    let (mut start, mut filled) = (0, 0);
    for (index, &weight) in weights.iter().enumerate() {
        // Every shard that is still to come needs something.
        let still_to_come = count.saturating_sub(groups.len() + 1);
        let scarce = index > start && weights.len() - index <= still_to_come;
        if index > start && (filled + weight > most || scarce) {
            groups.push(start..index);
            (start, filled) = (index, 0);
        }
        filled += weight;
    }
    if start < weights.len() {
        groups.push(start..weights.len());
    }
    groups
}

/// Shards of whole layers, as full as they may be; layers that are larger than a shard are cut between tensors.
fn bounded(sizes: &[u64], units: &[Range<usize>], most: u64) -> Vec<Range<usize>> {
    let mut pieces = Vec::new();
    for unit in units {
        if sum(sizes, unit) <= most {
            pieces.push(unit.clone());
        } else {
            pieces.extend(unit.clone().map(|index| index..index + 1));
        }
    }
    let weights: Vec<u64> = pieces.iter().map(|piece| sum(sizes, piece)).collect();
    let groups = groups(&weights, most, 1);
    groups.into_iter().map(|group| pieces[group.start].start..pieces[group.end - 1].end).collect()
}

/// Shards as Hugging Face's own tools cut them: in order, and a tensor larger than a shard stands alone, before the
/// shard that is being filled.
pub(crate) fn cut_as_hugging_face(sizes: &[u64], most: u64) -> Vec<Vec<usize>> {
    let mut shards: Vec<Vec<usize>> = Vec::new();
    let (mut open, mut filled) = (Vec::new(), 0);
    for (index, &size) in sizes.iter().enumerate() {
        if size > most {
            shards.push(vec![index]);
            continue;
        }
        if filled + size > most {
            shards.push(std::mem::take(&mut open));
            filled = 0;
        }
        open.push(index);
        filled += size;
    }
    if !open.is_empty() {
        shards.push(open);
    }
    shards
}

/// Runs of tensors of one stage.
pub(crate) fn units(tensors: &[TensorInfo], order: &[usize]) -> Vec<Range<usize>> {
    let mut units: Vec<Range<usize>> = Vec::new();
    for (at, &index) in order.iter().enumerate() {
        let coarse = |index: usize| match Stage::of(&tensors[index].name) {
            Stage::Before(_) => Stage::Before(0),
            Stage::After(_) => Stage::After(0),
            layer => layer,
        };
        match units.last_mut() {
            Some(unit) if coarse(order[unit.start]) == coarse(index) => unit.end = at + 1,
            _ => units.push(at..at + 1),
        }
    }
    units
}

/// The first and the last layer among these tensors.
pub(crate) fn layers<'a>(names: impl Iterator<Item = &'a str>) -> Option<(u64, u64)> {
    let layers = names.filter_map(|name| match Stage::of(name) {
        Stage::Layer(layer) => Some(layer),
        _ => None,
    });
    layers.fold(None, |range: Option<(u64, u64)>, layer| {
        Some(range.map_or((layer, layer), |(low, high)| (low.min(layer), high.max(layer))))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn singles(count: usize) -> Vec<Range<usize>> {
        (0..count).map(|index| index..index + 1).collect()
    }

    #[test]
    fn hugging_face_groups_come_out_as_its_own_planner_makes_them() {
        // huggingface_hub, tests/test_serialization.py: {6, 10, 30, 2, 2} at 10.
        assert_eq!(cut_as_hugging_face(&[6, 10, 30, 2, 2], 10), [vec![0], vec![2], vec![1], vec![3, 4]]);
        assert_eq!(cut_as_hugging_face(&[2, 2, 2], 10), [vec![0, 1, 2]]);
    }

    #[test]
    fn a_count_is_kept_exactly_and_the_largest_shard_is_as_small_as_possible() {
        let sizes = [10, 1, 1, 1, 1, 1, 1, 1, 1, 10];
        let shards = even(&sizes, &singles(10), 3).unwrap();
        assert_eq!(shards, [0..1, 1..9, 9..10]);
        for count in 1..=10 {
            let shards = even(&sizes, &singles(10), count).unwrap();
            assert_eq!(shards.len(), count);
            assert!(shards.iter().all(|shard| !shard.is_empty()), "{shards:?}");
        }
        assert!(even(&sizes, &singles(10), 11).is_err());
        // More shards than layers.
        assert_eq!(even(&[4, 4, 4, 4], &[0..2, 2..4], 4).unwrap().len(), 4);
    }

    #[test]
    fn a_bound_holds_but_for_tensors_that_are_larger_alone() {
        let sizes = [3, 3, 3, 20, 3, 3];
        let shards = bounded(&sizes, &[0..2, 2..5, 5..6], 7);
        assert_eq!(shards, [0..2, 2..3, 3..4, 4..6]);
    }

    #[test]
    fn the_first_layer_comes_before_the_last_and_the_head_at_the_end() {
        let names = [
            "output.weight",
            "blk.1.attn_q.weight",
            "output_norm.weight",
            "blk.0.ffn_down.weight",
            "blk.0.attn_norm.weight",
            "token_embd.weight",
            "rope_freqs.weight",
            "blk.10.attn_q.weight",
        ];
        let mut sorted = names;
        sorted.sort_by_key(|name| Stage::of(name));
        assert_eq!(
            sorted,
            [
                "rope_freqs.weight",
                "token_embd.weight",
                "blk.0.ffn_down.weight",
                "blk.0.attn_norm.weight",
                "blk.1.attn_q.weight",
                "blk.10.attn_q.weight",
                "output_norm.weight",
                "output.weight"
            ]
        );
        assert_eq!(layers(names.into_iter()), Some((0, 10)));
        assert_eq!(layers(["output.weight"].into_iter()), None);
    }
}
