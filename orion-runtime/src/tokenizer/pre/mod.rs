//! Pre-tokenizers: how a text is cut into words before byte pairs are merged, by `tokenizer.ggml.pre`.
//!
//! The patterns are those that llama.cpp runs, its simplifications included: where it maps `\p{Lu}` to every
//! letter, or leaves marks out, so do we, because a vocabulary in a GGUF must give the ids that llama.cpp gives.

mod scan;

use super::chars::Char;
use scan::Alternative::{Contraction, Sequence, SpaceNotBeforeText, SpaceToNewline, SpacedWords};
use scan::{Alternative, Case, Item, Stage, any, many, one, optional, up_to};

/// What a name in `tokenizer.ggml.pre` stands for.
#[derive(Clone, Copy)]
pub(crate) struct PreTokenizer {
    stages: &'static [Stage],
    /// A word that is an entry of the vocabulary is one token, whatever the merges say.
    pub(crate) ignore_merges: bool,
    /// BOS is added unless the file says otherwise.
    pub(crate) add_bos: bool,
    /// Texts are UTF-8 with `▁` for a space, and merged without GPT-2's alphabet.
    pub(crate) escaped: bool,
    /// A word of newlines that is an entry is one token, whatever the merges say.
    pub(crate) whole_newlines: bool,
}

impl PreTokenizer {
    const fn new(stages: &'static [Stage]) -> Self {
        Self { stages, ignore_merges: false, add_bos: false, escaped: false, whole_newlines: false }
    }

    const fn ignoring_merges(self) -> Self {
        Self { ignore_merges: true, ..self }
    }

    const fn adding_bos(self) -> Self {
        Self { add_bos: true, ..self }
    }

    const fn escaped(self) -> Self {
        Self { escaped: true, ..self }
    }

    const fn whole_newlines(self) -> Self {
        Self { whole_newlines: true, ..self }
    }

    /// The pre-tokenizer of that name. An empty name stands for `default`.
    pub(crate) fn named(name: &str) -> Option<Self> {
        let new = Self::new;
        Some(match name {
            "" | "default" => new(DEFAULT),
            "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0"
            | "lfm2" | "jina-v5-nano" => new(LLAMA3).ignoring_merges().adding_bos(),
            "dbrx" | "smaug-bpe" | "chatglm-bpe" => new(LLAMA3),
            "glm4" | "glm5" => new(LLAMA3).ignoring_merges(),
            "minicpm5" => new(MINICPM5).ignoring_merges(),
            "jais-2" => new(JAIS2),
            "deepseek-llm" => new(DEEPSEEK_LLM),
            "deepseek-coder" => new(DEEPSEEK_CODER),
            "deepseek-v3" | "hunyuan-dense" | "hy_v4" | "joyai-llm" => new(DEEPSEEK3),
            "spark2_5" => new(SPARK),
            "youtu" => new(YOUTU).ignoring_merges(),
            "falcon" => new(FALCON),
            "starcoder" | "refact" | "command-r" | "smollm" | "codeshell" | "exaone" | "minerva-7b"
            | "mellum2" => new(STARCODER),
            "gpt-2" | "phi-2" | "jina-es" | "jina-de" | "gigachat" | "jina-v2-es" | "jina-v2-de"
            | "a.x-4.0" | "mellum" | "modern-bert" | "jina-v1-en" | "jina-v2-code" | "roberta-bpe"
            | "mpt" | "olmo" | "jais" | "trillion" | "granite-docling" | "exaone4" => new(GPT2),
            "qwen2" | "deepseek-r1-qwen" | "kormo" | "f2llmv2" | "megrez" | "stablelm2" | "hunyuan"
            | "solar-open" | "grok-2" => new(QWEN2),
            "qwen35" => new(QWEN35),
            "ufakzeka" => new(UFAKZEKA),
            "poro-chat" | "bloom" | "gpt3-finnish" => new(BLOOM),
            "viking" => new(VIKING),
            "tekken" => new(TEKKEN).ignoring_merges().adding_bos(),
            "chameleon" => new(CHAMELEON).adding_bos(),
            "gpt-4o" | "llama4" | "kanana2" | "talkie" | "minimax-m2" => new(GPT4O),
            "granite-embed-multi-97m" => new(GRANITE_MULTI).ignoring_merges(),
            "tiny_aya" | "cohere2moe" => new(TINY_AYA),
            "superbpe" => new(SUPERBPE),
            "bailingmoe" | "bailingmoe2" | "llada-moe" => new(BAILING),
            "seed-coder" => new(SEED_CODER),
            "kimi-k2" => new(KIMI_K2),
            "afmoe" => new(AFMOE),
            "laguna" => new(LAGUNA),
            "exaone-moe" => new(EXAONE_MOE),
            "gemma4" | "granite-embed-multi-311m" => new(NEWLINES).escaped().whole_newlines(),
            "sarvam-moe" => new(NEWLINES).escaped(),
            _ => return None,
        })
    }

    /// Cuts `text` into words and hands each of them on.
    pub(crate) fn words<'t>(&self, text: &'t str, mut word: impl FnMut(&'t str)) {
        if text.is_empty() {
            return;
        }
        let chars: Vec<Char> = text.chars().map(Char::new).collect();
        let whole = vec![chars.len()];
        let ends = self.stages.iter().fold(whole, |ends, &stage| scan::run(stage, &chars, &ends));
        let (mut first, mut rest) = (0, text);
        for end in ends {
            let bytes = chars[first..end].iter().map(|c| c.len_utf8()).sum();
            let (head, tail) = rest.split_at(bytes);
            word(head);
            (first, rest) = (end, tail);
        }
    }
}

// Classes, named after what they match.

fn letter(c: Char) -> bool {
    c.is_letter()
}
fn number(c: Char) -> bool {
    c.is_number()
}
fn space(c: Char) -> bool {
    c.is_space()
}
fn blank(c: Char) -> bool {
    c.is(' ')
}
fn newline(c: Char) -> bool {
    c.is_newline()
}
fn line_feed(c: Char) -> bool {
    c.is('\n')
}
fn no_line_feed(c: Char) -> bool {
    !c.is('\n')
}
fn newline_or_slash(c: Char) -> bool {
    c.is_newline() || c.is('/')
}
fn punctuation(c: Char) -> bool {
    c.is_punctuation()
}
fn punctuation_or_symbol(c: Char) -> bool {
    c.is_punctuation() || c.is_symbol()
}
fn letter_or_mark(c: Char) -> bool {
    c.is_letter() || c.is_mark()
}
/// `[^\r\n\p{L}\p{N}]`
fn lead(c: Char) -> bool {
    !(c.is_newline() || c.is_letter() || c.is_number())
}
/// `[^\r\n\p{L}\p{P}\p{S}]`
fn lead_plain(c: Char) -> bool {
    !(c.is_newline() || c.is_letter() || c.is_punctuation() || c.is_symbol())
}
/// `[^\s\p{L}\p{N}]`
fn other(c: Char) -> bool {
    !(c.is_space() || c.is_letter() || c.is_number())
}
/// `[^\s\p{L}\p{M}\p{N}]`
fn other_but_mark(c: Char) -> bool {
    other(c) && !c.is_mark()
}
fn not_lower_letter(c: Char) -> bool {
    c.is_letter() && !c.char().is_ascii_lowercase()
}
fn not_upper_letter(c: Char) -> bool {
    c.is_letter() && !c.char().is_ascii_uppercase()
}
fn not_lower_word(c: Char) -> bool {
    letter_or_mark(c) && !c.char().is_ascii_lowercase()
}
fn not_upper_word(c: Char) -> bool {
    letter_or_mark(c) && !c.char().is_ascii_uppercase()
}
fn ascii_letter(c: Char) -> bool {
    c.char().is_ascii_alphabetic()
}
fn ascii_digit(c: Char) -> bool {
    c.char().is_ascii_digit()
}
fn ascii_punctuation(c: Char) -> bool {
    c.char().is_ascii_punctuation()
}
fn punctuation_or_ascii(c: Char) -> bool {
    c.is_punctuation() || c.char().is_ascii_punctuation()
}
fn han(c: Char) -> bool {
    matches!(u32::from(c.char()), 0x3400..=0x4DBF | 0x4E00..=0x9FFF | 0xF900..=0xFAFF | 0x20000..=0x2A6DF
        | 0x2A700..=0x2EBEF | 0x2F800..=0x2FA1F)
}
fn letter_but_han(c: Char) -> bool {
    c.is_letter() && !han(c)
}
/// `[\p{P}$+<=>^~|]`
fn math_or_punctuation(c: Char) -> bool {
    c.is_punctuation() || matches!(c.char(), '$' | '+' | '<' | '=' | '>' | '^' | '~' | '|')
}
/// The same and the back-tick.
fn math_or_punctuation_or_tick(c: Char) -> bool {
    math_or_punctuation(c) || c.is('`')
}
/// What Bloom keeps together: everything but whitespace, brackets, bars and the stops of several scripts.
fn bloom_word(c: Char) -> bool {
    !(c.is_space() || "(|.,!?…。，、।۔،)".contains(c.char()))
}
fn deepseek_letter(c: Char) -> bool {
    let letter = c.literal();
    let after = DEEPSEEK_LETTERS.partition_point(|&(first, _)| first <= letter);
    after > 0 && letter <= DEEPSEEK_LETTERS[after - 1].1
}
fn deepseek_punctuation(c: Char) -> bool {
    matches!(c.literal(), '!'..='/' | ':'..='~' | '！'..='／' | '：'..='～' | '‘'..='‟' | '\u{3000}'..='。')
}
fn deepseek_cjk(c: Char) -> bool {
    matches!(c.literal(), '\u{800}'..='龥' | '가'..='\u{D7FF}')
}
fn kanji_or_kana(c: Char) -> bool {
    matches!(c.literal(), '一'..='龥' | '\u{3040}'..='\u{30FF}')
}
fn hangul(c: Char) -> bool {
    matches!(c.literal(), '가'..='힣' | 'ㄱ'..='ㆎ')
}
fn youtu_punctuation(c: Char) -> bool {
    matches!(c.literal(), '！' | '…' | '“' | '”' | '‘' | '’' | '—' | '：' | '；' | '，' | '、'..='\u{303F}'
        | '\u{FE30}'..='\u{FE4F}')
}
fn bopomofo(c: Char) -> bool {
    matches!(c.literal(), 'ㄅ'..='ㄯ')
}
/// CJK, Thai, Lao, Khmer and Myanmar, written without spaces.
fn spaceless_script(c: Char) -> bool {
    matches!(u32::from(c.literal()), 0x4E00..=0x9FFF | 0x3400..=0x4DBF | 0xF900..=0xFAFF | 0x3040..=0x30FF
        | 0xFF65..=0xFF9F | 0x2F00..=0x2FDF | 0x0E40..=0x0E7F | 0x0E80..=0x0EFF | 0x1780..=0x17FF
        | 0x1000..=0x109F | 0xAA60..=0xAA7F | 0xA9E0..=0xA9FF | 0xAC00..=0xD7AF | 0x1100..=0x11FF)
}

macro_rules! literal {
    ($($letter:literal),+) => { [$(one(|c| c.is($letter))),+] };
}

// Alternatives that many patterns share.

const CONTRACTION: Alternative = Contraction(Case::Any);
const WORD: Alternative = Sequence(&[optional(lead), many(letter)]);
const NUMBER: Alternative = Sequence(&[one(number)]);
const NUMBER_TO_3: Alternative = Sequence(&[up_to(3, number)]);
const NUMBERS: Alternative = Sequence(&[many(number)]);
const OTHERS: Alternative = Sequence(&[optional(blank), many(other), any(newline)]);
const OTHERS_OR_SLASH: Alternative = Sequence(&[optional(blank), many(other), any(newline_or_slash)]);
const SPACE_BUT_LAST: Alternative = SpaceNotBeforeText { min: 1, max: usize::MAX };
const SPACE: Alternative = Sequence(&[many(space)]);

/// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
const GPT2_SPLIT: Stage = Stage::Split(&[
    Contraction(Case::Lower),
    Sequence(&[optional(blank), many(letter)]),
    Sequence(&[optional(blank), many(number)]),
    Sequence(&[optional(blank), many(other)]),
    SPACE_BUT_LAST,
    SPACE,
]);

const QWEN2_SPLIT: Stage =
    Stage::Split(&[CONTRACTION, WORD, NUMBER, OTHERS, SpaceToNewline, SPACE_BUT_LAST, SPACE]);

const DIGIT_SPLIT: Stage = Stage::Split(&[NUMBER]);
const DIGITS_TO_3_SPLIT: Stage = Stage::Split(&[NUMBER_TO_3]);
const LINE_SPLIT: Stage = Stage::Split(&[Sequence(&[many(no_line_feed)]), Sequence(&[many(line_feed)])]);
const KANJI_SPLIT: Stage = Stage::Split(&[Sequence(&[many(kanji_or_kana)])]);

// The pre-tokenizers.

const GPT2: &[Stage] = &[GPT2_SPLIT];
const STARCODER: &[Stage] = &[DIGIT_SPLIT, GPT2_SPLIT];
const QWEN2: &[Stage] = &[QWEN2_SPLIT];
const NEWLINES: &[Stage] = &[LINE_SPLIT];
const LAGUNA: &[Stage] = &[LINE_SPLIT, QWEN2_SPLIT];

const DEFAULT: &[Stage] = &[
    Stage::Split(&[Sequence(&[many(math_or_punctuation)])]),
    GPT2_SPLIT,
    Stage::Split(&[NUMBERS]),
    Stage::Split(&[THREE_DIGITS]),
];
const THREE_DIGITS: Alternative = Sequence(&[one(ascii_digit), one(ascii_digit), one(ascii_digit)]);

const FALCON: &[Stage] = &[
    Stage::Split(&[Sequence(&[many(math_or_punctuation_or_tick)])]),
    GPT2_SPLIT,
    Stage::Split(&[THREE_DIGITS]),
];

const LLAMA3: &[Stage] =
    &[Stage::Split(&[CONTRACTION, WORD, NUMBER_TO_3, OTHERS, SpaceToNewline, SPACE_BUT_LAST, SPACE])];

const MINICPM5: &[Stage] = &[
    DIGITS_TO_3_SPLIT,
    Stage::Split(&[CONTRACTION, WORD, NUMBERS, OTHERS, SpaceToNewline, SPACE_BUT_LAST, SPACE]),
];

const UFAKZEKA: &[Stage] = &[Stage::Split(&[WORD, NUMBER, OTHERS, SpaceToNewline, SPACE_BUT_LAST, SPACE])];

const QWEN35: &[Stage] = &[Stage::Split(&[
    CONTRACTION,
    Sequence(&[optional(lead), many(letter_or_mark)]),
    NUMBER,
    Sequence(&[optional(blank), many(other_but_mark), any(newline)]),
    SpaceToNewline,
    SPACE_BUT_LAST,
    SPACE,
])];

const JAIS2: &[Stage] = &[Stage::Split(&[
    CONTRACTION,
    WORD,
    NUMBER_TO_3,
    OTHERS,
    SpaceToNewline,
    SpaceNotBeforeText { min: 512, max: 512 },
    SpaceNotBeforeText { min: 256, max: 256 },
    SpaceNotBeforeText { min: 128, max: 128 },
    SpaceNotBeforeText { min: 64, max: 64 },
    SpaceNotBeforeText { min: 32, max: 32 },
    SpaceNotBeforeText { min: 16, max: 16 },
    SpaceNotBeforeText { min: 8, max: 8 },
    SpaceNotBeforeText { min: 4, max: 4 },
    SpaceNotBeforeText { min: 1, max: 2 },
    Sequence(&[one(space)]),
])];

const DEEPSEEK_LLM: &[Stage] = &[
    Stage::Split(&[Sequence(&[one(newline)])]),
    Stage::Split(&[Sequence(&[optional(space), many(deepseek_letter)])]),
    Stage::Split(&[Sequence(&[optional(space), many(deepseek_punctuation)])]),
    Stage::TrailingSpace,
    Stage::Split(&[Sequence(&[many(deepseek_cjk)])]),
    Stage::Split(&[NUMBERS]),
];

const DEEPSEEK_CODER: &[Stage] = &[
    Stage::Split(&[Sequence(&[one(newline)])]),
    Stage::Split(&[Sequence(&[optional(space), many(letter)])]),
    Stage::Split(&[Sequence(&[optional(space), many(punctuation)])]),
    Stage::Split(&[Sequence(&[many(deepseek_cjk)])]),
    DIGIT_SPLIT,
];

const CODE_WORD: Alternative = Sequence(&[one(ascii_punctuation), many(ascii_letter)]);
const MARKED_WORD: Alternative = Sequence(&[optional(lead_plain), many(letter_or_mark)]);
const MARKED_SPLIT: Stage = Stage::Split(&[
    CODE_WORD,
    MARKED_WORD,
    Sequence(&[optional(blank), many(punctuation_or_symbol), any(newline)]),
    SpaceToNewline,
    SPACE_BUT_LAST,
    SPACE,
]);

const DEEPSEEK3: &[Stage] = &[DIGITS_TO_3_SPLIT, KANJI_SPLIT, MARKED_SPLIT];

const SPARK: &[Stage] = &[
    DIGITS_TO_3_SPLIT,
    KANJI_SPLIT,
    Stage::Split(&[
        CODE_WORD,
        MARKED_WORD,
        Sequence(&[optional(blank), many(punctuation_or_symbol)]),
        Sequence(&[one(newline)]),
        SPACE_BUT_LAST,
        SPACE,
    ]),
    DIGIT_SPLIT,
];

const AFMOE: &[Stage] =
    &[Stage::Thousands, Stage::Split(&[Sequence(&[many(spaceless_script)])]), MARKED_SPLIT];

/// A word of letters and marks with its contraction.
const WORD_AND_CONTRACTION: Alternative =
    Sequence(&[optional(lead), many(letter_or_mark), Item::OptionalContraction]);

const YOUTU: &[Stage] = &[
    Stage::Split(&[
        Sequence(&[many(hangul)]),
        Sequence(&[many(youtu_punctuation)]),
        Sequence(&[many(bopomofo)]),
        Sequence(&[many(kanji_or_kana)]),
    ]),
    Stage::Split(&[WORD_AND_CONTRACTION, NUMBER, OTHERS_OR_SLASH, SpaceToNewline, SPACE_BUT_LAST, SPACE]),
];

const TINY_AYA: &[Stage] = &[
    Stage::Thousands,
    Stage::Split(&[
        WORD_AND_CONTRACTION,
        NUMBER_TO_3,
        OTHERS_OR_SLASH,
        SpaceToNewline,
        SPACE_BUT_LAST,
        SPACE,
    ]),
];

const BLOOM_SPLIT: Stage = Stage::Split(&[Sequence(&[optional(blank), many(bloom_word)])]);
const BLOOM: &[Stage] = &[BLOOM_SPLIT];
const VIKING: &[Stage] = &[BLOOM_SPLIT, DIGIT_SPLIT];

const TEKKEN: &[Stage] = &[Stage::Split(&[
    Sequence(&[optional(lead), any(not_lower_letter), many(not_upper_letter)]),
    Sequence(&[optional(lead), many(not_lower_letter), any(not_upper_letter)]),
    NUMBER,
    OTHERS_OR_SLASH,
    SpaceToNewline,
    SPACE_BUT_LAST,
    SPACE,
])];

const GPT4O: &[Stage] = &[Stage::Split(&[
    Sequence(&[optional(lead), any(not_lower_letter), many(not_upper_letter), Item::OptionalContraction]),
    Sequence(&[optional(lead), many(not_lower_letter), any(not_upper_letter), Item::OptionalContraction]),
    NUMBER_TO_3,
    OTHERS_OR_SLASH,
    SpaceToNewline,
    SPACE_BUT_LAST,
    SPACE,
])];

const GRANITE_MULTI: &[Stage] = &[Stage::Split(&[
    Sequence(&[optional(lead), any(not_lower_word), many(not_upper_word), Item::OptionalContraction]),
    Sequence(&[optional(lead), many(not_lower_word), any(not_upper_word), Item::OptionalContraction]),
    NUMBER_TO_3,
    OTHERS_OR_SLASH,
    SpaceToNewline,
    SPACE_BUT_LAST,
    SPACE,
])];

const KIMI_K2: &[Stage] = &[Stage::Split(&[
    Sequence(&[many(han)]),
    Sequence(&[optional(lead), many(letter_but_han), Item::OptionalContraction]),
    NUMBER_TO_3,
    OTHERS,
    SpaceToNewline,
    SPACE_BUT_LAST,
    SPACE,
])];

const CHAMELEON: &[Stage] = &[
    Stage::Split(&[Sequence(&{
        let [a, b, c, d, e, f, g, h, i, j] = literal!['<', 's', 'e', 'n', 't', 'i', 'n', 'e', 'l', ':'];
        [a, b, c, d, e, f, g, h, i, j, many(ascii_digit), one(|c| c.is('>'))]
    })]),
    Stage::Split(&[Sequence(&{
        let [a, b, c, d, e, f] = literal!['I', 'M', 'G', 'I', 'M', 'G'];
        [a, b, c, d, e, f, up_to(4, |c| matches!(c.char(), 'A'..='I')), one(|c| c.is('Z'))]
    })]),
    Stage::Split(&[
        Sequence(&[one(|c| matches!(c.char(), '\t' | '\n'))]),
        Sequence(&[one(blank), one(blank), one(blank), one(blank)]),
        Sequence(&[one(blank), one(blank)]),
    ]),
    DIGIT_SPLIT,
    Stage::Split(&[Sequence(&[one(punctuation_or_ascii)])]),
    GPT2_SPLIT,
];

const SUPERBPE: &[Stage] = &[Stage::Split(&[NUMBERS]), Stage::AsciiThousands];

const BAILING: &[Stage] =
    &[Stage::Split(&[CONTRACTION, WORD, NUMBER, OTHERS, SpaceToNewline, SPACE_BUT_LAST, SPACE])];

const SEED_CODER: &[Stage] = &[Stage::Split(&[
    CONTRACTION,
    WORD,
    NUMBER,
    Sequence(&[optional(blank), many(other)]),
    SpaceToNewline,
    SPACE_BUT_LAST,
    SPACE,
])];

const EXAONE_MOE: &[Stage] = &[Stage::Split(&[
    CONTRACTION,
    SpacedWords,
    NUMBER,
    Sequence(&[optional(blank), many(other), optional(newline_or_slash)]),
    SpaceToNewline,
    SPACE_BUT_LAST,
    SPACE,
])];

/// The letters of DeepSeek's first models: Latin, Greek, Cyrillic, Armenian, Georgian, Cherokee and their kin.
const DEEPSEEK_LETTERS: &[(char, char)] = &[
    ('A', 'Z'),
    ('a', 'z'),
    ('\u{B5}', '\u{B5}'),
    ('\u{C0}', '\u{D6}'),
    ('\u{D8}', '\u{F6}'),
    ('\u{F8}', '\u{1BA}'),
    ('\u{1BC}', '\u{1BF}'),
    ('\u{1C4}', '\u{293}'),
    ('\u{295}', '\u{2AF}'),
    ('\u{370}', '\u{373}'),
    ('\u{376}', '\u{376}'),
    ('\u{377}', '\u{377}'),
    ('\u{37B}', '\u{37D}'),
    ('\u{37F}', '\u{37F}'),
    ('\u{386}', '\u{386}'),
    ('\u{388}', '\u{38A}'),
    ('\u{38C}', '\u{38C}'),
    ('\u{38E}', '\u{3A1}'),
    ('\u{3A3}', '\u{3F5}'),
    ('\u{3F7}', '\u{481}'),
    ('\u{48A}', '\u{52F}'),
    ('\u{531}', '\u{556}'),
    ('\u{10A0}', '\u{10C5}'),
    ('\u{13A0}', '\u{13F5}'),
    ('\u{13F8}', '\u{13FD}'),
    ('\u{1C90}', '\u{1CBA}'),
    ('\u{1CBD}', '\u{1CBF}'),
    ('\u{1D00}', '\u{1D2B}'),
    ('\u{1D6B}', '\u{1D77}'),
    ('\u{1D79}', '\u{1D9A}'),
    ('\u{1E00}', '\u{1F15}'),
    ('\u{1F18}', '\u{1F1D}'),
    ('\u{1F20}', '\u{1F45}'),
    ('\u{1F48}', '\u{1F4D}'),
    ('\u{1F50}', '\u{1F57}'),
    ('\u{1F59}', '\u{1F59}'),
    ('\u{1F5B}', '\u{1F5B}'),
    ('\u{1F5D}', '\u{1F5D}'),
    ('\u{1F5F}', '\u{1F7D}'),
    ('\u{1F80}', '\u{1FB4}'),
    ('\u{1FB6}', '\u{1FBC}'),
    ('\u{1FBE}', '\u{1FBE}'),
    ('\u{1FC2}', '\u{1FC4}'),
    ('\u{1FC6}', '\u{1FCC}'),
    ('\u{1FD0}', '\u{1FD3}'),
    ('\u{1FD6}', '\u{1FDB}'),
    ('\u{1FE0}', '\u{1FEC}'),
    ('\u{1FF2}', '\u{1FF4}'),
    ('\u{1FF6}', '\u{1FFC}'),
    ('\u{2102}', '\u{2102}'),
    ('\u{2107}', '\u{2107}'),
    ('\u{210A}', '\u{2113}'),
    ('\u{2115}', '\u{2115}'),
    ('\u{2119}', '\u{211D}'),
    ('\u{2124}', '\u{2124}'),
    ('\u{2126}', '\u{2126}'),
    ('\u{2128}', '\u{2128}'),
    ('\u{212A}', '\u{212D}'),
    ('\u{212F}', '\u{2134}'),
    ('\u{2139}', '\u{2139}'),
    ('\u{213C}', '\u{213F}'),
    ('\u{2145}', '\u{2149}'),
    ('\u{214E}', '\u{214E}'),
    ('\u{2183}', '\u{2183}'),
    ('\u{2184}', '\u{2184}'),
    ('\u{2C00}', '\u{2C7B}'),
    ('\u{2C7E}', '\u{2CE4}'),
    ('\u{2CEB}', '\u{2CEE}'),
    ('\u{2CF2}', '\u{2CF2}'),
    ('\u{2CF3}', '\u{2CF3}'),
    ('\u{A640}', '\u{A66D}'),
    ('\u{A680}', '\u{A69B}'),
    ('\u{A722}', '\u{A76F}'),
    ('\u{A771}', '\u{A787}'),
    ('\u{A78B}', '\u{A78E}'),
    ('\u{AB70}', '\u{ABBF}'),
    ('\u{FB00}', '\u{FB06}'),
    ('\u{FB13}', '\u{FB17}'),
    ('\u{FF21}', '\u{FF3A}'),
    ('\u{FF41}', '\u{FF5A}'),
    ('\u{10400}', '\u{1044F}'),
    ('\u{104B0}', '\u{104D3}'),
    ('\u{104D8}', '\u{104FB}'),
    ('\u{10C80}', '\u{10CB2}'),
    ('\u{10CC0}', '\u{10CF2}'),
    ('\u{118A0}', '\u{118DF}'),
    ('\u{1E900}', '\u{1E943}'),
];
