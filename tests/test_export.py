"""A translator leaves the library: plain PyTorch without the training code, and ONNX."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from mr2ct_lib.images.intensity import CT_WINDOW, MR_WINDOW
from mr2ct_lib.images.preparation import Preparation
from mr2ct_lib.methods.networks import initialise
from mr2ct_lib.methods.translator import Architecture, Translator, load_translator

DOCS = Path(__file__).resolve().parents[1] / "docs" / "export.md"


@pytest.fixture(scope="module", params=["transposed", "resize"])
def folder(request, tmp_path_factory):
    preparation = Preparation("coronal", 5.0, (64, 64), 5.0, {"source": MR_WINDOW, "target": CT_WINDOW})
    translator = Translator(Architecture(4, 2, "per_channel", request.param), preparation, {})
    for seed, generator in enumerate((translator.source_to_target, translator.target_to_source)):
        initialise(generator, seed)
    folder = tmp_path_factory.mktemp("run") / "translator"
    translator.save(folder)
    return folder


def code_blocks():
    return [
        block.split("```")[0].removeprefix("python\n")
        for block in DOCS.read_text(encoding="utf-8").split("```python")[1:]
    ]


@pytest.mark.parametrize("direction", ["source_to_target", "target_to_source"])
def test_onnx_gives_the_undeformed_pass_of_any_number_and_size(direction, folder, tmp_path):
    translator = load_translator(folder)
    translator.export_onnx(tmp_path / "generator.onnx", direction)
    session = onnxruntime.InferenceSession(tmp_path / "generator.onnx", providers=["CPUExecutionProvider"])
    for shape in ((1, 64, 64), (3, 16, 52), (2, 100, 40)):
        slices = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
        (out,) = session.run(None, {"slices": slices[:, None]})
        assert out.shape == (len(slices), 1, *shape[1:])
        np.testing.assert_allclose(
            out[:, 0], translator.translate(slices, direction), atol=1e-5
        )  # float32 in another order


def test_a_translator_loads_without_the_training_code(folder):
    script = "import sys; from mr2ct_lib.methods.translator import load_translator; load_translator(sys.argv[1]);"
    unwanted = {"mr2ct_lib.methods.training", "mr2ct_lib.methods.runs", "lightning_fabric", "monai", "SimpleITK"}
    script += f"assert not {unwanted} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script, folder], check=True)


def test_the_documents_own_generator_is_the_librarys(folder):
    """docs/export.md reads the two files with nothing but PyTorch and safetensors; what it writes down must agree."""
    block = next(block for block in code_blocks() if "load_file" in block)
    assert "mr2ct_lib" not in block
    names = {}
    exec(block.replace("runs/a/translator", folder.as_posix()), names)
    x = torch.rand(2, 1, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        torch.testing.assert_close(names["generator"](x), load_translator(folder)(x), atol=1e-5, rtol=0)
