#!/usr/bin/env python3
"""The public API of every crate, a line per item, as rustdoc sees it: `public_api.py [--bless]`

Compares tests/api/CRATE.txt with the source and says what changed; --bless writes the files. Then compares the foreign crates whose
types stand in public signatures with the table in ARCHITECTURE.md. What `cargo public-api` and `cargo check-external-types` do, on the
stable compiler. Standard library only.
"""

import difflib
import json
import os
import re
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SNAPSHOTS = os.path.join(ROOT, "tests", "api")
STANDARD = {"std", "core", "alloc", "proc_macro"}


class Crate:
    """Renders one crate's rustdoc JSON."""

    def __init__(self, document):
        self.index, self.paths = document["index"], document["paths"]
        self.crates = {int(key): value["name"] for key, value in document["external_crates"].items()}
        self.root = document["index"][str(document["root"])]
        self.lines, self.foreign = set(), set()

    def item(self, identity):
        return self.index.get(str(identity))

    def note(self, identity):
        """Remembers the crate that a named type comes from."""
        summary = self.paths.get(str(identity))
        if summary and summary["crate_id"] != 0:
            name = self.crates[summary["crate_id"]]
            if name not in STANDARD and not name.startswith("orion"):
                self.foreign.add(name)

    # Types

    def arguments(self, args):
        if not args:
            return ""
        if "parenthesized" in args:
            inner = args["parenthesized"]
            output = f" -> {self.type(inner['output'])}" if inner["output"] else ""
            return f"({', '.join(map(self.type, inner['inputs']))}){output}"
        parts = [self.argument(arg) for arg in args["angle_bracketed"]["args"]]
        for constraint in args["angle_bracketed"]["constraints"]:
            (kind, binding), = constraint["binding"].items()
            if kind == "equality":
                parts.append(f"{constraint['name']} = {self.term(binding)}")
            else:
                parts.append(f"{constraint['name']}: {self.bounds(binding)}")
        return f"<{', '.join(parts)}>" if parts else ""

    def argument(self, arg):
        if arg == "infer":
            return "_"
        (kind, value), = arg.items()
        return self.type(value) if kind == "type" else value if kind == "lifetime" else value["expr"]

    def term(self, term):
        (kind, value), = term.items()
        return self.type(value) if kind == "type" else value["expr"]

    def path(self, path):
        self.note(path["id"])
        return path["path"].split("::")[-1] + self.arguments(path.get("args"))

    def bounds(self, bounds):
        rendered = []
        for bound in bounds:
            (kind, value), = bound.items()
            if kind == "trait_bound":
                modifier = "?" if value["modifier"] == "maybe" else ""
                rendered.append(self.binder(value["generic_params"]) + modifier + self.path(value["trait"]))
            elif kind == "outlives":
                rendered.append(value)
            else:
                rendered.append("use<…>")
        return " + ".join(rendered)

    def binder(self, params):
        return f"for<{', '.join(param['name'] for param in params)}> " if params else ""

    def type(self, ty):
        if ty is None:
            return "()"
        if ty == "infer":
            return "_"
        (kind, value), = ty.items()
        if kind == "resolved_path":
            return self.path(value)
        if kind in ("generic", "primitive"):
            return value
        if kind == "tuple":
            inner = ", ".join(map(self.type, value))
            return f"({inner},)" if len(value) == 1 else f"({inner})"
        if kind == "slice":
            return f"[{self.type(value)}]"
        if kind == "array":
            return f"[{self.type(value['type'])}; {value['len']}]"
        if kind == "borrowed_ref":
            lifetime = f"{value['lifetime']} " if value["lifetime"] else ""
            return f"&{lifetime}{'mut ' if value['is_mutable'] else ''}{self.type(value['type'])}"
        if kind == "raw_pointer":
            return f"*{'mut' if value['is_mutable'] else 'const'} {self.type(value['type'])}"
        if kind == "dyn_trait":
            traits = [self.binder(one["generic_params"]) + self.path(one["trait"]) for one in value["traits"]]
            return "dyn " + " + ".join(traits + ([value["lifetime"]] if value["lifetime"] else []))
        if kind == "impl_trait":
            return "impl " + self.bounds(value)
        if kind == "qualified_path":
            owner = self.type(value["self_type"])
            as_trait = f"<{owner} as {self.path(value['trait'])}>" if value["trait"] else owner
            return f"{as_trait}::{value['name']}"
        if kind == "function_pointer":
            return "fn" + self.signature(value["sig"])
        return f"<{kind}>"

    # Items

    def signature(self, sig):
        inputs = []
        for name, ty in sig["inputs"]:
            text = self.type(ty)
            if name == "self":
                text = {"Self": "self", "&Self": "&self", "&mut Self": "&mut self"}.get(text, f"self: {text}")
                inputs.append(text)
            else:
                inputs.append(text)
        output = f" -> {self.type(sig['output'])}" if sig["output"] else ""
        return f"({', '.join(inputs)}){output}"

    def generics(self, generics):
        params = []
        for param in generics["params"]:
            (kind, value), = param["kind"].items()
            if kind == "lifetime":
                params.append(param["name"])
            elif kind == "const":
                params.append(f"const {param['name']}: {self.type(value['type'])}")
            elif not value["is_synthetic"]:
                bounds = self.bounds(value["bounds"])
                params.append(param["name"] + (f": {bounds}" if bounds else ""))
        return f"<{', '.join(params)}>" if params else ""

    def where(self, generics):
        clauses = []
        for predicate in generics["where_predicates"]:
            (kind, value), = predicate.items()
            if kind == "bound_predicate":
                clauses.append(f"{self.type(value['type'])}: {self.bounds(value['bounds'])}")
            elif kind == "lifetime_predicate":
                clauses.append(f"{value['lifetime']}: {' + '.join(value['outlives'])}")
        return f" where {', '.join(clauses)}" if clauses else ""

    def function(self, name, function):
        header = "".join(f"{word} " for word in ("const", "async", "unsafe") if function["header"][f"is_{word}"])
        generics = function["generics"]
        return f"{header}fn {name}{self.generics(generics)}{self.signature(function['sig'])}{self.where(generics)}"

    def add(self, line, attributes=()):
        exhaustive = any("non_exhaustive" in str(attribute) for attribute in attributes)
        self.lines.add(("#[non_exhaustive] " if exhaustive else "") + line)

    def walk(self, item, path, seen=()):
        if item["id"] in seen:
            return
        seen = (*seen, item["id"])
        (kind, inner), = item["inner"].items()
        attributes = item["attrs"]
        if kind == "module":
            for child in map(self.item, inner["items"]):
                if child:
                    self.reexport(child, path, seen)
        elif kind in ("struct", "union"):
            self.structure(inner, path, attributes)
        elif kind == "enum":
            self.add(f"enum {path}{self.generics(inner['generics'])}{self.where(inner['generics'])}", attributes)
            for variant in map(self.item, inner["variants"]):
                self.variant(variant, path)
            self.implementations(inner["impls"], path)
        elif kind == "trait":
            bounds = self.bounds(inner["bounds"])
            self.add(f"trait {path}{self.generics(inner['generics'])}{f': {bounds}' if bounds else ''}")
            for child in map(self.item, inner["items"]):
                self.member(child, path, provided=True)
        elif kind == "function":
            self.add(self.function(path, inner))
        elif kind == "constant":
            self.add(f"const {path}: {self.type(inner['type'])}")
        elif kind == "static":
            self.add(f"static {path}: {self.type(inner['type'])}")
        elif kind == "type_alias":
            self.add(f"type {path}{self.generics(inner['generics'])} = {self.type(inner['type'])}")
        else:
            self.add(f"{kind} {path}")

    def reexport(self, child, path, seen):
        if "use" not in child["inner"]:
            if child["visibility"] == "public":
                self.walk(child, f"{path}::{child['name']}", seen)
            return
        use = child["inner"]["use"]
        target = self.item(use["id"])
        if target is None or target["crate_id"] != 0:
            self.add(f"use {path}::{use['name']} = {use['source']}")
            if use["id"] is not None:
                self.note(use["id"])
        elif use["is_glob"]:
            self.walk(target, path, seen)
        else:
            self.walk(target, f"{path}::{use['name']}", seen)

    def structure(self, inner, path, attributes):
        head = f"struct {path}{self.generics(inner['generics'])}{self.where(inner['generics'])}"
        shape = inner.get("kind", {"plain": {"fields": inner.get("fields", [])}})
        if shape != "unit" and "tuple" in shape:
            fields = [self.type(self.item(field)["inner"]["struct_field"]) if field else "_" for field in shape["tuple"]]
            self.add(f"{head}({', '.join(fields)})", attributes)
        else:
            self.add(head, attributes)
            for field in map(self.item, shape["plain"]["fields"] if shape != "unit" else []):
                if field and field["visibility"] == "public":
                    self.add(f"field {path}::{field['name']}: {self.type(field['inner']['struct_field'])}")
        self.implementations(inner["impls"], path)

    def variant(self, variant, path):
        kind, name = variant["inner"]["variant"]["kind"], f"{path}::{variant['name']}"
        if kind != "plain" and "tuple" in kind:
            fields = [self.type(self.item(field)["inner"]["struct_field"]) if field else "_" for field in kind["tuple"]]
            name += f"({', '.join(fields)})"
        elif kind != "plain":
            fields = map(self.item, kind["struct"]["fields"])
            shown = [f"{field['name']}: {self.type(field['inner']['struct_field'])}" for field in fields if field]
            name += f" {{ {', '.join(shown)} }}"
        self.add(f"variant {name}", variant["attrs"])

    def implementations(self, identities, path):
        for block in filter(None, map(self.item, identities)):
            inner = block["inner"]["impl"]
            if inner["is_synthetic"] or inner["blanket_impl"]:
                continue
            if inner["trait"]:
                negative = "!" if inner["is_negative"] else ""
                self.add(f"impl{self.generics(inner['generics'])} {negative}{self.path(inner['trait'])} for {path}"
                         f"{self.where(inner['generics'])}")
            else:
                for child in filter(None, map(self.item, inner["items"])):
                    if child["visibility"] == "public":
                        self.member(child, path)

    def member(self, item, path, provided=False):
        (kind, inner), = item["inner"].items()
        name = f"{path}::{item['name']}"
        if kind == "function":
            default = " { … }" if provided and inner["has_body"] else ""
            self.add(self.function(name, inner) + default)
        elif kind == "assoc_const":
            self.add(f"const {name}: {self.type(inner['type'])}")
        elif kind == "assoc_type":
            self.add(f"type {name}")


def packages():
    listing = ["cargo", "metadata", "--no-deps", "--format-version", "1"]
    metadata = json.loads(subprocess.run(listing, cwd=ROOT, capture_output=True, check=True).stdout)
    for package in metadata["packages"]:
        for target in package["targets"]:
            if "lib" in target["kind"] and package["name"] != "orion-testkit":
                yield package, target["name"].replace("-", "_"), metadata["target_directory"]


def described(package, library, target):
    """The API of a crate with all its features."""
    build = ["cargo", "rustdoc", "--quiet", "--release", "-p", package, "--lib", "--all-features", "--",
             "-Z", "unstable-options", "--output-format", "json", "--cap-lints", "allow"]
    environment = {**os.environ, "RUSTDOC": os.path.join(ROOT, "scripts", "rustdoc_json.sh")}
    subprocess.run(build, cwd=ROOT, check=True, env=environment)
    with open(os.path.join(target, "doc", f"{library}.json"), encoding="utf-8") as file:
        crate = Crate(json.load(file))
    crate.walk(crate.root, library)
    return crate


def allowed():
    """Crate → foreign crates its signatures name, from the table in ARCHITECTURE.md."""
    with open(os.path.join(ROOT, "ARCHITECTURE.md"), encoding="utf-8") as file:
        table = file.read().split("## Foreign types\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([a-z-]+)` \| (.*?) \|", table, re.M)
    return {crate: set(re.findall(r"`([a-z_]+)`", cell)) for crate, cell in rows}


def main(bless):
    os.makedirs(SNAPSHOTS, exist_ok=True)
    table, wrong = allowed(), []
    for package, library, target in packages():
        name = package["name"]
        crate = described(name, library, target)
        now = sorted(crate.lines)
        path = os.path.join(SNAPSHOTS, f"{name}.txt")
        if bless:
            with open(path, "w", encoding="utf-8") as file:
                file.write("\n".join(now) + "\n")
        before = open(path, encoding="utf-8").read().splitlines() if os.path.exists(path) else []
        changes = [line for line in difflib.unified_diff(before, now, lineterm="", n=0)
                   if line[:1] in "+-" and line[:3] not in ("+++", "---")]
        if changes:
            wrong.append(f"{name}: the public API changed; if it is meant, `make public-api BLESS=1`\n" + "\n".join(changes))
        if crate.foreign != table.get(name, set()):
            wrong.append(f"{name}: its signatures name types of {sorted(crate.foreign)}, ARCHITECTURE.md says "
                         f"{sorted(table.get(name, set()))}")
        print(f"{name}: {len(now)} lines", flush=True)
    if wrong:
        sys.exit("\n".join(wrong))


main("--bless" in sys.argv[1:])
