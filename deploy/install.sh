# Make /opt/vitrina, with what the project's extras need and without its code: install.sh EXTRAS [INDEX]
# INDEX is asked beside the usual one; pip takes a build such as 2.14.1+cpu from it over a plain 2.14.1.
set -eu
cd "$(dirname "$0")"
# Empty packages stand for the code, which comes last. What stays of them is the command and the version.
touch README.md LICENSE
for package in producer shared workers; do mkdir "$package" && touch "$package/__init__.py"; done
python3 -m venv /opt/vitrina
PIP_EXTRA_INDEX_URL=${2:-} /opt/vitrina/bin/pip install --no-cache-dir --disable-pip-version-check --constraint constraints.txt ".[$1]"
cd /opt/vitrina/lib/python3*/site-packages
rm -r producer shared workers
# pyarrow is here to read and write Parquet: its tests, headers, and network protocol are half of it.
rm -rf pyarrow/tests pyarrow/include pyarrow/src pyarrow/*flight* pyarrow/*substrait*
