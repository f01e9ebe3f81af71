//! Names of tensors in both forms.

/// Pairs of Hugging Face's and GGUF's names outside of layers.
const OUTER: [(&str, &str); 3] = [
    ("model.embed_tokens.weight", "token_embd.weight"),
    ("model.norm.weight", "output_norm.weight"),
    ("lm_head.weight", "output.weight"),
];

/// The same within layers, up to `weight` or `bias`.
const LAYER: [(&str, &str); 13] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.qkv_proj", "attn_qkv"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.gate_up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// What Gemma calls otherwise.
const GEMMA: [(&str, &str); 3] = [
    ("post_attention_layernorm", "post_attention_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
];

/// What names depend on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Naming {
    pub(super) gemma: bool,
    /// Gate and up are one matrix.
    pub(super) fused: bool,
}

impl Naming {
    fn layer(self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let gemma: &[_] = if self.gemma { &GEMMA } else { &[] };
        let plain = LAYER.iter().filter(move |(theirs, _)| match *theirs {
            "post_attention_layernorm" => !self.gemma,
            "mlp.gate_up_proj" => self.fused,
            "mlp.up_proj" => !self.fused,
            _ => true,
        });
        gemma.iter().chain(plain).copied()
    }

    pub(super) fn to_gguf(self, name: &str) -> Option<String> {
        if let Some((_, ours)) = OUTER.iter().find(|(theirs, _)| *theirs == name) {
            return Some((*ours).to_owned());
        }
        let (number, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
        let (part, kind) = rest.rsplit_once('.')?;
        let (_, ours) = self.layer().find(|(theirs, _)| *theirs == part)?;
        Some(format!("blk.{number}.{ours}.{kind}"))
    }

    pub(super) fn to_hugging_face(self, name: &str) -> Option<String> {
        if let Some((theirs, _)) = OUTER.iter().find(|(_, ours)| *ours == name) {
            return Some((*theirs).to_owned());
        }
        let (number, rest) = name.strip_prefix("blk.")?.split_once('.')?;
        let (part, kind) = rest.rsplit_once('.')?;
        let (theirs, _) = self.layer().find(|(_, ours)| *ours == part)?;
        Some(format!("model.layers.{number}.{theirs}.{kind}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        for (gemma, fused) in [(false, false), (true, false), (false, true)] {
            let naming = Naming { gemma, fused };
            let layer = naming.layer().map(|(theirs, _)| format!("model.layers.12.{theirs}.weight"));
            for theirs in layer.chain(OUTER.iter().map(|(theirs, _)| (*theirs).to_owned())) {
                let ours = naming.to_gguf(&theirs).unwrap();
                assert_eq!(naming.to_hugging_face(&ours).unwrap(), theirs);
            }
        }
        let plain = Naming { gemma: false, fused: false };
        assert_eq!(plain.to_gguf("model.layers.3.self_attn.q_proj.bias").unwrap(), "blk.3.attn_q.bias");
        assert_eq!(plain.to_gguf("model.layers.3.block_sparse_moe.gate.weight"), None);
    }
}
