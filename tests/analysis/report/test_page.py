"""The HTML report in a real browser, opened from disk, at desktop and at phone width."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis.report.made_document import made_page

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(made_page(), encoding="utf-8")
    return path


@pytest.fixture(params=SIZES)
def opened(request: pytest.FixtureRequest, browser: Any, page: Path) -> Any:
    """The page, freshly loaded at a width."""
    width, height = SIZES[request.param]
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {
            "width": width,
            "height": height,
            "deviceScaleFactor": 1,
            "mobile": request.param == "phone",
        },
    )
    browser.get(page.as_uri())
    return browser


def column(browser: Any, name: str) -> list[str]:
    """The cells below a heading, as shown, top to bottom."""
    return browser.execute_script(
        """
        const heads = [...document.querySelectorAll("th")];
        const head = heads.find((th) => th.textContent.trim() === arguments[0]);
        const rows = [...head.closest("table").tBodies[0].rows];
        return rows.map((row) => row.cells[head.cellIndex].textContent);
        """,
        name,
    )


def click_heading(browser: Any, name: str) -> str:
    """Click a heading's button; return its aria-sort."""
    return browser.execute_script(
        """
        const buttons = [...document.querySelectorAll("th button")];
        const button = buttons.find((b) => b.textContent.trim() === arguments[0]);
        button.click();
        return button.parentElement.getAttribute("aria-sort");
        """,
        name,
    )


def tip(browser: Any) -> str | None:
    """The text of the hover box; None while it is hidden."""
    return browser.execute_script(
        'const t = document.getElementById("tip"); return t.hidden ? null : t.textContent;'
    )


def test_the_page_is_quiet_and_fits(opened: Any) -> None:
    """No message, no request but the file itself, nothing wider than the window."""
    assert opened.get_log("browser") == []
    loaded = 'return performance.getEntriesByType("resource").map((entry) => entry.name);'
    assert opened.execute_script(loaded) == []
    widths = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth];"
    needed, there = opened.execute_script(widths)
    assert needed <= there


def test_numbers_sort_as_numbers_and_missing_ones_stay_last(opened: Any) -> None:
    before = column(opened, "Number")
    assert click_heading(opened, "Number") == "ascending"
    assert column(opened, "Number") == ["-3", "2", "10", "1e+18", "–", "–"]
    assert click_heading(opened, "Number") == "descending"
    assert column(opened, "Number") == ["1e+18", "10", "2", "-3", "–", "–"]
    assert sorted(before) == sorted(column(opened, "Number"))


def test_words_sort_as_words_and_rows_stay_whole(opened: Any) -> None:
    pairs = set(zip(column(opened, "Name"), column(opened, "Number"), strict=True))
    click_heading(opened, "Name")
    plain = [name for name in column(opened, "Name") if name[0] in "acz"]
    assert plain == ["a|b", "c_d & 50 % of $x$", "zeta \\ {q} ~ ^"]
    assert set(zip(column(opened, "Name"), column(opened, "Number"), strict=True)) == pairs


def test_text_is_shown_and_never_run(opened: Any) -> None:
    assert opened.execute_script("return window.hacked;") is None
    assert "<script>window.hacked = 1</script>" in column(opened, "Name")
    assert opened.title == "A & B <report>"


def test_pointing_at_a_marker_shows_its_value(opened: Any) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    assert tip(opened) is None
    marker = opened.find_elements("css selector", "[data-tip]")[1]
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'});", marker)
    ActionChains(opened).move_to_element(marker).perform()
    assert tip(opened) == "second <b>"
    heading = opened.find_element("css selector", "h2")
    ActionChains(opened).move_to_element(heading).perform()
    assert tip(opened) is None


def test_arrow_keys_move_from_value_to_value(opened: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    chart = opened.find_element("css selector", ".chart")
    shown = []
    for key in (Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT):
        chart.send_keys(key)
        shown.append(tip(opened))
    assert shown == ["first", "second <b>", "first", "second <b>"]
    chart.send_keys(Keys.ESCAPE)
    assert tip(opened) is None


def test_light_and_dark_turn_page_and_figure(opened: Any) -> None:
    colours = """
        const text = document.querySelector(".chart svg text, .chart svg use");
        return [document.body, text].map((e) => getComputedStyle(e)).map(
            (style, i) => i ? style.fill : style.backgroundColor);
    """
    first = opened.execute_script(colours)
    opened.find_element("id", "theme").click()
    second = opened.execute_script(colours)
    assert all(a != b for a, b in zip(first, second, strict=True))
    opened.find_element("id", "theme").click()
    assert opened.execute_script(colours) == first
