#!/usr/bin/env bash
# Makes benches/data/licences.txt, the text whose perplexity is measured: licences that Debian ships, each verbatim and whole,
# which each of them allows. The digest says whether Debian's copies are still those.
set -euo pipefail
cd "$(dirname "$0")/../.."
(cd /usr/share/common-licenses && cat GPL-2 MPL-2.0 LGPL-2.1 Apache-2.0 CC0-1.0 GFDL-1.3) >benches/data/licences.txt
echo "8e321af82eed311ff5ef85f1136e653e30c290026fb600af912c07df96992a92  benches/data/licences.txt" | sha256sum --check
