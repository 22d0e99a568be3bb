"""Classify images: `python classify.py IMAGE...`; needs onnxruntime, numpy and pillow only."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(
    Path(__file__).with_name("classifier.onnx"), providers=["CPUExecutionProvider"]
)
facts = {key: json.loads(v) for key, v in session.get_modelmeta().custom_metadata_map.items()}


def classify(path):
    """Return {class: probability}, the most probable first."""
    rgba = ImageOps.exif_transpose(Image.open(path)).convert("RGBA")
    image = Image.new("RGB", rgba.size, "white")
    image.paste(rgba, mask=rgba.getchannel("A"))
    size, squash = facts["image_size"], facts["resize_mode"] == "squash"
    width, height = (size if squash else size * side // min(image.size) for side in image.size)
    image = image.resize((width, height), Image.Resampling[facts["interpolation"].upper()])
    left, top = round((width - size) / 2), round((height - size) / 2)
    pixels = np.asarray(image.crop((left, top, left + size, top + size))) / 255
    pixels = ((pixels - facts["mean"]) / facts["std"]).transpose(2, 0, 1)[None]
    probabilities = session.run(None, {"pixels": pixels.astype(np.float32)})[0][0]
    order = probabilities.argsort()[::-1]
    return {facts["classes"][index]: float(probabilities[index]) for index in order}


if __name__ == "__main__":
    for path in sys.argv[1:]:
        name, probability = next(iter(classify(path).items()))
        print(path, name, f"{probability:.1%}", sep="\t")
