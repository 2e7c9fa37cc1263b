"""``splitveil doctor``: what is installed and how it is set up; runs without torch."""

from dataclasses import asdict

from splitveil.cli.options import AsJson, Quiet
from splitveil.cli.output import print_json, print_table


def doctor(as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Show versions, extras, whether telemetry is off, and the cache folder. Paste it into a report of a fault.

    Example: splitveil doctor --json
    """
    from splitveil.doctor import diagnose
    from splitveil.extras import install_command

    del quiet  # there is nothing to wait for
    found = diagnose()
    if as_json:
        print_json(asdict(found))
        return
    rows = [["splitveil", found.splitveil], ["Python", found.python], ["platform", found.platform]]
    rows += [[name, version] for name, version in found.packages.items()]
    for extra, missing in found.missing.items():
        state = f"without {', '.join(missing)}; {install_command(extra)}" if missing else "installed"
        rows.append([f"extra {extra}", state])
    rows.append(["telemetry", found.telemetry])
    rows += [[name, value or "not set"] for name, value in found.variables.items()]
    rows.append(["cache folder", found.cache_folder + ("" if found.cache_writable else " (not writable)")])
    print_table("splitveil and its environment", ["fact", "value"], rows)
