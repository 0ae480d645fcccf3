"""`tessera doctor`: reports installed packages, working backends, and devices.

Package versions are read without importing the packages. Checks that need an import (does deepspeed load?) run in a
separate process, so that a broken package cannot crash the report.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from ...tokenize.bundled import PACKAGE

CORE_PACKAGES = (
    "torch",
    "numpy",
    "safetensors",
    "sentencepiece",
    "pydantic",
    "pyyaml",
    "typer",
    "tqdm",
    "pillow",
    "soundfile",
)
OPTIONAL_PACKAGES = {
    "deepspeed": "extra 'train': the DeepSpeed engine",
    "tensorboard": "extra 'train': training curves in TensorBoard",
    "flash-attn": "extra 'gpu': attention backend 'flash'",
    "xformers": "extra 'gpu': attention backend 'xformers'",
    "av": "extra 'media': m4a, AAC, WMA, audio tracks of videos; the length of MP3 files",
    "tokenizers": "extra 'bpe': the text tokenizer 'bpe'",
    "scikit-learn": "extras 'eval' and 'demo': the classifier of generated digits",
    "scikit-image": "extra 'eval': SSIM",
    "constriction": "extra 'compress': tessera encode --compress",
    "torchmetrics": "extra 'eval': MS-SSIM",
    "auraloss": "extra 'eval': distance of spectra of three resolutions",
    "pystoi": "extra 'eval': STOI",
    "pesq": "extra 'eval': PESQ; needs a C compiler to install",
    "prdc": "extra 'eval': precision, recall, density, coverage",
    "pocketsphinx": "extra 'eval': the speech recogniser for generated speech",
}
BUNDLED_MODELS = ("voice", "emoji", "digits", "speech")
SAMPLE_DATA = ("digits", "speech")


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    section: str
    name: str
    state: Literal["ok", "missing", "broken"]
    value: str
    """Version, device or path."""
    note: str = ""
    """Its purpose, or what to do if it is missing."""
    required: bool = False
    """Whether Tessera needs it."""


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("doctor")(doctor)


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object instead of the table.")] = False,
) -> int:
    """Report what is installed, which backends work, and on which device.

    Example: tessera doctor --json

    Exits with 1 if a required component is missing or broken.
    """
    findings = examine()
    failed = [finding for finding in findings if finding.required and finding.state != "ok"]
    if as_json:
        print(json.dumps({"ok": not failed, "findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        print(format_table(findings))
        names = ", ".join(finding.name for finding in failed)
        print(f"\nNot working, and required: {names}" if failed else "\nAll required parts work.")
    return 1 if failed else 0


def examine() -> list[Finding]:
    """Run all checks, section by section."""
    return [*_versions(), *_packages(), *_devices(), *_attention(), *_bundled(), *_tools()]


def format_table(findings: list[Finding]) -> str:
    """Format the findings as aligned lines under one heading per section."""
    width = max(len(finding.name) for finding in findings)
    value_width = min(max(len(finding.value) for finding in findings), 44)
    lines: list[str] = []
    section = ""
    for finding in findings:
        if finding.section != section:
            section = finding.section
            lines += ["", section] if lines else [section]
        mark = {"ok": "ok", "missing": "-", "broken": "!!"}[finding.state]
        lines.append(f"  {mark:<2}  {finding.name:<{width}}  {finding.value:<{value_width}}  {finding.note}".rstrip())
    return "\n".join(lines)


def _versions() -> list[Finding]:
    from ... import __version__

    found = tuple(sys.version_info[:3])
    python = Finding(
        "versions", "python", "ok" if found >= (3, 10) else "broken", platform.python_version(), "at least 3.10", True
    )
    where = f"{platform.system()} {platform.machine()}"
    return [
        Finding("versions", "tessera", "ok", __version__, str(PACKAGE)),
        python,
        Finding("versions", "system", "ok", where),
    ]


def _packages() -> list[Finding]:
    findings = [_package("packages", name, "", required=True) for name in CORE_PACKAGES]
    findings += [_package("optional packages", name, note, required=False) for name, note in OPTIONAL_PACKAGES.items()]
    return [_try_deepspeed(found) if found.name == "deepspeed" and found.state == "ok" else found for found in findings]


def _package(section: str, name: str, note: str, required: bool) -> Finding:
    try:
        return Finding(section, name, "ok", importlib.metadata.version(name), note, required)
    except importlib.metadata.PackageNotFoundError:
        return Finding(section, name, "missing", "not installed", note or f"pip install {name}", required)


def _try_deepspeed(finding: Finding) -> Finding:
    """Import deepspeed in a separate process; it may fail without a compiler, a CUDA home or a matching torch."""
    environment = {"DS_ACCELERATOR": "cpu", **os.environ} if not _has_cuda() else dict(os.environ)
    try:
        run = subprocess.run(
            [sys.executable, "-c", "import deepspeed"],
            env=environment,
            cwd=Path.home(),
            capture_output=True,
            text=True,
            timeout=120,
        )
        reason = "" if run.returncode == 0 else (run.stderr.strip().splitlines() or [f"exit code {run.returncode}"])[-1]
    except subprocess.TimeoutExpired:
        reason = "import took more than 120 s"
    if not reason:
        return finding
    return Finding(finding.section, finding.name, "broken", finding.value, f"does not import: {reason}")


def _has_cuda() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


def _devices() -> list[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    findings = [Finding("devices", "cpu", "ok", f"{cores} cores", platform.processor() or "")]
    try:
        import torch
    except ImportError as error:
        return [*findings, Finding("devices", "torch", "broken", "does not import", str(error), required=True)]
    setting = os.environ.get("OMP_NUM_THREADS", "not set")
    threads = f"torch uses {torch.get_num_threads()}"
    findings.append(Finding("devices", "threads", "ok", threads, f"OMP_NUM_THREADS {setting}"))
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            capability = f"compute capability {properties.major}.{properties.minor}"
            memory = f"{properties.total_memory / 2**30:.0f} GiB, {capability}"
            findings.append(Finding("devices", f"cuda:{index}", "ok", properties.name, memory))
    else:
        findings.append(Finding("devices", "cuda", "missing", "none", "everything runs on the CPU"))
    return findings


def _attention() -> list[Finding]:
    try:
        from ...lm.attention.registry import available_backends, explain
    except ImportError:  # torch is missing or broken; the devices section reports it
        return []
    device = "cuda" if _has_cuda() else "cpu"
    findings = []
    for name, result in available_backends(device).items():
        works = result == "ok"
        findings.append(
            Finding(
                "attention backends",
                name,
                "ok" if works else "missing",
                f"works on {device}" if works else "not usable",
                "" if works else result,
                required=name == "sdpa",
            )
        )
    import torch

    for packed in (False, True):
        chosen = explain("auto", device, torch.bfloat16, 64, packed)
        rows = "packed rows" if packed else "other rows"
        findings.append(
            Finding("attention backends", f"auto, {rows}", "ok", f"{chosen.name} on {device}", chosen.reason)
        )
    return findings


def _bundled() -> list[Finding]:
    findings = []
    for name in BUNDLED_MODELS:
        folder = PACKAGE / "bundled" / name
        if (folder / "config.json").is_file():
            findings.append(Finding("bundled models", name, "ok", _size_of(folder), f"tessera.load({name!r})"))
        else:
            findings.append(Finding("bundled models", name, "missing", "not found", f"expected in {folder}"))
    for name in SAMPLE_DATA:
        folder = PACKAGE / "samples" / name
        if folder.is_dir():
            findings.append(Finding("sample data", name, "ok", _size_of(folder), str(folder)))
        else:
            findings.append(Finding("sample data", name, "missing", "not found", f"expected in {folder}"))
    return findings


def _size_of(folder: Path) -> str:
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return f"{size / 1e6:.1f} MB"


def _tools() -> list[Finding]:
    findings = []
    for name, note in {
        "espeak-ng": "only to generate more sample speech (Debian: apt-get install espeak-ng)",
        "cc": "only to install some optional packages (pesq) and to let torch or deepspeed compile",
    }.items():
        path = shutil.which(name)
        findings.append(Finding("tools", name, "ok" if path else "missing", path or "not found", note))
    return findings
