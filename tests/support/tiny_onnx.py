"""Small ONNX models with weights of any shape and type, built without torch."""

import numpy as np


def sparse(shape, sparsity=0.5, dtype=np.float32, seed=0):
    """Random weights that float16 holds exactly, about so many of them zero."""
    random = np.random.default_rng(seed)
    weight = (np.rint(random.standard_normal(shape) * 64) / 64).astype(np.float32)
    weight[weight == 0] = 0.25
    weight[random.random(shape) < sparsity] = 0
    return weight.astype(dtype)


def two_of_four(shape, axis=-1, dtype=np.float32, seed=0):
    """Random weights of which the two largest of every four along an axis are kept."""
    weight = np.moveaxis(sparse(shape, 0.0, seed=seed), axis, -1).copy()
    groups = weight.reshape(-1, 4)
    np.put_along_axis(groups, np.argsort(np.abs(groups), axis=1)[:, :2], 0, axis=1)
    return np.ascontiguousarray(np.moveaxis(weight, -1, axis)).astype(dtype)


def chain(weights):
    """A model in onnx_ir that multiplies by each two-dimensional weight in turn, adds each of one dimension.

    A weight of a type that is not float32 is cast to it first.
    """
    import onnx_ir as ir

    first = next(iter(weights.values()))
    x = ir.Value(name="x", shape=ir.Shape(["rows", first.shape[0]]), type=ir.TensorType(ir.DataType.FLOAT))
    initializers, nodes, value = [], [], x
    for name, weight in weights.items():
        tensor = ir.tensor(weight, name=name)
        operand = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        initializers.append(operand)
        if weight.dtype != np.float32:
            nodes.append(ir.Node("", "Cast", [operand], [ir.AttrInt64("to", int(ir.DataType.FLOAT))]))
            nodes[-1].outputs[0].name = f"{name}_float"
            operand = nodes[-1].outputs[0]
        nodes.append(ir.Node("", "MatMul" if weight.ndim == 2 else "Add", [value, operand]))
        value = nodes[-1].outputs[0]
        value.name = f"after_{name}"
    value.name, value.type = "y", ir.TensorType(ir.DataType.FLOAT)
    value.shape = ir.Shape(["rows", list(weights.values())[-1].shape[-1]])
    graph = ir.Graph([x], [value], nodes=nodes, initializers=initializers, opset_imports={"": 20}, name="chain")
    return ir.Model(graph, ir_version=10)


def session(model, **options):
    """Run a model of onnx_ir by onnxruntime alone, which is told these options."""
    import onnx_ir as ir
    import onnxruntime

    asked = onnxruntime.SessionOptions()
    for name, value in {"log_severity_level": 3, **options}.items():  # errors, which are raised too
        setattr(asked, name, value)
    data = ir.to_proto(model).SerializeToString()
    return onnxruntime.InferenceSession(data, asked, providers=["CPUExecutionProvider"])


def operators_once_loaded(model, folder):
    """What a model's operators are when onnxruntime has optimised it."""
    import onnx

    session(model, optimized_model_filepath=str(folder / "loaded.onnx"))
    return [node.op_type for node in onnx.load(folder / "loaded.onnx").graph.node]


def outputs(session, rows=3, seed=7):
    (described,) = session.get_inputs()
    x = np.random.default_rng(seed).standard_normal((rows, described.shape[1])).astype(np.float32)
    return session.run(None, {described.name: x})[0]


def damages(path, count, seed=0):
    """Change one byte of a file at a time, each from what it was, and yield with each change."""
    whole, random = path.read_bytes(), np.random.default_rng(seed)
    for at, value in zip(random.integers(len(whole), size=count), random.integers(256, size=count), strict=True):
        path.write_bytes(whole[:at] + bytes([value]) + whole[at + 1 :])
        yield


def by_hand(values, masks, inputs, outputs):
    """Read a packed matrix weight by weight, in the order that the format's description has."""
    together = masks.shape[2] // 2
    dense, at = np.zeros((inputs, outputs), values.dtype), 0
    for block, group, output, one in np.ndindex(len(masks), masks.shape[1], 16, together):
        bit = output * together + one
        if masks[block, group, bit // 8] >> bit % 8 & 1:
            dense[group * together + one, block * 16 + output] = values[at]
            at += 1
    assert not values[at:].astype(np.float32).any()
    assert values[at:].nbytes == 64
    return dense


def changed(proto, name, change):
    """Give an initializer other bytes."""
    (tensor,) = (one for one in proto.graph.initializer if one.name == name)
    raw = bytearray(tensor.raw_data)
    change(raw)
    tensor.raw_data = bytes(raw)
    return tensor


def set_byte(at, value):
    def change(raw):
        raw[at] = value

    return change


def at_odd_offsets(proto, folder, smallest=0):
    """Write a model whose external data begin at odd bytes, as those of another tool may.

    :param smallest: Bytes of the smallest initializer that lies apart.
    """
    data = bytearray(b"\x00")
    for tensor in proto.graph.initializer:
        at, raw = len(data), tensor.raw_data
        if len(raw) < smallest:
            continue
        data += raw + b"\x00" * (1 - len(raw) % 2)
        tensor.ClearField("raw_data")
        tensor.data_location = tensor.EXTERNAL
        for key, value in (("location", "odd.data"), ("offset", at), ("length", len(raw))):
            tensor.external_data.add(key=key, value=str(value))
    (folder / "odd.data").write_bytes(data)
    (folder / "odd.onnx").write_bytes(proto.SerializeToString())
    return folder / "odd.onnx"
