"""Look up known vulnerabilities of what requirements/ pins; exit code 1 where there is one.

    python scripts/audit.py        # needs pip-audit

Without a network nothing is found: that is printed, and is no failure.
"""

import json
import subprocess
import sys
from pathlib import Path

LOCKS = sorted((Path(__file__).parents[1] / "requirements").glob("*.txt"))


def main() -> int:
    # The locks name every package, so that pip need not resolve anything.
    command = ["pip-audit", "--disable-pip", "--format", "json", "--progress-spinner", "off"]
    command += [part for lock in LOCKS for part in ("--requirement", str(lock))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode not in (0, 1):  # such as a wrong argument
        print(done.stderr, file=sys.stderr)
        return done.returncode
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except ValueError:
        print(f"not audited, as the list of vulnerabilities was not reached: {done.stderr.strip()[-300:]}")
        return 0
    found = [package for package in packages if package.get("vulns")]
    for package in found:
        for vulnerability in package["vulns"]:
            fixed = ", ".join(vulnerability["fix_versions"]) or "no version yet"
            print(f"{package['name']} {package['version']}: {vulnerability['id']}, fixed in {fixed}")
    if unknown := [package["name"] for package in packages if "skip_reason" in package]:
        print(f"not audited, as the list does not know them: {', '.join(unknown)}")
    print(f"{len(packages) - len(unknown)} packages audited, {len(found)} with a known vulnerability")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
