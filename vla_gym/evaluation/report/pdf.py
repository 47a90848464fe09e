"""A page as PDF, printed by a browser without a window."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from vla_gym.errors import BrokenDependency, DependencyNotInstalled, InvalidOption

__all__ = ["BROWSERS", "BROWSER_VARIABLE", "TIMEOUT_S", "find_browser", "write_pdf"]

BROWSER_VARIABLE = "VLA_GYM_BROWSER"
"""Environment variable: the program of a browser of Chromium's family."""

BROWSERS = (
    *("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"),
    *("msedge", "microsoft-edge", "microsoft-edge-stable", "chrome-headless-shell"),
)
"""Programs that are looked for on the PATH, in this order."""

TIMEOUT_S = 300


def find_browser() -> str:
    """Return the program of a browser that prints.

    Raises:
        DependencyNotInstalled: there is none; the message says how to get one.
    """
    asked = os.environ.get(BROWSER_VARIABLE)
    if asked:
        if found := shutil.which(asked):
            return found
        raise DependencyNotInstalled(
            f"{BROWSER_VARIABLE}={asked} is no program that can be run. Set it to the program of "
            "Chromium, Chrome or Edge, or unset it"
        )
    for name in BROWSERS:
        if found := shutil.which(name):
            return found
    raise DependencyNotInstalled(
        "a PDF is printed by a browser, and none is on the PATH (looked for "
        f"{', '.join(BROWSERS)}). Install one (Debian: apt install chromium; Ubuntu: snap install "
        f"chromium; Fedora: dnf install chromium), or set {BROWSER_VARIABLE} to its program, or "
        "print report.html from the browser that shows it"
    )


def write_pdf(html_path: str | Path, pdf_path: str | Path) -> Path:
    """Print a page to a PDF.

    Args:
        html_path: such as `report.html`.
        pdf_path: appears only when it is complete.

    Returns:
        The path of the PDF.

    Raises:
        InvalidOption: there is no such page.
        DependencyNotInstalled: there is no browser.
        BrokenDependency: the browser does not print; the message has its last words.
    """
    page, pdf = Path(html_path).resolve(), Path(pdf_path).resolve()
    if not page.is_file():
        raise InvalidOption(f"{page} does not exist; `vla-gym report` writes it")
    browser = find_browser()
    pdf.parent.mkdir(parents=True, exist_ok=True)
    part = pdf.with_suffix(".part.pdf")
    try:
        _print(browser, page, part)
        part.replace(pdf)
    finally:
        part.unlink(missing_ok=True)
    return pdf


def _print(browser: str, page: Path, pdf: Path) -> None:
    # The browser's last children may still write into their profile when it has ended.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [
            *(browser, "--headless", "--disable-gpu", "--no-pdf-header-footer", "--no-first-run"),
            *(f"--user-data-dir={profile}", f"--print-to-pdf={pdf}"),
        ]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            command.append("--no-sandbox")  # Chromium refuses to start as root with it
        try:
            done = subprocess.run(
                [*command, page.as_uri()], capture_output=True, text=True, timeout=TIMEOUT_S
            )
        except subprocess.TimeoutExpired as error:
            raise BrokenDependency(f"{browser} has not printed {page} in {TIMEOUT_S} s") from error
    if done.returncode or not pdf.is_file():
        last = " ".join(done.stderr.split()[-40:]) or "it said nothing"
        raise BrokenDependency(
            f"{browser} has not printed {page} (exit code {done.returncode}: {last}). Set "
            f"{BROWSER_VARIABLE} to another browser, or print the page from a browser's window"
        )
