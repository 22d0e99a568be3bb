"""ONNX graphs: a module becomes one, and its weights are stored in fewer bits and only once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnxscript  # noqa: F401 - torch.onnx needs it, and reports it missing only when it exports
import torch
from torch import Tensor, nn

from clip_randlora.utils.quiet import quiet

_FEWEST_STORED = 2**12  # elements; smaller tensors take little space and cause most of the error
_LARGEST_INT8 = 127


def to_graph(
    module: nn.Module, example: Tensor, takes: str, gives: Sequence[str]
) -> onnx.ModelProto:
    """Convert a module of one input and some outputs, for batches of any size.

    Args:
        module: called with a batch.
        example: a batch (N, ...).
        takes, gives: names of the input and of the outputs.
    """
    example = torch.cat([example, example])  # the exporter would make a batch of 1 a constant
    batch = torch.export.Dim("batch")
    with torch.no_grad(), quiet("torch", "torch.onnx"):
        program = torch.onnx.export(
            module.eval(),
            (example,),
            dynamo=True,
            verbose=False,
            input_names=[takes],
            output_names=list(gives),
            dynamic_shapes=({0: batch},),
        )
    assert program is not None  # of the exporter that is used here
    model = program.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]  # where it came from, with paths of this machine
    del model.graph.value_info[:]
    return model


def store_in(precision: str, model: onnx.ModelProto) -> onnx.ModelProto:
    """Store the large weights in ``fp16`` or ``int8``; the arithmetic stays in single precision.

    ONNX Runtime converts them once, when it loads the model. int8 is symmetric, with one scale for
    each row of a weight, which is one output of a layer. ``fp32`` changes nothing.
    """
    converting: list[onnx.NodeProto] = []
    for weight in list(model.graph.initializer) if precision != "fp32" else ():
        values = onnx.numpy_helper.to_array(weight)
        if values.dtype == np.float32 and values.size >= _FEWEST_STORED:
            store = _store_half if precision == "fp16" else _store_int8
            converting += store(model.graph, weight, values)
    nodes = [*converting, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _store_half(
    graph: onnx.GraphProto, weight: onnx.TensorProto, values: np.ndarray
) -> list[onnx.NodeProto]:
    name, stored = weight.name, f"{weight.name}_half"
    weight.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), stored))
    return [onnx.helper.make_node("Cast", [stored], [name], to=onnx.TensorProto.FLOAT)]


def _store_int8(
    graph: onnx.GraphProto, weight: onnx.TensorProto, values: np.ndarray
) -> list[onnx.NodeProto]:
    # not DequantizeLinear, which ONNX Runtime would leave for every run
    name, stored, as_float = weight.name, f"{weight.name}_int8", f"{weight.name}_whole"
    largest = np.abs(values.reshape(len(values), -1)).max(axis=1)
    scales = np.where(largest > 0, largest, 1).astype(np.float32) / _LARGEST_INT8
    scales = scales.reshape(-1, *[1] * (values.ndim - 1))
    whole = np.rint(values / scales).astype(np.int8)
    weight.CopyFrom(onnx.numpy_helper.from_array(whole, stored))
    graph.initializer.append(onnx.numpy_helper.from_array(scales, f"{name}_scales"))
    return [
        onnx.helper.make_node("Cast", [stored], [as_float], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("Mul", [as_float, f"{name}_scales"], [name]),
    ]


def share_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Store equal weights once, in place: two networks may have most of theirs in common."""
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    names: dict[str, str] = {}
    kept = []
    for weight in model.graph.initializer:
        values = onnx.numpy_helper.to_array(weight)
        key = (weight.data_type, tuple(weight.dims), values.tobytes())
        names[weight.name] = first.setdefault(key, weight.name)
        if names[weight.name] == weight.name:
            kept.append(weight)
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = names.get(name, name)
    kept_whole = [onnx.TensorProto.FromString(weight.SerializeToString()) for weight in kept]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept_whole)
    return model
