"""Planning many runs, and training for a limited time."""

from __future__ import annotations

from collections import Counter

from eestudy import plan as planning
from eestudy.cli import main
from eestudy.plan import outlined, prepare
from eestudy.store import Store
from eestudy.study import load_study

SWEEP = """
seeds: [0, 1, 2, 3]
grid:
  - {architecture: mlp, dataset: digits, strategy: [disjoint, mixed], train_size: 300, lr: [0.001, 0.002, 0.003],
     weight_decay: [0.0, 0.1], epochs: [2, 4]}
"""


def test_a_network_is_built_for_a_shape_and_not_for_a_run(tmp_path, monkeypatch, capsys):
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    built: Counter[str] = Counter()
    build = planning.build_model
    monkeypatch.setattr(planning, "build_model", lambda *given: built.update(["network"]) or build(*given))
    for cached in (planning._of_all_seeds, planning._shaped):
        cached.cache_clear()
    assert main(["plan", str(tmp_path / "sweep.yaml"), "--store", str(tmp_path)]) == 0
    assert "96 runs, 0 with a record" in capsys.readouterr().out
    assert built["network"] == 2  # one a strategy
    for config in load_study(tmp_path / "sweep.yaml").configs[::7]:
        light, whole = outlined(config), prepare(config)
        assert (light.phase_ids, light.training_flops) == (whole.phase_ids, whole.training_flops)


def test_minutes_end_a_command_cleanly_with_its_state_saved(tmp_path, capsys):
    text = "{architecture: mlp, dataset: digits, strategy: joint, epochs: 100000, train_size: 300, batch_size: 64}"
    (tmp_path / "long.yaml").write_text(text)
    command = ["train", str(tmp_path / "long.yaml"), "--store", str(tmp_path / "store"), "--device", "cpu"]
    assert main([*command, "--minutes", "0.1"]) == 0
    assert "0.1 minutes are over; 1 of 1 runs are left" in capsys.readouterr().err
    (state,) = tmp_path.glob("store/phases/*/state-*.safetensors")
    assert Store(tmp_path / "store").folder("phases", state.parent.name).verify() is None
