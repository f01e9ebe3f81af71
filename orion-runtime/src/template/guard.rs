//! Refuses templates that would exhaust the stack, and runs the others on a large one.
//!
//! The engine parses chains of operators, filters, attributes and `elif` in a loop but compiles them by recursion:
//! a few kilobytes of minus signs overflow an ordinary stack, which no `catch_unwind` can stop. Chains are counted
//! here before the engine sees them, and everything it does with a template happens on a stack of its own.

use orion_core::{Error, ErrorKind, Result};

/// Templates in use have up to 17 KB.
const MAX_SOURCE: usize = 64 << 10;
/// Operators, dots, brackets and operator words in one tag. Templates in use have up to about 100.
const MAX_CHAIN: usize = 1_000;
/// `elif` tags in a template.
const MAX_ELIF: usize = 250;
/// Reserved, not used: pages are taken as they are touched.
const STACK: usize = 256 << 20;

fn refused(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Template, message).about("chat template")
}

/// Checks a template's size and shape. The result is the template without the tags that only training needs.
pub(super) fn check(source: &str) -> Result<String> {
    if source.len() > MAX_SOURCE {
        return Err(refused(format!(
            "the template has {} bytes, at most {MAX_SOURCE} are allowed",
            source.len()
        )));
    }
    let mut kept = String::with_capacity(source.len());
    let mut elif = 0;
    let mut rest = source;
    while let Some(start) = find_tag(rest) {
        let (text, tag) = rest.split_at(start);
        kept.push_str(text);
        let end = tag_end(tag);
        let (tag, after) = tag.split_at(end);
        rest = after;
        if tag.starts_with("{#") {
            kept.push_str(tag);
            continue;
        }
        let (words, chain, places) = measure(tag);
        if chain > MAX_CHAIN {
            return Err(refused(format!(
                "an expression chains {chain} operators, at most {MAX_CHAIN} are allowed"
            )));
        }
        match words.first().filter(|_| tag.starts_with("{%")).copied() {
            Some("elif") => {
                elif += 1;
                if elif > MAX_ELIF {
                    return Err(refused(format!("the template has more than {MAX_ELIF} elif tags")));
                }
                push_measured(tag, &places, &mut kept);
            }
            // Marks what the model said, for training; here the text between the tags is kept as it is.
            Some("generation") => kept.push_str(&tag.replacen("generation", "if true", 1)),
            Some("endgeneration") => kept.push_str(&tag.replacen("endgeneration", "endif", 1)),
            Some("set") => push_set(tag, &places, &mut kept),
            Some("raw") => {
                kept.push_str(tag);
                let end = end_of_raw(rest);
                kept.push_str(&rest[..end]);
                rest = &rest[end..];
            }
            _ => push_measured(tag, &places, &mut kept),
        }
    }
    kept.push_str(rest);
    Ok(kept)
}

fn find_tag(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    memchr::memchr_iter(b'{', bytes).find(|&at| matches!(bytes.get(at + 1), Some(b'{' | b'%' | b'#')))
}

/// Where the tag at the start of `text` ends; strings may hold anything. An unfinished tag takes the rest.
fn tag_end(text: &str) -> usize {
    let bytes = text.as_bytes();
    if bytes[1] == b'#' {
        return text.find("#}").map_or(text.len(), |at| at + 2);
    }
    let close: &[u8] = if bytes[1] == b'%' { b"%}" } else { b"}}" };
    let (mut at, mut depth) = (2, 0usize);
    while at < bytes.len() {
        match bytes[at] {
            b'"' | b'\'' => at = string_end(bytes, at),
            _ if depth == 0 && bytes[at..].starts_with(close) => return at + 2,
            b'{' => {
                depth += 1;
                at += 1;
            }
            b'}' => {
                depth = depth.saturating_sub(1);
                at += 1;
            }
            _ => at += 1,
        }
    }
    text.len()
}

/// Just after the string that begins at `at`.
fn string_end(bytes: &[u8], at: usize) -> usize {
    let quote = bytes[at];
    let mut end = at + 1;
    while end < bytes.len() && bytes[end] != quote {
        end += if bytes[end] == b'\\' { 2 } else { 1 };
    }
    (end + 1).min(bytes.len())
}

/// A filter that hands on what it is given and charges for its length.
///
/// The engine joins lists lazily and charges nothing for it: forty times `x + x` is a list of 2^40 entries. So what
/// stands before a `+` is measured.
pub(super) const MEASURED: &str = "__measured";

/// A filter that hands on what it is given and charges for all that it holds.
///
/// A list may hold another one twice: forty times `[x, x]` is small until it is written or compared. So what stands
/// before a `~`, `==` or `!=` is weighed.
pub(super) const WEIGHED: &str = "__weighed";

/// A filter that hands on what it is given and charges a little for all that it holds.
///
/// What is weighed when it is given a name cannot be too much for `in`, `join`, `sort` and whatever else looks at all of it.
pub(super) const NAMED: &str = "__named";

/// The expression of a `set` tag, from just after its `=` to the tag's end.
fn assigned(tag: &str) -> Option<(usize, usize)> {
    let bytes = tag.as_bytes();
    let mut at = 2;
    while at < bytes.len() {
        match bytes[at] {
            b'"' | b'\'' => at = string_end(bytes, at),
            b'=' => {
                let end = tag.strip_suffix("%}")?;
                let end = end.strip_suffix(['-', '+']).unwrap_or(end).len();
                return (at + 1 < end).then_some((at + 1, end));
            }
            _ => at += 1,
        }
    }
    None
}

/// Appends a `set` tag so that its value is weighed, with everything else as [`push_measured`].
fn push_set(tag: &str, places: &[usize], kept: &mut String) {
    let Some((start, end)) = assigned(tag) else { return push_measured(tag, places, kept) };
    kept.push_str(&tag[..start]);
    kept.push_str(" (");
    let inside: Vec<usize> = places.iter().filter(|&&at| at >= start).map(|at| at - start).collect();
    push_measured(&tag[start..end], &inside, kept);
    kept.push_str(")|");
    kept.push_str(NAMED);
    kept.push(' ');
    kept.push_str(&tag[end..]);
}

/// Appends a tag with what stands before each of the operators at `places` measured or weighed.
fn push_measured(tag: &str, places: &[usize], kept: &mut String) {
    let mut from = 0;
    for &at in places {
        kept.push_str(&tag[from..at]);
        kept.push('|');
        kept.push_str(if tag.as_bytes()[at] == b'+' { MEASURED } else { WEIGHED });
        kept.push(' ');
        from = at;
    }
    kept.push_str(&tag[from..]);
}

/// The words of a tag; how many operators it has, those that are words included; and where it adds, joins or compares two operands.
fn measure(tag: &str) -> (Vec<&str>, usize, Vec<usize>) {
    let bytes = tag.as_bytes();
    let (mut words, mut chain, mut at) = (Vec::new(), 0, 2);
    let (mut places, mut after_operand) = (Vec::new(), false);
    while at < bytes.len() {
        match bytes[at] {
            b'"' | b'\'' => {
                at = string_end(bytes, at);
                after_operand = true;
            }
            byte if byte.is_ascii_alphanumeric() || byte == b'_' => {
                let len = bytes[at..].iter().take_while(|b| b.is_ascii_alphanumeric() || **b == b'_').count();
                let word = &tag[at..at + len];
                let operator = matches!(word, "and" | "or" | "not" | "in" | "is" | "if" | "else" | "elif");
                chain += usize::from(operator);
                // After `is` comes the name of a test, which takes no filter.
                after_operand = !operator && !matches!(words.as_slice(), [.., "is"] | [.., "is", "not"]);
                words.push(word);
                at += len;
            }
            byte => {
                let closes = matches!(bytes.get(at + 1..), Some([b'%' | b'}', b'}']));
                let compares = matches!(byte, b'=' | b'!') && bytes.get(at + 1) == Some(&b'=');
                if after_operand && (compares || byte == b'~' || (byte == b'+' && !closes)) {
                    places.push(at);
                }
                chain += usize::from(byte.is_ascii_punctuation() && !matches!(byte, b',' | b':'));
                after_operand =
                    matches!(byte, b')' | b']' | b'}') || (after_operand && byte.is_ascii_whitespace());
                at += 1;
            }
        }
    }
    (words, chain, places)
}

/// Where the `{% endraw %}` of a raw block begins.
fn end_of_raw(text: &str) -> usize {
    let mut from = 0;
    while let Some(at) = text[from..].find("{%") {
        let inside = text[from + at + 2..].trim_start_matches(['-', '+']).trim_start();
        if inside.starts_with("endraw") {
            return from + at;
        }
        from += at + 2;
    }
    text.len()
}

/// Runs `work` on a thread with a large stack and waits for it.
pub(super) fn on_large_stack<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("chat-template".to_owned()).stack_size(STACK);
        let thread = thread.spawn_scoped(scope, work).map_err(|error| {
            Error::new(ErrorKind::OutOfMemory, "no thread for the chat template").with_source(error)
        })?;
        thread.join().unwrap_or_else(|_| Err(refused("the template engine failed on this template")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_tags_become_blocks_that_do_nothing() {
        let source = "a{% generation %}b{%- endgeneration -%}c {{ 'generation' }}";
        assert_eq!(check(source).unwrap(), "a{% if true %}b{%- endif -%}c {{ 'generation' }}");
    }

    #[test]
    fn what_stands_before_an_operator_is_measured_and_nothing_else() {
        for (source, expected) in [
            (
                "{{ a + b[0]+ 'c' +(d) +1 }}",
                "{{ a |__measured + b[0]|__measured + 'c' |__measured +(d) |__measured +1 }}",
            ),
            ("{%+ if a +%}x+y{%- endif +%}", "{%+ if a +%}x+y{%- endif +%}"),
            ("{{ (+1) }}{{ 'a + b' }}{{ a and +1 }}", "{{ (+1) }}{{ 'a + b' }}{{ a and +1 }}"),
            ("{% if a ~ 'b' == c != d %}", "{% if a |__weighed ~ 'b' |__weighed == c |__weighed != d %}"),
            ("{% set a = b <= c %}", "{% set a = ( b <= c )|__named %}"),
            ("{%- set a.b=b + 'c=' -%}", "{%- set a.b= (b |__measured + 'c=' )|__named -%}"),
            ("{% set a, b = c, d %}", "{% set a, b = ( c, d )|__named %}"),
            ("{% set a %}=b{% endset %}", "{% set a %}=b{% endset %}"),
            ("{% if a is defined == b is not string ~ c %}", "{% if a is defined == b is not string ~ c %}"),
            ("{{ a() + {'b': 1}}}", "{{ a() |__measured + {'b': 1}}}"),
        ] {
            assert_eq!(check(source).unwrap(), expected);
        }
    }

    #[test]
    fn strings_comments_and_raw_blocks_hide_their_contents() {
        let minus = "-".repeat(2_000);
        for harmless in [
            format!("{{{{ '{minus}' }}}}"),
            format!("{{# {minus} #}}"),
            format!("{{% raw %}}{{{{ {minus} }}}}{{% endraw %}}"),
            minus.clone(),
        ] {
            assert_eq!(check(&harmless).unwrap(), harmless);
        }
        assert!(check(&format!("{{{{ {minus}1 }}}}")).is_err());
    }

    #[test]
    fn unfinished_tags_and_strings_do_not_confuse_it() {
        for source in ["{{", "{%", "{#", "{{ '", "{{ '\\", "{% raw %}", "{{ {} }}", "{{ {'a': {'b': 1}}}}"] {
            assert_eq!(check(source).unwrap(), source);
        }
    }
}
