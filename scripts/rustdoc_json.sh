#!/bin/sh
# rustdoc with its JSON output, which the stable compiler has but does not offer. Cargo calls this in the place of rustdoc, so that
# the variable reaches rustdoc alone and nothing is compiled anew for it.
RUSTC_BOOTSTRAP=1 exec rustdoc "$@"
