"""Build wheel and sdist of the last commit twice, and install the wheel: `make dist`.

    python .ci/make_dist.py VENV LIBRARIES

VENV has `build` and setuptools, LIBRARIES is a folder with what the wheel needs. The second build runs in
another folder, time zone and order of hashes; files that are not the same byte for byte are an error. They go
to `dist/`. The wheel is installed alone into a fresh environment and asked for its version from outside the
checkout.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
DIST = ROOT / "dist"
# What may differ between two machines and must not show.
SURROUNDINGS = ({"TZ": "UTC", "PYTHONHASHSEED": "1"}, {"TZ": "Asia/Kathmandu", "PYTHONHASHSEED": "2"})


def main(venv: Path, libraries: Path) -> None:
    """Build, compare, install."""
    os.umask(0o022)  # archives hold the rights of their files
    if _output("git", "status", "--porcelain"):
        print("Built of the last commit; what is not committed is left out.", file=sys.stderr)
    epoch = _output("git", "log", "-1", "--format=%ct")
    with tempfile.TemporaryDirectory() as scratch:
        builds = [
            _build(venv / "bin/python", Path(scratch) / f"{number}" / "source", epoch, changes)
            for number, changes in enumerate(SURROUNDINGS)
        ]
        one, other = ({file.name: _sha256(file) for file in files} for files in builds)
        if one != other:
            sys.exit(f"Two builds of one commit differ: {one} {other}")
        DIST.mkdir(exist_ok=True)
        for file in (*DIST.glob("*.whl"), *DIST.glob("*.tar.gz")):
            file.unlink()
        for file in builds[0]:
            shutil.copyfile(file, DIST / file.name)
            print(f"{one[file.name]}  dist/{file.name}")
        (wheel,) = DIST.glob("*.whl")
        _install(wheel, Path(scratch) / "fresh", libraries)


def _build(python: Path, source: Path, epoch: str, changes: dict[str, str]) -> list[Path]:
    """Return wheel and sdist of the last commit, built in a folder."""
    source.mkdir(parents=True)
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(source, filter="data")
    made = source.parent / "made"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-m", "build", "--quiet", "--no-isolation", "--outdir", made, source],
        capture_output=True, text=True, env=environment | changes | {"SOURCE_DATE_EPOCH": epoch},
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}")
    files = sorted(made.iterdir())
    for file in files:
        if file.name.endswith(".tar.gz"):
            _settle(file, int(epoch))
    return files


def _settle(file: Path, epoch: int) -> None:
    """Write an sdist anew without times and owners: setuptools gives it those of the machine."""
    settled = io.BytesIO()
    with (
        tarfile.open(file) as before,
        tarfile.open(fileobj=settled, mode="w", format=tarfile.PAX_FORMAT) as after,
    ):
        for member in sorted(before.getmembers(), key=lambda member: member.name):
            member.mtime, member.uid, member.gid, member.uname, member.gname = epoch, 0, 0, "", ""
            member.pax_headers = {}
            after.addfile(member, before.extractfile(member) if member.isfile() else None)
    with file.open("wb") as raw, gzip.GzipFile("", "wb", mtime=epoch, fileobj=raw) as packed:
        packed.write(settled.getvalue())


def _install(wheel: Path, venv: Path, libraries: Path) -> None:
    """Install a wheel alone, and ask the command for its version from outside the checkout."""
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    pip = [venv / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--no-index", wheel], check=True)
    environment = os.environ | {"PYTHONPATH": str(libraries)}
    where = [venv / "bin/python", "-c", "import tapioca_export; print(tapioca_export.__file__)"]
    found = Path(_output(*where, cwd=venv, env=environment))
    if not found.resolve().is_relative_to(venv.resolve()):
        sys.exit(f"The package was imported from {found}, not from the wheel.")
    said = _output(venv / "bin/tapioca-export", "--version", cwd=venv, env=environment)
    version = wheel.name.split("-")[1]
    if version not in said:
        sys.exit(f"The wheel of version {version} says {said!r}.")
    listed = _output(venv / "bin/tapioca-export", "list", cwd=venv, env=environment)
    if "tale" not in listed:  # which imports what the wheel must hold
        sys.exit(f"The wheel lists {listed!r}.")
    print(f"Installed from the wheel: {said}")


def _output(*command: object, **options: object) -> str:
    options = {"cwd": ROOT, **options}
    arguments = [str(part) for part in command]
    return subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True, **options).stdout.strip()


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


if __name__ == "__main__":
    main(*(Path(argument).absolute() for argument in sys.argv[1:3]))
