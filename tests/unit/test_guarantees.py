"""The page of guarantees: what it says is kept by tests that there are, and every engine says the least."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guarantees.md").read_text()
GLANCE, *SECTIONS = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
ENGINES = {section.split()[0].strip(":"): section for section in SECTIONS}
LINK = re.compile(r'\[[^\]]+\]\(\.\./(tests/[\w/]+\.py) "(test_\w+)"\)')


def rows(section: str) -> list[list[str]]:
    """The cells of each row of a section's table, without its head."""
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines[2:]]


@functools.cache
def names_in(path: str) -> set[str]:
    return {node.name for node in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(node, ast.FunctionDef)}


def is_kept(cell: str) -> bool:
    """Whether it names tests, and all of them are there."""
    named = LINK.findall(cell)
    return bool(named) and all(name in names_in(path) for path, name in named)


@pytest.mark.parametrize("row", [row for section in SECTIONS for row in rows(section)], ids=lambda row: row[0])
def test_every_row_is_kept_by_tests_that_there_are(row: list[str]) -> None:
    fault, holds, does_not, kept_by = row
    assert fault
    assert holds
    assert does_not
    assert is_kept(kept_by)


@pytest.mark.parametrize("row", rows(GLANCE), ids=lambda row: row[0])
def test_every_cell_at_a_glance_is_kept_by_a_test_that_there_is(row: list[str]) -> None:
    fault, *cells = row
    assert fault
    assert all(is_kept(cell) or cell == "–" for cell in cells)


@pytest.mark.parametrize("engine", ["sqlite", "redis", "quorum", "zookeeper", "etcd", "postgres"])
def test_every_engine_says_what_a_dead_holder_a_paused_one_and_a_lost_reply_do(engine: str) -> None:
    faults = [row[0] for row in rows(ENGINES[engine])]
    needed = {"holder killed", "holder paused", "waiter killed", "reply lost: put"} - (
        {"reply lost: put"} if engine == "sqlite" else set()  # no reply of a local file is lost
    )
    assert all(any(fault.startswith(one) for fault in faults) for one in needed)
