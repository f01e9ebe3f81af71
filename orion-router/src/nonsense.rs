//! Prompts that mean nothing, made up: what a head learns to abstain from before anybody shows it an example.

use crate::linear::next_random;

const ROWS: &[&str] = &["qwertyuiop", "asdfghjkl", "zxcvbnm", "azertyuiop", "qsdfghjklm", "wxcvbn"];
const CONSONANTS: &[u8] = b"bcdfghjklmnpqrstvwxz";
const VOWELS: &[u8] = b"aeiouy";
const SYMBOLS: &[u8] = b"!?#$%&*+-/=@~.,;:_";

struct Draw(u64);

impl Draw {
    fn below(&mut self, end: usize) -> usize {
        (next_random(&mut self.0) % end as u64) as usize
    }

    fn of(&mut self, letters: &[u8]) -> char {
        char::from(letters[self.below(letters.len())])
    }

    /// A run along a row of the keyboard, in either direction.
    fn keys(&mut self) -> String {
        let row = ROWS[self.below(ROWS.len())];
        let start = self.below(row.len() - 2);
        let end = (start + 3 + self.below(5)).min(row.len());
        let run = &row[start..end];
        if self.below(3) == 0 { run.chars().rev().collect() } else { run.to_owned() }
    }

    fn letters(&mut self) -> String {
        (0..2 + self.below(8)).map(|_| char::from(b'a' + self.below(26) as u8)).collect()
    }

    fn consonants(&mut self) -> String {
        (0..3 + self.below(5)).map(|_| self.of(CONSONANTS)).collect()
    }

    /// Syllables that could be a word and are none.
    fn syllables(&mut self) -> String {
        let mut word = String::new();
        for _ in 0..1 + self.below(3) {
            for _ in 0..1 + self.below(2) {
                word.push(self.of(CONSONANTS));
            }
            word.push(self.of(VOWELS));
            if self.below(2) == 0 {
                word.push(self.of(CONSONANTS));
            }
        }
        word
    }

    fn mixed(&mut self) -> String {
        let parts = [&b"abcdefghijklmnopqrstuvwxyz"[..], b"0123456789", SYMBOLS];
        (0..4 + self.below(8))
            .map(|_| {
                let part = parts[self.below(3)];
                self.of(part)
            })
            .collect()
    }

    /// One thing again and again.
    fn again(&mut self) -> String {
        let thing = self.letters();
        thing[..thing.len().min(3)].repeat(2 + self.below(5))
    }
}

/// `count` texts, the same for the same seed: keys hit in a row, random letters, consonants, made-up syllables,
/// letters between digits and signs, repetitions, alone and several in a row.
pub(crate) fn nonsense(count: usize, seed: u64) -> Vec<String> {
    let mut draw = Draw(seed);
    (0..count)
        .map(|at| {
            let words = if draw.below(3) == 0 { 1 } else { 2 + draw.below(5) };
            let word = |draw: &mut Draw| match at % 6 {
                0 => draw.keys(),
                1 => draw.letters(),
                2 => draw.consonants(),
                3 => draw.syllables(),
                4 => draw.mixed(),
                _ => draw.again(),
            };
            (0..words).map(|_| word(&mut draw)).collect::<Vec<_>>().join(" ")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_texts_and_none_is_empty() {
        let texts = nonsense(600, 1);
        assert_eq!(texts, nonsense(600, 1));
        assert_ne!(texts, nonsense(600, 2));
        let distinct: std::collections::BTreeSet<&String> = texts.iter().collect();
        assert!(distinct.len() > 550, "{}", distinct.len());
        assert!(texts.iter().all(|text| !text.trim().is_empty()));
    }
}
