"""`validate`: what cannot work is named, with the layer and the reason, before anything is trained."""

from pathlib import Path

import pytest

from compressor_command import main

START = """\
name: tried
data: {name: digits}
stages:
  - {stage: train, id: teacher, model: resnet, arguments: {blocks: [1], widths: [8]}, epochs: 1000}
"""


def validate(folder: Path, text: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    (folder / "p.yaml").write_text(text)
    code = main(["validate", str(folder / "p.yaml")])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_a_pipeline_that_can_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = START + (
        "  - {stage: distill, id: student, model: resnet, arguments: {blocks: [1], widths: [8]}, teacher: teacher, epochs: 9, cache: {views: 9}}\n"
        "  - {stage: prune, id: pruned, target: {macs: 0.7}, round_to: 4}\n"
        "  - {stage: quantize, id: int8, mode: qat, teacher: teacher, epochs: 50}\n"
        "  - {stage: export, id: shipped}\n"
    )
    code, out, err = validate(tmp_path, text, capsys)
    assert (code, err) == (0, "")
    assert "tried: 5 stages, 10 classes, images 1 x 8 x 8" in out
    assert "shipped (export)" in out
    assert "warning: stage 'int8' follows 'pruned', which needs recovery" in out
    assert "It works" in out
    assert [path.name for path in tmp_path.iterdir()] == ["p.yaml"]


@pytest.mark.parametrize(
    ("stages", "code", "says"),
    [
        ("{stage: train, id: own, model: 'tests.networks:Branching', epochs: 3}", 2,
         "stage 'own': layer 'gate' (Gate) cannot be traced by torch.export: Could not guard on data-dependent"),
        ("{stage: train, id: own, model: 'tests.networks:Bessel', epochs: 0}", 1,
         "stage 'own': layer 'special' cannot be exported to ONNX: No ONNX function found for"),
        ("{stage: train, id: own, model: 'tests.networks:PaddedShortcut', epochs: 3}\n  - {stage: prune, target: {macs: 0.5}, round_to: 1}", 1,
         "stage 'prune': the target, at most 0.500 of the incoming network, is out of reach"),
        ("{stage: train, id: own, model: 'tests.networks:Reshaped', epochs: 3}\n  - {stage: prune, target: {macs: 0.5}, round_to: 1}", 1,
         "the smallest network keeps 1.000"),
        ("{stage: train, id: own, model: 'tests.networks:Bessel', epochs: 3, precision: bf16}", 2, "set precision: fp32"),
        ("{stage: train, id: own, model: 'tests.networks:WrongHead', epochs: 3}", 2,
         "stage 'own': model 'tests.networks:WrongHead' returns an output of shape [2, 3]"),
        ("{stage: train, id: own, model: 'tests.networks:LeNet', arguments: {hiden: 3}, epochs: 3}", 2,
         "got an unexpected keyword argument 'hiden'"),
        ("{stage: train, id: own, model: resnet20, weights: nowhere.safetensors, epochs: 0}", 2,
         "stage 'own': weights: there is no file nowhere.safetensors"),
        ("{stage: prune, target: {macs: 0.01}, round_to: 8}", 1,
         "stage 'prune': the target, at most 0.010 of the incoming network, is out of reach"),
        ("{stage: quantize, mode: ptq, skip: [layer9]}", 2, "stage 'quantize': skip names 'layer9', but there is no convolution"),
        ("{stage: train, id: own, model: 'nowhere:Net', epochs: 3}", 2, "model 'nowhere:Net' cannot be imported"),
        ("{stage: train, id: own, model: 'torchvision:resnet18', arguments: {weights: DEFAULT}, epochs: 3}", 2,
         "would download and unpickle"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_named(
    stages: str,
    code: int,
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("compressor.pruning.search.HALVINGS", 3)
    ended, _, err = validate(tmp_path, START + f"  - {stages}\n", capsys)
    assert says in err
    assert ended == code
    assert len(err.splitlines()) == 1
