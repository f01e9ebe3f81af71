"""The strings on which tokenizers disagree: every row is one that some implementation got wrong."""

BASE = [
    "", " ", "  ", "   ", "    ", "\n", "\n\n", "\n\n\n", "\r\n", "\r", "\t", "\t\t", " \n", "\n ", " \t \n", "\u000b", "\f", "\0", "\x01\x02", "\x7f",
    "Hello world", " Hello world", "Hello World", " Hello World", " Hello World!", "Hello, world!", " Hello, world!", "hello", "HELLO", "hElLo",
    " this is 🦙.cpp", "w048 7tuijk dsdfhu", "нещо на Български", "កាន់តែពិសេសអាចខលចេញ",
    "🚀 (normal) 😶‍🌫️ (multiple emojis concatenated) ✅ (only emoji that has its own token)",
    "Hello", " Hello", "  Hello", "   Hello", "    Hello", "    Hello\n    Hello", " (", "\n =", "' era", "Hello, y'all! How are you 😁 ?我想在apple工作1314151天～",
    "!!!!!!", "3", "33", "333", "3333", "33333", "333333", "3333333", "33333333", "333333333", "1234567890" * 4,
    "Cửa Việt", " discards", "I've been 'told he's there, 'RE you sure? 'M not sure I'll make it, 'D you like some tea? We'Ve a'lL",
    "it's IT'S it'S don't DON'T we'll WE'LL they're I'm I'M you'd 'tis ''s '' ' 'x", "'s", "'S", " 's", "x's", "x'ſ", "x’s",
    # whitespace runs
    "a b", "a  b", "a   b", "a    b", "a" + " " * 31 + "b", "a" + " " * 100, " " * 100 + "a", "\n" * 31, "\n" * 40 + "x", "\t" * 17, " \n" * 9, "a \n \n b", "a\n\n  b\n", "a\r\n\r\nb", "a\t b \tc",
    "line\n", "line \n", "line  \n  next", "\n\nx", "x\n\n", " \u00a0 \u2003 ", "a\u00a0b", "a\u3000b", "\u3000", "a\u2028b\u2029c", "\u200b", "a\u200bb", "\ufeffBOM", "a\u0085b", "\u1680 x", "x\u202fy", "end ", "end  ", " \r", "a\n\rb", "\x1c\x1d\x1e\x1f",
    # emoji and joiners
    "😀", "😀😀", " 😀", "👨‍👩‍👧‍👦", "👩🏽‍💻", "🏳️‍🌈", "🇩🇪🇫🇷", "1️⃣2️⃣", "❤️", "☃", "☃️", "🤷🏻‍♂️ shrug", "🫠🫡🪿", "\U0001fae8", "™©®", "→←↑↓", "✓✗", "♠♥♦♣", "a😀b😀c",
    # combining marks and normal forms
    "é", "e\u0301", "ñ n\u0303", "Å A\u030a Å", "q\u0307\u0323", "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘!", "ạ́", "\u0301", " \u0301x", "ﬁ ﬂ ﬃ", "½ ⅓ ²³ ₁₂ Ⅷ ⅷ ①②", "ǅ ǈ ǋ", "ẞß", "İıIi", "ſ", "K", "Ω Ω",
    # scripts
    "你好，世界！", "我想在apple工作1314151天～", "日本語のテキスト、カタカナとひらがな。", "한국어 텍스트입니다.", "ㄱㄴㄷ ㅏㅑ", "ㄅㄆㄇ", "中文English混合123文本", "𠀀𠀁𪚥", "豈更車", "㐀㐁", "「引用」『二重』", "（全角）！？：；", "ｈａｌｆ ＦＵＬＬ１２３",
    "مرحبا بالعالم", "السَّلَامُ عَلَيْكُمْ", "١٢٣ ۴۵۶", "שָׁלוֹם עוֹלָם", "नमस्ते दुनिया", "क्षत्रिय हिन्दी १२३", "বাংলা ভাষা", "தமிழ் மொழி", "తెలుగు", "ไทย ภาษาไทย", "ພາສາລາວ", "မြန်မာ", "ខ្មែរ", "ქართული", "Հայերեն", "Ελληνικά", "Привет, мир! Ёжик", "Україна їжак", "ᏣᎳᎩ", "አማርኛ", "ⵜⴰⵎⴰⵣⵉⵖⵜ", "ᠮᠣᠩᠭᠣᠯ", "ꦗꦮ", "𐌲𐌿𐍄", "𝓗𝓮𝓵𝓵𝓸 𝟙𝟚𝟛", "Tiếng Việt đấy", "Łódź źdźbło", "naïve façade coöperate", "smørrebrød Ærø", "straße STRASSE",
    # numbers
    "0", "00", "007", "12", "123", "1234", "12345", "123456", "1,234,567.89", "3.14159", "-42", "+1-800-555-0199", "1e10", "0x1F", "1/2", "50%", "$99.99", "€10", "2024-02-29T12:34:56Z", "v1.2.3-rc4", "a1b2c3", "x1234y", "１２３４", "12 34 56", "1 000 000", "Version 10", "123abc456", "abc123def4567ghi",
    # code
    "def f(x):\n    return x + 1\n", "for (int i = 0; i < n; ++i) {\n\tsum += a[i];\n}\n", "if (a && b || !c) { x = y ? 1 : 2; }", "#include <stdio.h>\n", "let s: &'static str = \"hi\";", "SELECT * FROM t WHERE a='b' AND c>=10;", "<div class=\"x\">&nbsp;</div>", "{\"key\": [1, 2.5, null, true]}", "a->b::c.d[e](f)", "x = 'it''s'", "// comment\n/* block */", "CamelCaseIdentifier snake_case_name SCREAMING_CASE kebab-case", "XMLHttpRequest getHTTPResponseCode", "foo/bar/baz.rs:10:5", "C:\\Users\\x\\n", "https://example.com/a?b=c&d=%20#e", "user@example.com", "```python\nprint('x')\n```", "\\alpha^2_{i} $$x$$", "a=b+c-d*e/f%g^h|i&j~k!l", "=====", "-----", "******", "______", "......", "~~~~~~", "/////", "#####", "!!!???", "(((())))", "[[[]]]", "{{{}}}", "<<<>>>", "--> <-- => <=", "&&&|||", "@@@", "`code`", "``", "\"\"\"doc\"\"\"", "...\n", "?!\n\n", "x/\n/y", "a,b;c:d", "end.\n\nNew", "word/word", "$x", "a$b", "x`y`", "^~|",
    # special tokens in text
    "<s>", "</s>", "<s>x</s>", "a <s> b", "<unk>", "<|endoftext|>", "a<|endoftext|>b", "<|im_start|>user\nhi<|im_end|>\n", "<|im_start|>", "<|im_end", "im_end|>", "<|im_end|><|im_end|>", " <|im_end|> ", "<|eot_id|>", "<|begin_of_text|>hi", "<start_of_turn>user\nhi<end_of_turn>\n", "<bos>", "<eos>", "<pad>", "<mask>", "[CLS] a [SEP]", "[MASK]", "[UNK]", "<0x0A>", "<0x41>", "<0xFF>", "<unused0>", "<|user|>", "<|assistant|>\n", "<|end|>", "<repo_name>x", "<|fim_prefix|>", "<think>\n", "</think>", "<tool_call>", "[INST] x [/INST]", "<<SYS>>", "▁", "▁▁", "a▁b", " ▁ ", "Ġ", "ĠĊ", "Ġthe", "##ing", "<|endoftext|> x <|endoftext|>", "<|", "|>", "<table><tr><td>x</td></tr></table>", "<h1>t</h1>\n", "[multimodal]", "<start_of_image>",
    # long and odd
    "a" * 300, "ab" * 150, "pneumonoultramicroscopicsilicovolcanoconiosis", "Donaudampfschifffahrtsgesellschaftskapitän", "xqzjkvwpxqzjkvwp", "aaaaaaaaab", "ha" * 40, "\U0010ffff", "\ue000", "\ufffd", "\ufffe", "￾x", "\u00ad soft", "a\u200dz", "\u202eRTL\u202c", "\u2066x\u2069", "ÿþ", "Ã©", "â€™", "\x80\x9f", "¡¿«»", "…", "—–-", "“quoted” ‘single’", "‹›„‚", "°±×÷", "µ", "¼", "\u0378", "\U000e0041", "ℵℶ", "∀x∈ℝ: ∃y", "⟨a|b⟩", "∑∫√∞", "█▓▒░", "┌─┐│└┘", "♩♪♫", "⠓⠑⠇⠇⠕",
    "The quick brown fox jumps over the lazy dog.", "Once upon a time, in a land far, far away, there lived a programmer.", "Mr. O'Neill-Smith's 3rd \"attempt\" cost $4.50 (approx. 20% off)!", "A.B.C. etc., i.e. e.g. U.S.A.", "WHY ARE YOU SHOUTING?", "so...what? well -- maybe", "a  b   c    d     e", "Tabs\tand\nnewlines\r\nmixed \t\n end", "multi\n\n\nparagraph\n\n\n\ntext", "  leading and trailing  ",
]


def strings():
    seen, out = set(), []
    for s in BASE:
        if s not in seen:
            seen.add(s)
            out.append(s)
    return out


if __name__ == "__main__":
    print(len(strings()))
