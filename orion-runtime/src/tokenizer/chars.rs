//! Characters with their Unicode class, as pre-tokenizers see them.

use unicode_general_category::{GeneralCategory as G, get_general_category};

const LETTER: u32 = 1 << 24;
const NUMBER: u32 = 1 << 25;
const MARK: u32 = 1 << 26;
const PUNCTUATION: u32 = 1 << 27;
const SYMBOL: u32 = 1 << 28;
const SPACE: u32 = 1 << 29;
const CONTROL: u32 = 1 << 30;

/// A character and its class in four bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Char(u32);

impl Char {
    pub(crate) fn new(letter: char) -> Self {
        let code = letter as u32;
        match ASCII.get(code as usize) {
            Some(&class) => Self(code | class),
            None => Self(code | class_of(letter)),
        }
    }

    fn code(self) -> u32 {
        self.0 & 0x00FF_FFFF
    }

    pub(crate) fn is(self, letter: char) -> bool {
        self.code() == letter as u32
    }

    /// The character; pre-tokenizers with literal classes see other spaces than ASCII's as a vertical tab.
    pub(crate) fn literal(self) -> char {
        if self.code() > 0x7F && self.is_space() { '\u{B}' } else { self.char() }
    }

    pub(crate) fn char(self) -> char {
        char::from_u32(self.code()).unwrap_or(char::REPLACEMENT_CHARACTER)
    }

    pub(crate) fn len_utf8(self) -> usize {
        self.char().len_utf8()
    }

    /// `\p{L}`
    pub(crate) fn is_letter(self) -> bool {
        self.0 & LETTER != 0
    }

    /// `\p{N}`
    pub(crate) fn is_number(self) -> bool {
        self.0 & NUMBER != 0
    }

    /// `\p{M}`
    pub(crate) fn is_mark(self) -> bool {
        self.0 & MARK != 0
    }

    /// `\p{P}`
    pub(crate) fn is_punctuation(self) -> bool {
        self.0 & PUNCTUATION != 0
    }

    /// `\p{S}`
    pub(crate) fn is_symbol(self) -> bool {
        self.0 & SYMBOL != 0
    }

    /// `\s`
    pub(crate) fn is_space(self) -> bool {
        self.0 & SPACE != 0
    }

    /// `\p{C}`, unassigned characters aside
    pub(crate) fn is_control(self) -> bool {
        self.0 & CONTROL != 0
    }

    pub(crate) fn is_newline(self) -> bool {
        self.is('\r') || self.is('\n')
    }
}

const fn ascii() -> [u32; 128] {
    let mut table = [CONTROL; 128];
    let mut code = 0;
    while code < 128 {
        table[code as usize] = match code {
            b'A'..=b'Z' | b'a'..=b'z' => LETTER,
            b'0'..=b'9' => NUMBER,
            b' ' => SPACE,
            b'\t'..=b'\r' => SPACE | CONTROL,
            b'$' | b'+' | b'<'..=b'>' | b'^' | b'`' | b'|' | b'~' => SYMBOL,
            b'!'..=b'~' => PUNCTUATION,
            _ => CONTROL,
        };
        code += 1;
    }
    table
}

const ASCII: [u32; 128] = ascii();

fn class_of(letter: char) -> u32 {
    let space = if letter.is_whitespace() { SPACE } else { 0 };
    space
        | match get_general_category(letter) {
            G::UppercaseLetter
            | G::LowercaseLetter
            | G::TitlecaseLetter
            | G::ModifierLetter
            | G::OtherLetter => LETTER,
            G::DecimalNumber | G::LetterNumber | G::OtherNumber => NUMBER,
            G::NonspacingMark | G::SpacingMark | G::EnclosingMark => MARK,
            G::ConnectorPunctuation
            | G::DashPunctuation
            | G::OpenPunctuation
            | G::ClosePunctuation
            | G::InitialPunctuation
            | G::FinalPunctuation
            | G::OtherPunctuation => PUNCTUATION,
            G::MathSymbol | G::CurrencySymbol | G::ModifierSymbol | G::OtherSymbol => SYMBOL,
            G::Control | G::Format | G::Surrogate | G::PrivateUse => CONTROL,
            _ => 0,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ascii_has_the_classes_of_unicode() {
        for code in 0..128u8 {
            let letter = char::from(code);
            assert_eq!(Char::new(letter).0, u32::from(code) | class_of(letter), "{letter:?}");
        }
    }

    #[test]
    fn spaces_beyond_ascii_are_spaces() {
        for letter in ['\u{85}', '\u{A0}', '\u{1680}', '\u{2003}', '\u{2028}', '\u{3000}'] {
            assert!(Char::new(letter).is_space());
            assert_eq!(Char::new(letter).literal(), '\u{B}');
        }
        assert!(!Char::new('\u{200B}').is_space());
    }
}
