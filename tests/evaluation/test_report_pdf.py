"""What printing says where it cannot: these tests need no browser."""

from __future__ import annotations

import pytest

from vla_gym.errors import BrokenDependency, DependencyNotInstalled, InvalidOption
from vla_gym.evaluation.report import find_browser, write_pdf
from vla_gym.evaluation.report.pdf import BROWSER_VARIABLE


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("<p>text</p>")
    return path


def make_program(path, script):
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_no_browser_is_an_error_that_says_how_to_get_one(page, monkeypatch):
    monkeypatch.delenv(BROWSER_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(page.parent))
    with pytest.raises(DependencyNotInstalled, match="apt install chromium"):
        write_pdf(page, page.with_suffix(".pdf"))


def test_the_first_browser_on_the_path_is_taken_unless_another_is_named(page, monkeypatch):
    for name in ("google-chrome", "chromium"):
        make_program(page.parent / name, "exit 0")
    other = make_program(page.parent / "other", "exit 0")
    monkeypatch.setenv("PATH", str(page.parent))
    monkeypatch.delenv(BROWSER_VARIABLE, raising=False)
    assert find_browser() == str(page.parent / "chromium")
    monkeypatch.setenv(BROWSER_VARIABLE, str(other))
    assert find_browser() == str(other)
    monkeypatch.setenv(BROWSER_VARIABLE, "/no/such/browser")
    with pytest.raises(DependencyNotInstalled, match=f"{BROWSER_VARIABLE}=/no/such/browser"):
        find_browser()


def test_a_browser_that_fails_is_quoted_and_leaves_nothing(page, monkeypatch):
    program = make_program(page.parent / "browser", "echo 'no display' >&2; exit 7")
    monkeypatch.setenv(BROWSER_VARIABLE, str(program))
    with pytest.raises(BrokenDependency, match=r"exit code 7: no display"):
        write_pdf(page, page.parent / "out" / "page.pdf")
    assert list((page.parent / "out").iterdir()) == []


def test_a_page_that_is_not_there_is_an_error(page):
    with pytest.raises(InvalidOption, match="`vla-gym report` writes it"):
        write_pdf(page.with_name("other.html"), page.with_suffix(".pdf"))
