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
