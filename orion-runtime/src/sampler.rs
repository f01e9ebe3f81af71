//! Choosing the next token from the logits.

use orion_core::{Error, ErrorKind, Result, SamplingParams, TokenId, TokenLogprob};
use orion_kernels::top_k;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// Draws tokens for one sequence. The order of the steps is documented at [`SamplingParams`].
#[derive(Debug)]
pub(crate) struct Sampler {
    params: SamplingParams,
    rng: ChaCha8Rng,
    /// Candidates of the current draw, kept to reuse their memory.
    candidates: Vec<(u32, f32)>,
    adjusted: Vec<f32>,
}

impl Sampler {
    pub(crate) fn new(params: SamplingParams) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(params.seed);
        Self { params, rng, candidates: Vec::new(), adjusted: Vec::new() }
    }

    /// The next token after `history` (prompt and generated tokens).
    pub(crate) fn sample(&mut self, logits: &[f32], history: &[TokenId]) -> Result<TokenId> {
        if logits.chunks(CHUNK).any(|chunk| any(chunk, |logit| logit.is_nan() | (logit == f32::INFINITY))) {
            return Err(Error::new(ErrorKind::Internal, "the model computed logits that are not finite"));
        }
        if !self.changes_logits() {
            return self.pick(logits);
        }
        let mut adjusted = std::mem::take(&mut self.adjusted);
        adjusted.clear();
        adjusted.extend_from_slice(logits);
        self.adjust(&mut adjusted, history);
        let picked = self.pick(&adjusted);
        self.adjusted = adjusted;
        picked
    }

    /// Whether the likeliest token is taken, whatever the others are.
    pub(crate) fn is_greedy(&self) -> bool {
        self.params.temperature == 0.0
    }

    fn changes_logits(&self) -> bool {
        let p = &self.params;
        let penalties =
            p.repetition_penalty != 1.0 || p.frequency_penalty != 0.0 || p.presence_penalty != 0.0;
        !p.logit_bias.is_empty() || (penalties && p.penalty_last_n > 0)
    }

    fn adjust(&self, logits: &mut [f32], history: &[TokenId]) {
        let p = &self.params;
        for (token, bias) in &p.logit_bias {
            if let Some(logit) = logits.get_mut(token.index()) {
                *logit += bias;
            }
        }
        let mut recent = history[history.len().saturating_sub(p.penalty_last_n as usize)..].to_vec();
        recent.sort_unstable();
        for run in recent.chunk_by(|a, b| a == b) {
            let Some(logit) = logits.get_mut(run[0].index()) else { continue };
            *logit = if *logit > 0.0 { *logit / p.repetition_penalty } else { *logit * p.repetition_penalty };
            *logit -= p.frequency_penalty * run.len() as f32 + p.presence_penalty;
        }
    }

    fn pick(&mut self, logits: &[f32]) -> Result<TokenId> {
        let most = if self.is_greedy() { 1 } else { self.params.top_k as usize };
        likeliest(logits, most, &mut self.candidates);
        let allowed = self.candidates.iter().take_while(|candidate| candidate.1 > f32::NEG_INFINITY).count();
        self.candidates.truncate(allowed);
        let Some(&(best, top)) = self.candidates.first() else {
            return Err(Error::invalid("no token is left to choose: the logit bias forbids them all"));
        };
        if self.is_greedy() {
            return Ok(TokenId(best));
        }
        let mut sum = 0.0;
        for (_, weight) in &mut self.candidates {
            *weight = ((*weight - top) / self.params.temperature).exp();
            sum += *weight;
        }
        let kept = self.kept(sum);
        let total: f32 = self.candidates[..kept].iter().map(|candidate| candidate.1).sum();
        // 24 random bits fill the mantissa of a float in [0, 1).
        let mut left = (self.rng.next_u32() >> 8) as f32 / (1u32 << 24) as f32 * total;
        for &(token, weight) in &self.candidates[..kept] {
            left -= weight;
            if left < 0.0 {
                return Ok(TokenId(token));
            }
        }
        Ok(TokenId(self.candidates[kept - 1].0))
    }

    /// How many of the sorted candidates, whose weights add up to `sum`, top-p and min-p leave; at least one.
    fn kept(&self, sum: f32) -> usize {
        let floor = self.params.min_p * self.candidates[0].1;
        let mut before = 0.0;
        let within = |&&(_, weight): &&(u32, f32)| {
            let keep = before < self.params.top_p * sum && weight >= floor;
            before += weight;
            keep
        };
        self.candidates.iter().take_while(within).count().max(1)
    }
}

/// Logits that are looked at together: most chunks hold nothing of interest, and the CPU sees that at once.
const CHUNK: usize = 64;

/// Whether any is so. Looks at all of them, without a branch.
fn any(chunk: &[f32], is_so: impl Fn(f32) -> bool) -> bool {
    chunk.iter().fold(false, |any, &logit| any | is_so(logit))
}

/// The `k` likeliest tokens with their logits, likeliest first, the lower id first among equals; 0 means all.
fn likeliest(logits: &[f32], k: usize, out: &mut Vec<(u32, f32)>) {
    if (1..logits.len()).contains(&k) {
        return top_k(logits, k, out);
    }
    out.clear();
    out.extend((0..).zip(logits.iter().copied()));
    out.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
}

/// The `count` likeliest tokens and their logits, likeliest first.
#[must_use]
pub fn top_logits(logits: &[f32], count: usize) -> Vec<(TokenId, f32)> {
    if count == 0 {
        return Vec::new();
    }
    let mut best = Vec::new();
    likeliest(logits, count, &mut best);
    best.into_iter().map(|(id, logit)| (TokenId(id), logit)).collect()
}

/// Natural logarithm of the sum of exponentials, in 64-bit floats.
#[must_use]
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let top = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    top + logits.iter().map(|&logit| (f64::from(logit) - top).exp()).sum::<f64>().ln()
}

/// Log-probability of `token`, and of the `count` likeliest.
#[allow(clippy::cast_possible_truncation, reason = "log-probabilities are reported as f32")]
pub(crate) fn logprobs(logits: &[f32], token: TokenId, count: usize) -> (f32, Vec<TokenLogprob>) {
    let norm = log_sum_exp(logits);
    let logprob = |logit: f32| (f64::from(logit) - norm) as f32;
    let top = top_logits(logits, count);
    let top = top.into_iter().map(|(id, logit)| TokenLogprob { id, logprob: logprob(logit) });
    (logprob(logits[token.index()]), top.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn params(set: impl FnOnce(&mut SamplingParams)) -> SamplingParams {
        let mut params = SamplingParams::default();
        (params.temperature, params.top_k, params.top_p, params.min_p) = (1.0, 0, 1.0, 0.0);
        set(&mut params);
        params
    }

    /// Which tokens ever come out of 300 draws.
    fn support(params: SamplingParams, logits: &[f32], history: &[TokenId]) -> Vec<u32> {
        let mut sampler = Sampler::new(params);
        let mut seen: Vec<u32> = (0..300).map(|_| sampler.sample(logits, history).unwrap().0).collect();
        seen.sort_unstable();
        seen.dedup();
        seen
    }

    #[test]
    fn greedy_takes_the_lowest_of_equals() {
        let mut sampler = Sampler::new(SamplingParams::greedy());
        assert_eq!(sampler.sample(&[1.0, 3.0, 3.0], &[]).unwrap(), TokenId(1));
    }

    #[test]
    fn each_filter_keeps_what_it_says() {
        // Probabilities 0.5, 0.25, 0.125, 0.125.
        let logits = [4f32, 2.0, 1.0, 1.0].map(f32::ln);
        assert_eq!(support(params(|_| {}), &logits, &[]), [0, 1, 2, 3]);
        assert_eq!(support(params(|p| p.top_k = 2), &logits, &[]), [0, 1]);
        assert_eq!(support(params(|p| p.top_k = 3), &logits, &[]), [0, 1, 2]);
        assert_eq!(support(params(|p| p.top_p = 0.5), &logits, &[]), [0]);
        assert_eq!(support(params(|p| p.top_p = 0.6), &logits, &[]), [0, 1]);
        assert_eq!(support(params(|p| p.min_p = 0.4), &logits, &[]), [0, 1]);
        assert_eq!(support(params(|p| p.temperature = 0.01), &logits, &[]), [0]);
        let bias = [(TokenId(0), f32::NEG_INFINITY), (TokenId(9), 1.0)];
        assert_eq!(support(params(|p| p.logit_bias = bias.into()), &logits, &[]), [1, 2, 3]);
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let logits = [4f32, 2.0, 1.0, 1.0].map(f32::ln);
        let mut sampler = Sampler::new(params(|p| p.seed = 7));
        let mut counts = [0u32; 4];
        for _ in 0..8000 {
            counts[sampler.sample(&logits, &[]).unwrap().index()] += 1;
        }
        for (count, expected) in counts.into_iter().zip([4000, 2000, 1000, 1000]) {
            // Five standard deviations of a binomial count of that size are below 225.
            assert!(count.abs_diff(expected) < 225, "{counts:?}");
        }
    }

    #[test]
    fn penalties_follow_their_formulas() {
        let history = [TokenId(0), TokenId(1), TokenId(1)];
        let adjusted = |set: fn(&mut SamplingParams)| {
            let mut logits = [2.0, -2.0, 1.0];
            Sampler::new(params(set)).adjust(&mut logits, &history);
            logits
        };
        assert_eq!(adjusted(|p| p.repetition_penalty = 2.0), [1.0, -4.0, 1.0]);
        assert_eq!(adjusted(|p| p.frequency_penalty = 0.5), [1.5, -3.0, 1.0]);
        assert_eq!(adjusted(|p| p.presence_penalty = 0.5), [1.5, -2.5, 1.0]);
        assert_eq!(
            adjusted(|p| (p.presence_penalty, p.penalty_last_n) = (0.5, 2)),
            [2.0, -2.5, 1.0],
            "only the last two tokens count"
        );
    }

    #[test]
    fn broken_logits_and_forbidding_everything_are_errors() {
        let mut sampler = Sampler::new(SamplingParams::greedy());
        assert_eq!(sampler.sample(&[0.0, f32::NAN], &[]).unwrap_err().kind(), ErrorKind::Internal);
        let bias = (0..2).map(|id| (TokenId(id), f32::NEG_INFINITY)).collect();
        let mut sampler = Sampler::new(params(|p| p.logit_bias = bias));
        assert_eq!(sampler.sample(&[0.0, 1.0], &[]).unwrap_err().kind(), ErrorKind::InvalidInput);
    }

    #[test]
    fn logprobs_are_normalised() {
        let (own, top) = logprobs(&[4f32, 2.0, 1.0, 1.0].map(f32::ln), TokenId(1), 3);
        assert!((own - 0.25f32.ln()).abs() < 1e-6);
        assert_eq!(top.iter().map(|entry| entry.id.0).collect::<Vec<_>>(), [0, 1, 2]);
    }

    proptest! {
        #[test]
        fn the_same_seed_draws_the_same_tokens(seed: u64, logits in prop::collection::vec(-9f32..9.0, 2..50)) {
            let draw = || {
                let mut sampler = Sampler::new(params(|p| p.seed = seed));
                (0..20).map(|_| sampler.sample(&logits, &[]).unwrap()).collect::<Vec<_>>()
            };
            prop_assert_eq!(draw(), draw());
        }

        #[test]
        fn greedy_is_the_first_of_the_greatest(mut logits in prop::collection::vec(-9i8..9, 1..300)) {
            let logits: Vec<f32> = logits.drain(..).map(f32::from).collect();
            let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let first = logits.iter().position(|&logit| logit == top).unwrap();
            let mut sampler = Sampler::new(SamplingParams::greedy());
            prop_assert_eq!(sampler.sample(&logits, &[]).unwrap(), TokenId(first as u32));
        }

        #[test]
        fn top_logits_are_the_head_of_a_full_sort(logits in prop::collection::vec(-9f32..9.0, 1..80), k in 1usize..30) {
            let mut all: Vec<_> = (0..).map(TokenId).zip(logits.iter().copied()).collect();
            all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            all.truncate(k);
            prop_assert_eq!(top_logits(&logits, k), all);
        }
    }
}
