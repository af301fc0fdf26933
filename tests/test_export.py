"""Exported networks give what PyTorch gives: their programs, their ONNX files, and the runner that stops early."""

# Wrong types are given on purpose, and modules are looked into.
# mypy: disable-error-code="arg-type, union-attr, assignment, operator, override, index, call-arg, attr-defined"

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from eestudy import EestudyError, export
from eestudy import evaluation as ev
from eestudy.evaluation.exit_rules import rule_for
from eestudy.export import one_file, writer
from eestudy.export.runner import handed_on, score
from eestudy.export.writer import programs
from eestudy.models import Backbone, MultiExit, build_backbone, exit_costs
from eestudy.registry import EXIT_RULES
from tests.test_predict import in_gaps, inputs, network, randomized, stored

# Of two or three exits: an exporter takes a second for each.
EXPORTED: dict[str, Callable[[], MultiExit]] = {
    "maps": lambda: MultiExit(build_backbone("resnet-tiny", (1, 8, 8), 5, width=4, blocks=1), exits=[1], layers=2),
    "cascading tokens": lambda: MultiExit(
        build_backbone("vit1d", (1, 16), 5, width=8, depth=3, heads=2), head="cascading-token"
    ),
    "a tuple of maps": lambda: MultiExit(
        build_backbone("msdnet", (3, 8, 8), 5, growth=2, channels=4, blocks=2, scales=2, step=1, step_mode="even")
    ),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[MultiExit, Path, ev.ExitRule, Tensor]]:
    """exported(family) -> the network, its folder, its rule and inputs; exported once."""
    made: dict[str, tuple[MultiExit, Path, ev.ExitRule, Tensor]] = {}

    def make(family: str) -> tuple[MultiExit, Path, ev.ExitRule, Tensor]:
        if family not in made:
            model = randomized(EXPORTED[family], 3)
            x = inputs(model, 20, 3, torch.float32)
            gaps = in_gaps(stored(model, x), "max-probability", 1e-3, np.random.default_rng(0))
            rule = ev.per_exit([gaps.threshold(k) for k in range(1, model.num_exits)] + [math.inf])
            before = {name: value.clone() for name, value in model.state_dict().items()}
            folder = export.export(model, tmp_path_factory.mktemp(family), rule, onnx=export.FORMS)
            assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
            made[family] = model, folder, rule, x
        return made[family]

    return make


@pytest.mark.parametrize("family", EXPORTED)
def test_the_runner_gives_what_the_network_gives(exported, family: str) -> None:
    """Whole, in batches of other sizes than the traced one, and one by one; compaction in between."""
    model, folder, rule, x = exported(family)
    wanted, exits = model.predict(x, rule)
    assert len(set(exits.tolist())) > 1
    runner = export.Runner(folder, threads=1)
    for size in (20, 7, 1):
        found = [runner.predict(part.numpy()) for part in x.split(size)]
        logits, index = (np.concatenate(values) for values in zip(*found))
        assert index.tolist() == exits.tolist()
        assert index.dtype == np.int64
        np.testing.assert_allclose(logits, wanted.numpy(), rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("family", EXPORTED)
def test_the_programs_give_what_the_network_gives(exported, family: str) -> None:
    """One after another on all samples, at a batch of one too: every exit's logits."""
    model, folder, _, x = exported(family)
    facts = json.loads((folder / export.MANIFEST).read_text())
    programs = [torch.export.load(folder / each["program"]).module() for each in facts["exits"]]
    for batch in (x, x[:1]):
        values: dict[str, Tensor] = {"state_0": batch}
        for program, each, wanted in zip(programs, facts["exits"], stored(model, batch), strict=True):
            with torch.no_grad():
                gives = program(*(values[name] for name in each["inputs"]))
            found = dict(zip(each["outputs"], gives, strict=True))
            torch.testing.assert_close(found["logits"], wanted, rtol=1e-4, atol=1e-4)
            values = handed_on(found)


@pytest.mark.parametrize("family", EXPORTED)
def test_one_file_gives_the_logits_of_every_exit(exported, family: str) -> None:
    model, folder, _, x = exported(family)
    session = onnxruntime.InferenceSession(folder / "all_exits.onnx")
    assert [each.name for each in session.get_outputs()] == [f"logits_{k}" for k in range(1, model.num_exits + 1)]
    for batch in (x, x[:1]):
        found = session.run(None, {"x": batch.numpy()})
        np.testing.assert_allclose(found, stored(model, batch).numpy(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", EXPORTED)
def test_one_file_decides_by_itself(exported, family: str) -> None:
    model, folder, rule, x = exported(family)
    session = onnxruntime.InferenceSession(folder / "early_exit.onnx")
    wanted, exits = model.predict(x, rule)
    found = [session.run(["logits", "exit"], {"x": one.numpy()}) for one in x.split(1)]
    assert [int(exit) for _, exit in found] == exits.tolist()
    assert len(set(exits.tolist())) > 1
    np.testing.assert_allclose(np.concatenate([each for each, _ in found]), wanted.numpy(), rtol=1e-3, atol=1e-3)


def test_what_comes_after_the_exit_is_not_run(exported, tmp_path: Path) -> None:
    """By what onnxruntime says it ran."""
    _, folder, _, x = exported("maps")
    facts = json.loads((folder / export.MANIFEST).read_text())
    ran = []
    for threshold in (-math.inf, math.inf):
        facts["rule"]["thresholds"][0] = threshold
        one_file.build(folder, facts, "early")
        options = onnxruntime.SessionOptions()
        options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
        session = onnxruntime.InferenceSession(folder / "early_exit.onnx", options)
        session.run(None, {"x": x[:1].numpy()})
        kinds = [
            event.get("args", {}).get("op_name", "") for event in json.loads(Path(session.end_profiling()).read_text())
        ]
        ran.append(sum("Conv" in kind for kind in kinds))
    assert 0 < ran[0] < ran[1]


@pytest.mark.parametrize("name", ["max-probability", "margin", "entropy"])
@pytest.mark.parametrize("temperatures", [None, (0.4, 2.5, 1.0)])
def test_rules_and_temperatures_travel(exported, name: str, temperatures, tmp_path: Path) -> None:
    """In exits.json and in the file that decides; thresholds fitted to one temperature do not serve another."""
    model, folder, _, x = exported("cascading tokens")
    logits = stored(model, x)
    routed = logits if temperatures is None else torch.as_tensor(ev.apply_temperatures(logits, temperatures))
    gaps = in_gaps(routed, name, 1e-3, np.random.default_rng(1))
    rule = ev.per_exit(gaps.thresholds, name, temperatures=temperatures)
    wanted = model.predict(x, rule)[1].tolist()
    assert wanted == ev.simulate(logits, rule).tolist() == ev.simulate(routed, gaps).tolist()
    copied = Path(shutil.copytree(folder, tmp_path / "copied"))
    facts = json.loads((copied / export.MANIFEST).read_text())
    thresholds = [value if math.isfinite(value) else str(value) for value in rule.thresholds]
    facts["rule"] |= {"name": name, "thresholds": thresholds, "temperatures": rule.temperatures}
    (copied / export.MANIFEST).write_text(json.dumps(facts))
    runner = export.Runner(copied, threads=1)
    assert runner.predict(x.numpy())[1].tolist() == wanted
    one_file.build(copied, facts, "early")
    session = onnxruntime.InferenceSession(copied / "early_exit.onnx")
    assert [int(session.run(["exit"], {"x": one.numpy()})[0]) for one in x.split(1)] == wanted
    if temperatures:
        assert wanted != ev.simulate(logits, gaps).tolist()


def test_a_folder_of_the_format_before_is_read(exported, tmp_path: Path) -> None:
    model, folder, rule, x = exported("maps")
    copied = Path(shutil.copytree(folder, tmp_path / "copied"))
    facts = json.loads((copied / export.MANIFEST).read_text())
    facts["format"] = 1
    del facts["rule"]["temperatures"], facts["one_file"]
    for each in facts["exits"]:
        del each["exit"]
    (copied / export.MANIFEST).write_text(json.dumps(facts))
    assert export.Runner(copied).predict(x.numpy())[1].tolist() == model.predict(x, rule)[1].tolist()


def test_without_onnx_the_programs_are_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
    folder = export.export(network("short", 0, torch.float32), tmp_path, ev.max_probability(0.5), onnx=())
    assert sorted(file.name for file in folder.iterdir()) == ["exit_1.pt2", "exit_2.pt2", "exits.json"]


def test_forms_that_cannot_be_written_stop_no_others(tmp_path: Path, capfd) -> None:
    model = network("short", 0, torch.float32)
    folder = export.export(model, tmp_path, ev.patience(1), onnx=export.FORMS)
    assert "export: early_exit.onnx was not written (" in capfd.readouterr().err
    assert (folder / "all_exits.onnx").is_file()
    assert json.loads((folder / export.MANIFEST).read_text())["one_file"] == ["all_exits.onnx", None]
    export.export(model, tmp_path, ev.patience(1))
    assert not (folder / "all_exits.onnx").exists(), "of the export before"
    with pytest.raises(EestudyError, match=r"^onnx: unknown name 'on'; .*each"):
        export.export(model, tmp_path, ev.patience(1), onnx="on")


def test_one_file_with_other_answers_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    model = network("short", 0, torch.float32)
    folder = export.export(model, tmp_path / "one", ev.max_probability(0.5))
    facts = json.loads((folder / export.MANIFEST).read_text())
    with torch.no_grad():
        model.head(1)[-1].bias += 5
    assert writer._one_file("all", folder, facts, model, inputs(model, 3, 0, torch.float32)) is None
    assert "exit 1 gives other logits in it than in PyTorch" in capfd.readouterr().err
    assert not (folder / "all_exits.onnx").exists()


def test_the_manifest_says_what_is_needed(exported) -> None:
    model, folder, rule, _ = exported("cascading tokens")
    facts = json.loads((folder / export.MANIFEST).read_text())
    costs = exit_costs(model)
    assert [each["flops"] for each in facts["exits"]] == list(costs.flops)
    assert [each["params"] for each in facts["exits"]] == list(costs.params)
    assert facts["backbone_flops"] == costs.backbone
    runner = export.Runner(folder)
    assert runner.thresholds.tolist() == list(rule.thresholds)
    assert (runner.rule, runner.num_exits, runner.num_classes) == (rule.name, model.num_exits, model.num_classes)
    assert runner.input_shape == model.input_shape
    assert runner.flops.tolist() == list(costs.flops)


def test_it_runs_where_there_is_no_torch(exported, tmp_path: Path) -> None:
    """In a process in which torch cannot be imported."""
    model, folder, rule, x = exported("cascading tokens")
    np.save(tmp_path / "x.npy", x.numpy())
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np\nfrom eestudy.export import Runner\n"
        f"found = Runner({str(folder)!r}).predict(np.load({str(tmp_path / 'x.npy')!r}))\n"
        "print(*found[1])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [int(word) for word in done.stdout.split()] == model.predict(x, rule)[1].tolist()


@pytest.mark.parametrize("family", EXPORTED)
def test_an_empty_batch(exported, family: str) -> None:
    _, folder, _, x = exported(family)
    logits, index = export.Runner(folder).predict(x[:0].numpy())
    assert (logits.shape, index.shape) == ((0, 5), (0,))


def test_later_parts_see_only_the_rest(exported) -> None:
    _, folder, _, x = exported("maps")
    runner = export.Runner(folder)
    seen: list[int] = []

    class Counted:
        def __init__(self, session) -> None:
            self.session = session

        def run(self, outputs, given):
            seen.append(len(given["state_0"]))
            return self.session.run(outputs, given)

    runner._sessions = [Counted(session) for session in runner._sessions]
    index = runner.predict(x.numpy())[1]
    wanted = [int((index >= number).sum()) for number in range(1, runner.num_exits + 1)]
    assert seen == [count for count in wanted if count]
    assert len(set(seen)) > 1


@pytest.mark.parametrize("name", list(EXIT_RULES))
def test_scores_without_torch_are_those_with_it(name: str) -> None:
    logits = torch.randn(4, 50, 7, generator=torch.Generator().manual_seed(0)) * 3
    logits[1:3, :25] = logits[0, :25]  # runs for patience
    for exits in (1, 2, 4):
        wanted = EXIT_RULES[name].score(logits[:exits]).numpy()
        np.testing.assert_allclose(score(list(logits[:exits].numpy()), name), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("k", [None, 0, 1, 2])
def test_scores_of_a_regression(k: int | None) -> None:
    logits = torch.randn(4, 50, 1, generator=torch.Generator().manual_seed(0))
    for exits in (1, 2, 3, 4):
        wanted = rule_for("patience", 1, k).score(logits[:exits]).numpy()
        np.testing.assert_array_equal(score(list(logits[:exits].numpy()), "patience", k), wanted)


def test_a_regression_with_patience_and_token_ids(tmp_path: Path) -> None:
    """Whole numbers go in, one number comes out."""
    torch.manual_seed(0)
    stages = [torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Flatten()), torch.nn.Linear(12, 12)]
    stages += [torch.nn.Linear(12, 12)]
    backbone = Backbone.from_stages(stages, torch.nn.Linear(12, 1), (3,), input_dtype=torch.int64)
    model = MultiExit(backbone).eval()
    x = torch.randint(9, (30, 3), generator=torch.Generator().manual_seed(0))
    rule = ev.patience(1, difference=0.3)
    wanted, exits = model.predict(x, rule)
    assert len(set(exits.tolist())) > 1
    logits, index = export.Runner(export.export(model, tmp_path, rule)).predict(x.numpy())
    assert index.tolist() == exits.tolist()
    np.testing.assert_allclose(logits, wanted.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", [6, 7])
def test_heads_that_pool_any_side_to_four(side: int, tmp_path: Path) -> None:
    """Where the side is no multiple of what a head pools it to: windows that overlap, by both ways of pooling."""
    torch.manual_seed(0)
    stages = [nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)]
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d((2, 3)), nn.Flatten(), nn.Linear(18, 4))
    model = MultiExit(Backbone.from_stages(stages, classifier, (1, side, side))).eval()
    x = torch.randn(6, 1, side, side)
    folder = export.export(model, tmp_path / "pooled", ev.max_probability(1.0))
    logits, index = export.Runner(folder, threads=1).predict(x.numpy())
    assert set(index.tolist()) == {3}
    np.testing.assert_allclose(logits, model(x)[-1].detach().numpy(), rtol=1e-4, atol=1e-5)
    first = export.export(model, tmp_path / "first", ev.max_probability(0.0))
    logits, index = export.Runner(first, threads=1).predict(x.numpy())
    assert set(index.tolist()) == {1}
    np.testing.assert_allclose(logits, model(x)[0].detach().numpy(), rtol=1e-4, atol=1e-5)


def test_an_exit_without_onnx_does_not_stop_the_others(tmp_path: Path, monkeypatch, capfd) -> None:
    monkeypatch.setattr(writer, "IN_WINDOWS", {})  # as if an operation had no form there
    model = MultiExit(build_backbone("resnet-tiny", (1, 7, 7), 3)).eval()
    folder = export.export(model, tmp_path / "pooled", ev.max_probability(0.5))
    said = capfd.readouterr().err
    assert "export: exit_1.onnx was not written" in said
    facts = json.loads((folder / export.MANIFEST).read_text())
    assert facts["exits"][0]["onnx"] is None
    assert facts["exits"][-1]["onnx"] == f"exit_{model.num_exits}.onnx"
    assert all((folder / each["program"]).is_file() for each in facts["exits"])
    with pytest.raises(EestudyError, match=r"has no ONNX file of exit 1; use exit_k.pt2"):
        export.Runner(folder)


def test_a_part_holds_its_own_weights_alone() -> None:
    model = MultiExit(build_backbone("mlp", (4,), 3, depth=6), exits=[2, 5])
    sizes = [sum(tensor.numel() for tensor in program.parameters()) for program in programs(model)]
    assert np.cumsum(sizes).tolist() == list(exit_costs(model).params)
    assert len(model.heads) == 2, "the network keeps them all"
    assert [type(stage) for stage in model.backbone.stages].count(torch.nn.Identity) == 0


def test_stages_without_an_exit_join_the_next_one() -> None:
    model = MultiExit(build_backbone("mlp", (4,), 3, depth=6), exits=[2, 5])
    assert [list(program.stages) for program in programs(model)] == [[1, 2], [3, 4, 5], [6]]


def test_a_failed_export_leaves_no_folder_that_looks_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network("mlp", 0, torch.float32)
    (tmp_path / export.MANIFEST).write_text("{}")

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("disk full")

    monkeypatch.setattr("torch.export.save", fails)
    with pytest.raises(RuntimeError, match="disk full"):
        export.export(model, tmp_path, ev.max_probability(0.5))
    with pytest.raises(EestudyError, match=r"exits\.json cannot be read"):
        export.Runner(tmp_path)


@pytest.mark.parametrize(
    ("change", "rule", "words"),
    [
        (lambda model: model.train(), ev.max_probability(0.5), r"training mode; call model\.eval"),
        (lambda model: model.double(), ev.max_probability(0.5), r"torch\.float64.*model\.float"),
        (lambda model: model, ev.per_exit([0.5, 0.5]), "2 thresholds, the model has 4 exits"),
        (lambda model: model, ev.patience(1, difference=0.5), "k: 1"),
        (lambda model: model, lambda history: history, "cannot be written down"),
    ],
)
def test_what_cannot_be_exported_is_refused(tmp_path: Path, change, rule, words: str) -> None:
    with pytest.raises(EestudyError, match=words):
        export.export(change(network("mlp", 0, torch.float32)), tmp_path / "new", rule)
    assert not (tmp_path / "new").exists()


class Fixed(torch.nn.Module):
    """As many a model is written: len() of a tensor is a constant once it is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).view(len(x), 4)


def test_a_model_that_fixes_its_batch_is_refused(tmp_path: Path) -> None:
    stages = [Fixed(), torch.nn.Linear(4, 4)]
    model = MultiExit(Backbone.from_stages(stages, torch.nn.Linear(4, 3), (4,))).eval()
    with pytest.raises(EestudyError, match=r"exit_1 \(stages 1\).*x\.shape\[0\] for len\(x\)"):
        export.export(model, tmp_path, ev.max_probability(0.5))


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        EestudyError, match=r"onnxruntime cannot be .*; it comes with: pip install 'eestudy\[export\]'$"
    ):
        export.Runner(tmp_path)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(EestudyError, match=r"onnxscript cannot be imported"):
        export.export(network("mlp", 0, torch.float32), tmp_path, ev.max_probability(0.5))


def test_wrong_inputs_and_folders_are_refused(exported, tmp_path: Path) -> None:
    _, folder, _, x = exported("cascading tokens")
    runner = export.Runner(folder)
    for wrong in (x[0], x[:, :, :8]):
        with pytest.raises(EestudyError, match=r"x: has shape .*\(B, 1, 16\)"):
            runner.predict(wrong.numpy())
    copied = tmp_path / "copied"
    shutil.copytree(folder, copied)
    facts = json.loads((copied / export.MANIFEST).read_text())
    (copied / export.MANIFEST).write_text(json.dumps({**facts, "format": 3}))
    with pytest.raises(EestudyError, match="format 3"):
        export.Runner(copied)
