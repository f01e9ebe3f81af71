#!/usr/bin/env python3
"""Writes what Hugging Face makes of chat templates.

    scripts/goldens/templates.py OUT NAME=FILE.jinja...

Needs `transformers` and `jinja2` (no torch). Each template is rendered by the environment that
`apply_chat_template` uses, for the conversations below, with BOS `<s>`, EOS `</s>` and the time fixed. OUT gets
`cases.json`, and one file per name: {"source", "expected"}, where a string is the text, null a conversation that the
template refuses, and false one at which Python fails otherwise (an undefined variable, say).
"""

import datetime
import json
import os
import sys

import jinja2
from transformers.utils import chat_template_utils

NOW = datetime.datetime(2025, 3, 9, 17, 4, 5)

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Current weather of a place <b>&'é'</b>",
            "parameters": {
                "type": "object",
                "properties": {
                    "location": {"type": "string", "description": "City, e.g. \"Zürich\""},
                    "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
                    "days": {"type": "integer", "default": 3},
                    "exact": {"type": "boolean", "default": True},
                    "scale": {"type": "number", "default": 1.0},
                },
                "required": ["location"],
            },
        },
    },
    {
        "type": "function",
        "function": {"name": "now", "description": "The time", "parameters": {"type": "object", "properties": {}}},
    },
]

CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "id": "call12345",
            "type": "function",
            "function": {"name": "get_weather", "arguments": {"location": "Zürich", "days": 2, "exact": False, "scale": 0.5}},
        }
    ],
}
RESULT = {"role": "tool", "tool_call_id": "call12345", "name": "get_weather", "content": "{\"temp\": 21.5, \"sky\": \"klar\"}"}


def turn(role, content):
    return {"role": role, "content": content}


PLAIN = [turn("system", "You are terse."), turn("user", "Hi"), turn("assistant", "Hello."), turn("user", "Bye 👋")]
CASES = [
    {"messages": [turn("user", "Hi")], "add_generation_prompt": True},
    {"messages": PLAIN, "add_generation_prompt": True},
    {"messages": PLAIN[:3], "add_generation_prompt": False},
    {"messages": PLAIN[1:], "add_generation_prompt": True},
    {"messages": [turn("user", "  spaced \n\n out\t ")], "add_generation_prompt": True},
    {"messages": [turn("system", " S "), turn("user", "é \"q\" 'a' <b>&amp;</b> {{ x }} {% y %}\\n")], "add_generation_prompt": True},
    {"messages": [turn("user", "1"), turn("assistant", "<think>\nhm\n</think>\n\nA1"), turn("user", "2"), turn("assistant", "A2"), turn("user", "3")], "add_generation_prompt": True},
    {"messages": [turn("user", "Weather?")], "tools": TOOLS, "add_generation_prompt": True},
    {"messages": [turn("system", "Help."), turn("user", "Weather?"), CALL, RESULT], "tools": TOOLS, "add_generation_prompt": True},
    {"messages": [turn("user", "Weather?"), CALL, RESULT, turn("assistant", "Clear."), turn("user", "Thanks")], "tools": TOOLS, "add_generation_prompt": True},
    {"messages": [turn("user", "Think?")], "variables": {"enable_thinking": False}, "add_generation_prompt": True},
    {"messages": [turn("user", "Think?")], "variables": {"enable_thinking": True, "reasoning_effort": "high"}, "add_generation_prompt": True},
    {"messages": [turn("user", "Which?")], "documents": [{"title": "T", "text": "Body"}], "add_generation_prompt": True},
    {"messages": [turn("user", "a"), turn("user", "b")], "add_generation_prompt": True},
    {"messages": [turn("assistant", "first"), turn("user", "b")], "add_generation_prompt": True},
    {"messages": [], "add_generation_prompt": True},
]


def render(template, case):
    try:
        return template.render(
            messages=case["messages"],
            tools=case.get("tools"),
            documents=case.get("documents"),
            add_generation_prompt=case["add_generation_prompt"],
            bos_token="<s>",
            eos_token="</s>",
            unk_token="<unk>",
            strftime_now=NOW.strftime,
            **case.get("variables", {}),
        )
    except jinja2.exceptions.TemplateError as error:
        return None if type(error) is jinja2.exceptions.TemplateError else False
    except (TypeError, ValueError):
        return False


def main():
    out, templates = sys.argv[1], sys.argv[2:]
    with open(os.path.join(out, "cases.json"), "w", encoding="utf-8") as file:
        # What a caller hands over as JSON stands as a string: the order of keys matters.
        rows = [{key: value if key == "add_generation_prompt" else json.dumps(value, ensure_ascii=False) for key, value in case.items()} for case in CASES]
        json.dump(rows, file, ensure_ascii=False, indent=1)
        file.write("\n")
    for template in templates:
        name, path = template.split("=", 1)
        source = open(path, encoding="utf-8").read()
        print(name, file=sys.stderr)
        compiled = chat_template_utils._compile_jinja_template(source)
        golden = {"source": source, "expected": [render(compiled, case) for case in CASES]}
        with open(os.path.join(out, f"{name}.json"), "w", encoding="utf-8") as file:
            json.dump(golden, file, ensure_ascii=False, indent=0)
            file.write("\n")


if __name__ == "__main__":
    main()
