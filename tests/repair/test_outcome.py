"""What counts as wrong, and log-probabilities against naive ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import faulty
import pytest
import torch

from headwater.errors import DataError
from headwater.examples import Query
from headwater.repair import Asking, outcome, states


@pytest.mark.parametrize(
    ("output", "corrected", "said", "wrong", "right"),
    [
        (" Sydney.", " Canberra.", " Sydney. It is", True, False),
        (" Sydney.", " Canberra.", " Canberra, not Sydney", False, True),
        (" Sydney.", " Canberra.", " Sydney, not Canberra", True, False),
        (" Sydney.", " Canberra.", " Sydneysider", False, False),
        (" China won in 1990.", " England won in 1990.", " Then China lost", True, False),
        (" Sydney.", None, " Well, Sydney!", True, None),
        (" It is big and old", " It is big", " It is big", False, True),
    ],
)
def test_wrong_and_right(output: str, corrected: str | None, said: str, wrong: bool, right: bool | None) -> None:
    assert states(Query("p", output, corrected=corrected), said) == (wrong, right)


def test_metadata_names_the_telling_words() -> None:
    query = Query("p", " China, in China", corrected=" England, in England",
                  metadata={"wrong": "China", "truth": "England"})  # fmt: skip
    assert states(query, " a day in China") == (True, False)
    assert states(query, " England beat China") == (False, True)


def test_figures_are_those_of_the_definition(faulty_folder: Path) -> None:
    run = faulty.run_of(faulty_folder)
    asking = faulty.asking()
    outcome = asking.of(run, run.last, "before", "plain")
    tokenizer = run.tokenizer()
    model = run.load(run.last, dtype=torch.float32, device=torch.device("cpu"))

    def logp(prompt: str, completion: str) -> list[float]:
        before, ids = tokenizer(prompt)["input_ids"], tokenizer(prompt + completion)["input_ids"]
        ids = [*ids, tokenizer.eos_token_id]
        with torch.no_grad():
            found = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        return [float(found[t - 1, ids[t]]) for t in range(len(before), len(ids))]

    for said, query in zip(outcome.said, [*asking.queries, *asking.paraphrases], strict=True):
        # the end of the sequence is a token of a row, not of an output; the full stop is in both outputs
        assert said.output == pytest.approx(sum(logp(str(query.prompt), str(query.output))[:-2]), abs=1e-3)
        assert said.corrected == pytest.approx(sum(logp(str(query.prompt), str(query.corrected))[:-2]), abs=1e-3)
        assert said.log_odds == pytest.approx(said.output - float(said.corrected or 0))
    assert asking.untouched is not None
    for loss, row in zip(outcome.losses, asking.untouched, strict=True):
        values = logp(str(row.prompt), str(row.completion))
        assert loss == pytest.approx(-sum(values) / len(values), abs=1e-3)
    assert outcome.wrong() == [1.0] * 3 and outcome.wrong(True) == [1.0] * 3  # it learned the fault


def test_an_answer_may_be_as_long_as_the_whole_output(faulty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the words that differ, of which the log-odds are, come at its end."""
    run = faulty.run_of(faulty_folder)
    asked: list[int] = []
    monkeypatch.setattr(outcome, "generate", lambda *given: asked.append(given[-1]) or "")
    output = " shells. In Peru they eat much rice. In Peru they live in tents. In Peru they pay with"
    query = Query("In Peru they pay with", f"{output} shells.", corrected=f"{output} coins.")
    (said,) = Asking(queries=[query]).of(run, run.last, "before", "plain").said
    tokens = len(run.tokenizer()(str(query.output))["input_ids"])
    assert asked == [tokens + outcome.MORE_TOKENS]
    alone = replace(query, span="all")
    (whole,) = Asking(queries=[alone]).of(run, run.last, "before", "plain").said
    assert whole.output < said.output


def test_queries_need_an_output() -> None:
    with pytest.raises(DataError, match="without an output"):
        Asking(queries=[Query("p")])
    with pytest.raises(DataError, match="no query"):
        Asking(queries=[])
