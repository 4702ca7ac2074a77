"""Look every pinned dependency up in the advisories that pip-audit knows: `make audit`.

Status 0: each was looked up and none has a known vulnerability. 1: some have. 3: not all could be looked up, which says nothing of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

VULNERABLE, NOT_LOOKED_UP = 1, 3
OPTIONS = ["--requirement=constraints.txt", "--no-deps", "--disable-pip", "--format=json", "--progress-spinner=off"]
SHOWN = 5


def audit(command: list[str]) -> int:
    """Run pip-audit and tell in a line, or in one for each vulnerability, what it found."""
    done = subprocess.run(command + OPTIONS, capture_output=True, text=True, check=False)
    try:
        found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        said = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        print(f"audit: not done, the advisories were not reached: {said[:300]}")
        return NOT_LOOKED_UP
    missed = [entry["name"] for entry in found if "skip_reason" in entry]
    bad = [entry for entry in found if entry.get("vulns")]
    for entry in bad:
        for known in entry["vulns"]:
            fixed = ", ".join(known.get("fix_versions", [])) or "no version yet"
            print(f"audit: {entry['name']} {entry['version']}: {known['id']}, fixed in {fixed}")
    if missed or not found:
        names = ", ".join(missed[:SHOWN]) + (" …" if len(missed) > SHOWN else "")
        print(f"audit: not complete, {len(missed)} of {len(found)} packages could not be looked up: {names}")
    elif not bad:
        print(f"audit: {len(found)} packages, no known vulnerability")
    return VULNERABLE if bad else NOT_LOOKED_UP if missed or not found else 0


if __name__ == "__main__":
    sys.exit(audit(sys.argv[1:]))
