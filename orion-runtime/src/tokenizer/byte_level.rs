//! GPT-2's way to write any byte as a printable character, so that vocabularies are valid text.

/// The character that stands for a byte: itself if printable in Latin-1, else one from U+0100 on.
const fn alphabet() -> [char; 256] {
    let mut table = ['\0'; 256];
    let mut byte = 0;
    let mut next = 0x100;
    while byte < 256 {
        let printable = matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
        let code = if printable { byte as u32 } else { next };
        table[byte] = match char::from_u32(code) {
            Some(letter) => letter,
            None => '\0',
        };
        if !printable {
            next += 1;
        }
        byte += 1;
    }
    table
}

pub(crate) const ALPHABET: [char; 256] = alphabet();

/// The byte that a character of the alphabet stands for.
fn byte_of(letter: char) -> Option<u8> {
    let code = letter as u32;
    match code {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => u8::try_from(code).ok(),
        0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        0x121..=0x142 => u8::try_from(code - 0x121 + 0x7F).ok(),
        0x143 => Some(0xAD),
        _ => None,
    }
}

/// Appends the bytes written as `text`. What is not in the alphabet stands for itself.
pub(crate) fn decode(text: &[u8], out: &mut Vec<u8>) {
    let Ok(text) = std::str::from_utf8(text) else {
        out.extend_from_slice(text);
        return;
    };
    for letter in text.chars() {
        match byte_of(letter) {
            Some(byte) => out.push(byte),
            None => out.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

/// Writes `bytes` in the alphabet.
pub(crate) fn encode(bytes: &[u8], out: &mut String) {
    out.extend(bytes.iter().map(|&byte| ALPHABET[usize::from(byte)]));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_comes_back() {
        let bytes: Vec<u8> = (0..=255).collect();
        let mut text = String::new();
        encode(&bytes, &mut text);
        assert_eq!(text.chars().count(), 256);
        let mut back = Vec::new();
        decode(text.as_bytes(), &mut back);
        assert_eq!(back, bytes);
    }

    #[test]
    fn the_landmarks_of_the_alphabet() {
        let at = |byte: u8| ALPHABET[usize::from(byte)];
        assert_eq!([at(b' '), at(b'\n'), at(0), at(0x7F), at(0xAD)], ['Ġ', 'Ċ', 'Ā', 'ġ', 'Ń']);
    }
}
