//! K-means: broad labels are learned as several narrow ones.

use crate::embedding::dot;
use crate::linear::shuffle;

const ROUNDS: usize = 10;

/// Assigns each vector to one of `count` clusters by Lloyd's algorithm from seeded starting points. Deterministic.
pub(crate) fn assign(vectors: &[&[f32]], count: usize, seed: u64) -> Vec<usize> {
    let count = count.min(vectors.len());
    if count <= 1 {
        return vec![0; vectors.len()];
    }
    let mut order: Vec<usize> = (0..vectors.len()).collect();
    let mut random = seed;
    shuffle(&mut order, &mut random);
    let mut centres: Vec<Vec<f32>> = order[..count].iter().map(|&at| vectors[at].to_vec()).collect();
    let mut assigned = vec![0; vectors.len()];
    for _ in 0..ROUNDS {
        // |x - c|² is least where x·c - |c|²/2 is greatest.
        let halves: Vec<f32> = centres.iter().map(|centre| dot(centre, centre) / 2.0).collect();
        for (place, vector) in assigned.iter_mut().zip(vectors) {
            let score = |at: usize| dot(vector, &centres[at]) - halves[at];
            *place = (1..count)
                .fold((0, score(0)), |best, at| {
                    let score = score(at);
                    if score > best.1 { (at, score) } else { best }
                })
                .0;
        }
        for (at, centre) in centres.iter_mut().enumerate() {
            let own: Vec<&[f32]> = assigned
                .iter()
                .zip(vectors)
                .filter(|(place, _)| **place == at)
                .map(|(_, vector)| *vector)
                .collect();
            // A centre that lost all its vectors stays where it is.
            if !own.is_empty() {
                centre.fill(0.0);
                for vector in &own {
                    centre.iter_mut().zip(*vector).for_each(|(sum, value)| *sum += value / own.len() as f32);
                }
            }
        }
    }
    assigned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separate_clouds_become_separate_clusters() {
        let points: Vec<[f32; 2]> = (0..60)
            .map(|at| [(at % 2) as f32 * 10.0 + (at % 7) as f32 * 0.1, (at % 5) as f32 * 0.1])
            .collect();
        let vectors: Vec<&[f32]> = points.iter().map(|point| &point[..]).collect();
        let assigned = assign(&vectors, 2, 3);
        for at in 2..60 {
            assert_eq!(assigned[at], assigned[at % 2]);
        }
        assert_ne!(assigned[0], assigned[1]);
        assert_eq!(assign(&vectors, 2, 3), assigned);
        assert_eq!(assign(&vectors, 1, 3), vec![0; 60]);
        assert_eq!(assign(&vectors[..2], 9, 3).len(), 2);
    }
}
