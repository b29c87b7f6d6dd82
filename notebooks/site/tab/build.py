"""Build the pages on which the course's servers and clients run in a browser tab.

usage: python notebooks/site/tab/build.py OUT [--renew]

    npm's pyodide, by version and hash ─────┐
    wheels for it, by requirements.txt ─────┼─▶ OUT: one folder that asks no other host for anything
    the project's own wheel, the stand-ins ─┤
    the pages ──────────────────────────────┘

`--renew` writes requirements.txt anew: the releases of .ci/constraints.txt, with the hashes of what pip is given.
"""

import argparse
import base64
import gzip
import hashlib
import html
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from filelock import FileLock

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent.parent
DOWNLOADS = ROOT / "build" / "tab"
REQUIREMENTS = HERE / "requirements.txt"
PYODIDE = "314.0.7"
INTEGRITY = "sha512-0YvXxEhfEdpLfb/XkM2BFAeMROq0iMUX2bzzH9pOttyMcWkwq+HbE5uyuGD82LN7y2q+SNvi/6V5JEsOlD2R1A=="
RUNTIME = (
    "pyodide.mjs",
    "pyodide.asm.mjs",
    "pyodide.asm.wasm",
    "python_stdlib.zip",
    "pyodide-lock.json",
)
PYTHON = "3.14"
PLATFORM = [
    "--platform",
    "pyemscripten_2026_0_wasm32",
    "--python-version",
    PYTHON,
    "--implementation",
    "cp",
]
WHEELS = [
    "--no-deps",
    "--only-binary=:all:",
    *PLATFORM,
    "--abi",
    "cp314",
    "--abi",
    "none",
]
NEEDED = [
    "annotated-doc",
    "annotated-types",
    "anyio",
    "certifi",
    "click",
    "fastapi",
    "fastapi_offline",
    "h11",
    "httpcore",
    "httpx",
    "httpx-sse",
    "idna",
    "opentelemetry-api",
    "prometheus_client",
    "pydantic",
    "pydantic_core",
    "sniffio",
    "sse-starlette",
    "starlette",
    "typing_extensions",
    "typing-inspection",
    "uvicorn",
    "websockets",
]
PAGES = ("short-polling", "long-polling", "websocket", "sse", "four-models")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="build.py",
        description="Build the pages that run in a browser tab.",
    )
    parser.add_argument("out", nargs="?", type=Path, help="the folder to fill")
    parser.add_argument("--renew", action="store_true", help="write requirements.txt anew")
    options = parser.parse_args(arguments)
    DOWNLOADS.mkdir(parents=True, exist_ok=True)
    if options.renew:
        renew()
    if options.out:
        print(f"{build(options.out):.1f} MB compressed")
    return 0


def build(out: Path) -> float:
    """Fill a folder; return how much of it (MB) travels to a browser that visits, compressed."""
    with FileLock(DOWNLOADS / "lock"):  # another build may be under way
        return filled_folder(out)


def filled_folder(out: Path) -> float:
    """As `build`, alone."""
    parts: dict[str, bytes] = {name: (HERE / name).read_bytes() for name in ("tab.js", "worker.js", "tab.css")}
    parts |= {name: (ROOT / "servers" / "pages" / name).read_bytes() for name in ("live.css", "icon.svg")}
    archive, runtime = course(), f"pyodide-{PYODIDE}"
    own = f"course-{digest(archive)}.zip"  # what is large has its version in its name, and is kept for ever
    parts[own] = archive
    parts["stage.json"] = json.dumps(facts() | {"pyodide": runtime, "course": own}).encode()
    with tarfile.open(fetched_pyodide()) as package:
        for name in RUNTIME:
            member = package.extractfile(f"package/{name}")
            assert member is not None
            parts[f"{runtime}/{name}"] = member.read()
    size = sum(len(gzip.compress(part, 6)) for part in parts.values()) / 1e6
    template = (HERE / "page.html").read_text(encoding="utf-8")
    parts |= {f"{page}.html": filled(template, page, size).encode() for page in PAGES}
    keeper = (HERE / "keeper.js").read_text(encoding="utf-8")
    parts["keeper.js"] = keeper.replace('["written by build.py"]', json.dumps(sorted(parts))).encode()
    for name, part in parts.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(part)
    return size


def digest(data: bytes) -> str:
    """A short name for these bytes."""
    return hashlib.sha256(data).hexdigest()[:16]


def fetched_pyodide() -> Path:
    """Pyodide's package as npm has it. Raises SystemExit when it is not what is written here."""
    file = DOWNLOADS / f"pyodide-{PYODIDE}.tgz"
    if not file.exists():
        DOWNLOADS.mkdir(parents=True, exist_ok=True)
        command = [
            "npm",
            "pack",
            "--silent",
            f"pyodide@{PYODIDE}",
            "--pack-destination",
            str(DOWNLOADS),
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found = base64.b64encode(hashlib.sha512(file.read_bytes()).digest()).decode()
    if f"sha512-{found}" != INTEGRITY:
        sys.exit(f"{file.name} is not the release that is pinned here: its hash differs")
    return file


def fetched_wheels() -> list[Path]:
    """The wheels of requirements.txt; pip checks their hashes, of those that are here already too."""
    folder = DOWNLOADS / digest(REQUIREMENTS.read_bytes())
    if not folder.exists():
        draft = folder.with_suffix(".new")
        shutil.rmtree(draft, ignore_errors=True)
        pip(
            "download",
            "--require-hashes",
            *WHEELS,
            "-d",
            str(draft),
            "-r",
            str(REQUIREMENTS),
        )
        draft.rename(folder)
    return sorted(folder.glob("*.whl"))


def pip(*arguments: str) -> None:
    """Run pip, without the constraints of whoever runs this: the requirements are exact."""
    environment = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
    command = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "-qq",
        *arguments,
    ]
    subprocess.run(command, check=True, env=environment)


def renew() -> None:
    """Write requirements.txt."""
    pinned = dict(
        re.findall(
            r"^([\w.-]+)==(\S+)$",
            (ROOT / ".ci" / "constraints.txt").read_text(),
            re.MULTILINE,
        )
    )
    draft = DOWNLOADS / "renewed"
    shutil.rmtree(draft, ignore_errors=True)
    wanted = [f"{name}=={version}" for name, version in pinned.items() if normal(name) in map(normal, NEEDED)]
    pip("download", *WHEELS, "-d", str(draft), *wanted)
    lines = ["# What the pages' Python needs beside the standard library; by build.py --renew"]
    for wheel in sorted(draft.glob("*.whl")):
        name, version = wheel.name.split("-")[:2]
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        lines.append(f"{normal(name)}=={version} --hash=sha256:{found}")
    REQUIREMENTS.write_text("\n".join(lines) + "\n", encoding="utf-8")


def normal(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def project_wheel() -> Path:
    """The project's own wheel, built now."""
    from hatchling.build import build_wheel

    folder, before = DOWNLOADS / "own", Path.cwd()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.chdir(ROOT)
    try:
        return folder / build_wheel(str(folder))
    finally:
        os.chdir(before)


def course() -> bytes:
    """One archive with all that the pages' Python imports: the same bytes from the same parts."""
    parts: dict[str, bytes] = {}
    for wheel in [*fetched_wheels(), project_wheel()]:
        with zipfile.ZipFile(wheel) as archive:
            parts |= {name: archive.read(name) for name in archive.namelist() if travels(name)}
    standins = HERE / "standins"
    parts |= {file.relative_to(standins).as_posix(): file.read_bytes() for file in standins.rglob("*.py")}
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in sorted(parts):
            archive.writestr(zipfile.ZipInfo(name), parts[name], zipfile.ZIP_DEFLATED)
    return target.getvalue()


def travels(name: str) -> bool:
    """Whether a file of a wheel is asked for in a tab."""
    left_out = (
        "lab/teaching/",
        "lab/checks/",
        "lab/figures/",
        "lab/faults/",
        "lab/cost/",
        "lab/mirror/",
    )
    if name.startswith("fastapi_offline/static/"):
        return name.endswith(".png")  # a server mounts the folder; nobody opens its documentation here
    meta = ".dist-info/" in name and not name.endswith("/METADATA")
    return not (meta or name.startswith(left_out) or name.endswith((".pyi", ".c", "/")) or "/tests/" in name)


def facts() -> dict[str, object]:
    """What a page knows before its Python runs: the controls, the sources."""
    from lab.tab import CONTROLS, client_source, server_source
    from servers.models import MODELS

    return {
        "controls": [control._asdict() | {"default": control.usual} for control in CONTROLS],
        "models": {
            model.slug: {
                "name": model.name,
                "server": server_source(model.slug),
                "client": client_source(model.slug),
            }
            for model in MODELS
        },
    }


def filled(template: str, page: str, size: float) -> str:
    """One page."""
    from servers.models import MODELS

    names = {model.slug: model.name for model in MODELS}
    title = names[page][0].upper() + names[page][1:] if page in names else "Four models on one feed"
    words = {
        "page": page,
        "title": title,
        "models": page if page in names else " ".join(names),
        "size": f"{size:.0f}",
        "links": "\n        ".join(
            f'<a href="{each}.html"{" aria-current=page" if each == page else ""}>'
            f"{html.escape(names.get(each, 'All four'))}</a>"
            for each in PAGES
        ),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: words[found[1]], template)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
