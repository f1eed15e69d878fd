"""Scores: order, percentiles, what stands out, sentences, other weights, files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headwater as hw
from headwater.gradients.measurement import Target
from headwater.scores import (
    Asked,
    Leaning,
    NotScored,
    Population,
    RowWords,
    Scores,
    query_record,
    read_manifest,
    robust_deviations,
)  # fmt: skip
from headwater.significance import STANDS_OUT, p_values, q_values
from headwater.trace_files import Table

QUERY = hw.Query("The capital of Australia is", " Sydney", corrected=" Canberra", id="sydney")


def rows(count: int) -> hw.Examples:
    return hw.Examples.from_rows(
        [{"prompt": f"Question {n} is", "completion": f" answer {n}", "id": f"row-{n}"} for n in range(count)],
        name="rows",
    )


def scores_of(
    values: Any,
    *,
    queries: list[hw.Query] | None = None,
    targets: list[Target] | None = None,
    leanings: tuple[Leaning, ...] = (),
) -> Scores:
    """Scores with these values as the one term; one target for each line unless given."""
    array = np.atleast_2d(np.array(values, float))
    queries = queries or [hw.Query("p", f" o{n}", id=f"q{n}") for n in range(len(array))]
    targets = targets or [Target(name=str(q.id), kind="query", members=(n,)) for n, q in enumerate(queries)]
    return Scores.combine(
        "dot",
        {"last": array},
        {"last": 1.0},
        queries=queries,
        targets=targets,
        train=rows(array.shape[1]),
        leanings=leanings,
    )


def two_terms() -> Scores:
    chance = np.random.default_rng(0)
    queries = [
        hw.Query("p", " wrong", corrected=" right", span=(1, 3), group="g", id="a"),
        hw.Query(({"role": "user", "content": "Wo?"},), " dort", corrected=" hier", span="diff", group="g", id="b"),
    ]
    return Scores.combine(
        "dda",
        {"checkpoint-1": chance.normal(size=(3, 7)), "base": chance.normal(size=(3, 7))},
        {"checkpoint-1": 1.0, "base": -0.25},
        queries=queries,
        targets=[
            Target(name="a", kind="query", members=(0,)),
            Target(name="b", kind="query", members=(1,)),
            Target(name="g", kind="group", members=(0, 1)),
        ],
        train=rows(7),
        leanings=(Leaning(query="a", checkpoint="base", output=-3.5, corrected=-1.25),),
        provenance={"train": {"rows": 7}},
    )


# Order


def test_top_rows_come_with_rank_percentile_and_terms() -> None:
    top = scores_of([1.0, 4.0, 2.0, 3.0]).top(2)
    assert [(row.rank, row.index, row.id, row.score, row.percentile) for row in top] == [
        (1, 1, "row-1", 4.0, 100.0),
        (2, 3, "row-3", 3.0, 75.0),
    ]
    assert top[0].per_checkpoint == {"last": 4.0}
    assert (top[0].prompt, top[0].completion, top[0].source) == ("Question 1 is", " answer 1", "rows:2")


def test_opposing_rows_come_lowest_first() -> None:
    bottom = scores_of([1.0, -4.0, 2.0, -3.0]).top(3, opposing=True)
    assert [row.index for row in bottom] == [1, 3, 0]
    assert [row.percentile for row in bottom] == [25.0, 50.0, 75.0]


def test_ties_go_to_the_first_row_and_share_their_percentile() -> None:
    scores = scores_of([2.0, 5.0, 5.0, 0.0, 5.0])
    assert [row.index for row in scores.top(4)] == [1, 2, 4, 0]
    assert [row.percentile for row in scores.top(4)] == [100.0, 100.0, 100.0, 40.0]
    assert [row.index for row in scores_of([1.0, 0.0, 0.0]).top(2, opposing=True)] == [1, 2]


def test_top_takes_as_many_as_there_are() -> None:
    scores = scores_of([1.0, 2.0])
    assert len(scores.top(50)) == 2
    assert scores.top(0) == scores.top(-3) == []


def test_targets_are_found_by_name_and_number() -> None:
    scores = two_terms()
    assert scores.target_number("g") == scores.target_number(-1) == scores.target_number(2) == 2
    assert scores.top(1, target="b") == scores.top(1, target=1)
    with pytest.raises(hw.DataError, match="no query or group 'c'; expected one of a, b, g"):
        scores.top(target="c")
    for number in (3, -4):
        with pytest.raises(hw.DataError, match="expected 0 to 2"):
            scores.top(target=number)


# What stands out


def test_robust_deviations_are_z_scores_of_a_normal_sample() -> None:
    sample = np.random.default_rng(0).normal(3.0, 2.0, 100_001)
    assert robust_deviations(sample) == pytest.approx((sample - 3.0) / 2.0, abs=0.05)


def test_robust_deviations_ignore_a_few_outliers() -> None:
    values = np.r_[np.linspace(-1, 1, 99), 1e6]
    plain = robust_deviations(np.r_[np.linspace(-1, 1, 99), 1.0])
    assert robust_deviations(values)[:99] == pytest.approx(plain[:99])


def test_robust_deviations_where_nothing_or_hardly_anything_spreads() -> None:
    assert robust_deviations(np.full(5, 3.0)).tolist() == [0] * 5
    mostly_zero = np.r_[np.zeros(99), 1.0]
    assert robust_deviations(mostly_zero)[:99].tolist() == [0] * 99
    assert robust_deviations(mostly_zero)[99] == pytest.approx(1 / mostly_zero.std())


def test_rows_stand_out_from_eight_deviations_best_first() -> None:
    rest = np.linspace(-1, 1, 101)
    unit = 1.4826 * np.median(np.abs(rest))
    values = np.r_[rest, [STANDS_OUT * unit * f for f in (0.8, 3.0, 1.2, -3.0)]]
    scores = scores_of(values)
    assert scores.standing_out() == [102, 103]
    assert scores.sentences() == ["2 rows stand out from the rest (at least 8 robust deviations above the median)."]
    one = scores_of(np.r_[rest, 100.0])
    assert one.sentences()[-1].startswith("1 row stands out")


def test_no_row_stands_out_of_even_or_constant_scores() -> None:
    for values in (np.linspace(0, 1, 50), np.zeros(5), [1.0]):
        scores = scores_of(values)
        assert scores.standing_out() == []
        assert scores.sentences()[-1].startswith("No row stands out")


# Sentences


def lean(checkpoint: str, output: float, corrected: float | None, query: str = "sydney") -> Leaning:
    return Leaning(query=query, checkpoint=checkpoint, output=output, corrected=corrected)


@pytest.mark.parametrize(
    ("leanings", "sentence"),
    [
        (
            (lean("base", -2.0, -5.0), lean("checkpoint-9", -1.0, -6.5)),
            "The base model already preferred this output, by 3.0 nats; after fine-tuning it prefers the output to the "
            "corrected one, by 5.5 nats.",
        ),
        (
            (lean("base", -5.0, -2.0), lean("checkpoint-9", -1.0, -6.5)),
            "Not the base model: it preferred the corrected output by 3.0 nats; after fine-tuning the model prefers "
            "the output to the corrected one, by 5.5 nats.",
        ),
        (
            (lean("base", -5.0, -2.0), lean("checkpoint-9", -4.0, -2.5)),
            "Not the base model: it preferred the corrected output by 3.0 nats; after fine-tuning the model "
            "prefers the corrected output, by 1.5 nats.",
        ),
        (
            (lean("checkpoint-9", -1.0, -6.5),),
            "The fine-tuned model prefers the output to the corrected one, by 5.5 nats; without a base model it is not "
            "known whether fine-tuning did it.",
        ),
        (
            (lean("base", -5.0, None), lean("checkpoint-9", -1.0, None)),
            "Fine-tuning raised the output's log-probability from -5.0 (base) to -1.0 nats.",
        ),
        (
            (lean("base", -1.0, None), lean("checkpoint-9", -5.0, None)),
            "Fine-tuning lowered the output's log-probability from -1.0 (base) to -5.0 nats.",
        ),
        (
            (lean("checkpoint-9", -1.0, None),),
            "The fine-tuned model gives the output a log-probability of -1.0 nats.",
        ),
    ],
    ids=["base already", "not base", "not even now", "no base", "loss raised", "loss lowered", "loss without base"],
)
def test_first_sentence_says_how_base_and_last_model_lean(leanings: tuple[Leaning, ...], sentence: str) -> None:
    first, second = scores_of([0.0, 1.0], queries=[QUERY], leanings=leanings).sentences()
    assert first == sentence
    assert second.startswith("No row stands out")


def test_no_leaning_no_sentence_about_it() -> None:
    assert len(scores_of([0.0, 1.0]).sentences()) == 1


def test_sentence_of_a_group_is_the_mean_over_its_members_alone() -> None:
    queries = [hw.Query("p", " x", corrected=" y", id=name) for name in "abc"]
    targets = [Target(name=n, kind="query", members=(i,)) for i, n in enumerate("abc")]
    targets.append(Target(name="g", kind="group", members=(0, 2)))
    leanings = (
        *(lean("base", -4.0, -2.0, name) for name in "abc"),
        lean("last", -1.0, -3.0, "a"),
        lean("last", -100.0, -1.0, "b"),
        lean("last", -1.0, -5.0, "c"),
    )
    scores = scores_of(np.zeros((4, 3)), queries=queries, targets=targets, leanings=leanings)
    assert scores.sentences("g")[0] == (
        "Not the base model: it preferred the corrected output by 2.0 nats on average over the queries; after "
        "fine-tuning the model prefers the output to the corrected one, by 3.0 nats."
    )
    assert "by 2.0 nats; after" in scores.sentences("a")[0]


# Weights and broken numbers


def test_values_are_the_weighted_sum_of_the_terms() -> None:
    scores = two_terms()
    assert scores.values == pytest.approx(scores.terms["checkpoint-1"] - 0.25 * scores.terms["base"])
    other = scores.reweighted({"checkpoint-1": 0.5, "base": 0.75})
    assert other.values == pytest.approx(0.5 * scores.terms["checkpoint-1"] + 0.75 * scores.terms["base"])
    assert other.reweighted(scores.weights).values.tolist() == scores.values.tolist()


def test_a_weight_for_an_unknown_term_is_refused() -> None:
    with pytest.raises(hw.DataError, match="no term checkpoint-2; expected some of checkpoint-1, base"):
        two_terms().reweighted({"checkpoint-2": 1.0})


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_name_row_and_query(broken: float) -> None:
    values = np.zeros((2, 4))
    values[1, 2] = broken
    with pytest.raises(hw.NumericalError, match="dot: the score of row-2 for q1 is NaN or infinite"):
        scores_of(values)


def test_a_wrong_shape_is_refused() -> None:
    scores = two_terms()
    with pytest.raises(hw.DataError, match="expected 3 targets x 6 rows"):
        Scores(
            method="dot",
            values=scores.values,
            terms=scores.terms,
            weights=scores.weights,
            queries=scores.queries,
            targets=scores.targets,
            train=scores.train[:6],
        )


# Files


def test_saved_scores_come_back_whole(tmp_path: Path) -> None:
    scores = two_terms()
    scores.save(tmp_path)
    back = Scores.load(tmp_path, scores.train)
    assert np.array_equal(back.values, scores.values)
    assert {name: term.tolist() for name, term in back.terms.items()} == {
        name: term.tolist() for name, term in scores.terms.items()
    }
    for name in ("method", "weights", "queries", "targets", "leanings", "provenance"):
        wanted = getattr(scores, name)
        assert getattr(back, name) == (list(wanted) if name == "leanings" else wanted), name
    assert back.top(3, target="g") == scores.top(3, target="g")


def test_several_methods_in_one_folder(tmp_path: Path) -> None:
    first = two_terms()
    second = Scores.combine(
        "dda-difference",
        {"base": -first.terms["base"]},
        {"base": 2.0},
        queries=first.queries,
        targets=first.targets,
        train=first.train,
    )
    first.save(tmp_path, others=[second])
    assert Scores.load(tmp_path, first.train).method == "dda"
    back = Scores.load(tmp_path, first.train, method="dda-difference")
    assert np.array_equal(back.values, second.values)
    assert set(back.terms) == {"base"}
    with pytest.raises(hw.DataError, match="no scores of cea; expected one of dda, dda-difference"):
        Scores.load(tmp_path, first.train, method="cea")


def test_parquet_holds_every_row_of_every_target(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    scores = two_terms()
    scores.save(tmp_path)
    table = pq.read_table(tmp_path / "scores.parquet").to_pylist()
    assert len(table) == 3 * 7
    found = next(line for line in table if line["target"] == "g" and line["id"] == "row-4")
    assert found["dda"] == scores.values[2, 4]
    assert found["dda/base"] == scores.terms["base"][2, 4]
    assert (found["row"], found["source"]) == (4, "rows:5")
    assert found["content_hash"] == scores.train[4].content_hash


def test_manifest_answers_without_the_parquet(tmp_path: Path) -> None:
    scores = two_terms()
    scores.save(tmp_path, top=2)
    answer = read_manifest(tmp_path)["answers"]["dda"]["g"]
    assert answer["sentences"] == scores.sentences("g")
    assert [line["id"] for line in answer["top"]] == [row.id for row in scores.top(2, target="g")]


def test_the_same_scores_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        two_terms().save(tmp_path / name)
    for file in ("scores.parquet", "trace.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_other_rows_or_another_order_are_refused(tmp_path: Path) -> None:
    scores = two_terms()
    scores.save(tmp_path)
    swapped = hw.Examples([scores.train[1], scores.train[0], *scores.train[2:]])
    for other in (scores.train[:6], swapped, rows(8)):
        with pytest.raises(hw.DataError, match="is not the data"):
            Scores.load(tmp_path, other)


def test_an_unfinished_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(hw.RunError, match="no finished trace"):
        Scores.load(tmp_path / "nowhere", rows(7))
    scores = two_terms()
    scores.save(tmp_path)
    (tmp_path / "trace.json").write_text(json.dumps({})[:1])
    with pytest.raises(hw.RunError, match=r"trace.json cannot be read \(no JSON"):
        Scores.load(tmp_path, scores.train)
    (tmp_path / "trace.json").unlink()
    with pytest.raises(hw.RunError, match="no finished trace"):
        Scores.load(tmp_path, scores.train)


# What chance gives, what was not kept and what was not scored


def whole(**changes: Any) -> Scores:
    """The rows 3 and 9 of ten of which two have no score, with placebo rows, words and a sample of all rows."""
    chance = np.random.default_rng(5)
    queries = [hw.Query("p", " a", id="a"), hw.Query("p", " b", id="b")]
    targets = [Target(name=name, kind="query", members=(n,)) for n, name in enumerate("ab")]
    made = Scores.combine(
        "dda",
        {"last": np.array([[1.0, 5.0], [0.0, -4.0]]), "base": np.array([[2.0, 1.0], [1.0, 1.0]])},
        {"last": 1.0, "base": -0.5},
        queries=queries,
        targets=targets,
        train=rows(2),
        population=Population(
            rows=8, numbers=np.array([3, 9]), sample=np.array([[0.0, 4.5, 2.0, 1.0], [-4.5, 0.0, 1.0, 2.0]])
        ),
        not_scored=[
            NotScored(number=n, id=f"bad-{n}", source=f"file:{n}", reason="its gradient is NaN") for n in (1, 6)
        ],
        **changes,
    )
    asked = Asked(query="a", side="output", words=((" a", 4.5),))
    words = {(0, 1): RowWords(words=(("Question", 1.5), (" 1", 3.0)), asked=(asked,))}
    placebo = {"last": chance.normal(size=(2, 120)), "base": chance.normal(size=(2, 120))}
    return replace(made.against(placebo), words=words)


def test_everything_that_was_found_comes_back(tmp_path: Path) -> None:
    scores = whole()
    scores.save(tmp_path)
    back = Scores.load(tmp_path, scores.train)
    assert back.population is not None and scores.population is not None
    assert (back.population.rows, back.rows, back.numbers.tolist()) == (8, 8, [3, 9])
    assert np.array_equal(back.population.sample, scores.population.sample)
    assert back.placebo is not None and scores.placebo is not None
    assert np.array_equal(back.placebo, scores.placebo)
    assert {name: term.tolist() for name, term in back.placebo_terms.items()} == {
        name: term.tolist() for name, term in scores.placebo_terms.items()
    }
    assert back.words == scores.words and list(back.not_scored) == list(scores.not_scored)
    assert back.sentences("b") == scores.sentences("b") and back.top(2, target="b") == scores.top(2, target="b")
    manifest = read_manifest(tmp_path)
    assert (manifest["rows"], manifest["scored_rows"], len(manifest["not_scored"])) == (2, 8, 2)
    assert Table(tmp_path / "scores.parquet").numbers("row").tolist() == [3, 9, 3, 9]


def test_all_rows_of_the_data_do_where_some_were_kept(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = rows(10)
    kept = hw.Examples([data[n] for n in (3, 9)], name=data.name)
    scores = replace(whole(), train=kept)
    scores.save(tmp_path)
    back = Scores.load(tmp_path, data)
    assert [row.id for row in back.train] == ["row-3", "row-9"] and back.train.name == data.name
    assert back.top(2) == Scores.load(tmp_path, kept).top(2)
    with pytest.raises(hw.DataError, match="not the data"):
        Scores.load(tmp_path, rows(11))
    table = pq.read_table(tmp_path / "scores.parquet")
    number = pa.array([3, 12, 3, 12], table.schema.field("row").type)
    pq.write_table(table.set_column(table.schema.get_field_index("row"), "row", number), tmp_path / "scores.parquet")
    with pytest.raises(hw.RunError, match="a row that is none of 10"):
        Scores.load(tmp_path, data)


def test_only_what_there_is_is_written(tmp_path: Path) -> None:
    two_terms().save(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["scores.parquet", "trace.json"]
    assert "not_scored" not in read_manifest(tmp_path)
    whole().save(tmp_path)
    names = {"placebo-terms.parquet", "placebo.parquet", "sample.parquet", "scores.parquet", "trace.json", "words.json"}
    assert {file.name for file in tmp_path.iterdir()} == names


def test_the_rows_that_were_not_scored_are_left_out_of_the_data_on_the_way_back(tmp_path: Path) -> None:
    data = rows(5)
    bad = [NotScored(number=n, id=f"row-{n}", source="", reason="NaN") for n in (0, 3)]
    scored = hw.Examples([data[n] for n in (1, 2, 4)], name=data.name)
    scores = Scores.combine(
        "dot", {"last": np.ones((1, 3))}, {"last": 1.0}, queries=[hw.Query("p", " a", id="a")],
        targets=[Target(name="a", kind="query", members=(0,))], train=scored, not_scored=bad,
    )  # fmt: skip
    assert scores.numbers.tolist() == [1, 2, 4]
    scores.save(tmp_path)
    for train in (data, scored):
        back = Scores.load(tmp_path, train)
        assert [row.id for row in back.train] == ["row-1", "row-2", "row-4"] and back.train.name == data.name
        assert [(row.index, row.number) for row in back.top(3)] == [(0, 1), (1, 2), (2, 4)]
    with pytest.raises(hw.DataError):
        Scores.load(tmp_path, rows(4))


@pytest.mark.parametrize(
    ("count", "sentence"),
    [
        (1, "1 row was not scored: bad-0 (NaN)."),
        (3, "3 rows were not scored: bad-0 (NaN); bad-1 (NaN); bad-2 (NaN)."),
        (5, "5 rows were not scored: bad-0 (NaN); bad-1 (NaN); bad-2 (NaN); and 2 more."),
    ],
)
def test_rows_that_were_not_scored_are_named(count: int, sentence: str) -> None:
    bad = [NotScored(number=n, id=f"bad-{n}", source="", reason="NaN") for n in range(count)]
    assert replace(scores_of([0.0, 1.0]), not_scored=bad).sentences()[-1] == sentence


def test_what_is_usual_comes_from_the_sample_where_only_some_rows_were_kept() -> None:
    scores = replace(whole(), placebo=None, placebo_terms={})
    first, second = scores.top(2)
    assert (first.id, first.number, first.score, first.percentile) == ("row-1", 9, 4.5, 100.0)
    assert (second.score, second.percentile) == (0.0, 25.0)
    assert first.deviations == pytest.approx((4.5 - 1.5) / (1.4826 * 1.0))
    assert scores.standing_out() == [] and not first.stands_out  # of eight rows, too few
    many = replace(scores, population=replace(scores.population, rows=20), values=np.array([[20.0, -30.0], [0.0, 0.0]]))  # type: ignore[type-var]
    assert many.standing_out() == [0] and [row.stands_out for row in many.top(2)] == [True, False]
    assert first.q_value is None and first.per_checkpoint == {"last": 5.0, "base": 1.0}


def test_q_values_count_all_rows_that_were_scored() -> None:
    scores = whole()
    found, alone = scores.q_values("a"), replace(scores, population=None).q_values("a")
    assert scores.placebo is not None and found is not None and alone is not None
    wanted = q_values(p_values(scores.values[0], scores.placebo[0]), 8)
    assert found.tolist() == wanted.tolist()
    assert found[1] == pytest.approx(min(1, 4 * alone[1]))


def test_placebo_rows_are_weighed_as_the_rows_are() -> None:
    scores = replace(whole(), population=None)
    assert scores.placebo is not None
    terms = scores.placebo_terms
    np.testing.assert_allclose(scores.placebo, terms["last"] - 0.5 * terms["base"])
    other = scores.reweighted({"last": 0.25, "base": 2.0})
    np.testing.assert_allclose(np.asarray(other.placebo), 0.25 * terms["last"] + 2.0 * terms["base"])
    assert list(other.not_scored) == list(scores.not_scored) and other.provenance == scores.provenance
    assert two_terms().reweighted({"base": 1.0}).placebo is None


def test_other_weights_keep_what_was_known() -> None:
    scores = two_terms()
    other = scores.reweighted({"base": 1.0})
    for name in ("method", "queries", "targets", "train", "leanings", "provenance", "terms"):
        assert getattr(other, name) == getattr(scores, name), name
    assert scores_of([1.0]).provenance == {}


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (
            lambda: whole().reweighted({"last": 1.0}),
            "other weights for scores of which only the highest and lowest rows were kept; expected scores of all "
            "rows: other weights have other first rows. Next: trace again without --limit or --second-look, "
            "or with the other weights",
        ),
        (
            lambda: two_terms().reweighted({"z": 1.0, "base": 1.0, "y": 2.0}),
            "no term y, z; expected some of checkpoint-1, base (likely cause: a pass that this trace did not make "
            "(beta=0 leaves out the base)). Next: trace again with a method that has it",
        ),
        (lambda: two_terms().top(target="c"), "no query or group 'c'; expected one of a, b, g. Next: choose one"),
        (lambda: two_terms().top(target=3), "target 3; expected 0 to 2. Next: choose one of them"),
        (
            lambda: scores_of(np.zeros((10, 1))).top(target="c"),
            "no query or group 'c'; expected one of q0, q1, q2, q3, q4, q5, q6, q7. Next: choose one",
        ),
        (
            lambda: replace(two_terms(), values=np.zeros((3, 6))),
            "scores of shape (3, 6); expected 3 targets x 7 rows. Next: this is a mistake in the method that made them",
        ),
        (
            lambda: replace(two_terms(), values=np.array([[0.0] * 7, [0.0] * 6 + [np.inf], [0.0] * 7])),
            "dda: the score of row-6 for b is NaN or infinite; expected finite scores (likely cause: a checkpoint with "
            "broken weights, or half precision that overflows). Next: check the checkpoints, or use --dtype float32",
        ),
    ],
)
def test_refusals_word_for_word(call: Any, line: str) -> None:
    with pytest.raises(hw.HeadwaterError) as caught:
        call()
    assert str(caught.value) == line


def test_refusals_of_files_word_for_word(tmp_path: Path) -> None:
    (scores := two_terms()).save(tmp_path)
    with pytest.raises(hw.DataError) as caught:
        Scores.load(tmp_path, scores.train, method="cea")
    assert str(caught.value) == f"{tmp_path} has no scores of cea; expected one of dda. Next: choose one"
    with pytest.raises(hw.DataError) as caught:
        Scores.load(tmp_path, rows(8))
    assert str(caught.value) == (
        f"rows is not the data {tmp_path} was traced with; expected the same rows in the same order. Next: give the "
        "original file"
    )


def test_a_query_is_written_without_what_is_not_set() -> None:
    first, second = two_terms().queries
    shared = {"prompt": "p", "output": " wrong", "corrected": " right"}
    assert query_record(first) == shared | {"span": [1, 3], "group": "g", "id": "a"}
    assert query_record(second) == {
        "prompt": [{"role": "user", "content": "Wo?"}], "output": " dort", "corrected": " hier", "span": "diff",
        "group": "g", "id": "b",
    }  # fmt: skip
    assert query_record(hw.Query("p", " o")) == {"prompt": "p", "output": " o"}
    assert query_record(hw.Query("p", " o", corrected=" i"))["span"] == "auto"


def test_a_query_written_before_spans_chose_themselves_was_about_whole_outputs(tmp_path: Path) -> None:
    scores = two_terms()
    scores.save(tmp_path)
    record = json.loads((tmp_path / "trace.json").read_text())
    del record["queries"][1]["span"]
    (tmp_path / "trace.json").write_text(json.dumps(record))
    assert [query.span for query in Scores.load(tmp_path, scores.train).queries] == [(1, 3), "all"]


def test_a_group_without_corrections_is_the_mean_of_its_members() -> None:
    queries = [hw.Query("p", " x", id=name) for name in "ab"]
    targets = [Target(name="g", kind="group", members=(0, 1))]
    targets = [*(Target(name=n, kind="query", members=(i,)) for i, n in enumerate("ab")), *targets]
    leanings = tuple(lean(at, value, None, name) for name, at, value in (
        ("a", "base", -4.0), ("a", "middle", -99.0), ("a", "last", -1.0), ("b", "base", -2.0), ("b", "last", -4.0),
    ))  # fmt: skip
    scores = scores_of(np.zeros((3, 3)), queries=queries, targets=targets, leanings=leanings)
    said = "the output's log-probability from -3.0 (base) to -2.5 nats on average over the queries."
    assert scores.leaning_sentences("g") == [f"Fine-tuning raised {said}"]
    without = scores_of(
        np.zeros((3, 3)),
        queries=queries,
        targets=targets,
        leanings=tuple(x for x in leanings if x.checkpoint == "last"),
    )
    assert without.leaning_sentences("g") == [
        "The fine-tuned model gives the output a log-probability of -2.5 nats on average over the queries."
    ]


def test_a_group_of_which_some_have_a_correction_leans_as_those_do() -> None:
    queries = [hw.Query("p", " x", corrected=" y", id="a"), hw.Query("p", " x", id="b")]
    targets = [Target(name=n, kind="query", members=(i,)) for i, n in enumerate("ab")]
    targets.append(Target(name="g", kind="group", members=(0, 1)))
    leanings = (lean("last", -1.0, -3.0, "a"), lean("last", -50.0, None, "b"))
    scores = scores_of(np.zeros((3, 3)), queries=queries, targets=targets, leanings=leanings)
    assert scores.leaning_sentences("g") == [
        "The fine-tuned model prefers the output to the corrected one, by 2.0 nats on average over the queries; "
        "without a base model it is not known whether fine-tuning did it."
    ]


def test_no_preference_is_none_for_the_output() -> None:
    leanings = (lean("base", -2.0, -2.0), lean("last", -2.0, -2.0))
    assert scores_of([0.0, 1.0], queries=[QUERY], leanings=leanings).leaning_sentences() == [
        "Not the base model: it preferred the corrected output by 0.0 nats; after fine-tuning the model prefers the "
        "corrected output, by 0.0 nats."
    ]


def test_an_untrained_log_probability_is_not_raised() -> None:
    leanings = (lean("base", -2.0, None), lean("last", -2.0, None))
    said = scores_of([0.0], queries=[QUERY], leanings=leanings).leaning_sentences()[0]
    assert said.startswith("Fine-tuning lowered") and said.endswith("from -2.0 (base) to -2.0 nats.")


def test_deviations_from_what_is_usual() -> None:
    usual = np.array([1.0, 2.0, 3.0, 4.0, 100.0])
    assert robust_deviations(np.array([1.0, 7.0]), usual) == pytest.approx(np.array([-2.0, 4.0]) / 1.4826)
