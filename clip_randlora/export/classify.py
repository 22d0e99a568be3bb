import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def open_image(path):
    """Open an image upright, grey of up to 16 bits scaled to 8, transparency on white."""
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(float)
        white = next(2**bits - 1 for bits in (8, 10, 12, 14, 16) if grey.max() < 2**bits)
        grey[grey == image.info.get("transparency")] = white
        image = Image.fromarray((grey / white * 255).round().astype(np.uint8))
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def square(image, size, keeps_shape, resample):
    """Resize and cut an image as open_clip does."""
    sides = [size * side // min(image.size) if keeps_shape else size for side in image.size]
    left, top = (round((side - size) / 2) for side in sides)
    return image.resize(sides, resample).crop((left, top, left + size, top + size))


session = onnxruntime.InferenceSession(Path(__file__).with_name("classifier.onnx"))
facts = {key: json.loads(v) for key, v in session.get_modelmeta().custom_metadata_map.items()}
size, keeps_shape = facts["image_size"], facts["resize_mode"] == "shortest"
least = (facts["unknown"] or sys.exit("no threshold"))["margin"] if "--reject" in sys.argv else 0
for path in (name for name in sys.argv[1:] if name != "--reject"):  # python classify.py IMAGE...
    image = square(open_image(path), size, keeps_shape, facts["resample"])
    pixels = ((np.asarray(image) / 255 - facts["mean"]) / facts["std"]).transpose(2, 0, 1)[None]
    (probabilities,) = session.run(None, {"pixels": pixels.astype(np.float32)})[0]
    logs, answer = np.log(probabilities.clip(1e-37)), facts["classes"][probabilities.argmax()]
    if logs.max() - logs.mean() < least:
        answer = "unknown"
    print(path, answer, f"{probabilities.max():.1%}", sep="\t")
