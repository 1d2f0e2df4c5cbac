"""Look up every version of the lock in a database of known vulnerabilities: `make audit`.

    python .ci/audit.py PIP_AUDIT

Exits with 0 only where every version was looked up and none is known to be vulnerable. pip-audit itself
passes where the database knows nothing of a package, or where what answers is not the database.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

LOCK = Path(__file__).parent.parent / "requirements.lock"
SHOWN = 5


def main(pip_audit: str) -> int:
    """Run pip-audit and print what it found; return the exit code."""
    command = [pip_audit, "--requirement", LOCK, "--no-deps", "--disable-pip", "--format", "json"]
    done = subprocess.run(
        [*command, "--progress-spinner", "off"], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    lines, code = judged(done.stdout, done.stderr)
    print("\n".join(lines))
    return code


def judged(output: str, said: str) -> tuple[list[str], int]:
    """Return what to say of pip-audit's answer, and the exit code.

    Args:
        output: Its JSON, if it got as far.
        said: What it wrote beside it.
    """
    try:
        found = json.loads(output)["dependencies"]
    except (ValueError, KeyError, TypeError):
        reason = (said.strip() or "it wrote nothing").splitlines()[-1]
        return [f"The lock was not audited, the vulnerability service cannot be reached: {reason}"], 1
    missed = sorted(package["name"] for package in found if "skip_reason" in package)
    if len(missed) == len(found):
        return [
            "The lock was not audited, the vulnerability service cannot be reached: it knows none of "
            f"{len(found)} packages."
        ], 1
    flaws = [(package, flaw) for package in found for flaw in package.get("vulns", ())]
    lines = []
    for package, flaw in flaws:
        mended = ", ".join(flaw["fix_versions"]) or "none"
        lines.append(f"{package['name']} {package['version']}: {flaw['id']}, mended in {mended}.")
    lines.append(f"{len(found) - len(missed)} packages were audited; {len(flaws)} vulnerabilities are known.")
    if missed:
        lines.append(f"{len(missed)} were not audited: {', '.join(missed[:SHOWN])}.")
    return lines, int(bool(flaws or missed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
