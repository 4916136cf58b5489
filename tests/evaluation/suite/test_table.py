import csv
import io

from mofi_lightning.evaluation.suite.results import Result
from mofi_lightning.evaluation.suite.table import MEAN, ResultTable


def _result(model: str, dataset: str, **metrics: float | None) -> Result:
    return Result(
        model, dataset, "task", tuple(metrics), metrics, {}, {}, (), "", "", {}, {}, "", {}
    )  # fmt: skip


def test_one_row_a_model_and_data_set_then_the_means():
    table = ResultTable.of(
        [
            _result("b", "x", map=0.5, acc1=0.1),
            _result("a", "x", map=0.25),
            _result("b", "y", map=1.0, acc1=None),
            _result("a", "y", map=None),
        ]
    )
    assert table.columns == ["map", "acc1"]
    assert [(dataset, model) for dataset, model, _ in table.rows] == [
        ("x", "b"), ("x", "a"), ("y", "b"), ("y", "a"), (MEAN, "b"), (MEAN, "a"),
    ]  # fmt: skip
    means = {model: row for dataset, model, row in table.rows if dataset == MEAN}
    # acc1 is known on x alone, so b's mean is over x; a lacks map on y, where b has it
    assert means == {"b": {"map": 0.75, "acc1": 0.1}, "a": {"map": None, "acc1": None}}


def test_one_data_set_has_no_mean():
    assert len(ResultTable.of([_result("a", "x", map=0.5)]).rows) == 1


def test_markdown_is_aligned_and_names_cannot_break_it():
    text = ResultTable.of([_result("a|b\nc", "x", map=0.12345), _result("long name", "x")]).markdown()
    lines = text.splitlines()
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1
    assert lines[2] == r"| x        | a\|b c    | 0.123 |"
    assert lines[3] == r"| x        | long name |     - |"


def test_csv_has_the_numbers_in_full():
    value = 0.1234567890123456789
    text = ResultTable.of([_result("a,b", "x", map=value, acc1=None), _result("c", "x", acc1=0.5)]).csv()
    rows = list(csv.reader(io.StringIO(text)))
    assert rows == [["dataset", "model", "map", "acc1"], ["x", "a,b", repr(value), ""], ["x", "c", "", "0.5"]]


def test_a_measure_that_no_model_has_has_no_column():
    results = [_result("a", "x", map=0.5, hp=None), _result("b", "x", map=0.25, hp=None)]
    assert ResultTable.of(results).columns == ["map"]
