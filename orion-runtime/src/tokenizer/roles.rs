//! Tokens that play a role, recognised by their text where the file does not say so.

use orion_core::TokenId;

use super::vocab::{Attr, Vocab};

/// End-of-turn tokens, the first that exists counts.
const END_OF_TURN: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<｜end▁of▁sentence｜>",
    "<end_of_utterance>",
];

const END_OF_MESSAGE: &[&str] = &["<|eom_id|>"];

/// Fill-in-the-middle tokens that begin something new: generation ends at them, too.
const FILL_IN_ENDS: &[&[&str]] = &[
    &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"],
    &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"],
    &["<|file_sep|>"],
];

/// Fill-in-the-middle tokens that only become control tokens.
const FILL_IN: &[&[&str]] = &[
    &[
        "<|fim_prefix|>",
        "<fim-prefix>",
        "<fim_prefix>",
        "<｜fim▁begin｜>",
        "<PRE>",
        "▁<PRE>",
        "<|code_prefix|>",
        "<|prefix|>",
    ],
    &[
        "<|fim_suffix|>",
        "<fim-suffix>",
        "<fim_suffix>",
        "<｜fim▁hole｜>",
        "<SUF>",
        "▁<SUF>",
        "<|code_suffix|>",
        "<|suffix|>",
    ],
    &[
        "<|fim_middle|>",
        "<fim-middle>",
        "<fim_middle>",
        "<｜fim▁end｜>",
        "<MID>",
        "▁<MID>",
        "<|code_middle|>",
        "<|middle|>",
    ],
];

/// Tokens that end a generation wherever they exist.
const ENDS: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];

/// Tokens that are shown although the file calls them control tokens.
const SHOWN: &[&str] = &["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

pub(crate) fn end_names() -> impl Iterator<Item = &'static str> {
    ENDS.iter().copied()
}

/// What the file itself names.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Named {
    pub(crate) eos: Option<TokenId>,
    pub(crate) eot: Option<TokenId>,
    pub(crate) eom: Option<TokenId>,
    pub(crate) fill_in: [Option<TokenId>; 3],
    pub(crate) fill_in_ends: [Option<TokenId>; 3],
}

/// Corrects the attributes of tokens that files often get wrong, and collects where generation ends. This is
/// what llama.cpp does when it loads a vocabulary.
pub(crate) fn settle(vocab: &mut Vocab, named: Named) -> Vec<TokenId> {
    let find = |vocab: &Vocab, names: &[&str]| names.iter().find_map(|name| vocab.id(name.as_bytes()));
    let control = |vocab: &mut Vocab, id: u32| {
        let attr = vocab.attr(id).with(Attr::CONTROL);
        vocab.set_attr(id, attr);
    };
    let role = |vocab: &mut Vocab, given: Option<TokenId>, names: &[&str]| {
        given.map(|id| id.0).or_else(|| find(vocab, names).inspect(|&id| control(vocab, id)))
    };
    let mut ends = Vec::new();
    ends.extend(role(vocab, named.eot, END_OF_TURN));
    ends.extend(role(vocab, named.eom, END_OF_MESSAGE));
    for (given, names) in named.fill_in.into_iter().zip(FILL_IN) {
        role(vocab, given, names);
    }
    for (given, names) in named.fill_in_ends.into_iter().zip(FILL_IN_ENDS) {
        ends.extend(role(vocab, given, names));
    }
    for name in ENDS {
        if let Some(id) = vocab.id(name.as_bytes()) {
            control(vocab, id);
            ends.push(id);
        }
    }
    for name in SHOWN {
        if let Some(id) = vocab.id(name.as_bytes()) {
            vocab.set_attr(id, Attr::USER_DEFINED);
        }
    }
    ends.extend(named.eos.map(|id| id.0));
    let kept = settle_ends(vocab, ends.into_iter().map(TokenId).collect());
    for (name, attr) in [("<|end|>", Attr::USER_DEFINED), ("</s>", Attr::NORMAL)] {
        let id = vocab.id(name.as_bytes());
        if let Some(id) = id.filter(|&id| kept.binary_search(&TokenId(id)).is_err()) {
            vocab.set_attr(id, attr);
        }
    }
    kept
}

/// Sorts the ends, and drops those that mean something else in their family: `<|end|>` ends a channel where
/// `<|return|>` and `<|call|>` end the answer, and `</s>` is plain text where other tokens do its work.
pub(crate) fn settle_ends(vocab: &Vocab, mut ends: Vec<TokenId>) -> Vec<TokenId> {
    ends.sort_unstable();
    ends.dedup();
    let has = |name: &str| {
        let id = vocab.id(name.as_bytes());
        id.is_some_and(|id| ends.binary_search(&TokenId(id)).is_ok())
    };
    let call = has("<|call|>") || has("<|calls|>");
    let end_is_no_end = call && (has("<|return|>") || has("<|flush|>"));
    let s_is_no_end = has("<|tool_response>") || has("<|plamo:eos|>");
    let dropped = |id: &TokenId| {
        let text = vocab.text(id.0);
        (end_is_no_end && text == b"<|end|>") || (s_is_no_end && text == b"</s>")
    };
    let (_, kept) = ends.iter().copied().partition::<Vec<_>, _>(dropped);
    kept
}
