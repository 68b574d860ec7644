"""One small valid file of every kind that flowopt can meet, made at test time."""

import collections
import io
import json
import pickle
import tarfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import onnx
import safetensors.torch
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from flowopt.formats.kinds import Kind

DIGEST = "4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393"


class Net(nn.Module):
    """Enough for a pickle, a trace and an export."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.tail = nn.Sequential(nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.tail(self.layer(x))
        return result

    class Inner(nn.Module):
        """A class inside a class."""


def valid_files(folder: Path) -> dict[Path, Kind]:
    """Files with the kind of each; all have the suffix ``.bin``, since a suffix must not matter."""
    torch.manual_seed(0)
    net = Net().eval()
    found: dict[Path, Kind] = {}

    def path(name: str, kind: Kind) -> Path:
        found[folder / f"{name}.bin"] = kind
        return folder / f"{name}.bin"

    torch.save(net, path("module", Kind.PICKLED_MODULE))
    torch.save(net, path("module_legacy", Kind.PICKLED_MODULE), _use_new_zipfile_serialization=False)
    torch.save(net.state_dict(), path("weights", Kind.STATE_DICT))
    torch.save(net.state_dict(), path("weights_legacy", Kind.STATE_DICT), _use_new_zipfile_serialization=False)
    torch.save({"epoch": 3, "model": net.state_dict()}, path("checkpoint", Kind.STATE_DICT))
    torch.save({"epoch": 3, "model": {"student": net}}, path("checkpoint_module", Kind.PICKLED_MODULE))
    torch.save([torch.ones(2)], path("list_of_tensors", Kind.PICKLE))
    path("bare_module", Kind.PICKLE).write_bytes(pickle.dumps(net))
    path("bare_list", Kind.PICKLE).write_bytes(pickle.dumps([1, 2, "x" * 50]))
    path("bare_list_0", Kind.PICKLE).write_bytes(pickle.dumps({"a": [1.5]}, protocol=0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(net, torch.ones(1, 3)), str(path("script", Kind.TORCHSCRIPT)))
    # torch.export.save wants the suffix that it knows.
    torch.export.save(torch.export.export(net, (torch.ones(1, 3),)), folder / "export.pt2")
    (folder / "export.pt2").rename(path("export", Kind.EXPORT_ARCHIVE))
    safetensors.torch.save_file(dict(net.state_dict()), path("tensors", Kind.SAFETENSORS))
    onnx.save(_onnx_model(), path("onnx", Kind.ONNX))
    _zip_and_flat_files(path)
    _others(path)
    return found


def _onnx_model() -> onnx.ModelProto:
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    return helper.make_model(graph, producer_name="pytorch")


def _zip_and_flat_files(path: collections.abc.Callable[[str, Kind], Path]) -> None:
    zips = {
        ("aoti", Kind.AOTINDUCTOR): ("model/data/aotinductor/model/c1.so", "model/archive_format"),
        ("aoti_beside", Kind.AOTINDUCTOR): ("m/models/model.json", "m/data/aotinductor/model/c1.so"),
        ("export_old", Kind.EXPORT_ARCHIVE): ("serialized_exported_program.json", "version"),
        ("keras", Kind.TENSORFLOW): ("metadata.json", "config.json", "model.weights.h5"),
        ("document", Kind.ARCHIVE): ("[Content_Types].xml", "word/document.xml"),
        ("package", Kind.PICKLE): ("p/.data/extern_modules", "p/model/model.pkl"),
    }
    for (name, kind), members in zips.items():
        with zipfile.ZipFile(path(name, kind), "w") as archive:
            for member in members:
                archive.writestr(member, b"x" * 40)
    np.savez(folder_file := io.BytesIO(), a=np.ones(3))
    path("arrays", Kind.NUMPY).write_bytes(folder_file.getvalue())
    np.save(array := io.BytesIO(), np.ones(3))
    path("array", Kind.NUMPY).write_bytes(array.getvalue())
    with tarfile.open(path("tar", Kind.ARCHIVE), "w") as tar:
        tar.addfile(tarfile.TarInfo("pickle"))


def _others(path: collections.abc.Callable[[str, Kind], Path]) -> None:
    flat = {
        ("ort", Kind.ORT): b"\x18\0\0\0ORTM" + bytes(64),
        ("pte", Kind.EXECUTORCH): b"\x30\0\0\0ET12eh00" + bytes(64),
        ("mobile_script", Kind.TORCHSCRIPT): b"\x30\0\0\0PTMF" + bytes(64),
        ("tflite", Kind.TENSORFLOW): b"\x1c\0\0\0TFL3" + bytes(64),
        ("hdf5", Kind.TENSORFLOW): b"\x89HDF\r\n\x1a\n" + bytes(64),
        ("saved_model", Kind.TENSORFLOW): b"\x08\x01\x12\x06\x0a\x04\x12\x02\x08\x01",
        ("gguf", Kind.GGUF): b"GGUF\x03\0\0\0" + bytes(64),
        ("gzip", Kind.ARCHIVE): b"\x1f\x8b\x08\0" + bytes(64),
        ("elf", Kind.PROGRAM): b"\x7fELF\x02\x01\x01" + bytes(64),
        ("pointer", Kind.LFS_POINTER): lfs_pointer(3_145_728),
        ("page", Kind.HTML): b"\xef\xbb\xbf\n<!DOCTYPE html>\n<html><head><title>Not Found</title></head></html>",
        ("xml", Kind.HTML): b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
        ("json", Kind.TEXT): json.dumps({"error": "Repository not found"}).encode(),
        ("text", Kind.TEXT): b"Entry not found\n",
        ("toml", Kind.TEXT): b"[build-system]\nrequires = []\n",
        ("empty", Kind.EMPTY): b"",
        ("zeros", Kind.DAMAGED): bytes(5000),
        ("noise", Kind.UNKNOWN): b"\xfe\x01\xc3\x28" * 100,
    }
    for (name, kind), content in flat.items():
        path(name, kind).write_bytes(content)


def lfs_pointer(size: int) -> bytes:
    """What a clone without ``git lfs`` leaves in a file's place."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{DIGEST}\nsize {size}\n".encode()
