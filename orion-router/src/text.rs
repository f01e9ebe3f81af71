//! What can be told from a prompt's letters alone: folding, language, and whether there is anything to route.

/// Rules, n-grams and language look at no more of a prompt than this.
pub(crate) const LOOK_BYTES: usize = 8 * 1024;

/// The start of a prompt, at most [`LOOK_BYTES`], cut between characters.
pub(crate) fn start_of(text: &str) -> &str {
    &text[..text.floor_char_boundary(LOOK_BYTES)]
}

/// Lower case, without the accents of Latin letters: `Écris` and `ecris` are one word.
pub(crate) fn fold(text: &str) -> String {
    let mut folded = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii() {
            folded.push(c.to_ascii_lowercase());
            continue;
        }
        match c.to_lowercase().next().unwrap_or(c) {
            'à' | 'á' | 'â' | 'ã' | 'ä' | 'å' => folded.push('a'),
            'ç' => folded.push('c'),
            'è' | 'é' | 'ê' | 'ë' => folded.push('e'),
            'ì' | 'í' | 'î' | 'ï' => folded.push('i'),
            'ñ' => folded.push('n'),
            'ò' | 'ó' | 'ô' | 'õ' | 'ö' => folded.push('o'),
            'ù' | 'ú' | 'û' | 'ü' => folded.push('u'),
            'ý' | 'ÿ' => folded.push('y'),
            'œ' => folded.push_str("oe"),
            'æ' => folded.push_str("ae"),
            'ß' => folded.push_str("ss"),
            '’' | '‘' => folded.push('\''),
            other => folded.push(other),
        }
    }
    folded
}

/// Frequent short words, folded, that tell languages of Latin script apart.
const FUNCTION_WORDS: &[(&str, &[&str])] = &[
    (
        "en",
        &[
            "the", "is", "are", "what", "how", "my", "to", "of", "and", "you", "i", "in", "for", "me", "do",
            "does", "with", "this", "that", "can", "it", "be", "was", "why", "when", "who", "your", "from",
            "an", "give", "write", "make", "please", "should", "would", "have",
        ],
    ),
    (
        "fr",
        &[
            "le", "la", "les", "un", "une", "des", "du", "et", "est", "que", "qui", "quoi", "je", "tu", "il",
            "elle", "nous", "vous", "pour", "dans", "sur", "avec", "mon", "ma", "mes", "ce", "cette", "ces",
            "au", "aux", "comment", "pourquoi", "quel", "quelle", "quels", "quelles", "moi", "toi", "en",
            "est-ce", "c'est", "ecris", "fais", "donne", "peux", "sont", "combien", "ne", "pas", "où",
        ],
    ),
    (
        "de",
        &[
            "der", "die", "das", "und", "ist", "ein", "eine", "ich", "nicht", "wie", "was", "mit", "auf",
            "den", "dem", "wir", "sie", "zu",
        ],
    ),
    (
        "es",
        &[
            "el", "los", "las", "una", "que", "es", "como", "por", "para", "con", "mi", "del", "y", "cual",
            "donde", "esta",
        ],
    ),
    (
        "it",
        &[
            "il", "lo", "gli", "una", "che", "e", "come", "per", "con", "mio", "della", "di", "sono",
            "perche", "questo",
        ],
    ),
    (
        "pt",
        &["o", "os", "uma", "que", "como", "por", "para", "com", "meu", "do", "da", "nao", "voce", "onde"],
    ),
];

/// The language of a text as ISO 639-1, if its function words or its script say so.
#[must_use]
pub fn language(text: &str) -> Option<&'static str> {
    language_of_folded(&fold(start_of(text)))
}

pub(crate) fn language_of_folded(folded: &str) -> Option<&'static str> {
    let mut counts = [0_u32; FUNCTION_WORDS.len()];
    for word in folded.split(|c: char| !(c.is_alphanumeric() || c == '\'' || c == '-')) {
        let elided =
            ["l'", "d'", "j'", "qu'", "s'", "n'", "m'", "t'"].iter().any(|start| word.starts_with(start));
        if elided {
            counts[1] += 1;
        }
        for (count, (_, words)) in counts.iter_mut().zip(FUNCTION_WORDS) {
            *count += u32::from(words.contains(&word));
        }
    }
    let most = *counts.iter().max()?;
    if most > 0 {
        let at = counts.iter().position(|&count| count == most)?;
        return Some(FUNCTION_WORDS[at].0);
    }
    let script = folded.chars().find_map(|c| match c {
        '\u{3040}'..='\u{30ff}' => Some("ja"),
        '\u{4e00}'..='\u{9fff}' => Some("zh"),
        '\u{ac00}'..='\u{d7af}' => Some("ko"),
        '\u{400}'..='\u{4ff}' => Some("ru"),
        '\u{600}'..='\u{6ff}' => Some("ar"),
        _ => None,
    })?;
    // Kanji open many Japanese sentences; kana anywhere decide.
    if script == "zh" && folded.chars().any(|c| matches!(c, '\u{3040}'..='\u{30ff}')) {
        return Some("ja");
    }
    Some(script)
}

/// Why a prompt holds nothing a router could judge, if so.
#[must_use]
pub fn unroutable(prompt: &str) -> Option<&'static str> {
    let text = start_of(prompt);
    let mut letters = text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase);
    let Some(first) = letters.next() else {
        return Some(if text.trim().is_empty() { "the prompt is empty" } else { "the prompt holds no word" });
    };
    let rest = letters.clone().count();
    if rest >= 3 && letters.all(|c| c == first) {
        return Some("the prompt repeats one character");
    }
    let broken =
        text.chars().filter(|&c| c == char::REPLACEMENT_CHARACTER || c.is_control() && !c.is_whitespace());
    if broken.count() * 4 > text.chars().count() {
        return Some("the prompt is no readable text");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folding_drops_case_and_accents() {
        assert_eq!(fold("Écris où ÇA, Œuvre ’s"), "ecris ou ca, oeuvre 's");
        assert_eq!(fold("日本"), "日本");
    }

    #[test]
    fn languages_are_told_apart() {
        for (text, want) in [
            ("what is the weather like in Paris", Some("en")),
            ("quel temps fait-il à Paris dans la matinée", Some("fr")),
            ("résume l'article d'hier", Some("fr")),
            ("wie ist das Wetter und was ist los", Some("de")),
            ("これは漢字です", Some("ja")),
            ("漢字です", Some("ja")),
            ("你好世界", Some("zh")),
            ("привет мир", Some("ru")),
            ("12345", None),
            ("", None),
        ] {
            assert_eq!(language(text), want, "{text}");
        }
    }

    #[test]
    fn prompts_without_content_are_named() {
        for (text, want) in [
            ("", "the prompt is empty"),
            (" \n\t ", "the prompt is empty"),
            ("?!... --", "the prompt holds no word"),
            ("aaaaaaaaAAAA", "the prompt repeats one character"),
            ("z z z z z", "the prompt repeats one character"),
            ("ab\u{fffd}\u{fffd}\u{fffd}\u{1}", "the prompt is no readable text"),
        ] {
            assert_eq!(unroutable(text), Some(want), "{text:?}");
        }
        assert_eq!(unroutable(&"a".repeat(1 << 20)), Some("the prompt repeats one character"));
        assert_eq!(unroutable("no"), None);
        assert_eq!(unroutable("何ですか"), None);
    }
}
