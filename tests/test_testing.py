"""What the tests themselves rest on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from forking import run_script


def test_a_script_is_run_with_its_arguments_and_its_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "beside.py").write_text("NAME = 'beside'")
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys, beside\nprint(__name__, sys.argv[1:], beside.NAME, os.environ['TAPIOCA_TEST'], "
        "[name for name in ('conftest', 'onnx') if name in sys.modules])"
    )
    monkeypatch.setenv("TAPIOCA_TEST", "set")
    assert run_script(script, "a", "b").stdout == "__main__ ['a', 'b'] beside set []\n"
    script.write_text("raise ValueError('no')")
    failed = run_script(script)
    assert (failed.returncode, failed.stderr.splitlines()[-1]) == (1, "ValueError: no")


@pytest.fixture(scope="module")
def shared() -> int:
    return os.getpid()


def test_what_a_file_shares_is_made_in_one_process(shared: int, request: pytest.FixtureRequest) -> None:
    if not getattr(request.config.option, "loadgroup", False):
        pytest.skip("there are no groups without xdist's --dist loadgroup")
    assert request.node.nodeid.endswith("@test_testing")
