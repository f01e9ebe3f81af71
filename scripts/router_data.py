#!/usr/bin/env python3
"""Takes the router's data sets from a folder into the cache, after checking their digests.

    scripts/router_data.py DIR            what `make router-data FROM=DIR` does
    scripts/router_data.py --print-path   where they are or would be; copies nothing

The cache is $ORION_ROUTER_DATA, else $XDG_CACHE_HOME/orion/router, else ~/.cache/orion/router. The data stay out of
the repository: CLINC150 is CC BY 3.0 (Larson et al. 2019, repository clinc/oos-eval), the MMLU routing records are
Apache-2.0 (repository lm-sys/RouteLLM; the questions, from MMLU, are MIT).
"""

import hashlib
import os
import shutil
import sys
from pathlib import Path

FILES = {
    "clinc150.json": "36923c3705a59e08fe9c3883d8bc2dd966ef93e22cb78ac41171782a698d56e0",
    "clinc150-domains.json": "b947b579d3b8e74b06f93b01083d8efaff2888b43a3e362533bd88a6e1211b3a",
    "mmlu-routing/mmlu.csv": "7785bc87ed5d569192c41f92e9f82a32db96aa3586861cd51948c72e5747e28f",
}


def cache_dir():
    if set_path := os.environ.get("ORION_ROUTER_DATA"):
        return Path(set_path)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "orion" / "router"


def main(argument):
    target = cache_dir()
    if argument == "--print-path":
        print(target)
        return
    for name, digest in FILES.items():
        source = Path(argument) / name
        if not source.is_file():
            sys.exit(f"{source} is missing; FROM names the folder that holds {', '.join(FILES)}")
        found = hashlib.sha256(source.read_bytes()).hexdigest()
        if found != digest:
            sys.exit(f"{source} has SHA-256 {found}, expected {digest}")
        place = target / name
        if place.resolve() != source.resolve():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, place)
    print(target)


if __name__ == "__main__":
    if len(sys.argv) != 2 or not sys.argv[1]:
        sys.exit("usage: make router-data FROM=DIR")
    main(sys.argv[1])
