"""The five questions that a person asks of a run first, and their answers in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from otbr_jax.detectors.verdict import Backdoored, Verdict, compared_in_words
from otbr_jax.report.cells import own_stages
from otbr_jax.report.facts import Facts, read_facts
from otbr_jax.report.leaderboard import LEARNED, LEFT
from otbr_jax.report.numbers import percent
from otbr_jax.report.table import Cell, Code

COSTLY = 0.05
"""The loss of accuracy from which a repaired network is not recommended as it is."""

NEAR = 0.5
"""The share of the threshold from which triggers should be inverted again, although no class is flagged."""

Tone = Literal["good", "bad", "open"]


class Answer(NamedTuple):
    """One question.

    Attributes:
      question: as a heading.
      short: the answer in a few words, which stand alone.
      tone: how a page marks it, beside the words; `open` is neither good nor bad.
      more: what it rests on and what it leaves open, a sentence or two each.
    """

    question: str
    short: str
    tone: Tone
    more: Sequence[Cell]


def answer_questions(summary: Mapping[str, Any], *, files: Sequence[str] = ()) -> list[Answer]:
    """The five questions and their answers, in the order that a person asks them.

    Args:
      summary: `results.summarize`; of its fields, `metrics` is enough.
      files: names of the files that hold the network afterwards.
    """
    facts = read_facts(summary)
    return [_backdoored(facts), _sure(facts), _gone(facts), _cost(facts), _use(facts, files)]


def _backdoored(facts: Facts) -> Answer:
    question, detection = "Is it backdoored?", _detection(facts)
    if facts.known and facts.asr is not None:
        works = f"it turns {percent(facts.asr[0])} % of the test images into the attacker's class"
        more = f"The trigger is known here: {works}."
        return Answer(question, "Yes: its trigger works.", "bad", (more, detection))
    if facts.verdict is None:
        return Answer(question, "Not asked.", "open", (detection, *_weak_trigger(facts)))
    if facts.undecided:
        return Answer(question, "Cannot tell.", "open", (detection, *_weak_trigger(facts)))
    if facts.flagged:
        short = f"Probably: class {facts.verdict.suspect} is flagged."
        return Answer(question, short, "bad", (detection, *_weak_trigger(facts)))
    caution = "That is no proof that it is clean."
    return Answer(question, "No sign of it was found.", "open", (detection, caution, *_weak_trigger(facts)))


def _detection(facts: Facts) -> str:
    """What the detector says without the trigger, a sentence."""
    verdict, known = facts.verdict, facts.known
    if verdict is None:
        return f"{facts.method} looks for no backdoor: it repairs whatever it is given."
    if facts.undecided:
        return f"{verdict.why_not[:1].upper()}{verdict.why_not[1:]}."
    numbers = f"score {verdict.score:.2f}, threshold {verdict.threshold:g}"
    if not facts.flagged:
        missed = "The detector, which knows no trigger, missed it" if known else "No class is flagged"
        return f"{missed}: class {verdict.suspect} scores highest, {numbers}."
    target = facts.target if known else None
    whose = ""
    if target is not None:
        whose = ", the attacker's" if target == verdict.suspect else f", but the attacker's is class {target}"
    return f"Without any trigger the detector flags class {verdict.suspect}{whose}: {numbers}."


def _weak_trigger(facts: Facts) -> list[str]:
    if facts.asr is None:
        return []
    return [f"The trigger that is known here does not work: it turns {percent(facts.asr[0])} % of the test images."]


def _sure(facts: Facts) -> Answer:
    question, verdict = "How sure is that?", facts.verdict
    missed = "Some backdoors are missed: all-to-all ones, and those of an attacker who knows this detector."
    if facts.known:
        more = "Where the trigger is not known, there is only the detector."
        rate = () if verdict is None or facts.undecided else _rate(verdict)
        return Answer(question, "As sure as a measurement with the trigger.", "good", (more, *rate))
    if verdict is None:
        command = ("No detector ran. To run one: ", Code("python -m launch.inspect_network --detect=DIR"), ".")
        return Answer(question, "There is no verdict to be sure of.", "open", (command,))
    if facts.undecided:
        return Answer(question, "There is no verdict to be sure of.", "open", ("It may be backdoored, or clean.",))
    short, *rest = _rate(verdict)
    return Answer(question, short, "open", (*rest, missed))


def _rate(verdict: Verdict) -> tuple[str, ...]:
    """How often a clean network scores as high: in short, and what that assumes."""
    if verdict.p_value is None:
        why = verdict.why_not or "that was not measured"
        return (f"Not known how often a clean network scores as high: {why}.",)
    value = f"p-value {verdict.p_value:.2g}"
    if not verdict.clean_networks:
        return f"{value}: so often a clean network scores as high.", "That holds where the detector's assumption holds."
    means = (
        "A false alarm is possible" if verdict.backdoored == Backdoored.YES else "A clean network may look like this"
    )
    return (
        f"{means}: {compared_in_words(verdict)} ({value}).",
        "Those are small networks of ten classes. For networks unlike them the p-value is not known.",
    )


def _gone(facts: Facts) -> Answer:
    question = "Is it gone?"
    if facts.asr is None:
        short, tone, why = _unmeasured(facts)
        return Answer(question, short, tone, (*why, *_inverted_triggers(facts), *_relearning(facts)))
    before, after = facts.asr
    more = [*_last_inversion(facts), *_relearning(facts)]
    rates = f"the trigger now turns {percent(after)} % of the images ({percent(before)} % before)."
    if before < LEARNED:
        return Answer(question, "There was no backdoor to remove.", "open", (f"Measured: {rates}", *more))
    if after <= LEFT:
        return Answer(question, f"Yes: {rates}", "good", ("Other triggers were not measured.", *more))
    return Answer(question, f"{'In part' if after < before / 2 else 'No'}: {rates}", "bad", more)


def _unmeasured(facts: Facts) -> tuple[str, Tone, tuple[str, ...]]:
    """The answer where no trigger is known: in short, its tone, and why."""
    proof = "Only somebody with the attacker's trigger can measure that."
    if facts.reverted:
        return "No: the repair failed.", "bad", ()
    if not facts.changed and facts.flagged:
        done = facts.summary.get("done", "nothing was changed")
        return "No: nothing was changed.", "bad", (f"What was done: {done}.",)
    if not facts.changed:
        why = "no class is flagged" if not facts.undecided else "there is no verdict"
        return f"Nothing was changed, since {why}.", "open", ("The network is returned unchanged.",)
    if facts.flagged:
        return "Weakened, as far as trigger inversion shows; not proven.", "open", (proof,)
    return "Not known: no trigger was measured.", "open", (proof,)


def _inverted_triggers(facts: Facts) -> list[str]:
    """The success of inverted triggers, before and after the repair."""
    sentences = []
    for unlearned in () if facts.reverted else facts.summary.get("unlearned_triggers") or ():
        family, label = unlearned["family"].replace("_", " "), unlearned["class"]
        before, after = percent(unlearned["success"][0]), percent(unlearned["left"][-1])
        sentences.append(
            f"Inverted {family} triggers turned {before} % of the images into class {label}. After the last unlearning "
            f"round these turn {after} %."
        )
    for tuned in facts.summary.get("trigger_finetuned") or ():
        sentences.append(
            f"Inverted triggers that were not in the fine-tuning turn {percent(tuned['success'])} % of the images into "
            f"class {tuned['class']}."
        )
    return [*sentences, *_last_inversion(facts)]


def _last_inversion(facts: Facts) -> list[str]:
    """The success of the triggers that were inverted last, or that unlearning is reverted."""
    if facts.reverted:
        return ["Unlearning was in vain and is reverted: the network is returned unchanged."]
    successes = [unlearned["success"] for unlearned in facts.summary.get("unlearned_triggers") or ()]
    if not successes or len(successes[0]) < 2:
        return []
    highest = percent(max(success[-1] for success in successes))
    return [f"Triggers that were inverted anew before the last unlearning round turned {highest} % of the images."]


def _relearning(facts: Facts) -> list[str]:
    """That a backdoor can be relearned, as measured if it was."""
    if not facts.changed or facts.left:
        return []
    if curves := facts.summary.get("relearning"):
        asr, epochs = curves["poisoned"]["asr"][-1], curves["epochs"][-1]
        return [f"Fine-tuned on a few poisoned images for {epochs} epochs, its trigger turns {percent(asr)} % again."]
    return ["Fine-tuning on images that somebody poisoned can bring a backdoor back."]


def _cost(facts: Facts) -> Answer:
    question, time = "What did it cost?", _time(facts.summary)
    if facts.acc is None:
        short, more = _unmeasured_cost(facts)
        return Answer(question, short, "open" if facts.changed else "good", (*more, *time))
    before, after = facts.acc
    acc = f"ACC, the accuracy on clean test images: {percent(before)} % before, {percent(after)} % after."
    if not facts.changed:
        return Answer(question, "Nothing: the network is unchanged.", "good", (acc, *time))
    points = round(100 * facts.lost, 1)
    short = f"{points:.1f} points of accuracy." if points > 0 else "No accuracy."
    more = [acc]
    if facts.ra is not None:
        more.append(
            f"RA, the accuracy on triggered ones: {percent(facts.ra[0])} % before, {percent(facts.ra[1])} % after."
        )
    return Answer(question, short, "bad" if facts.lost > COSTLY else "good", (*more, *time))


def _unmeasured_cost(facts: Facts) -> tuple[str, list[Cell]]:
    """The answer without test images: in short, and what is known instead."""
    if not facts.changed:
        return "Nothing: the network is unchanged.", []
    more: list[Cell] = []
    unlearned = facts.summary.get("unlearned_triggers") or ()
    if unlearned and unlearned[0].get("distortion"):
        change = unlearned[0]["distortion"][-1]
        more.append(f"On images without a trigger its logits changed by {change:.2g} of their standard deviation.")
    more.append(("To measure: ", Code("--config.data.name=npz --config.data.path=FILE"), "."))
    return "Not known: no test images were given.", more


def _time(summary: Mapping[str, Any]) -> list[str]:
    stages = summary.get("stages", {})
    seconds = sum(stages[name]["seconds"] for name in own_stages(stages))
    if not seconds:
        return []
    duration = f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"
    devices = summary.get("devices") or ()
    where = f" on {len(devices)} {devices[0]}" if devices else ""
    return [f"The repair took {duration}{where}."]


def _use(facts: Facts, files: Sequence[str]) -> Answer:
    short, tone, more = _recommended(facts)
    where = [_where(facts, files)] if files else []
    return Answer("May I use it?", short, tone, (*more, *where))


def _recommended(facts: Facts) -> tuple[str, Tone, tuple[Cell, ...]]:
    check: Cell = "First measure it on images of your own, class by class: a flagged class loses most."
    again: Cell = ("Try a few clean images, ", Code("--config.defense=disarm_clean"), ", or another defence.")
    if facts.left:
        return "No.", "bad", (again,)
    if facts.lost > COSTLY:
        return "Not as it is.", "bad", ("It lost much accuracy. Fine-tune it on images that you trust.",)
    if facts.known:
        return "The repaired one, with care.", "good", (check,)
    if facts.flagged:
        return "Only the repaired one, and only after a test of yours.", "open", (check,)
    if facts.verdict is None or facts.undecided:
        return "Not on this report alone.", "open", ("It does not say whether there is a backdoor.", check)
    if _near(facts.verdict):
        again = ("The score is near the threshold. Invert triggers again with another ", Code("--config.seed"), ".")
        return "Not before a second inversion.", "open", (again,)
    return "As far as you trust its source.", "open", ("No finding is no guarantee.",)


def _near(verdict: Verdict) -> bool:
    """Whether another inversion might flag a class."""
    return verdict.score is not None and verdict.score >= NEAR * verdict.threshold > 0


def _where(facts: Facts, files: Sequence[str]) -> Cell:
    names = [piece for name in files for piece in (", ", Code(name))][1:]
    return (
        "The repaired network, beside this report: " if facts.changed else "The unchanged network: ",
        *names,
        ".",
    )
