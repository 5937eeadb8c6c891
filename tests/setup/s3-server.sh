#!/bin/sh
# An S3 server for the tests, which keeps what it is given in memory: moto, from PyPI, on Debian's libraries. Nothing of it is
# installed.
#
#   s3-server.sh DIR      PYTHONPATH=DIR python3 -m moto.server
#
# Does nothing when DIR is complete.
set -eu

dir=$1
# The newest that goes with Debian 12's botocore.
moto='moto==4.1.3 --hash=sha256:dcd1d06662982cf3c94f36d6348251ccdcf62a1c5de5650425cb4e6f260ae7a0'

[ -e "$dir/.complete" ] && { echo "setup: already here: an S3 server in $dir"; exit 0; }
rm -rf "$dir"
mkdir -p "$dir"
echo "$moto" >"$dir/requirements"
python3 -m pip install --quiet --no-deps --require-hashes --root-user-action ignore --target "$dir" -r "$dir/requirements"
touch "$dir/.complete"
echo "setup: an S3 server is in $dir"
