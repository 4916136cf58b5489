from mofi_lightning.evaluation.report.curves import line_chart, read_curves, smoothed


def test_curves_of_all_starts_of_a_run_are_joined(tmp_path):
    for version, text in enumerate(["step,val/map\n10,0.1\n20,\n20,0.2\n", "step,val/map\n20,0.3\n30,0.4\n"]):
        folder = tmp_path / "logs" / f"version_{version}"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text(text)
    assert read_curves(tmp_path, ["val/map", "val/loss"]) == {"val/map": [(10, 0.1), (20, 0.3), (30, 0.4)]}


def test_long_curves_are_averaged_to_what_can_be_drawn():
    curve = smoothed([(float(x), 2.0 * x) for x in range(1200)])
    assert len(curve) == 120
    assert curve[0] == (4.5, 9.0)


def test_chart_leaves_out_what_is_not_finite_and_is_empty_without_points():
    assert line_chart("loss", {"a": [(1.0, float("nan"))]}, {"a": 0}) == ""
    chart = line_chart("loss", {"a": [(1.0, 2.0), (2.0, float("inf")), (3.0, 1.0)]}, {"a": 0})
    assert "nan" not in chart and "inf" not in chart


def test_curves_of_other_runs_below_are_not_taken(tmp_path):
    for place, value in (("", 1), ("logs/version_0", 2), ("other/logs/version_0", 3), ("other", 4)):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / "metrics.csv").write_text(f"step,val/map\n{value},0.5\n")
    assert read_curves(tmp_path, ["val/map"]) == {"val/map": [(1, 0.5), (2, 0.5)]}


def test_torn_lines_are_left_out(tmp_path):
    lines = "step,val/map\n10,0.1\n20,0.\x002\n2x,0.3\n30\n40,0.25\n50,0.2"  # the last was 0.25 once
    (tmp_path / "metrics.csv").write_text(lines)
    assert read_curves(tmp_path, ["val/map"]) == {"val/map": [(10, 0.1), (40, 0.25)]}
