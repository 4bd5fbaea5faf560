"""The report of a run as a stranger meets it: the five answers in words, and a page that everybody can read."""

import html
import itertools
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from otbr_jax.report import page, plots
from otbr_jax.report.questions import answer_questions

QUESTIONS = ["Is it backdoored?", "How sure is that?", "Is it gone?", "What did it cost?", "May I use it?"]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def metrics(acc, asr=None, ra=None):
    return {"acc": acc, "asr": asr, "ra": ra, "der": None if asr is None else 0.5}


def verdict(score, backdoored, **more):
    scores = [score, *np.linspace(0, min(score, 1), 9).tolist()]
    plain = {"detector": "trigger_size", "backdoored": backdoored, "suspect": 0, "score": score, "scores": scores}
    plain |= {"threshold": 3.5, "evidence": {"patch": scores, "maximum_margin": scores}}
    return plain | (more or {"p_value": 0.0328, "clean_networks": 60})


def unlearned(*, reverted=False):
    of_family = {"class": 0, "family": "patch", "reverted": reverted, "budget": 0.1, "unit": "share of the image"}
    return of_family | {"success": [0.99, 0.36], "left": [0.4, 0.011], "distortion": [0.2, 0.1]}


def summary(before, after, **more):
    """Of a run of `disarm` in which class 0 is flagged and its triggers are unlearned, but for `more`."""
    values = {
        "defense": "disarm",
        "metrics": {"victim": before, "disarmed": after},
        "choice": {"chosen_by": "procedural images"},
        "verdict": verdict(10.2, "yes"),
        "unlearned_triggers": [unlearned()],
        "neurons": {"scored": 24, "changed": 24},
        "did": "changed",
        "done": "class 0's patch triggers were unlearned, 2 rounds",
        "axes": [],
        "stages": {
            "victim": {"seconds": 500.0, "resumed": False, "digest": "ab" * 32},
            "disarmed": {"seconds": 90.0, "resumed": False, "digest": "cd" * 32, "spent": {"run": 90.0}},
        },
        "devices": ["cpu"],
        "versions": {"jax": "1.0"},
        "config": {"attack": {"name": "badnets", "target": 0}, "seed": 0},
    }
    return values | more


REPAIRED = summary(metrics(0.996, 1.0, 0.0), metrics(0.992, 0.011, 0.978))
UNMEASURED = summary(None, None)
NOTHING_CHANGED = {"unlearned_triggers": None, "neurons": {"scored": 24, "changed": 0}, "done": "nothing was changed"}
NOTHING_FLAGGED = summary(
    metrics(0.98), metrics(0.98), **NOTHING_CHANGED, verdict=verdict(0.4, "no"), warnings=["a warning"]
)
REVERTED = summary(
    None,
    None,
    unlearned_triggers=[unlearned(reverted=True)],
    neurons={"scored": 24, "changed": 0},
    done="nothing: unlearning was in vain",
)
OTBR = summary(
    metrics(0.95, 1.0, 0.0),
    metrics(0.8, 0.4, 0.5),
    defense="otbr",
    verdict=None,
    unlearned_triggers=None,
    axes=["gamma", "lambda"],
    along=["gamma"],
    strength="gamma",
    swept="fused",
    choice={"gamma": 0.1, "lambda": 0.5, "chosen_by": "config"},
    sweep=[
        {"gamma": gamma, "lambda": lam, "pruned": metrics(0.9, 0.9, 0.1), "fused": metrics(0.8, 0.4, 0.5)}
        for gamma in (0.1, 0.2)
        for lam in (0.5, 1.0)
    ],
)
ALL = {"repaired": REPAIRED, "unmeasured": UNMEASURED, "nothing": NOTHING_FLAGGED, "reverted": REVERTED, "otbr": OTBR}


def texts_of(values, **options):
    """Each answer in short and in full."""
    answers = answer_questions(values, **options)
    assert [answer.question for answer in answers] == QUESTIONS
    texts = (" ".join("".join(cell) for cell in answer.more) for answer in answers)
    return [(answer.short, text) for answer, text in zip(answers, texts, strict=True)]


def test_a_repair_that_was_measured():
    backdoored, sure, gone, cost, use = texts_of(REPAIRED, files=("repaired", "net.pt"))
    assert backdoored[0] == "Yes: its trigger works."
    assert "flags class 0, the attacker's: score 10.20, threshold 3.5" in backdoored[1]
    assert "1 of 60 clean networks scores as high" in sure[1]
    assert gone[0] == "Yes: the trigger now turns 1.1 % of the images (100.0 % before)."
    assert "turned 36.0 % of the images." in gone[1]
    assert cost[0] == "0.4 points of accuracy."
    assert "99.6 %" in cost[1]
    assert "90 seconds" in cost[1]  # without the victim's training
    assert use[0] == "The repaired one, with care."
    assert "repaired, net.pt" in use[1]
    other = summary(*REPAIRED["metrics"].values(), config={"attack": {"name": "badnets", "target": 3}})
    assert "class 0, but the attacker's is class 3" in texts_of(other)[0][1]


def test_a_flagged_network_without_data():
    backdoored, sure, gone, cost, use = texts_of(UNMEASURED)
    assert backdoored[0] == "Probably: class 0 is flagged."
    assert sure[0] == "A false alarm is possible: 1 of 60 clean networks scores as high (p-value 0.033)."
    assert "missed" in sure[1]
    assert gone[0].endswith("not proven.")
    assert "turned 99.0 % of the images into class 0. After the last unlearning round these turn 1.1 %" in gone[1]
    assert cost[0] == "Not known: no test images were given."
    assert "0.1 of their standard deviation" in cost[1]
    assert use[0] == "Only the repaired one, and only after a test of yours."


def test_no_class_is_flagged():
    backdoored, sure, gone, cost, use = texts_of(NOTHING_FLAGGED, files=("repaired",))
    assert backdoored[0] == "No sign of it was found."
    assert "no proof" in backdoored[1]
    assert sure[0].startswith("A clean network may look like this: 1 of 60 clean networks scores as high")
    assert gone[0] == "Nothing was changed, since no class is flagged."
    assert cost[0] == "Nothing: the network is unchanged."
    assert use[0] == "As far as you trust its source."
    assert "The unchanged network: repaired" in use[1]
    near = texts_of(NOTHING_FLAGGED | {"verdict": verdict(3.0, "no")})
    assert near[-1][0] == "Not before a second inversion."
    still = metrics(0.9, 1.0, 0.0)
    missed = texts_of(summary(still, still, **NOTHING_CHANGED, verdict=verdict(0.4, "no")))
    assert "missed it" in missed[0][1]
    assert missed[-1][0] == "No."


def test_unlearning_in_vain():
    backdoored, _, gone, cost, use = texts_of(REVERTED)
    assert backdoored[0] == "Probably: class 0 is flagged."
    assert gone[0] == "No: the repair failed."
    assert gone[1].count("reverted") == 1
    assert "after the last unlearning round" not in gone[1]
    assert cost[0] == "Nothing: the network is unchanged."
    assert use[0] == "No."


def test_a_defence_without_a_detector():
    backdoored, sure, gone, cost, use = texts_of(OTBR)
    assert "OTBR looks for no backdoor: it repairs whatever it is given." in backdoored[1]
    assert sure[0] == "As sure as a measurement with the trigger."
    assert gone[0].startswith("In part: the trigger now turns 40.0 %")
    assert cost[0] == "15.0 points of accuracy."
    assert use[0] == "No."
    backdoored, sure, gone, cost, use = texts_of(OTBR | {"metrics": {"victim": None, "fused": None}})
    assert [backdoored[0], use[0]] == ["Not asked.", "Not on this report alone."]
    assert "--detect" in sure[1]
    assert gone[0] == "Not known: no trigger was measured."
    costly = OTBR | {"metrics": {"victim": metrics(0.95, 1.0, 0.0), "fused": metrics(0.8, 0.1, 0.5)}}
    assert texts_of(costly)[-1][0] == "Not as it is."


def test_other_detectors_say_how_sure_they_are():
    by_value = verdict(4.0, "yes", p_value=0.01)
    assert texts_of(UNMEASURED | {"verdict": by_value})[1][0].startswith("p-value 0.01: so often")
    unknown = verdict(4.0, "yes", why_not="no clean networks were scored by x")
    assert texts_of(UNMEASURED | {"verdict": unknown})[1][0] == (
        "Not known how often a clean network scores as high: no clean networks were scored by x."
    )


def test_a_verdict_that_cannot_tell():
    few = verdict(9.0, "cannot tell", why_not="the network has 2 classes, and the detector needs at least 3")
    values = NOTHING_FLAGGED | {"verdict": few}
    backdoored, sure, gone, _, use = texts_of(values)
    assert backdoored[0] == "Cannot tell."
    assert backdoored[1] == "The network has 2 classes, and the detector needs at least 3."
    assert sure[0] == "There is no verdict to be sure of."
    assert gone[0] == "Nothing was changed, since there is no verdict."
    assert use[0] == "Not on this report alone."
    assert "<p>Cannot tell whether it is backdoored: the network has 2 classes" in rendered(values)


def test_a_trigger_that_does_not_work_and_a_backdoor_that_is_relearned():
    weak = texts_of(summary(metrics(0.9, 0.03, 0.9), metrics(0.9, 0.02, 0.9)))
    assert "does not work: it turns 3.0 %" in weak[0][1]
    assert weak[2][0] == "There was no backdoor to remove."
    curves = {"epochs": [1, 5], "poisoned": {"acc": [0.9, 0.9], "asr": [0.2, 0.85]}, "clean": {}, "never": None}
    assert "5 epochs, its trigger turns 85.0 % again" in texts_of(REPAIRED | {"relearning": curves})[2][1]


def rendered(values):
    names = ("params/a/kernel", "params/b/kernel")
    scores = {name: np.linspace(0.1, 1, 12) for name in names}
    triggers = (np.ones((10, 8, 8, 1)), np.zeros((10, 8, 8, 1)))
    images, labels = np.zeros((9, 8, 8, 1), np.uint8), np.arange(1, 10)
    zeros = np.zeros(9, int)
    measured = values["metrics"]["victim"] is not None
    return page.render(
        values,
        scores=scores,
        chosen={name: score > 0.5 for name, score in scores.items()},
        plan=("params/a/kernel", np.eye(12) / 12),
        triggers=triggers if values["verdict"] else None,
        examples=plots.predictions(images, images, labels, (labels, zeros), (labels, labels), goals=zeros)
        if measured
        else None,
        files=("repaired",),
    )


@pytest.fixture(scope="module")
def pages():
    return {name: rendered(values) for name, values in ALL.items()}


class Elements(HTMLParser):
    """The tags of a page with their attributes, and the text of its headings."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.headings = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if re.fullmatch(r"h\d", tag):
            self.headings.append([int(tag[1]), ""])

    def handle_data(self, data):
        if self.elements and re.fullmatch(r"h\d", self.elements[-1][0]):
            self.headings[-1][1] += data

    def handle_endtag(self, tag):
        self.elements.append(("/", {}))

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.mark.parametrize("name", ALL)
def test_the_page_makes_sense_to_a_screen_reader(pages, name):
    elements = Elements(pages[name])
    levels = [level for level, _ in elements.headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert [text for _, text in elements.headings[1:6]] == QUESTIONS  # before anything else
    assert elements.all("html") == [{"lang": "en"}]
    assert len(elements.all("main")) == len(elements.all("title")) == 1
    pictures = elements.all("img")
    assert pictures
    assert len({picture["alt"] for picture in pictures}) == len(pictures)
    assert all(len(picture["alt"]) > 40 for picture in pictures)
    assert len(elements.all("figcaption")) == len(elements.all("figure")) == len(pictures)
    assert all(head["scope"] in ("col", "row", "colgroup") for head in elements.all("th"))
    boxes = [box for box in elements.all("div") if box.get("class") == "wrap"]
    assert len(boxes) == len(pictures) + len(elements.all("table"))
    assert all(box["tabindex"] == "0" and box["aria-label"] and box["role"] == "group" for box in boxes)
    for answer in answer_questions(ALL[name]):
        assert answer.short in html.unescape(pages[name]).replace("\N{NO-BREAK SPACE}", " ")


def test_the_page_keeps_its_numbers(pages):
    text = html.unescape(pages["otbr"])
    assert text.count("<td>80.0 / 40.0</td>") == 4
    assert "Every class in numbers" not in text
    assert "Every class in numbers" in pages["reverted"]
    assert "not known" in pages["reverted"]
    assert "a warning" in pages["nothing"]


def colors(css):
    return dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", css))


def luminance(color):
    parts = (int(color[place : place + 2], 16) / 255 for place in (1, 3, 5))
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot((0.2126, 0.7152, 0.0722), linear))


def contrast(one, other):
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_enough_in_light_and_dark(pages):
    light, dark = (colors(block) for block in re.findall(r":root \{(.*?)\}", pages["otbr"], re.DOTALL))
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for palette in (light, dark):
        for ink in ("ink", "soft", "good", "bad", "open"):
            assert contrast(palette[ink], palette["page"]) >= 4.5, ink
        for ground in ("box", "warn"):
            assert contrast(palette["ink"], palette[ground]) >= 4.5, ground
        assert palette.keys() == light.keys()


PROBE = """<!doctype html><title>waiting</title><body>
<iframe style="width: {width}px; height: 900px; border: 0"></iframe>
<script>
const frame = document.querySelector("iframe");
frame.onload = () => {{
  const page = frame.contentDocument;
  const wide = [...page.querySelectorAll("main *")].filter(element => !element.closest(".wrap, pre")
    && element.getBoundingClientRect().right > {width});
  const small = [...page.images].filter(picture => !picture.complete || !picture.naturalWidth);
  document.title = [page.documentElement.scrollWidth, wide.length, small.length].join(" ");
}};
frame.srcdoc = {page};
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize(("name", "width"), [("repaired", 360), ("otbr", 360), ("repaired", 1280)])
def test_the_page_fits_a_browser(pages, name, width, tmp_path):

    text = json.dumps(pages[name]).replace("</", "<\\/")
    (tmp_path / "probe.html").write_text(PROBE.format(width=width, page=text), encoding="utf-8")
    options = (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--virtual-time-budget=9000",
    )
    command = [
        CHROMIUM,
        *options,
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
        f"file://{tmp_path}/probe.html",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    title = re.search(r"<title>(\d+) (\d+) (\d+)</title>", done.stdout)
    assert title, done.stderr[-2000:]
    assert int(title[1]) <= width, "the page scrolls sideways"
    assert (title[2], title[3]) == ("0", "0"), "something sticks out, or an image is broken"
    assert "CONSOLE" not in done.stderr
