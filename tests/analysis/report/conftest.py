# SPDX-License-Identifier: MIT
"""One browser for all tests of a session, and pages in it."""

import pytest

from tests.analysis.report.browser import chromium


@pytest.fixture(scope="session")
def browser():
    with chromium() as page:
        yield page


@pytest.fixture
def opened(browser, tmp_path):
    """Open a document; nothing may be fetched for it, nothing may go wrong on it."""

    def opener(document, width, **media):
        file = tmp_path / "report.html"
        file.write_text(document)
        browser.open(file.as_uri(), width, **media)
        assert browser.errors == []
        assert browser.requests == [file.as_uri()]
        return browser

    return opener
