"""A table says the same as text, as HTML and as Markdown; pages and summaries of methods that nobody knows."""

import html
import json
import pathlib
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from launching import launch

from otbr_jax import InputError
from otbr_jax.detectors.calibration import FILE, calibration_of, read_calibration
from otbr_jax.report import calibration, page
from otbr_jax.report.rows import Row, parse
from otbr_jax.report.summary import summary_table
from otbr_jax.report.table import Code, Column, Strong, Table

ROOT = pathlib.Path(__file__).resolve().parent.parent
LETTERS = "ab |<>&*`'\"é%"


class Cells(HTMLParser):
    """The texts of a table's rows, whatever marks them up."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.open = [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.open = True

    def handle_endtag(self, tag):
        self.open = self.open and tag not in ("td", "th")

    def handle_data(self, data):
        if self.open:
            self.rows[-1][-1] += data


def from_html(table):
    return Cells(table.html()).rows


def from_markdown(table):
    lines = [line for line in table.markdown().splitlines() if line.startswith("|") and set(line) != {"|", "-"}]
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    return [[re.sub(r"\\([|<*`])", r"\1", cell.strip()) for cell in row] for row in rows]


def from_text(table):
    return [re.split(r" {2,}", line.strip()) for line in table.text().splitlines() if set(line) != {"-"}]


@pytest.mark.parametrize("seed", range(5))
def test_the_three_forms_hold_the_same_cells(seed):
    rng = np.random.default_rng(seed)
    shape = rng.integers(1, 6, size=2)
    words = ["x" + "".join(rng.choice(list(LETTERS), size=6)).replace("  ", "") + "x" for _ in range(np.prod(shape))]
    cells = np.array([re.sub(r" +", " ", word) for word in words], object).reshape(shape).tolist()
    titles = [f"title {index}" for index in range(shape[1])]
    table = Table(titles, cells)
    assert from_text(table) == from_html(table) == from_markdown(table) == [titles, *cells]


def test_marked_cells_are_plain_text_or_marked_up():
    row = ("a", Strong("b|c"), Code("d|<e>"), (Strong("1.0 / 2.0"), " / 3.0"))
    table = Table(("name", "one", "two", "three"), [row])
    assert from_text(table)[1] == from_html(table)[1] == ["a", "b|c", "d|<e>", "1.0 / 2.0 / 3.0"]
    assert table.markdown().splitlines()[-1] == r"| a | **b\|c** | `d\|<e>` | **1.0 / 2.0** / 3.0 |"
    assert "<b>b|c</b>" in table.html()
    assert "<code>d|&lt;e&gt;</code>" in table.html()


def test_nothing_in_a_cell_is_markup():
    bad = "<script>alert('|')</script>\n**bold**"
    table = Table((bad, bad), [(bad, Strong(bad))], caption=bad, notes=(bad,), kinds=(bad,))
    assert "<script" not in table.html()
    assert html.unescape(table.html()).count("<script>") == 8
    *_, line = [line for line in table.markdown().splitlines() if line.startswith("| ")]
    assert line.startswith(r"| \<script>alert('\|')\</script> \*\*bold\*\* | **\<script>")


def test_columns_are_aligned_and_groups_stand_above_theirs():
    group = "a group with a long title"
    columns = ("name", Column("x", group=group), Column("y", group=group), Column("note", "left"))
    table = Table(columns, [("one", "1.5", "20.25", "n"), ("three", "10.5", "1.0", "no")], notes=("A sentence.",))
    above, titles, rule, first, second, below, note = table.text().splitlines()
    assert rule == below == "-" * len(titles)
    assert note == "A sentence."
    assert first.index("1.5") + 3 == second.index("10.5") + 4 == titles.index("x") + 1
    assert first.index("20.25") + 5 == second.index("1.0") + 3 == titles.index("y") + 1
    assert first.rindex("n") == second.index("no") == titles.index("note")
    assert titles.index("x") <= above.index(group) + 3
    assert above.index(group) + len(group) <= titles.index("y") + 1
    assert f'<th scope="colgroup" class="group" colspan="2">{group}</th>' in table.html()
    assert table.html().count('rowspan="2"') == 2
    assert table.html().count('class="left"') == 6


def test_kinds_are_classes_of_rows_and_a_total_has_a_rule():
    table = Table(("a", "b"), [("x", "1"), ("all", "2")], kinds=("", "total"))
    assert table.text().splitlines() == ["a    b", "------", "x    1", "------", "all  2"]
    assert '<tr class="total"><th scope="row" class="left">all</th><td>2</td></tr>' in table.html()


def test_a_table_may_be_empty():
    table = Table(("a", Column("b", group="c")), [], caption="Nothing")
    assert table.text().splitlines()[0] == "Nothing"
    assert from_markdown(table) == [["a", "b"]]
    assert from_html(table) == [["a", "c"], ["b"]]
    untitled = Table(("", Column("b", group="c")), [("", "")])
    assert untitled.text().splitlines() == ["   c", "   b", "----"]


@pytest.mark.parametrize(
    ("columns", "rows", "kinds", "message"),
    [
        ((), [], (), "table: expected at least one column, found none"),
        (("a", "b"), [("1", "2"), ("1",)], (), "table: row 1: expected 2 cells, found 1"),
        (("a",), [("1",)], ("", ""), "table: expected a kind for each of 1 rows, found 2"),
    ],
)
def test_tables_that_cannot_be(columns, rows, kinds, message):
    with pytest.raises(InputError) as error:
        Table(columns, rows, kinds)
    assert str(error.value) == message


# --- methods that nobody knows ------------------------------------------------------------------------------------

LEAST = {
    "metrics": {"victim": None, "scrubbed_once": None},
    "choice": {"chosen_by": "config"},
    "neurons": {"scored": 4, "scrubbed": 1},
    "done": "1 of 4 neurons scrubbed",
    "did": "scrubbed",
}
SCORES = {"params/conv1/kernel": np.array([0.1, 0.2, 0.3, 0.4])}
CHOSEN = {"params/conv1/kernel": np.array([False, False, False, True])}


def measured(acc, asr=None):
    return {"acc": acc, "asr": asr, "ra": None, "der": None}


def test_the_least_that_a_method_can_say_makes_a_table_and_a_page():
    done = "chosen by config; 1 of 4 neurons scrubbed"
    assert summary_table(LEAST).text().splitlines()[0] == done
    assert "ACC and ASR were not measured" in summary_table(LEAST).text()
    some = LEAST | {"metrics": {"victim": measured(0.9), "scrubbed_once": measured(0.8)}}
    assert "repaired (scrubbed once)" in summary_table(some).text()
    assert summary_table(some).text().endswith(done)
    same = some | {"neurons": {"scored": 4, "scrubbed": 0}, "metrics": {"victim": measured(0.9), "b": measured(0.9)}}
    assert "\nunchanged " in summary_table(same).text()
    report = page.render(LEAST, scores=SCORES, chosen=CHOSEN)
    assert "not known" in report
    assert "Which neurons unlearning changed" in report
    assert "those that were scrubbed" in report
    assert re.findall(r"(?:src|href)=\"(.{0,21})", report) == ["data:image/png;base64"]
    assert "<img" not in page.render(LEAST, scores={}, chosen={})


@pytest.mark.parametrize(("axes", "figures"), [(["strength"], 2), (["strength", "extent"], 3)])
def test_a_sweep_is_a_curve_and_over_two_settings_that_vary_a_map_as_well(axes, figures):
    settings = [{"strength": s, "extent": e} for s in (1, 2) for e in ((5, 6) if len(axes) > 1 else (5,))]
    sweep = [setting | {"scrubbed_once": measured(0.5, 0.25)} for setting in settings]
    choice = settings[0] | {"chosen_by": "config"}
    oracle = settings[-1] | {"chosen_by": "oracle", "scrubbed_once": measured(0.75, 0.125)}
    summary = LEAST | {
        "metrics": {"victim": measured(0.9, 1.0), "scrubbed_once": measured(0.5, 0.25)},
        **{"choice": choice, "oracle": oracle, "sweep": sweep, "axes": axes, "swept": "scrubbed_once"},
        "warnings": ["<something> went wrong"],
    }
    report = page.render(summary, scores=SCORES, chosen=CHOSEN)
    assert report.count("<img") == figures
    assert '<p class="warn"><b>Warning:</b> &lt;something&gt; went wrong</p>' in report
    assert "(ACC 75.0, ASR 12.5)" in report
    assert "oracle: strength 2" in report
    text = summary_table(summary).text()
    assert text.endswith("<something> went wrong")


def test_verdict_fine_tuning_and_transport_are_shown_where_the_summary_has_them():
    verdict = {
        "detector": "tsbd",
        "backdoored": "yes",
        "suspect": 1,
        "score": 0.5,
        "scores": [0.1, 0.5],
        "threshold": 0.4,
    }
    tuned = [{"class": 1, "share": 0.5, "relearned": [0.0], "success": 0.125, "own": 0.75}]
    summary = LEAST | {"verdict": verdict, "trigger_finetuned": tuned}
    triggers = (np.ones((2, 4, 4, 1)), np.ones((2, 4, 4, 1)))
    plan = ("params/conv1/kernel", np.eye(4) / 4)
    report = page.render(summary, scores=SCORES, chosen=CHOSEN, triggers=triggers, plan=plan)
    assert "<p>Class 1 is flagged: score 0.50, threshold 0.4 (tsbd)." in report
    spaced = report.replace("\N{NO-BREAK SPACE}", " ")
    assert "<p>Class 1: fine-tuned on inverted triggers, 50 % of the way, the class was not relearned; other" in spaced
    assert "other triggers turn 12.5 % of the images into it, 75 % of its own images are predicted as it" in spaced
    assert "The trigger that was inverted for each class" in report
    assert "Where their mass went" in report
    assert report.count("<img") == 3
    assert "class 1: fine-tuned on inverted triggers" in summary_table(summary).text()


# --- what scores are compared with --------------------------------------------------------------------------------


def test_the_file_of_the_calibration_is_what_the_rows_say(tmp_path):
    """And `launch.calibrate` writes it, and leaves the evidence as it is unless it is asked for."""
    before = read_calibration()
    for name, source in calibration.SOURCES.items():
        rows = parse((ROOT / "results" / f"{source.bench}.jsonl").read_text(), name=source.bench)
        clean = [row.values for row in rows if row.values["attack"] == "none" and row.values["seed"] >= source.seeds]
        assert [*calibration_of(name).scores] == sorted(round(max(row["verdict"]["scores"]), 2) for row in clean)
    kept, replaced = tmp_path / "kept.json", tmp_path / "replaced.json"
    done = launch("calibrate", f"--out={kept}", folder=ROOT)
    assert f"{kept}: 60 clean networks scored by trigger_size" in done.stdout, done.stderr
    assert kept.read_text() == (ROOT / "otbr_jax" / "detectors" / FILE).read_text()
    rows = {
        name: parse((ROOT / "results" / f"{source.bench}.jsonl").read_text(), name=source.bench)
        for name, source in calibration.SOURCES.items()
    }
    replaced.write_text(calibration.written(calibration.updated(before, rows, evidence=True)))
    after = json.loads(replaced.read_text())
    assert after["trigger_size"]["evidence"] == calibration.clean_evidence(
        rows["trigger_size"], calibration.SOURCES["trigger_size"]
    )
    assert after["trigger_size"]["evidence"] != before["trigger_size"]["evidence"]
    assert "--evidence" in after["trigger_size"]["evidence_from"]
    assert after["trigger_size"]["networks"] == before["trigger_size"]["networks"]
    assert after["otbr_plus"] == before["otbr_plus"]


def test_evidence_of_clean_networks_by_hand():
    def clean(seed, patch, **more):
        verdict = {"scores": [0.0], "evidence": {"patch": patch}}
        return {"cell": str(seed), "attack": "none", "seed": seed, "verdict": verdict} | more

    source = calibration.Source("x", 10)
    values = [clean(1, [9.0]), clean(10, [0.1, 1.0, None]), clean(11, [2.0, 0.0]), clean(12, [4.0])]
    values += [clean(13, [9.0], detection={"calibrated": False}), clean(14, [9.0], verdict=None)]
    assert calibration.clean_evidence([Row("x", each) for each in values], source) == {"patch": [2.0, 1.48]}
    assert calibration.clean_evidence([Row("x", each) for each in values[2:3]], source) == {"patch": [2.0, 0.15]}
    assert calibration.clean_evidence([], source) == {}
