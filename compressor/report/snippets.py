"""Code that runs a `model.onnx` without this project, for the report, the model card and the README."""

from compressor.data.preprocess import Preprocess

EXAMPLE = """\
import json, numpy, onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession("model.onnx")
about = session.get_modelmeta().custom_metadata_map
how, labels = json.loads(about["compressor.preprocess"]), json.loads(about["compressor.labels"])
image = ImageOps.exif_transpose(Image.open("photo.png")).convert({1: "L", 3: "RGB"}[how["channels"]])
(h, w), side, kind = how["size"], how.get("resize"), how.get("interpolation", "bilinear").upper()
size = [int(side * length / min(image.size)) for length in image.size] if side else (w, h)
left, top = round((size[0] - w) / 2), round((size[1] - h) / 2)
image = image.resize(size, Image.Resampling[kind]).crop((left, top, left + w, top + h))
pixels = numpy.asarray(image).reshape(h, w, how["channels"]) / 255  # [H, W, C] in 0..1
inputs = ((pixels - how["mean"]) / how["std"]).transpose(2, 0, 1)[None].astype("float32")  # [1, C, H, W]
odds = numpy.exp(session.run(["logits"], {"input": inputs})[0][0])
print(labels[odds.argmax()], odds.max() / odds.sum())
"""


def five_lines(preprocess: Preprocess) -> str:
    """Python that runs a file with this preprocessing on a batch of one."""
    _, channels, height, width = preprocess.input_shape(1)
    what = "RGB" if channels == 3 else "gray"
    return f"""\
import numpy, onnxruntime
session = onnxruntime.InferenceSession("model.onnx")
pixels = numpy.zeros((1, {channels}, {height}, {width}), numpy.float32)  # yours: {what}, 0 to 1
mean, std = (numpy.float32(x).reshape(1, -1, 1, 1) for x in ({list(preprocess.mean)}, {list(preprocess.std)}))
print(session.run(["logits"], {{"input": (pixels - mean) / std}})[0].argmax(1))
"""
