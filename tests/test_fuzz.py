"""Damaged and hostile files: every reader reads them or says in one short error what is wrong; see tests/fuzz."""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("PIL")
if sys.platform == "win32":
    pytest.skip("limits by signals of POSIX", allow_module_level=True)

from tests.fuzz.run import fuzz


def test_mutated_files_are_read_or_refused(tmp_path):
    result = fuzz(tmp_path, files=450, seed=0)
    assert [f"{where}: {fault}" for where, fault, _ in result.faults] == []
    refused = {name.split(":")[0] for name in result.counts if name.endswith("refused")}
    assert len(refused) == 15  # each of the readers has refused some


@pytest.mark.slow
def test_many_mutated_files_are_read_or_refused(tmp_path):
    result = fuzz(tmp_path, files=20_000, seed=1)
    assert [f"{where}: {fault}" for where, fault, _ in result.faults] == []
