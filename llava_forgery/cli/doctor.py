"""The command that reports what is installed, what is missing, and which commands need it."""

import json
import platform
import re
from importlib import metadata
from typing import Annotated, Any

import typer
from packaging.requirements import Requirement

from llava_forgery.cli.app import app

NEEDED_BY = {
    "": "everything",
    "faces": "detect, chat, explain, serve and scan of photographs; data prepare",
    "video": "the same for videos; train",
    "heic": "HEIC photographs",
    "train": "train; data build-qa; eval calibrate",
    "llava": "adapters in LLaVA's layout; run; scripts/finetune_lora.sh",
    "serve": "serve",
    "provenance": "what files state of their origin (C2PA), beside the verdicts of serve",
    "ray": "scan",
    "demo": "scripts/demo.sh; the shipped adapter's host",
    "eval": "explain; pictures of eval; tasks of lmms-eval",
    "quantization": "--quantization",
    "deepspeed": "--deepspeed",
    "docs": "the documentation's site and its notebook",
    "dev": "tests, style and types",
}
"""Purpose of each extra of ``setup.py``; "" stands for required packages."""


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Print versions, devices, and which extras lack packages for which commands.

    Exits with status 1 if a required package is missing or too old.
    """
    found = examine()
    typer.echo(json.dumps(found, indent=2) if as_json else "\n".join(_lines(found)))
    if found["extras"][""]["problems"]:
        raise typer.Exit(1)


def examine() -> dict[str, Any]:
    """Versions, devices and extras of this installation.

    Returns:
        ``python``, ``version``, ``devices`` (names), and ``extras``: by name, "" for required
        packages, ``packages`` (name to version, None if it is missing), ``problems`` and
        ``needed_by``.
    """
    extras: dict[str, Any] = {}
    for line in metadata.requires("llava-forgery") or ():
        requirement = Requirement(line)
        extra = re.search(r"extra == ['\"](.+?)['\"]", str(requirement.marker or ""))
        name = extra[1] if extra else ""
        wanted = extras.setdefault(
            name, {"packages": {}, "problems": [], "needed_by": NEEDED_BY.get(name, "")}
        )
        version = _version(requirement.name)
        wanted["packages"][requirement.name] = version
        if version is None:
            wanted["problems"].append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(version, prereleases=True):
            wanted["problems"].append(
                f"{requirement.name} is {version}, not {requirement.specifier}"
            )
    return {
        "version": metadata.version("llava-forgery"),
        "python": platform.python_version(),
        "devices": _devices(),
        "extras": extras,
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> list[str]:
    import torch

    devices = [f"cpu, {torch.get_num_threads()} threads"]
    if torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator().type
        for index in range(torch.accelerator.device_count()):
            name = f"{kind}:{index}"
            if kind == "cuda":
                properties = torch.cuda.get_device_properties(index)
                name += f", {properties.name}, {properties.total_memory / 2**30:.0f} GiB"
            devices.append(name)
    return devices


def _lines(found: dict[str, Any]) -> list[str]:
    lines = [f"llava-forgery {found['version']}, Python {found['python']}"]
    lines += [f"device {name}" for name in found["devices"]]
    for name, extra in found["extras"].items():
        state = "; ".join(extra["problems"]) or "complete"
        title = f"[{name}]" if name else "required"
        lines.append(f"\n{title}: {state}")
        lines.append(f"  for {extra['needed_by']}" if extra["needed_by"] else "")
        if name and extra["problems"]:
            lines.append(f"  remedy: pip install 'llava-forgery[{name}]'")
        lines += [f"  {package} {version}" for package, version in extra["packages"].items()
                  if version is not None]  # fmt: skip
    return [line for line in lines if line]
