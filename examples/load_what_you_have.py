"""One model in the four forms that people have, loaded with what each of them needs.

python examples/load_what_you_have.py

flowopt finds out by its content what a file is, whatever its suffix, runs nothing that it holds unless you say so, and
names what is missing: the example does what the messages say.
"""

import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import flowopt


class Classifier(nn.Module):
    """A convolution with batch norm, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.label = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.label(self.stem(images).mean(dim=(2, 3)))
        return features


def factory() -> tuple[Classifier, tuple[Tensor]]:
    """The model without its weights, for files that hold weights alone, and an example of its input."""
    return Classifier().eval(), (torch.randn(2, 3, 32, 32),)


def main() -> None:
    torch.manual_seed(0)
    model = Classifier()
    model(torch.randn(64, 3, 32, 32))  # in train mode: gives the batch norm statistics of its own
    model.eval()
    images = torch.randn(2, 3, 32, 32)
    wanted = model(images)

    here = f"{Path(__file__).stem}:factory"
    sys.path.insert(0, str(Path(__file__).parent))
    with tempfile.TemporaryDirectory() as folder:
        # Every file has the same suffix: it says nothing.
        archive, tensors, weights, whole = (Path(folder) / f"{name}.pt" for name in ("a", "b", "c", "d"))
        with archive.open("wb") as file:
            torch.export.save(torch.export.export(model, (images,)), file)
        save_file(model.state_dict(), tensors)
        torch.save(model.state_dict(), weights)
        torch.save(model, whole)

        refused(archive, shapes={"images": "1x3x32x32"})  # it holds its graph already
        compare("archive", flowopt.load(archive), images, wanted)
        refused(tensors)
        compare("safetensors", flowopt.load(tensors, factory=here), images, wanted)
        refused(weights)
        compare("state dict", flowopt.load(weights, trust="weights", factory=here), images, wanted)
        refused(whole)
        refused(whole, trust="code")
        program = flowopt.load(whole, trust="code", shapes={"images": "2x3x32x32"}, dynamic={"images": {0: "batch"}})
        compare("pickled module", program, images, wanted)


def refused(path: Path, **options: object) -> None:
    """Load a file and print why that was refused."""
    try:
        flowopt.load(path, **options)
    except flowopt.FlowoptError as error:
        print(f"{error}\n")
        return
    raise AssertionError(f"{path.name} was loaded")


def compare(what: str, program: flowopt.Program, images: Tensor, wanted: Tensor) -> None:
    """The loaded program gives what the model gives."""
    found = program.run(images)
    assert isinstance(found, Tensor)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    print(f"{what}: loaded, and equal to the model bit for bit\n")


if __name__ == "__main__":
    main()
