from __future__ import annotations

import argparse
import json

import pandas as pd
import pyarrow as pa
import pytest

from distsparse.cli import best, compare, importance, pareto, results, summary
from distsparse.results import write

KEYS = [letter * 12 for letter in "abcde"]
CONFIG = {"method.name": pa.string(), "method.sparsity": pa.float64(), "model.name": pa.string()}


def command(*arguments):
    parser = argparse.ArgumentParser(prog="distsparse")
    commands = parser.add_subparsers(required=True)
    for part in (results, summary, pareto, best, compare, importance):
        part.add(commands)
    args = parser.parse_args([str(argument) for argument in arguments])
    args.run(args)


def add_trial(root, key, method, requested, *, study="main", **values):
    config = {"method": {"name": method, "sparsity": requested}, "model": {"name": "lenet"}}
    dotted = {"method.name": method, "method.sparsity": requested, "model.name": "lenet"}
    row = {"status": "completed", "seed": 0, "config": json.dumps(config), **dotted, **values}
    write(root, study=study, trial=key, table="trials", rows=[row], config_columns=CONFIG)


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "results"
    add_trial(root, KEYS[0], "rigl", 0.9, accuracy=0.98213, sparsity=0.9, latency_ms=0.5, wall_s=12.3456)
    add_trial(
        root, KEYS[1], "set", 0.9, status="failed", error="ValueError: lr = -1\n  must be positive " * 9
    )
    add_trial(root, KEYS[2], "set", 0.98, accuracy=0.96, sparsity=0.98, latency_ms=0.25, wall_s=7.0)
    add_trial(root, KEYS[3], "static", 0.9, accuracy=0.95, sparsity=0.9, latency_ms=0.75, wall_s=8.0)
    add_trial(root, KEYS[4], "gmp", 0.9, accuracy=0.99, sparsity=0.9, wall_s=9.0)
    return root


def test_results_prints_what_differs_and_the_failures_last(root, capsys):
    command("results", root)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [
        *("trial", "status", "method.name", "method.sparsity"),
        *("accuracy", "sparsity", "latency_ms", "wall_s"),
    ]
    assert lines[1].split() == [KEYS[0], "completed", "rigl", "0.9", "0.9821", "0.9", "0.5", "12.35"]
    assert [line.split()[0] for line in lines[1:6]] == [KEYS[i] for i in (0, 2, 3, 4, 1)]
    assert lines[4].split()[-2:] == ["-", "9"]
    assert lines[5].split() == [KEYS[1], "failed", "set", "0.9", "-", "-", "-", "-"]
    assert lines[7] == "failed:"
    assert lines[8].startswith(f"{KEYS[1]}  ValueError: lr = -1 must be positive ValueError")
    assert len(lines[8]) == 12 + 2 + 120
    assert lines[8].endswith("...")
    assert lines[10] == "5 trials: 4 completed, 1 failed"
    assert len({len(line) for line in lines[:6]}) == 1


def test_results_sorts_with_gaps_last(root, capsys):
    command("results", root, "--sort", "latency_ms", "--columns", "trial,latency_ms")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines[:6]] == ["latency_ms", "0.25", "0.5", "0.75", "-", "-"]
    command("results", root, "--sort", "accuracy", "--reverse", "--columns", "accuracy, trial")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["accuracy", "trial"]
    assert [line.split()[0] for line in lines[1:5]] == ["0.99", "0.9821", "0.96", "0.95"]


def test_results_writes_csv(root, tmp_path, capsys):
    command("results", root, "--csv", tmp_path / "all.csv")
    frame = pd.read_csv(tmp_path / "all.csv")
    assert len(frame) == 5
    assert frame["accuracy"][0] == 0.98213
    assert {"method.name", "model.name", "error", "hostname"} <= set(frame.columns)
    command("results", root, "--columns", "trial,nnz", "--csv", tmp_path / "new" / "two.csv")
    assert list(pd.read_csv(tmp_path / "new" / "two.csv").columns) == ["trial", "nnz"]
    assert "wrote" in capsys.readouterr().out


def test_results_reads_one_study_or_another_table(root, capsys):
    add_trial(root, KEYS[0], "rigl", 0.5, study="other", accuracy=0.5)
    command("results", root)
    assert capsys.readouterr().out.splitlines()[0].split()[2] == "study"
    for arguments in ((root, "--study", "other"), (root / "other",), (root / "other", "--study", "other")):
        command("results", *arguments)
        assert capsys.readouterr().out.splitlines()[-1] == "1 trials: 1 completed, 0 failed"
    rows = [{"layer": name, "kind": "Linear", "nnz": 5} for name in ("fc1", "a_long_name." * 5)]
    write(root, study="main", trial=KEYS[0], table="layers", rows=rows)
    command("results", root, "--table", "layers")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["trial", "layer", "kind"]
    assert lines[1].split()[1] == ("a_long_name." * 5)[:25] + "..."
    assert lines[-1] == "2 rows of 1 trials"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--study", "missing"], "--study = 'missing': no such study in .*; there: main"),
        (["--columns", "trial,acc"], "--columns: no column 'acc'; there are: study, trial"),
        (["--columns", " , "], "--columns = ' , ': names no column"),
        (["--sort", "acc"], "--sort: no column 'acc'"),
        (["--reverse"], "--reverse needs --sort"),
        (["--table", "steps"], "no trial has written to table 'steps'"),
    ],
)
def test_results_explains_mistakes(root, arguments, message):
    with pytest.raises(ValueError, match=message):
        command("results", root, *arguments)


def test_pareto_prints_the_front_and_counts_what_was_left_out(root, capsys):
    command("pareto", root, "--maximize", "accuracy", "--maximize", "sparsity", "--minimize", "latency_ms")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [
        *("trial", "method.name", "method.sparsity"),
        *("accuracy", "sparsity", "latency_ms"),
    ]
    assert [line.split()[0] for line in lines[1:3]] == [KEYS[0], KEYS[2]]
    assert lines[4:] == [
        "2 of 4 completed trials are on the front; 1 without a value for latency_ms left out",
        f"knee: trial {KEYS[2]}; hypervolume 0.0004 from accuracy 0.95, sparsity 0.9, latency_ms 0.75",
        "1 failed trials are not considered",
    ]


def test_pareto_lists_the_best_in_the_first_objective_first(root, capsys):
    command("pareto", root, "--maximize", "sparsity", "--minimize", "wall_s")
    lines = capsys.readouterr().out.splitlines()
    assert lines[3] == "1 of 4 completed trials are on the front"
    command("pareto", root, "--maximize", "accuracy", "--minimize", "wall_s")
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()[1:3]] == ["9", "7"]


def test_a_trial_that_lacks_two_values_is_counted_once(root, capsys):
    command("pareto", root, "--minimize", "wall_s", "--minimize", "latency_ms", "--minimize", "loss")
    expected = "0 of 4 completed trials are on the front; 4 without a value for latency_ms, loss left out"
    assert expected in capsys.readouterr().out.splitlines()


def test_a_setting_that_only_some_trials_have_is_shown_where_it_has_two_values(tmp_path, capsys):
    add_trial(tmp_path, KEYS[0], "set", 0.9)
    add_trial(tmp_path, KEYS[1], "dense", None)
    command("results", tmp_path)
    assert "method.sparsity" not in capsys.readouterr().out
    add_trial(tmp_path, KEYS[2], "set", 0.8)
    command("results", tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[2:4] == ["method.name", "method.sparsity"]
    assert [line.split()[2:4] for line in lines[1:4]] == [["set", "0.9"], ["dense", "-"], ["set", "0.8"]]


def test_pareto_draws_and_writes_csv(root, tmp_path, capsys):
    plot, table = tmp_path / "front.png", tmp_path / "front.csv"
    command("pareto", root, "--maximize", "accuracy", "--minimize", "wall_s", "--plot", plot, "--csv", table)
    assert capsys.readouterr().out.splitlines()[-2:] == [f"wrote {plot}", f"wrote {table}"]
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert pd.read_csv(table)["trial"].tolist() == [KEYS[4], KEYS[2]]
    assert "hostname" in pd.read_csv(table).columns


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no objective"),
        (["--maximize", "acuracy"], "unknown column 'acuracy'; close: accuracy"),
        (["--maximize", "method.name"], "'method.name' is not numeric"),
        (["--maximize", "accuracy", "--plot", "front.png"], "two objectives"),
    ],
)
def test_pareto_explains_mistakes(root, arguments, message):
    with pytest.raises(ValueError, match=message):
        command("pareto", root, *arguments)


def test_a_folder_without_results_is_an_error(tmp_path):
    for name in ("results", "pareto"):
        with pytest.raises(ValueError, match="no such results folder"):
            command(name, tmp_path / "absent", *(["--maximize", "accuracy"] if name == "pareto" else []))


def test_help_shows_an_example(capsys):
    for name in ("results", "summary", "pareto", "best", "compare", "importance"):
        with pytest.raises(SystemExit):
            command(name, "--help")
        assert f"distsparse {name} results " in capsys.readouterr().out


def test_summary_prints_means_with_intervals(root, tmp_path, capsys):
    add_trial(root, "f" * 12, "rigl", 0.9, seed=1, accuracy=0.97, sparsity=0.9)
    command("summary", root, "--values", "accuracy", "--csv", tmp_path / "means.csv")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [
        "method.name",
        "method.sparsity",
        "num_trials",
        "accuracy",
        "accuracy",
        "interval",
    ]
    [line] = [line for line in lines if line.startswith("rigl")]
    assert line.split(maxsplit=3) == ["rigl", "0.9", "2", "0.9761 ± 0.0086  [0.97, 0.9821]"]
    assert lines[-2] == "4 configurations of 5 completed trials"
    table = pd.read_csv(tmp_path / "means.csv").set_index("method.name")
    assert table.loc["rigl", "trials"] == f"{KEYS[0]} {'f' * 12}"
    command("summary", root, "--by", "model.name")
    assert capsys.readouterr().out.splitlines()[-1] == "1 configurations of 5 completed trials"


def test_pareto_of_means_and_the_quality_of_the_front(root, capsys):
    command("pareto", root, "--maximize", "accuracy", "--maximize", "sparsity", "--means")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["gmp", "set"]
    assert lines[1].split()[-2:] == ["yes", "1"]
    assert "2 configurations are on the front of the means" in lines
    # From (0, 0): 0.99 · 0.9 + 0.96 · 0.08
    reference = ("--reference", "accuracy=0", "--reference", "sparsity=0")
    command("pareto", root, "--maximize", "accuracy", "--maximize", "sparsity", *reference)
    out = capsys.readouterr().out
    assert f"knee: trial {KEYS[2]}; hypervolume 0.9678 from accuracy 0, sparsity 0" in out
    with pytest.raises(ValueError, match=r"--reference accuracy: must be COL=NUMBER"):
        command("pareto", root, "--maximize", "accuracy", "--reference", "accuracy")


def test_best_prints_what_is_within_the_limits(root, tmp_path, capsys):
    command("best", root, "--at-most", "latency_ms=0.5", "--csv", tmp_path / "best.csv")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == [KEYS[0], KEYS[2]]
    assert "2 of 4 completed trials are within the limits" in lines
    assert pd.read_csv(tmp_path / "best.csv")["trial"].tolist() == [KEYS[0], KEYS[2]]
    command("best", root, "--minimize", "wall_s", "--at-least", "sparsity=0.9", "--means", "--count", "1")
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[0] == "set"
    assert lines[2] == ""
    assert lines[3] == "4 of 4 configurations are within the limits"


def test_compare_prints_differences_and_how_many_are_significant(tmp_path, capsys):
    for place, letter in enumerate("0123456789"):
        method, seed = ("rigl", "set")[place % 2], place // 2
        add_trial(
            tmp_path, letter * 12, method, 0.9, seed=seed, accuracy=0.9 + 0.01 * (place % 3) * (place % 2)
        )
    command("compare", tmp_path, "--csv", tmp_path / "tests.csv")
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:3] == ["rigl", "set", "5"]
    assert "of 1 differences in accuracy are significant at 5 % (Holm)" in lines[3]
    assert len(pd.read_csv(tmp_path / "tests.csv")) == 1
    command("compare", tmp_path, "--between", "seed", "--baseline", "0", "--within", "method.name")
    assert len(capsys.readouterr().out.splitlines()) == 1 + 8 + 2
    with pytest.raises(ValueError, match=r"baseline = 'gmp': method\.name has only rigl, set"):
        command("compare", tmp_path, "--baseline", "gmp")


def test_importance_and_sql(tmp_path, capsys):
    for place in range(20):
        add_trial(tmp_path, f"{place:012x}", ("rigl", "set")[place % 2], 0.9, accuracy=place % 2, seed=place)
    command("importance", tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[0] == "method.name"
    assert lines[-1] == "the settings explain 100% of the variance of accuracy on unseen trials"
    command(
        "results",
        tmp_path,
        "--sql",
        'select "method.name" as m, count(*) as n from trials group by m order by m',
    )
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["m", "n"],
        ["rigl", "10"],
        ["set", "10"],
    ]
