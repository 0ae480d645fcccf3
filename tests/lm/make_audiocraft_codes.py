"""Make audiocraft_codes.json: names, shapes and greedy codes of audiocraft's own language model, with tiny weights.

    pip install --no-deps --target DIR audiocraft
    PYTHONPATH=DIR python tests/lm/make_audiocraft_codes.py      # audiocraft 1.3.0 made the file beside this script

Packages that audiocraft imports and this model does not need are replaced by empty ones. The weights follow from their
names' order by a formula, the text encoder's states from their number, so the file holds neither.
"""

import importlib.machinery
import importlib.util
import json
import sys
import types
from functools import cache
from pathlib import Path

import torch

HERE = Path(__file__).parent
SIZES = {"dim": 24, "num_heads": 3, "num_layers": 2, "card": 32}
TEXT_WIDTH, LENGTHS, FRAMES = 16, (5, 3, 1, 4), 24
ABSENT = ("torchaudio", "flashy", "num2words", "julius", "librosa", "demucs", "spacy", "dora", "omegaconf", "xformers")


def noise(count, number):
    """`count` numbers in -1 .. 1 that look random, float64; another row of them for each number."""
    place = torch.arange(count, dtype=torch.float64) * 12.9898 + 78.233 * (number + 1)
    return (place.sin() * 43758.5453).remainder(1.0) * 2 - 1


def weights(shapes):
    """Tensors by name of these names and shapes: norms near one, everything else of either sign."""
    made = {}
    for number, name in enumerate(sorted(shapes)):
        values = noise(torch.Size(shapes[name]).numel(), number).reshape(shapes[name])
        made[name] = (1 + 0.2 * values if ".norm" in f".{name}" and name.endswith("weight") else 0.7 * values).float()
    return made


def states():
    """Of each text, [L, TEXT_WIDTH] float32."""
    return [noise(length * TEXT_WIDTH, 1000 + n).reshape(length, -1).float() for n, length in enumerate(LENGTHS)]


class _Empty:
    """Finds packages that are not here, with whatever names are asked of them."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ABSENT and name != "xformers.profiler":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__path__ = []

        def asked(name):
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (), {})

        module.__getattr__ = asked
        return module

    def exec_module(self, module):
        pass


@cache
def import_audiocraft():
    """audiocraft's files of the language model, without the rest of the package."""
    spec = importlib.util.find_spec("audiocraft")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("audiocraft is not installed; see above")
    root = Path(next(iter(spec.submodule_search_locations)))
    sys.meta_path.append(_Empty())
    for part in ("", "models", "modules", "utils", "data"):
        name = f"audiocraft.{part}".rstrip(".")
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(root / part)]
    import xformers.ops

    xformers.ops.unbind = torch.unbind
    from audiocraft.models import lm
    from audiocraft.modules import codebooks_patterns, conditioners

    return lm, codebooks_patterns, conditioners


def make(name):
    """Names and shapes, codes by guidance and text, and codes of all texts in one batch, with guidance 3: of
    audiocraft's model with the settings of a published one."""
    lm, patterns, conditioners = import_audiocraft()
    config = json.loads((HERE / "published" / "audiocraft-lm.json").read_text())[name]
    given = states()

    class States(conditioners.TextConditioner):
        """The states of a text, given by its number, in place of T5."""

        def tokenize(self, x):
            rows = [torch.zeros(0, TEXT_WIDTH) if text is None else given[int(text)] for text in x]
            return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.tensor([len(row) for row in rows])

        def forward(self, inputs):
            vectors, lengths = inputs
            mask = torch.arange(vectors.shape[1]) < lengths[:, None]
            return self.output_proj(vectors) * mask[..., None], mask

    settings = config["transformer_lm"] | SIZES | {"custom": True, "memory_efficient": False, "cross_attention": True}
    made = lm.LMModel(
        patterns.DelayedPatternProvider(settings["n_q"], **config["codebooks_pattern"]["delay"]),
        conditioners.ConditioningProvider({"description": States(TEXT_WIDTH, SIZES["dim"])}),
        conditioners.ConditionFuser({"cross": ["description"], "prepend": []}),
        **settings,
    ).eval()
    shapes = {name: list(tensor.shape) for name, tensor in made.state_dict().items()}
    made.load_state_dict(weights(shapes))
    codes = {}
    for guidance in (1.0, 3.0):
        codes[guidance] = []
        for number in range(len(LENGTHS)):
            asked = [conditioners.ConditioningAttributes(text={"description": str(number)})]
            row = made.generate(conditions=asked, max_gen_len=FRAMES, use_sampling=False, cfg_coef=guidance)
            codes[guidance].append(row[0].tolist())
    asked = [conditioners.ConditioningAttributes(text={"description": str(n)}) for n in range(len(LENGTHS))]
    together = made.generate(conditions=asked, max_gen_len=FRAMES, use_sampling=False, cfg_coef=3.0).tolist()
    return {"shapes": shapes, "codes": codes, "together": together}


if __name__ == "__main__":
    made = {name: make(name) for name in ("musicgen-small", "musicgen-stereo-small")}
    (HERE / "audiocraft_codes.json").write_text(json.dumps(made) + "\n")
