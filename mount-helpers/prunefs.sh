#!/bin/sh
# prunefs [FILE]: has updatedb of plocate or mlocate leave out what pullfs mounts. FILE is /etc/updatedb.conf, which has no
# directory for additions. Once is enough, and twice is no different.
set -eu
file=${1:-/etc/updatedb.conf}
listed() { grep -q '^PRUNEFS *= *".*\bfuse\.pullfs\b' "$file"; }
listed || sed -i 's/^PRUNEFS *= *"/&fuse.pullfs /' "$file"
listed || { echo "prunefs: $file has no line PRUNEFS=\"...\"" >&2; exit 1; }
