"""The page of a recording: its figures against plain loops, its text as text, in a real browser."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interpret.made_models import SEQ_LEN, untrained_run
from isoflop.errors import UserError
from isoflop.interpret.attribution import trace
from isoflop.interpret.linear import layers_of
from isoflop.interpret.load import GateShape, LoadedRun
from isoflop.interpret.page import Limits, page_html, write_page
from isoflop.interpret.page.measures import (
    ExpertKeys,
    direct_writes,
    find_contexts,
    strongest_experts,
)
from isoflop.interpret.recorder import record
from isoflop.interpret.recording import GateRows, read_gates, read_tokens
from made_data import MadeHeldout

TEXTS = (
    "</script><script>window.hacked = 1</script> <b>&amp;</b>",
    "The ground was icy. The turtle was slow.\nThe ground was icy.",
    "naïve – 猫 was here. The lake was big.",
    "The doctor was nice. The turtle was slow.",
)
LIMITS = Limits(documents=3, tokens_per_document=40, experts=60, neighbours=3)
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


def heldout() -> MadeHeldout:
    """TEXTS in windows, each with its end-of-text."""
    windows, documents = [], []
    for number, text in enumerate(TEXTS):
        tokens = [*text.encode(), 1]
        for first in range(0, len(tokens), SEQ_LEN):
            windows.append(np.pad(tokens[first : first + SEQ_LEN], (0, SEQ_LEN))[:SEQ_LEN])
            documents.append(number)
    return MadeHeldout(np.array(windows, dtype=np.uint16), documents, num_bytes=1)


@pytest.fixture(scope="module")
def loaded() -> LoadedRun:
    return untrained_run(heldout=heldout())


@pytest.fixture(scope="module")
def recording(loaded: LoadedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recording")
    record(loaded, folder)
    return folder


@pytest.fixture(scope="module")
def page(loaded: LoadedRun, recording: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    write_page(loaded, recording, path, LIMITS)
    return path


def data_of(html: str) -> dict[str, Any]:
    """What the page's script reads."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    assert found is not None
    return json.loads(found.group(1))


@pytest.fixture(scope="module")
def data(page: Path) -> dict[str, Any]:
    return data_of(page.read_text(encoding="utf-8"))


def test_shares_and_signs_are_those_of_a_plain_loop(loaded: LoadedRun) -> None:
    input_T = np.array([1, *b"The lake was"], dtype=np.int32)
    found = strongest_experts(loaded.model, input_T, [1], 10**6)[0]
    traced = trace(loaded.model, torch.from_numpy(input_T.astype(np.int64))[None])
    layer = layers_of(loaded.model)[1]
    length: dict[tuple[int, int], float] = {}
    token = 7
    for channel, (experts, scores) in enumerate(
        zip(traced.idx[1][token].tolist(), traced.score[1][token].tolist(), strict=True)
    ):
        for expert, score in zip(experts, scores, strict=True):
            strength = score * float(layer.w_in[channel, expert] @ traced.x[1][token])
            length[channel, expert] = strength * float(layer.w_out[channel, expert].norm())
    total = sum(map(abs, length.values()))
    pairs = list(
        zip(found.channel_TS[token].tolist(), found.expert_TS[token].tolist(), strict=True)
    )
    assert sorted(pairs) == sorted(length)
    assert found.share_TS[token] == pytest.approx(
        [abs(length[pair]) / total for pair in pairs], rel=1e-4
    )
    assert found.is_negative_TS[token].tolist() == [length[pair] < 0 for pair in pairs]
    assert {True, False} == set(found.is_negative_TS[token].tolist())
    assert (np.diff(found.share_TS, axis=1) <= 0).all()


def test_what_an_expert_writes_by_hand() -> None:
    embedding_VD = torch.tensor([[9.0, 9.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    writes = direct_writes(
        torch.tensor([[1.0, 0.5], [0.0, -2.0]]), torch.tensor([1.0, 10.0]), embedding_VD, 2
    )
    # With the norm's scale: (1, 5) and (0, -20). Token 0 is the pad.
    assert [token for token, _ in writes[0].raises] == [2, 1]
    assert [token for token, _ in writes[0].lowers] == [4, 3]
    assert writes[0].raises[0][1] == pytest.approx(5 / np.std([1, 5, -1, -5], ddof=1))
    assert writes[0].lowers[0][1] == pytest.approx(-5 / np.std([1, 5, -1, -5], ddof=1))
    assert writes[1].raises[0][0] == 4
    assert writes[1].lowers[0][0] == 2


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("num_pieces", [1, 4])
def test_contexts_are_the_highest_scores_however_the_recording_is_cut(
    shared: bool, num_pieces: int
) -> None:
    rng = np.random.default_rng(0)
    num = 60
    channel_R = rng.integers(0, 2, num).astype(np.int16)
    layer_R = rng.integers(0, 2, num).astype(np.int16)
    expert_RK = np.array([rng.choice(5, 2, replace=False) for _ in range(num)], dtype=np.int32)
    score_RK = rng.integers(0, 6, (num, 2)).astype(np.float32)
    keys = ExpertKeys(shape=GateShape(num_layers=2, num_channels=2, num_experts=5), shared=shared)
    expected: dict[int, list[tuple[float, int]]] = {}
    for row in range(num):
        for expert, score in zip(expert_RK[row], score_RK[row], strict=True):
            table = 0 if shared else channel_R[row]
            key = (layer_R[row] * (1 if shared else 2) + table) * 5 + expert
            assert keys.name(int(key)) == (layer_R[row], table, expert)
            expected.setdefault(int(key), []).append((-score, row))
    pieces = [
        GateRows(
            row_R=part.astype(np.int64),
            layer_R=layer_R[part],
            channel_R=channel_R[part],
            expert_RK=expert_RK[part],
            score_RK=score_RK[part],
        )
        for part in np.array_split(np.arange(num), num_pieces)
    ]
    wanted = np.array([0, 3, 7])
    found = find_contexts(pieces, keys, wanted, 4)
    assert found == {key: [row for _, row in sorted(expected[key])[:4]] for key in (0, 3, 7)}


def test_neighbours_are_the_nearest_of_a_plain_loop(
    data: dict[str, Any], recording: Path, loaded: LoadedRun
) -> None:
    tokens = read_tokens(recording)
    gates = np.zeros((len(tokens), 2 * 3 * 36))
    for piece in read_gates(recording, tokens):
        for row, layer, channel, experts, scores in zip(
            piece.row_R,
            piece.layer_R,
            piece.channel_R,
            piece.expert_RK,
            piece.score_RK,
            strict=True,
        ):
            gates[row, (layer * 3 + channel) * 36 + experts] = scores
    unit = gates / np.linalg.norm(gates, axis=1, keepdims=True)
    for shown in (5, 44):
        row = int(np.flatnonzero(tokens.document_T == shown // 40)[shown % 40])
        cosine = unit @ unit[row]
        cosine[(tokens.position_T == 0) | (np.arange(len(tokens)) == row)] = -np.inf
        best = np.sort(cosine)[::-1][:3]
        found = data["tokens"][shown]
        assert [value for value, _ in found["neighbours"]] == pytest.approx(best, abs=1e-4)
        cosine[tokens.input_T == tokens.input_T[row]] = -np.inf
        best = np.sort(cosine)[::-1][:3]
        assert [value for value, _ in found["others"]] == pytest.approx(best, abs=1e-4)
        read = data["labels"][found["input"]]
        assert all(data["excerpts"][place][1] != read for _, place in found["others"])


def test_tokens_are_those_of_the_text(data: dict[str, Any]) -> None:
    second = data["documents"][1]
    shown = data["tokens"][second["first"] : second["end"]]
    assert len(shown) == 40
    targets = "".join(data["labels"][token["target"]] for token in shown)
    assert targets == TEXTS[1][:40]
    assert data["labels"][shown[0]["input"]] == "⟨begin⟩"
    # A character of several bytes has no text byte by byte.
    third = data["documents"][2]
    labels = [
        data["labels"][data["tokens"][at]["target"]] for at in range(third["first"], third["end"])
    ]
    assert labels[:4] == ["n", "a", "⟨195⟩", "⟨175⟩"]


def test_uses_are_counted_over_the_whole_recording(data: dict[str, Any], recording: Path) -> None:
    tokens = read_tokens(recording)
    pieces = list(read_gates(recording, tokens))
    for expert in data["experts"][::7]:
        uses = sum(
            int(
                (
                    piece.expert_RK[
                        (piece.layer_R == expert["layer"]) & (piece.channel_R == expert["table"])
                    ]
                    == expert["expert"]
                ).sum()
            )
            for piece in pieces
        )
        assert uses == expert["uses"] > 0


def test_limits_bound_the_page_and_the_page_says_so(
    loaded: LoadedRun, recording: Path, data: dict[str, Any]
) -> None:
    assert len(data["documents"]) == 3
    assert all(one["end"] - one["first"] <= 40 for one in data["documents"])
    assert sum(expert["detail"] is not None for expert in data["experts"]) == 60
    assert len(data["experts"]) > 60
    html = page_html(loaded, recording, LIMITS)
    assert f"The beginnings of 3 of 4 recorded documents: {len(data['tokens'])} of" in html
    assert "60, those with the largest shares, are described" in html
    assert html == page_html(loaded, recording, LIMITS)


def test_layers_that_were_not_recorded_are_not_shown(loaded: LoadedRun, tmp_path: Path) -> None:
    record(loaded, tmp_path, layers=[1])
    html = page_html(loaded, tmp_path, LIMITS)
    found = data_of(html)
    assert found["layers"] == [1]
    assert {expert["layer"] for expert in found["experts"]} == {1}
    assert "layer 1, channel 0" in html
    assert "layer 0, channel 0" not in html


def test_channels_that_share_a_table_share_its_experts(tmp_path: Path) -> None:
    loaded = untrained_run("peer", heldout=heldout())
    record(loaded, tmp_path)
    found = data_of(page_html(loaded, tmp_path, LIMITS))
    assert found["shared"] is True
    assert {expert["table"] for expert in found["experts"]} == {0}


def test_a_mixture_has_no_page(tmp_path: Path) -> None:
    loaded = untrained_run("moe", heldout=heldout())
    record(loaded, tmp_path)
    with pytest.raises(UserError, match="sgatlin or peer") as error:
        page_html(loaded, tmp_path, LIMITS)
    assert "\n" not in str(error.value)


def test_another_runs_recording_is_refused(recording: Path) -> None:
    other = untrained_run(heldout=heldout(), num_experts=49)
    with pytest.raises(UserError, match="recording = ") as error:
        page_html(other, recording, LIMITS)
    assert "\n" not in str(error.value)


@pytest.fixture(params=SIZES)
def opened(request: pytest.FixtureRequest, browser: Any, page: Path) -> Any:
    """The page, freshly loaded at a width."""
    width, height = SIZES[request.param]
    size = {"width": width, "height": height, "deviceScaleFactor": 1}
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {**size, "mobile": request.param == "phone"}
    )
    browser.get(page.as_uri())
    return browser


def text_of(browser: Any, selector: str) -> str:
    return browser.execute_script(
        "return document.querySelector(arguments[0]).textContent;", selector
    )


def test_the_page_is_quiet_and_fits(opened: Any) -> None:
    """No message, no request but the file itself, nothing wider than the window."""
    opened.find_elements("css selector", ".chip")[5].click()
    opened.find_element("css selector", "#token .link").click()
    assert opened.get_log("browser") == []
    loaded = 'return performance.getEntriesByType("resource").map((entry) => entry.name);'
    assert opened.execute_script(loaded) == []
    widths = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth];"
    needed, there = opened.execute_script(widths)
    assert needed <= there


def test_a_click_shows_a_tokens_experts_and_then_an_expert(
    opened: Any, data: dict[str, Any]
) -> None:
    opened.find_elements("css selector", ".chip")[9].click()
    pressed = opened.find_elements("css selector", '.chip[aria-pressed="true"]')
    assert [chip.get_attribute("data-token") for chip in pressed] == ["9"]
    assert "at position 9" in text_of(opened, "#token")
    strongest = data["tokens"][9]["strongest"]
    links = opened.find_elements("css selector", "#token .link")
    names = [f"#{data['experts'][row[1]]['expert']}" for rows in strongest for row in rows]
    assert [link.text for link in links] == names
    place = next(row[1] for rows in strongest for row in rows if data["experts"][row[1]]["detail"])
    links[names.index(f"#{data['experts'][place]['expert']}")].click()
    expert = data["experts"][place]
    assert f"chosen {expert['uses']} times" in text_of(opened, "#expert")
    contexts = opened.find_elements("css selector", "#expert tbody tr")
    assert len(contexts) == len(expert["detail"]["contexts"]) > 0
    lit = {
        int(chip.get_attribute("data-token"))
        for chip in opened.find_elements("css selector", ".chip.lit")
    }
    document = data["documents"][0]
    assert lit == {
        token
        for token in range(document["first"], document["end"])
        if any(row[1] == place for rows in data["tokens"][token]["strongest"] for row in rows)
    }


def test_a_negative_coefficient_turns_the_words_around(opened: Any, data: dict[str, Any]) -> None:
    rows = data["tokens"][0]["strongest"][0]
    shown = opened.find_elements("css selector", "#token tbody")[0].find_elements(
        "css selector", "tr"
    )
    seen = set()
    for (_, place, _, sign), row in zip(rows, shown, strict=True):
        detail = data["experts"][place]["detail"]
        if detail is None:
            assert "not described" in row.text
            continue
        seen.add(sign)
        words = [word.text for word in row.find_elements("css selector", ".word")]
        expected = detail["lowers" if sign < 0 else "raises"][:4]
        labels = [data["labels"][label] for label, _ in expected]
        assert words == [label.replace(" ", "␣").replace("\n", "⏎") for label in labels]
    assert seen


def test_the_keyboard_goes_from_token_to_token(opened: Any, data: dict[str, Any]) -> None:
    from selenium.webdriver.common.keys import Keys

    chip = opened.find_element("css selector", '.chip[aria-pressed="true"]')
    reached = []
    opened.execute_script("arguments[0].focus();", chip)
    keys = (Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    for key in (*keys, Keys.END, Keys.ARROW_RIGHT, Keys.HOME, Keys.ARROW_DOWN, Keys.ARROW_UP):
        opened.switch_to.active_element.send_keys(key)
        reached.append(int(opened.switch_to.active_element.get_attribute("data-token")))
    last = data["documents"][0]["end"] - 1
    assert reached[:8] == [1, 2, 1, 0, 0, last, last, 0]
    assert reached[9] == 0
    # One stop for the tabulator, wherever the reader is.
    stops = "return document.querySelectorAll(\".chip[tabindex='0']\").length;"
    assert opened.execute_script(stops) == 1


def test_another_document_is_picked(opened: Any) -> None:
    from selenium.webdriver.support.select import Select

    Select(opened.find_element("id", "document")).select_by_index(1)
    shown = text_of(opened, "#tokens")
    assert shown.startswith("⟨begin⟩The␣ground␣was")
    assert "at position 0" in text_of(opened, "#token")


def test_text_is_shown_and_never_run(opened: Any) -> None:
    assert opened.execute_script("return window.hacked;") is None
    assert text_of(opened, "#tokens").startswith("⟨begin⟩</script><scri")
    assert opened.find_elements("css selector", "#tokens b, #neighbours b, #expert b") == []


def test_light_and_dark(opened: Any) -> None:
    colour = "return getComputedStyle(document.body).backgroundColor;"
    first = opened.execute_script(colour)
    opened.find_element("id", "theme").click()
    assert opened.execute_script(colour) != first
    opened.find_element("id", "theme").click()
    assert opened.execute_script(colour) == first
