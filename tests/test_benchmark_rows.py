"""Benchmark rows: compares ratios to peers with recorded ratios, and draws pictures."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scripts_by_path import load_script


def made_up(bench: SimpleNamespace, times: dict[str, float | None], **changes: Any) -> list[Any]:
    identity = {
        "device_kind": "cpu",
        "device": "cpu",
        "cpu": "a processor",
        "capability": "avx2",
        "threads": 2,
        "copy_bytes_per_second": 1e9,
        "torch": "2.15.0",
        "keeps_memory": False,
        "time": "2026-01-01T00:00:00+00:00",
    }
    fields = {
        "case": "p3_7x7",
        "curve": "",
        "mode": "forward",
        "dtype": "float32",
        "layout": "contiguous",
        "threads": 2,
        "deterministic": False,
        "problem": {"boxes": 512, "channels": 256},
        "graph_seconds": None,
        "graph_failure": "",
        "rounds": 7,
        "peak_extra_bytes": 10**6,
        "least_traffic_bytes": 10**5,
        "speedup_over_torchvision": None,
    }
    fields |= {key: value for key, value in changes.items() if key in fields}
    identity |= {key: value for key, value in changes.items() if key in identity}
    return [
        bench.report.Row(
            provider=name,
            failure="" if time else "RuntimeError: no",
            median_seconds=time,
            fastest_seconds=time,
            fraction_of_limit=time and 0.5,
            identity=identity,
            **fields,
        )
        for name, time in times.items()
    ]


OURS, PEER = "shape_roi_align", "torchvision, no maps"


def test_ratios_are_compared_with_those_of_the_same_processor_where_there_are_any(bench):
    old = made_up(bench, {OURS: 1.0, PEER: 10.0}, time="2026-01-01T00:00:00+00:00")
    other = made_up(bench, {OURS: 1.0, PEER: 30.0}, cpu="another", time="2026-01-02T00:00:00+00:00")
    only_there = made_up(bench, {OURS: 1.0, PEER: 30.0}, cpu="another", case="c4")
    fresh = made_up(bench, {OURS: 1.1, PEER: 10.0})
    nearest = bench.check_ratios.rows_of_nearest_processor([*old, *other, *only_there], fresh)
    assert nearest == [*old, *only_there]


def test_the_largest_ratio_of_the_recorded_runs_counts(bench):
    runs = [
        row
        for hour, ours in enumerate((2.0, 1.0, None))
        for row in made_up(bench, {OURS: ours, PEER: 10.0}, time=f"2026-01-01T0{hour}:00:00+00:00")
    ]
    assert list(bench.check_ratios.largest_ratios(runs).values()) == [0.2]
    assert list(bench.check_ratios.ratios(runs[:4]).values()) == [0.1]


@pytest.mark.parametrize(
    "now, status",
    [
        ({OURS: 1.2, PEER: 10.0}, 0),
        ({OURS: 2.4, PEER: 20.0}, 0),  # a machine of half the speed
        ({OURS: 1.3, PEER: 10.0}, 1),
        ({OURS: 1.0, PEER: 7.0}, 1),
        ({OURS: None, PEER: 10.0}, 1),
        ({OURS: 1.0, PEER: None}, 2),
    ],
)
def test_a_ratio_that_grew_by_more_than_the_tolerance_is_reported(
    bench, tmp_path, capsys, now, status
):
    files = tmp_path / "recorded.jsonl", tmp_path / "fresh.jsonl"
    bench.report.write_rows(made_up(bench, {OURS: 1.0, PEER: 10.0}), files[0])
    bench.report.write_rows(made_up(bench, now), files[1])
    command = ["--recorded", str(files[0]), "--fresh", str(files[1])]
    assert bench.check_ratios.main(command) == status
    assert ("WORSE" in capsys.readouterr().out) == (status == 1)
    if now[OURS] == 1.3:
        assert bench.check_ratios.main([*command, "--tolerance", "0.4"]) == 0


@pytest.mark.parametrize(
    "change",
    [
        {"layout": "channels_last"},
        {"dtype": "float16"},
        {"threads": 1},
        {"capability": "avx512"},
        {"keeps_memory": True},
        {"device_kind": "cuda"},
        {"deterministic": True},
        {"mode": "backward"},
        {"problem": {"boxes": 8, "channels": 256}},
    ],
    ids=str,
)
def test_ratios_of_other_settings_are_not_compared(bench, change):
    recorded = bench.check_ratios.ratios(made_up(bench, {OURS: 1.0, PEER: 10.0}))
    fresh = bench.check_ratios.ratios(made_up(bench, {OURS: 9.0, PEER: 10.0}, **change))
    assert bench.check_ratios.compare(recorded, fresh, 0.25)[1:] == (0, 0)
    fresh = bench.check_ratios.ratios(made_up(bench, {OURS: 9.0, PEER: 10.0}, cpu="another"))
    assert bench.check_ratios.compare(recorded, fresh, 0.25)[1:] == (1, 1)


def test_the_last_recorded_run_counts_and_runs_are_not_mixed(bench):
    old = made_up(bench, {OURS: 1.0, PEER: 10.0, "composition": 20.0})
    new = made_up(bench, {OURS: 3.0, PEER: 10.0}, time="2026-02-01T00:00:00+00:00")
    for rows in (old + new, new + old):
        found = {pair.peer: value for pair, value in bench.check_ratios.ratios(rows).items()}
        assert found == {PEER: 0.3, "composition": 0.05}


def test_plain_pooling_is_not_compared_with_peers_that_do_more(bench):
    rows = made_up(bench, {OURS: 1.0, f"{OURS}, no maps": 0.5, PEER: 10.0, "composition": 20.0})
    pairs = {(pair.ours, pair.peer) for pair in bench.check_ratios.ratios(rows)}
    assert pairs == {(OURS, PEER), (OURS, "composition"), (f"{OURS}, no maps", PEER)}


def test_what_was_recorded_is_measured_again(bench, tmp_path, monkeypatch):
    commands = []

    def run(suite: Any, argv: list[str]) -> int:
        commands.append((suite.name, argv))
        now = made_up(bench, {OURS: 5.0, PEER: 10.0}, layout=argv[argv.index("--layout") + 1])
        bench.report.write_rows(now, Path(argv[argv.index("--json") + 1]))
        return 0

    recorded = tmp_path / "recorded.jsonl"
    rows = made_up(bench, {OURS: 1.0, PEER: 10.0})
    rows += made_up(bench, {OURS: 5.0, PEER: 10.0}, layout="channels_last")
    rows += made_up(bench, {OURS: 1.0, PEER: 10.0}, dtype="float16", device_kind="cuda")
    bench.report.write_rows(rows, recorded)
    monkeypatch.setattr(bench.check_ratios, "run", run)
    assert bench.check_ratios.main(["--recorded", str(recorded), "--device", "cpu"]) == 1
    assert [name for name, _ in commands] == ["roi_align"] * 6  # twice more where it is worse
    assert {argv[argv.index("--layout") + 1] for _, argv in commands} == {
        "contiguous",
        "channels_last",
    }


def test_rows_of_an_older_form_are_passed_over(bench, tmp_path):
    path = tmp_path / "rows.jsonl"
    bench.report.write_rows(made_up(bench, {OURS: 1.0}), path)
    path.write_text(path.read_text() + '{"case": "p3_7x7", "provider": "shape_roi_align"}\n')
    assert [row.median_seconds for row in bench.report.read_rows(path)] == [1.0]


def test_pictures_of_cases_and_of_curves(bench, tmp_path):
    times = {OURS: 1.0, PEER: 10.0, "composition": None}
    bars = bench.plot.draw(made_up(bench, times) + made_up(bench, times, mode="backward"))
    assert [panel.get_title() for panel in bars.axes] == [
        f"p3_7x7, float32, 2 threads: {mode}" for mode in ("forward", "backward")
    ]
    texts = [text.get_text() for text in bars.axes[0].texts]
    assert texts == ["", "50%", "50%", "failed"]
    rows = [
        row
        for boxes in (8, 16)
        for row in made_up(bench, times, curve="boxes", problem={"boxes": boxes})
    ]
    lines = bench.plot.draw(rows).axes[0].get_lines()
    found = {line.get_label(): list(line.get_xdata()) for line in lines}
    assert found[OURS] == found[PEER] == found["limit"] == [8, 16]
    other = made_up(bench, times, curve="channels", problem={"channels": 8})
    titles = [panel.get_title() for panel in bench.plot.draw(rows + other).axes]
    assert [title.split(",")[0] for title in titles] == ["over boxes", "over channels"]
    path = tmp_path / "rows.jsonl"
    bench.report.write_rows(rows, path)
    bench.plot.main([path], tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_an_overview_has_the_fastest_other_peer_and_the_limit(bench):
    seconds = {OURS: 1e-3, PEER: 5e-3, "slow, no maps": 9e-3, "quick, no maps": 4e-3}
    figure = bench.plot.draw_overview(made_up(bench, seconds))
    found = {line.get_label(): list(line.get_xdata()) for line in figure.axes[0].get_lines()}
    found.pop("limit, with maps")
    expected = {
        PEER: [5.0],
        "the fastest other peer, no maps": [4.0],
        f"{OURS}: contiguous": [1.0],
    }
    assert found == expected


def test_launches_of_one_kernel_are_told_apart(bench, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))  # the script adds benchmarks/
    script = load_script("scripts/kernel_times.py")
    assert script.by_launch([1, 8, 2, 9, 3, 7], rounds=3) == [[1, 2, 3], [8, 9, 7]]
    name = "void shape_roi_align::cuda::sum_shares_kernel<float>(Shares, int)"
    assert script.short_name(name) == "sum_shares_kernel<float>"
    name = "void at::native::elementwise_kernel<128, 2, (anonymous namespace)::copy>(int)"
    assert script.short_name(name) == "at::native::elementwise_kernel"


def test_an_overview_of_a_gpu_has_its_name_and_the_times_of_graph_replays(bench):
    rows = [
        replace(
            row,
            graph_seconds=row.median_seconds / 2,
            identity=row.identity | {"device_kind": "cuda", "device": "a GPU"},
        )
        for row in made_up(bench, {OURS: 4e-3, PEER: 6e-3})
    ]
    (panel,) = bench.plot.draw_overview(rows).axes
    found = {line.get_label(): list(line.get_xdata()) for line in panel.get_lines()}
    assert found[f"{OURS}: contiguous"] == [2.0] and found[PEER] == [3.0]
    assert panel.get_title() == "a GPU, float32"


def test_the_tables_of_the_pages_are_those_of_the_recorded_rows(bench):
    rows = bench.tables.recorded_rows()
    for page in bench.tables.PAGES:
        assert bench.tables.with_tables(page.read_text(), rows) == page.read_text(), page


def test_a_table_quotes_ratios_of_medians_of_the_same_layout(bench):
    times = {OURS: 1e-3, PEER: 25e-3}
    modes = ("forward", "forward+backward")
    rows = [
        row
        for mode in modes
        for row in made_up(bench, times, mode=mode, capability="avx512", layout="contiguous")
    ]
    recorded = bench.tables.Recorded(rows)
    assert bench.tables.detector_ratio(recorded, "p3_7x7", "contiguous") == "25x / 25x"
    with pytest.raises(KeyError, match="no recorded row"):
        bench.tables.detector_ratio(recorded, "p3_7x7", "channels_last")


def test_a_case_that_is_worse_is_measured_again_and_its_best_ratio_counts(
    bench, tmp_path, capsys, monkeypatch
):
    path = tmp_path / "recorded.jsonl"
    bench.report.write_rows(made_up(bench, {OURS: 1.0, PEER: 10.0}), path)
    runs = [{OURS: 2.0, PEER: 10.0}, {OURS: 1.5, PEER: 10.0}, {OURS: 1.2, PEER: 10.0}]
    taken = []

    def measure(recorded, device, options):
        taken.append(made_up(bench, runs[len(taken)], time=f"2026-01-0{2 + len(taken)}"))
        return taken[-1]

    monkeypatch.setattr(bench.check_ratios, "measure_again", measure)
    assert bench.check_ratios.main(["--recorded", str(path)]) == 0
    assert len(taken) == 3 and "+20%" in capsys.readouterr().out
    runs[2] = {OURS: 1.4, PEER: 10.0}
    taken.clear()
    assert bench.check_ratios.main(["--recorded", str(path)]) == 1
