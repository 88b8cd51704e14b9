"""``sdkernels runs``: what a ledger holds, listed, shown, exported, checked and dropped."""

import builtins
import sys

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import sdkernels as sd
from sdkernels.cli import app
from sdkernels.engine import parts
from sdkernels.engine.ledger import Ledger, LedgerError
from sdkernels.lab import contents
from sdkernels.lab.datasets import load
from sdkernels.lab.models import mlp
from sdkernels.lab.sweep import Condition, NetworkSettings, Sweep, run_sweep
from sdkernels.lab.training import TrainingOptions, train


@pytest.fixture
def run():
    return lambda *arguments: CliRunner().invoke(app, ["runs", *map(str, arguments)])


@pytest.fixture(scope="module")
def digits():
    return load("digits")


@pytest.fixture(scope="module")
def model(digits):
    model = mlp(64, (8, 6), 10, seed=0)
    train(model, digits, TrainingOptions(epochs=3, learning_rate=1e-2), seed=0)
    return model


@pytest.fixture
def many_tiles(monkeypatch):
    monkeypatch.setattr(parts, "TILE_SECONDS", 0.0)  # each of the fewest examples


@pytest.fixture
def store(tmp_path):
    return tmp_path / "work.sdk"


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """The ledger of two networks with a measure each."""
    store = tmp_path_factory.mktemp("swept") / "work.sdk"
    options = TrainingOptions(epochs=2)
    networks = tuple(NetworkSettings("digits", "mlp", {"hidden": [8]}, options, seed=seed) for seed in (0, 1))
    ablation = Condition("ablation", "cumulative_ablation", ["hidden1"], arguments={"orders": 2, "points": 3})
    return store, run_sweep(Sweep(networks, (ablation,)), store)


def scores_of(store, number=1):
    with Ledger(store) as ledger:
        return contents.scores(ledger, contents.find(ledger, str(number)))


@pytest.mark.parametrize("metrics", [("accuracy", "loss"), ("accuracy", "class_accuracy", "top5")], ids=str)
def test_scores_are_the_results_counts(metrics, model, digits, store, many_tiles):
    data = digits.inputs[:300], digits.labels[:300]
    result = sd.unit_importance(model, ["relu1", "relu2"], data, metrics=metrics, store=store)
    table = scores_of(store)
    assert table["configuration"].tolist() == list(range(14))
    assert (table["examples"] == 300).all()
    assert table["correct"].tolist() == result.correct.tolist()
    assert table["ambiguous"].tolist() == result.ambiguous.tolist()
    if "loss" in metrics:
        np.testing.assert_allclose(table["loss_sum"], result.sums["loss"], rtol=1e-12)
    else:
        assert table["top5"].tolist() == result.sums["top5"].tolist()
        by_class = table[[f"class_correct_{label}" for label in range(10)]]
        assert by_class.to_numpy().tolist() == result.sums["class_accuracy"].tolist()


def test_scores_say_which_configuration_is_which(model, digits, store):
    data = digits.inputs[:100], digits.labels[:100]
    curve = sd.cumulative_ablation(model, ["relu1"], data, orders=3, points=[0, 4, 8], store=store)
    noise = sd.noise_robustness(model, ["relu1"], data, scales=[0.5, 2.0], repeats=3, store=store)
    sd.pair_importance(model, ["relu2"], data, store=store)
    table = scores_of(store, 1)
    assert table["ablated"].tolist() == [0, 4, 8] * 3
    assert table["order"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert table["correct"].tolist() == curve.correct.flatten().tolist()
    table = scores_of(store, 2)
    assert len({*table["draw"]}) == 6
    for scale, correct in zip((0.5, 2.0), noise.correct.T.tolist(), strict=True):
        assert table["correct"][table["factor"] == scale].tolist() == correct
    table = scores_of(store, 3)
    assert table["other_unit"].isna().sum() == 6
    assert len(table) == 6 + 15


def test_scores_of_a_call_in_stages(model, digits, store, many_tiles):
    data = digits.inputs[:400], digits.labels[:400]
    result = sd.unit_importance(model, ["relu1", "relu2"], data, tolerance=0.1, seed=3, store=store)
    table = scores_of(store)
    assert table["examples"].tolist() == result.used.tolist()
    assert table["correct"].tolist() == result.correct.tolist()


def test_scores_of_a_call_that_was_stopped(model, digits, store, many_tiles, monkeypatch):
    data, kept = (digits.inputs[:300], digits.labels[:300]), []
    original = Ledger.keep_tile

    def keep_three(self, *arguments):
        if len(kept) == 3:
            raise KeyboardInterrupt
        kept.append(original(self, *arguments))

    monkeypatch.setattr(Ledger, "keep_tile", keep_three)
    with pytest.raises(KeyboardInterrupt):
        sd.unit_importance(model, ["relu1"], data, store=store)
    table = scores_of(store)
    scored = int(table["examples"][0])
    assert 64 < scored < 300
    alone = sd.unit_importance(model, ["relu1"], (data[0][:scored], data[1][:scored]))
    assert table["correct"].tolist() == alone.correct.tolist()
    with Ledger(store) as ledger:
        (row,) = contents.contents(ledger).to_dict("records")
    assert row["state"] == "under way"
    assert row["examples"] == f"{scored} of 300, 3 tiles"


@pytest.mark.parametrize("other", [slice(0, 200), slice(0, 300)], ids=["fewer examples", "other labels"])
def test_scores_of_several_data_sets_are_not_mixed(other, model, digits, store, many_tiles, run, tmp_path):
    inputs, labels = digits.inputs[:300], digits.labels[:300].clone()
    first = sd.unit_importance(model, ["relu1"], (inputs, labels), store=store)
    again = sd.unit_importance(model, ["relu1"], (inputs[other], labels[other].flip(0)), store=store)
    assert first.correct.tolist() != again.correct.tolist()
    with pytest.raises(LedgerError, match="run 1 holds tiles of several data sets"):
        scores_of(store)
    result = run("export", store, 1, tmp_path / "scores.csv")
    assert result.exit_code == 2
    assert not (tmp_path / "scores.csv").exists()
    assert " of 300" not in run("list", store).output  # more examples than that


def test_list_says_how_far_everything_is(run, swept):
    result = run("list", swept[0])
    assert result.exit_code == 0
    head, *rows = result.output.splitlines()
    assert head.split() == ["id", "what", "of", "examples", "state", "written"]
    assert len(rows) == 2 + 2 + 2
    assert "1437 of 1437, 2 tiles" in rows[0]
    assert "cumulative_ablation" in rows[0]
    assert sum("ablation: mlp on digits, learning rate 0.001, seed 1" in row for row in rows) == 1
    assert all(row.split()[-3] == "finished" for row in rows)


def test_list_of_an_empty_ledger(run, store):
    Ledger(store).close()
    assert run("list", store).output == f"{store} holds nothing yet\n"


@pytest.mark.parametrize("command", ["list", "show", "export", "check", "drop"])
def test_a_ledger_that_is_not_there(command, run, store):
    given = {"show": ["1"], "export": ["1", "out.csv"], "drop": ["1"]}.get(command, [])
    result = run(command, store, *given)
    assert result.exit_code == 2
    assert f"sdkernels runs {command} {store}: {store} is not there" in result.output
    assert not store.exists()


def test_show(run, swept):
    store, done = swept
    shown = run("show", store, "1").output
    for words in ("cumulative_ablation", "layout", "first 64", "1437", "configurations", "UTC"):
        assert words in shown
    shown = run("show", store, done.keys[1][:12]).output
    assert f"train_accuracy      {done.record(1)['train_accuracy']}" in shown
    assert "training            epochs 2, optimiser adam" in shown
    assert "epochs              2" in shown
    assert "history" not in shown
    assert max(map(len, shown.splitlines())) <= 220


@pytest.mark.parametrize("wanted", ["99", "ffff", "nonsense", ""])
def test_an_id_that_there_is_not(wanted, run, swept):
    result = run("show", swept[0], wanted)
    assert result.exit_code == 2
    assert f"holds nothing of id {wanted}; it holds 1, 2" in result.output


def test_an_ambiguous_id(run, store):
    with Ledger(store) as ledger:
        for key in ("abcdef01", "abcdef02", "abcd"):
            ledger.keep_item("network", key, {}, b"")
    result = run("show", store, "abcde")
    assert result.exit_code == 2
    assert "holds several of id abcde: network abcdef01, network abcdef02" in result.output
    assert run("show", store, "abcdef02").exit_code == 0
    assert run("show", store, "abc").exit_code == 2  # too few digits to mean one


def test_export_of_each_kind(run, swept, tmp_path):
    store, done = swept
    for wanted, rows, column in (("1", 6, "correct"), (done.keys[0][:12], 2, "epoch")):
        assert f"wrote {rows} rows" in run("export", store, wanted, tmp_path / "out.csv").output.replace("\n", "")
        assert column in pd.read_csv(tmp_path / "out.csv")
    key = done.sweep.conditions[0].key(done.keys[1])
    run("export", store, key[:12], tmp_path / "condition.csv")
    expected = done.result(1, "ablation").to_pandas()
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "condition.csv"), expected)


def test_export_to_parquet(run, swept, tmp_path):
    pytest.importorskip("pyarrow")
    assert run("export", swept[0], "1", tmp_path / "out.parquet").exit_code == 0
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "out.parquet"), scores_of(swept[0]))


def test_parquet_without_pyarrow_is_one_clear_line(run, swept, tmp_path, monkeypatch):
    original = builtins.__import__

    def without(name, *arguments, **keywords):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return original(name, *arguments, **keywords)

    for name in [name for name in sys.modules if name.startswith(("pyarrow", "pandas.io.parquet"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    result = run("export", swept[0], "1", tmp_path / "out.parquet")
    assert result.exit_code == 2
    assert "parquet needs pyarrow" in result.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("out", "says"), [("out.xlsx", "ends in .csv or .parquet"), ("no/such/folder/out.csv", "folder")]
)
def test_export_to_where_nothing_can_be(out, says, run, swept, tmp_path):
    result = run("export", swept[0], "1", tmp_path / out)
    assert result.exit_code == 2
    assert says in result.output
    assert not list(tmp_path.iterdir())


def test_check_reads_everything(run, swept, tmp_path):
    store = tmp_path / "copy.sdk"
    store.write_bytes(swept[0].read_bytes())
    with Ledger(store) as ledger:
        rows = ledger.check()
        assert f"{rows} rows, all as they were written" in run("check", store).output
        ledger._sqlite.execute("UPDATE items SET content = x'00' WHERE kind = 'network'")
    result = run("check", store)
    assert result.exit_code == 2
    assert "is damaged: network" in result.output


def test_what_was_dropped_is_made_again(run, model, digits, store, many_tiles):
    data = digits.inputs[:200], digits.labels[:200]
    first = sd.unit_importance(model, ["relu1"], data, store=store)
    assert "dropped 1" in run("drop", store, "1").output
    assert run("show", store, "1").exit_code == 2
    again = sd.unit_importance(model, ["relu1"], data, store=store)
    assert again.correct.equal(first.correct)
    assert "finished" in run("list", store).output


def test_a_pass_is_one_thing_with_its_rows(run, model, digits, store):
    sd.unit_statistics(model, ["relu1"], (digits.inputs[:200], digits.labels[:200]), store=store)
    with Ledger(store) as ledger:
        (item,) = ledger.items_without_content("pass")
        for row in range(2):
            ledger.keep_item("pass rows", f"{item.key}/{row}", {}, b"")
        ledger.keep_item("pass rows", "another/0", {}, b"")
    _, *rows = run("list", store).output.splitlines()
    assert len(rows) == 1
    assert "unit_statistics: relu1" in rows[0]
    assert "200 of 200" in rows[0]
    assert "finished" in rows[0]
    assert "function            unit_statistics" in run("show", store, item.key[:12]).output
    result = run("export", store, item.key[:12], "out.csv")
    assert result.exit_code == 2
    assert "has no table" in result.output
    assert run("drop", store, item.key[:12]).exit_code == 0
    with Ledger(store) as ledger:
        assert ledger.kinds() == {"pass rows": 1}


def test_a_training_under_way(run, store):
    with Ledger(store) as ledger:
        history = [{"epoch": 1, "loss": 2.0, "accuracy": 0.5}]
        ledger.keep_item("training state", "0123456789ab", {"step": 7, "history": history, "seed": 3}, b"weights")
    assert "epoch 1, step 7" in run("list", store).output
    assert "under way" in run("list", store).output
    assert "step                7" in run("show", store, "0123").output
