"""What passes before training."""

from __future__ import annotations

import json

import pytest

from benchmarks import startup
from cimrl_jax.errors import UserError


def test_imports_are_compared_with_bare_python(monkeypatch):
    monkeypatch.setattr(startup, "COMMANDS", {"python": ["-c", "pass"], "json": ["-c", "import json"]})
    records = list(startup.imports(2))
    assert [own["name"] for own in records] == ["startup/import/python", "startup/import/json"] and records[0]["ratio"] == 1
    assert all({"ratio", "ratio_quartiles", "seconds", "environment"} <= own.keys() for own in records)
    json.dumps(records)


def test_a_process_that_fails_says_why():
    with pytest.raises(UserError, match=r"(?s)ended with 1: .*no_such_module"):
        startup.seconds_of(["-c", "import no_such_module"])
