"""Write constraints.txt: the versions in this environment of everything the package may need.

.venv/bin/python scripts/make_constraints.py        # after the tests have passed in it

The requirements of every extra are followed, so that packages that merely happen to be installed
are not included. Those that are not installed here, as they are for other systems, are omitted.
"""

import re
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

FILE = Path(__file__).parents[1] / "constraints.txt"
PACKAGE = "llava-forgery"
HEADER = """\
# Versions that were tested together, by scripts/make_constraints.py:
#   pip install -c constraints.txt '.[faces,video]'
"""


def versions(package: str = PACKAGE) -> dict[str, str]:
    """Version of each package that ``package`` needs with any of its extras, by canonical name."""
    found: dict[str, str] = {}
    extras = metadata.metadata(package).get_all("Provides-Extra") or []
    todo = [(package, frozenset(extras))]
    seen = set(todo)
    while todo:
        name, wanted = todo.pop()
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        if name != package:
            found[name] = distribution.version
        for line in distribution.requires or ():
            need = Requirement(line)
            holds = need.marker is None or any(
                need.marker.evaluate({"extra": extra}) for extra in ("", *wanted)
            )
            entry = (canonical(need.name), frozenset(need.extras))
            if holds and entry not in seen:
                seen.add(entry)
                todo.append(entry)
    return found


def canonical(name: str) -> str:
    """The normalised name of a package, see PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> None:
    """Write the file."""
    # A local version, such as torch's "+cpu", is on no index.
    lines = [f"{name}=={version.split('+')[0]}" for name, version in sorted(versions().items())]
    FILE.write_text(HEADER + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
