"""The picture of a plan: well-formed, whole, and the same each time."""

import itertools
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devctl.cli.show import colours
from devctl.cli.show.html import plan_html
from devctl.cli.show.svg import WHOLE, Segment, bar, clean, edges, plan_svg, wrapped
from devctl.devices import Device
from devctl.placement import Budgets, Strategy, place
from devctl.placement.budget import from_max_memory, parse_max_memory
from devctl.placement.document import PlannedModel
from devctl.placement.pieces import Piece, pieces_of
from tests.conftest import CONFIGS
from tests.marks import examples
from tests.placement.greedy.test_greedy import LIMITS
from tests.trees import layers, random_trees, tree

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "<script>alert('&\"')</script>]]>-->\x00\x1b\ud800\ufffe é 模型 \n\t" + "long/" * 60
TINY = CONFIGS / "tiny-llama"


def planned(model, limits, strategy=Strategy.AUTO, name="model"):
    placement = place(model, limits, strategy)
    pieces = pieces_of(model, placement)
    about = PlannedModel(
        name=name, revision=None, class_name="Model", dtype="int8", nbytes=sum(piece.nbytes for piece in pieces)
    )
    return about, placement, pieces


def memory(text):
    return from_max_memory(parse_max_memory([text]))


def parsed(svg):
    return ElementTree.fromstring(svg)  # noqa: S314 - our own


def titles(svg):
    return [title.text for title in parsed(svg).iter(f"{SVG}title")]


class Texts(HTMLParser):
    """The tags and texts of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.texts.append(data)


def test_every_block_is_in_the_picture_and_in_the_table():
    drawn = planned(layers(10, 10, 10, embed=5, head=5, head_is_tied=True), memory("0=25B,cpu=10B"))
    said = titles(plan_svg(*drawn))
    page = Texts(plan_html(*drawn))
    for piece in drawn[2]:
        assert any(title.startswith(f"{piece.name}: ") and title.endswith(f" on {piece.device}") for title in said)
        assert piece.name in [text.strip() for text in page.texts]
    assert page.tags.count("tr") == 1 + len(drawn[2])
    assert any("head: 0 B (tied to embed.w) on" in title for title in said)


def test_what_it_says_of_the_plan():
    about, placement, pieces = planned(layers(10, 10, 10, 10), memory("0=20B,cpu=25B"), name="org/model")
    svg = plan_svg(about, placement, pieces)
    texts = [text.text for text in parsed(svg).iter(f"{SVG}text")]
    for expected in ("org/model", "cuda:0", "cpu, offloaded", "disk, offloaded", "10 B of 20 B, 50%", "20 B, no limit"):
        assert expected in texts
    assert any("40 B in int8, placed by auto" in text for text in texts)
    root = parsed(svg)
    assert root.get("role") == "img"
    ids = {element.get("id"): element for element in root.iter() if element.get("id")}
    assert root.get("aria-labelledby").split() == ["devctl-title", "devctl-desc"]
    assert "cuda:0 holds 10 B of 20 B" in ids["devctl-desc"].text


def test_notes_are_in_both():
    limits = Budgets(devices=((Device.gpu(0), 100),), given=True, notes=("the <first> note",))
    drawn = planned(layers(10), limits)
    assert "note: the &lt;first&gt; note" in plan_svg(*drawn)
    assert "<li>the &lt;first&gt; note</li>" in plan_html(*drawn)


def test_names_may_be_anything():
    spec = {"<b>&\"'": {"w": 5}, "x" * 300: {"w": 5}, "\x00\ud800": {"w": 1}}
    drawn = planned(tree(spec), memory("0=6B,cpu=100B"), name=HOSTILE)
    svg, page = plan_svg(*drawn), plan_html(*drawn)
    assert any(title.startswith("<b>&\"'") for title in titles(svg))
    assert not {"script", "b"} & set(Texts(page).tags)
    for text in (svg, page):
        assert text.isascii()
        assert "alert('" not in text
        assert not re.search(r"[\x00-\x08\x0b-\x1f]", text)


def test_nothing_is_loaded_from_elsewhere():
    drawn = planned(layers(10, 10), memory("0=15B,cpu=100B"))
    for text in (plan_svg(*drawn), plan_html(*drawn)):
        without = text.replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.search(r"https?:|//|<script|<link|<img|@import|@font-face|src=|href=", without)
        assert set(re.findall(r"url\(([^)]*)\)", without)) == {"#devctl-disk"}


@settings(max_examples=examples(70), deadline=None)
@given(random_trees(), LIMITS, st.sampled_from(Strategy))
def test_the_strip_is_whole_whatever_the_model(model, limits, strategy):
    drawn = planned(model, limits, strategy)
    svg = plan_svg(*drawn)
    assert svg == plan_svg(*planned(model, limits, strategy))
    root = parsed(svg)
    strip = [rect for rect in root.iter(f"{SVG}rect") if rect.get("height") == "58"]
    assert len(strip) == len(drawn[2])
    widths = [round(1000 * float(rect.get("width").rstrip("%"))) for rect in strip]
    lefts = [round(1000 * float(rect.get("x").rstrip("%"))) for rect in strip]
    assert sum(widths) == (WHOLE if strip else 0)
    assert lefts == [0, *itertools.accumulate(widths)][: len(lefts)]
    assert all(widths)
    Texts(plan_html(*drawn))


def piece(nbytes):
    return Piece(name="x", nbytes=nbytes, device=Device.cpu())


def test_widths_are_those_of_the_bytes_and_the_tiny_are_seen():
    assert edges([piece(10), piece(30)]) == [0, 25_000, 100_000]
    at = edges([piece(10**9), piece(1), piece(0)])
    assert at[-1] == WHOLE
    assert at[2] - at[1] > 300
    assert at[3] - at[2] > 300
    many = edges([piece(10**9), *[piece(1)] * 5000])
    assert many[1] > WHOLE // 3
    assert all(b > a for a, b in itertools.pairwise(many))
    assert edges([]) == [0]


def test_a_bar_of_several_segments():
    parts = (Segment(label="weights", nbytes=40), Segment(label="KV cache", nbytes=10))
    lines = bar(parts, 100, 0, top=0, kind="d0")
    assert any('x="0.000%"' in line and 'width="40.000%"' in line and "weights: 40 B" in line for line in lines)
    assert any('x="40.000%"' in line and 'width="10.000%"' in line and "KV cache: 10 B" in line for line in lines)
    assert any("50 B free</title>" in line for line in lines)
    assert any(">KV cache</text>" in line for line in lines)


def test_a_bar_that_is_over_its_budget():
    lines = bar((Segment(label="weights", nbytes=125),), 100, 0, top=0, kind="d0")
    assert any('width="100.000%"' in line and "weights" in line for line in lines)
    assert 'x1="80.000%"' in lines[-1]


def test_many_devices_are_a_grid():
    drawn = planned(layers(*[10] * 40), memory(",".join(f"{i}=12B" for i in range(256))))
    root = parsed(plan_svg(*drawn))
    assert int(root.get("height")) < 1500
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert {f"cuda:{i}" for i in range(256)} <= set(texts)
    assert "256 accelerators of 12 B: 400 B in all" in texts


@pytest.mark.parametrize("fills", [colours._LIGHT, colours._DARK])
def test_text_on_a_colour_can_be_read(fills):
    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(one, other):
        low, high = sorted((luminance(one), luminance(other)))
        return (high + 0.05) / (low + 0.05)

    page = "#ffffff" if fills is colours._LIGHT else "#14171c"
    for fill, text in fills:
        assert contrast(fill, text) >= 4.5
        assert contrast(fill, page) >= 3


def drawn_texts(svg, window):
    """What is shown in a window of so many pixels: (left, right, top, text), in pixels."""

    def pixels(text, whole):
        return float(text.rstrip("%")) / 100 * whole if text.endswith("%") else float(text)

    def walk(element, x, y, width):
        for each in element:
            left, top, inner = x, y, width
            if each.tag == f"{SVG}svg":
                left += pixels(each.get("x", "0"), width)
                top += pixels(each.get("y", "0"), 1)
                inner = pixels(each.get("width", "100%"), width)
            classes = each.get("class", "").split()
            bounds = [(c[:4], int(c[4:])) for c in classes if re.fullmatch("from[0-9]+", c)]
            untils = [int(c[2:]) for c in classes if re.fullmatch("to[0-9]+", c)]
            if any(window < at for _, at in bounds) or any(window >= at for at in untils):
                continue
            if each.tag == f"{SVG}text" and each.text:
                size = 20 if "title" in classes else 11 if "small" in classes else 13
                wide, at = colours.text_width(each.text, size), left + pixels(each.get("x"), inner)
                start = at - wide if "end" in classes else at - wide / 2 if "mid" in classes else at
                yield start, start + wide, top + pixels(each.get("y"), 1), each.text
            yield from walk(each, left, top, inner)

    root = parsed(svg)
    yield from walk(root, 0, 0, window * 0.96)


BOXES = [
    ("0=1000B,cpu=1000B", 3),
    ("0=25B,1=35B,cpu=300B", 12),
    (",".join(f"{i}=12B" for i in range(128)), 60),
    (",".join(f"{i}=120B" for i in range(8)) + ",cpu=100B", 20),
]


@pytest.mark.parametrize("window", [340, 500, 620, 800, 1200])
@pytest.mark.parametrize(("limits", "blocks"), BOXES)
def test_no_label_runs_into_another(limits, blocks, window):
    drawn = planned(layers(*[10] * blocks, embed=3, head=1), memory(limits), name="org/model")
    texts = sorted(drawn_texts(plan_svg(*drawn, "32,768 tokens × 1"), window), key=lambda each: (each[2], each[0]))
    for (_, right, y, one), (left, _, other_y, two) in itertools.pairwise(texts):
        assert y != other_y or right <= left + 1, (one, two)


def test_the_name_of_a_long_host_leaves_room_for_its_numbers():
    from dataclasses import replace

    from devctl.placement.parallel.host_device import HostDevice

    about, placement, pieces = planned(layers(10, 10), memory("0=100B"))
    long = HostDevice(placement.devices[0].device.type, 0, host="a-very-long-name.of-a-host.of-a-cluster.example.org")
    placement = replace(placement, devices=(replace(placement.devices[0], device=long), *placement.devices[1:]))
    pieces = tuple(replace(piece, device=long) for piece in pieces)
    for window in (340, 500, 800):
        texts = list(drawn_texts(plan_svg(about, placement, pieces), window))
        (numbers,) = [each for each in texts if each[3].startswith("20 B of")]
        (name,) = [each for each in texts if each[2] == numbers[2] and each is not numbers]
        assert name[1] <= numbers[0], window
        assert "cuda:0" in name[3]


def test_the_verdict_is_on_the_picture_and_the_page(devctl, tmp_path):
    svg, page = tmp_path / "plan.svg", tmp_path / "plan.html"
    done = devctl("plan", TINY, "--max-memory", "0=9MiB,cpu=1GiB", "--svg", svg, "--html", page)
    verdict = done.err.splitlines()[0]
    assert " on cpu, " in verdict
    texts = [text.text for text in parsed(svg.read_text()).iter(f"{SVG}text")]
    # the title is the path of the config: as many lines as the checkout's place takes
    title = next(index for index in range(len(texts)) if "".join(texts[: index + 1]) == str(TINY))
    assert texts[title + 1] == verdict
    assert f"<p>{verdict}</p>" in page.read_text()


def test_labels_of_narrow_windows_are_hidden_where_windows_are_not_known():
    style = re.sub(r"@media[^{]*\{([^{}]*\{[^{}]*\})*\}", "", colours.stylesheet())
    hidden = style.partition("{display:none}")[0].rpartition("}")[2].split(",")
    assert {f".devctl .to{point}" for point in colours._BREAKPOINTS} == set(hidden)


def test_the_workload_is_in_the_title():
    drawn = planned(layers(10, 10), memory("0=100B"), name="org/model")
    svg, page = plan_svg(*drawn, "32,768 tokens × 4"), plan_html(*drawn, "32,768 tokens × 4")
    assert titles(svg)[0] == "org/model: where its layers go, 32,768 tokens × 4"
    assert "<title>org/model: where its layers go, 32,768 tokens &#215; 4</title>" in page
    assert "counted: 32,768 tokens × 4" in Texts(page).texts


def test_shades_have_a_legend_where_there_are_any(devctl, tmp_path):
    for asked, expected in (([], False), (["--context-length", "64"], True)):
        done = devctl(
            "plan", TINY, "--devices", "1GiB", *asked, "--svg", tmp_path / "plan.svg", "--html", tmp_path / "p"
        )
        assert done.code == 0
        texts = [text.text for text in parsed((tmp_path / "plan.svg").read_text()).iter(f"{SVG}text")]
        labels = [label for label in ("weights", "KV cache", "activations", "overhead") if label in texts]
        assert (len(labels) == 4) is expected
        assert ("1 tokens" in titles((tmp_path / "plan.svg").read_text())[0]) is False
    assert "64 tokens × 1" in titles((tmp_path / "plan.svg").read_text())[0]


def test_pieces_too_narrow_for_a_name_are_listed():
    drawn = planned(layers(*[1000] * 4, embed=3, head=1), memory("0=100KiB"))
    texts = [text.text for text in parsed(plan_svg(*drawn)).iter(f"{SVG}text")]
    (listed, *_) = [text for text in texts if text.startswith("too narrow for a name, in order: ")]
    assert "embed (3 B, cuda:0)" in listed
    assert "head (1 B, cuda:0)" in listed


def test_long_text():
    assert wrapped("one two three", 8) == ["one two", "three"]
    assert len(wrapped("x" * 1000, 40)) == 4
    assert max(map(len, wrapped("x" * 1000, 40))) <= 40
    assert wrapped("", 40) == [""]
    assert clean("a\x00<") == "a\ufffd&lt;"


def test_the_files_are_written(devctl, tmp_path):
    args = ["plan", TINY, "--max-memory", "cpu=12MiB"]
    done = devctl(*args, "--svg", tmp_path / "plan.svg", "--html", tmp_path / "plan.html")
    assert done == devctl(*args)
    assert "model.layers.7: 1.38 MiB on disk" in titles((tmp_path / "plan.svg").read_text())
    assert "lm_head" in Texts((tmp_path / "plan.html").read_text()).texts
    assert {path.name for path in tmp_path.iterdir()} == {"plan.svg", "plan.html"}


@pytest.mark.parametrize("option", ["--svg", "--html"])
def test_a_file_that_can_not_be_written(devctl, option):
    done = devctl("plan", TINY, "--max-memory", "cpu=12MiB", option, "/absent/plan")
    assert (done.code, done.out) == (2, "")
    told = "devctl: cannot write /absent/plan: No such file or directory\n"
    assert done.err == f"{told}  make the folder /absent, or give another place for it\n"
