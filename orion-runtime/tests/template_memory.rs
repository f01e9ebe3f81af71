//! What a hostile chat template may take: rendered and tokenised, each of these stays within a bound. A test of its own, so that
//! nothing else allocates.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

mod support;

use orion_core::{Message, Role};
use orion_runtime::{ChatTemplate, RenderOptions, Tokenizer};
use peak_alloc::PeakAlloc;
use support::{string, strings, with_metadata};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Bytes.
const MOST: usize = 200 << 20;

fn tokenizer() -> Tokenizer {
    let header = with_metadata(vec![
        ("tokenizer.ggml.model", string("gpt2")),
        ("tokenizer.ggml.tokens", strings(&["a", "b"])),
        ("tokenizer.ggml.merges", strings::<&str>(&[])),
    ]);
    Tokenizer::from_header(&header).unwrap()
}

#[test]
fn templates_that_multiply_text_stay_small() {
    let tokenizer = tokenizer();
    let mut largest = 0;
    for count in [
        1_000,
        100_000,
        1_000_000,
        2_000_000,
        3_000_000,
        5_000_000,
        10_000_000,
        100_000_000,
        1_000_000_000_000_i64,
    ] {
        for source in [
            "{{ 'a' * N }}",
            "{{ N * 'a' }}",
            "{% set x = 'a' * N %}{{ x ~ x }}",
            "{% set x = 'a' * N %}{% for i in range(100) %}{% set y = x ~ i %}{% endfor %}",
            "{% for i in range(1000) %}{{ 'a' * (N / 1000) | int }}{% endfor %}",
            "{{ ['a'] * N }}",
            "{{ (['a'] * N) | join('b') }}",
            "{{ ['a', 'a', 'a'] | join('b' * N) }}",
            "{{ ('a' * 1000) | replace('a', 'b' * (N / 1000) | int) }}",
            "{{ ('a' * 1000).replace('a', 'b' * (N / 1000) | int) }}",
            "{{ range(N) | list }}",
            "{{ range(N) | join('a') }}",
            "{{ ('a' * N) | list | length }}",
            "{{ ('a' * N).split('a') | length }}",
            "{{ ('a ' * N) | upper | trim | title | capitalize }}",
            "{{ 'a' | center(N) }}",
            "{{ '%Ns' | format('a') }}",
            "{{ 'a' | indent(N, true) }}",
            "{{ ('a\n' * 1000) | indent((N / 1000) | int) }}",
            "{{ [[1]] | tojson(indent=N) }}",
            "{{ ('\"' * N) | tojson }}",
            "{{ ('&' * N) | escape }}",
            "{{ strftime_now('%c' * N) }}",
            "{{ ('a' * N)[::-1] }}",
            "{% macro m(n) %}{{ 'a' * N }}{% endmacro %}{{ m(1) ~ m(2) }}",
            "{% set x %}{{ 'a' * N }}{% endset %}{{ x }}{{ x }}",
            "{% set ns = namespace(x='a') %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
            "{% set ns = namespace(x='a') %}{% for i in range(40) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
            "{% set ns = namespace(x=['a']) %}{% for i in range(40) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x | join }}",
            "{{ 10 ** N }}",
            "{{ messages[0].content * N }}",
        ] {
            let source = source.replace('N', &count.to_string());
            let messages = [Message::new(Role::User, "a")];
            let before = ALLOCATOR.current_usage();
            ALLOCATOR.reset_peak_usage();
            if let Ok(template) = ChatTemplate::new(&source)
                && let Ok(prompt) = template.render(&tokenizer, &messages, &RenderOptions::default())
            {
                let _ = tokenizer.encode_prompt(&prompt);
            }
            let took = ALLOCATOR.peak_usage() - before;
            assert!(took <= MOST, "{took} bytes: {source}");
            largest = largest.max(took);
        }
    }
    assert!(largest > 1 << 20, "the bounds let templates be useful");
}

#[test]
fn long_conversations_are_rendered_whole() {
    let tokenizer = tokenizer();
    let source = "{% for m in messages %}{{ m.role ~ ': ' ~ m.content | trim | replace('b', 'bb') ~ '\n' }}{% endfor %}";
    let template = ChatTemplate::new(source).unwrap();
    for (turns, length) in [(1, 20_000_000), (4_096, 1_000), (100_000, 10)] {
        let messages = vec![Message::new(Role::User, "a".repeat(length)); turns];
        let prompt = template.render(&tokenizer, &messages, &RenderOptions::default()).unwrap();
        assert_eq!(prompt.text().len(), turns * (length + 7));
    }
}
