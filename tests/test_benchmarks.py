"""The benchmarks' own parts: workloads, paired timing, the parity gate, the stored result and its table."""

import copy
import json
import time

import pytest
import torch

from benchmarks import contenders as c
from benchmarks import cpu_layers, models, report, timing, workloads

TINY = workloads.Layer("vit_s", "linear", (8, 24), 16)


def test_workloads_are_the_reference_models_layers():
    found = workloads.layers()
    names = [layer.name for layer in found]
    assert len(set(names)) == len(names)
    assert "resnet50/224x224-6-k7s2-64" in names and "vit_s/1568-384-1536" in names
    depthwise = [layer for layer in found if layer.group == "ConvNeXt-T depthwise"]
    assert [layer.groups for layer in depthwise] == [96, 192, 384, 768]
    for layer in workloads.layers("resnet50/7x7-512-k3s1|convnext_t/7x7|vit_s/8"):
        with torch.no_grad():
            assert layer.reference()(layer.input()).shape == layer.plain()(layer.input()).shape


def test_interleave_pairs_the_rounds_and_takes_turns():
    order = []
    calls = {name: (lambda n=name, s=s: (order.append(n), time.sleep(s))) for name, s in (("a", 2e-3), ("b", 8e-3))}
    times = timing.interleave(calls, seconds=0, least=4)
    assert order[2 * timing.WARM_UP :] == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert timing.ratios(times["b"], times["a"])["n"] == 4
    assert timing.ratios(times["b"], times["a"])["p50"] > 1.5


def test_summary():
    assert timing.summarise([5.0, 1.0, 2.0, 3.0, 4.0, 6.0]) == {"p50": 3.5, "p20": 2.0, "p80": 5.0, "n": 6}
    assert timing.geomean([1.0, 4.0]) == pytest.approx(2)


@pytest.mark.parametrize("measure", c.MEASURES)
def test_parity_gate_lets_ours_pass_and_refuses_a_wrong_layer(measure):
    contenders = c.build(TINY, compile_too=False)
    wrong = copy.deepcopy(contenders["reference"])
    with torch.no_grad():
        wrong.linear.weight[0] *= -1
    calls, refused = c.timed(TINY, contenders | {"wrong": wrong, "nan": _nan(wrong)}, measure)
    assert set(calls) == {"plain", "reference", "ours"}
    assert set(refused) == {"wrong", "nan"} and "above" in refused["wrong"]


def _nan(module):
    broken = copy.deepcopy(module)
    torch.nn.init.constant_(broken.linear.weight, float("nan"))
    return broken


def test_explanation_measure_freezes_the_scale_and_leaves_the_mode():
    layer = TINY.reference()
    x, grad = TINY.input(), torch.randn(8, 16)
    explained = c.outputs(layer, x, grad, "explanation")[1]
    trained = c.outputs(layer, x, grad, "training")[1]
    assert not layer.detach and not torch.allclose(explained, trained)


def test_run_is_stored_and_tabulated(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cpu_layers, "layers", lambda pattern: [TINY])
    out = tmp_path / "results" / "tiny.json"
    assert cpu_layers.main(["--seconds", "0.01", "--no-compile", "--no-models", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["complete"] and result["machine"]["threads"] == torch.get_num_threads()
    assert [row["measure"] for row in result["layers"]] == list(c.MEASURES)
    assert all(row["seconds"]["ours"]["n"] >= 5 for row in result["layers"])
    assert result["saved"]["plain"] < result["saved"]["reference"]
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    assert report.main([str(out), "--readme", str(readme)]) == 0
    text = readme.read_text()
    assert "old" not in text and text.startswith("before") and text.endswith("after\n")
    ratio = result["layers"][0]["ratios"]["ours/plain"]["p50"]
    assert f"ViT-S linears | {ratio:.2f} | ≤ 0.65 |" in text
    assert "torch.compile(reference) ÷ ours | – |" in text


def test_interruption_keeps_what_was_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(cpu_layers, "layers", lambda pattern: [TINY, TINY])
    measured, measure = [], cpu_layers.measure

    def interrupted(*args):
        if measured:
            raise KeyboardInterrupt
        measured.append(measure(*args))
        return measured[0]

    monkeypatch.setattr(cpu_layers, "measure", interrupted)
    out = tmp_path / "partial.json"
    assert cpu_layers.main(["--seconds", "0.01", "--no-compile", "--out", str(out)]) == 130
    result = json.loads(out.read_text())
    assert result["layers"] == measured[0] and not result["complete"]
    assert "interrupted" in report.table(result)


def test_a_stack_saves_what_its_layers_keep():
    """Plain: each layer's input. Reference: more than that. The stack's own output counts for nobody."""
    found = models.saved_by_stack(size=4)
    pixels = workloads.BATCH * 4 * 4
    assert found["plain"] == 4 * pixels * models.DEPTH * (512 + 128 + 128)
    assert found["reference"] > 2 * found["plain"] and found["ours"] >= found["plain"]


def test_readme_has_the_markers():
    text = (cpu_layers.ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count(report.BEGIN) == text.count(report.END) == 1
