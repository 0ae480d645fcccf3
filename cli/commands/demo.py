"""`tessera demo`: the whole workflow at small scale: train both models on real data, generate, write a report."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...tokenize.bundled import PACKAGE

if TYPE_CHECKING:
    from torch import Tensor

    from ...generate.model import Model
    from ..report.demo_report import CaptionSheet, ImageGallery, ModelStory, SpeechGallery, TokenizerStory
    from ..report.digit_classifier import DigitClassifier

CONFIGS = PACKAGE / "configs" / "demo"
LABELS = [str(digit) for digit in range(10)]
SENTENCES = (
    "Hello world, and welcome to the demo.",
    "Dr. Smith paid $3.50 for 21 apples on May 3rd.",
    "The quick brown fox jumps over the lazy dog, doesn't it?",
)
"""What the bundled voice says without --say."""
CAPTIONS = (
    *("a red apple", "a blue car", "a yellow flower", "a smiling face", "two cats", "a green house"),
    *("a purple heart", "a dog beside a tree", "a ship", "an orange fish", "a cup of coffee", "a rainbow"),
)
MARK = ".tessera-demo"
"""A marker file for folders created by the demo, whose contents the next demo may replace."""


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("demo")(demo)


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for all output of the demo.")] = Path("out/demo"),
    say: Annotated[
        list[str] | None,
        typer.Option("--say", help="A sentence for the bundled voice to speak; repeatable.", show_default=False),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Train for a few steps only, to check that it runs.")] = False,
) -> None:
    """Train a small model on handwritten digits, generate from it and from the bundled models, and write a report.

    Example: tessera demo --out out/demo

    Example: tessera demo --say "Good morning, everyone."

    Takes some minutes on two CPU cores. Then open OUT/report.html, which is self-contained and needs no network.
    """
    from ...configs.folder_lock import lock_folder

    with lock_folder(out, "tessera demo"):
        make_demo(out, quick, say)


def make_demo(out: Path, quick: bool, say: Sequence[str] | None = None) -> None:
    """Run the demo in a locked folder. `say`: sentences for the bundled voice; None: SENTENCES."""
    prepare(out)
    run = Run(out, quick)
    if quick:
        run.note("this is a quick run: models trained for a few steps generate little of use.")
    tokenizer_story = train_tokenizer(run)
    model, model_story = train_model(run)
    classifier = make_classifier(run)
    fresh = draw_digits(run, model, classifier, f"{run.out}/lm/model", "pictures", "generate with the new model")
    bundled = bundled_digits(run, classifier)
    speech = bundled_voice(run, say or SENTENCES)
    captions = bundled_captions(run)
    path = write(run, tokenizer_story, model_story, fresh, bundled, speech, captions)
    run.say(f"\nThe report is in {path.resolve()}; open it in a browser.")


@dataclass
class Run:
    """State of one demo: output folder, time of each stage, and notes for the reader."""

    out: Path
    quick: bool
    stages: list[tuple[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Announce a stage and record its duration."""
        self.say(f"\n[{len(self.stages) + 1}] {name}")
        started = time.monotonic()
        yield
        self.stages.append((name, time.monotonic() - started))

    def note(self, text: str) -> None:
        """Add a note to stderr and to the report."""
        self.say(f"note: {text}")
        self.notes.append(text)

    def say(self, text: str) -> None:
        """Print a line on stderr."""
        print(text, file=sys.stderr, flush=True)


def prepare(out: Path) -> None:
    """Create the demo's folder, or empty the folder of an earlier demo.

    Raises FileExistsError if the folder holds anything else.
    """
    from ...configs.folder_lock import LOCK_FILE, is_empty

    out.mkdir(parents=True, exist_ok=True)
    if not is_empty(out) and not (out / MARK).exists():
        raise FileExistsError(f"{out}: contains files that are not from the demo; choose another folder with --out")
    (out / MARK).touch()  # a demo stopped here leaves a folder that still counts as the demo's
    for path in out.iterdir():
        if path.name in (LOCK_FILE, MARK):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


# Training


def train_tokenizer(run: Run) -> TokenizerStory:
    """Train the demo's tokenizer and evaluate it on held-out images."""
    from ...configs.schema import read_config
    from ...train.common.metrics import read_metrics
    from ...train.tokenizer.trainer import TokenizerTrainConfig
    from ...train.tokenizer.trainer import train_tokenizer as train
    from ..report.charts import Curve, image_png
    from ..report.demo_report import Journey, TokenizerStory
    from ..report.digit_classifier import DIGITS, real_digits

    sets = [f"data.path={DIGITS / 'train.safetensors'}", *(["train.steps=30"] if run.quick else [])]
    config = read_config(CONFIGS / "tokenizer.yaml", TokenizerTrainConfig, sets)
    with run.stage("train the tokenizer"):
        tokenizer = train(config, run.out / "tokenizer")
    if tokenizer is None:
        raise KeyboardInterrupt
    images, _ = real_digits("test")
    codes = tokenizer.encode(images).codes
    found = tokenizer.decode(codes)
    grid = tokenizer.spec.geometry
    assert grid.kind == "picture"
    lines = read_metrics(run.out / "tokenizer")
    steps = [line["step"] for line in lines]
    return TokenizerStory(
        command=f"tessera tokenizer train configs/demo/tokenizer.yaml --out {run.out}/tokenizer",
        curves=[
            Curve("squared error", steps, [line["squared"] for line in lines]),
            Curve("quantizer", steps, [line["quantizer"] for line in lines]),
        ],
        pairs=[(image_png(images[i]), image_png(found[i])) for i in range(20)],
        counts=[
            codes[:, book].flatten().bincount(minlength=size).tolist()
            for book, size in enumerate(tokenizer.spec.cardinalities)
        ],
        psnr=peak_signal_to_noise(images, found),
        journey=Journey(
            image_png(images[3]),
            codes[3].reshape(-1, grid.rows, grid.columns).tolist(),
            image_png(found[3]),
        ),
    )


def peak_signal_to_noise(wanted: Tensor, found: Tensor) -> float:
    """Mean PSNR in dB over images [n, C, height, width] in [-1, 1] (a range of 2)."""
    error = (wanted - found).square().flatten(1).mean(1).clamp_min(1e-10)
    return float((10 * (4 / error).log10()).mean())


def train_model(run: Run) -> tuple[Model, ModelStory]:
    """Encode the digits into shards and train the demo's language model on them."""
    from ...configs.schema import read_config
    from ...generate.loading import load
    from ...tokenize.data.shard_writer import build_shards
    from ...tokenize.data.shards_config import ShardsConfig
    from ...train.common.metrics import read_metrics
    from ..report.charts import Curve
    from ..report.demo_report import ModelStory
    from ..report.digit_classifier import DIGITS

    with run.stage("encode the digits"):
        for split in ("train", "test"):
            data = f"corpus.path={DIGITS / split}.safetensors"
            sets = [data, f"tokenizer={run.out}/tokenizer", f"out={run.out}/shards/{split}"]
            build_shards(read_config(CONFIGS / "shards.yaml", ShardsConfig, sets))
    with run.stage("train the language model"):
        engine = train_language_model(run)
    lines = read_metrics(run.out / "lm")
    training = [line for line in lines if line["split"] == "train"]
    tests = [line["loss_per_codebook"] for line in lines if line["split"] == "test"]
    steps = [line["step"] for line in training]
    curves = [
        Curve(f"codebook {book}", steps, [line["loss_per_codebook"][book] for line in training])
        for book in range(len(training[0]["loss_per_codebook"]))
    ]
    model = load(run.out / "lm" / "model")
    story = ModelStory(
        command=f"tessera train configs/demo/lm.yaml --out {run.out}/lm",
        engine=engine,
        parameters=sum(parameter.numel() for parameter in model.lm.parameters()),
        curves=curves,
        test_losses=tests[-1] if tests else [],
        tokens_per_second=sum(line["tokens_per_second"] for line in training) / len(training),
    )
    return model, story


def train_language_model(run: Run) -> str:
    """Train with the demo's config; returns the chosen engine and the reason."""
    from ...configs.files import read_json
    from ...configs.schema import read_config
    from ...train.lm.config import TrainConfig
    from ...train.lm.trainer import train_lm

    sets = [
        f"tokenizer={run.out}/tokenizer",
        f"data.shards={run.out}/shards/train",
        f"data.test={run.out}/shards/test",
        *(["train.steps=20", "train.eval_every=20"] if run.quick else []),
    ]
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))
    config = read_config(CONFIGS / "lm.yaml", TrainConfig, sets)
    train_lm(config, run.out / "lm", command="tessera train configs/demo/lm.yaml")
    engine = read_json(run.out / "lm" / "config.json")["engine"]
    name = "DeepSpeed" if engine["kind"] == "deepspeed" else "plain torch"
    return f"{name} ({engine['because']})" if engine["because"] else name


# Generation


def make_classifier(run: Run) -> DigitClassifier | None:
    """The digit classifier, or None and a note if scikit-learn is not installed."""
    from ..report.digit_classifier import DigitClassifier

    try:
        return DigitClassifier()
    except ImportError:
        run.note("scikit-learn is not installed, so the generated digits were not classified.")
        return None


def draw_digits(
    run: Run, model: Model, classifier: DigitClassifier | None, source: str, folder: str, stage: str
) -> ImageGallery:
    """Generate ten images of each digit, save them, and pair them with real ones."""
    import torch

    from ..report.charts import image_png
    from ..report.demo_report import ImageGallery, ImageRow
    from ..report.digit_classifier import real_digits

    each = 2 if run.quick else 10
    real, names = real_digits("test")
    with run.stage(stage):
        started = time.monotonic()
        result = model.generate(label=LABELS, n=each)
        seconds = time.monotonic() - started
    rows = []
    for number, label in enumerate(LABELS):
        drawn = result.media[number * each : (number + 1) * each]
        examples = [image for image, name in zip(real, names, strict=True) if name == label][:5]
        rows.append(ImageRow(label, [image_png(p) for p in examples], [image_png(p) for p in drawn]))
    result.save(run.out / folder)
    asked = [label for label in LABELS for _ in range(each)]
    return ImageGallery(
        command=f"tessera generate {source} --label 7 -n {each} --seed {7 * each} -o out/sevens",
        rows=rows,
        seconds=seconds,
        count=len(result),
        recognised=classifier.share(torch.stack(result.media), asked) if classifier else None,
        recognised_real=classifier.share(real, names) if classifier else None,
    )


def bundled_digits(run: Run, classifier: DigitClassifier | None) -> ImageGallery | None:
    """Digits of the bundled model."""
    model = load_bundled(run, "digits")
    if model is None:
        return None
    return draw_digits(run, model, classifier, "digits", "bundled-pictures", "generate with the bundled digits model")


def bundled_voice(run: Run, sentences: Sequence[str]) -> SpeechGallery | None:
    """Sentences spoken by the bundled voice, one after another by its voices."""
    from ..report.charts import spectrogram_png
    from ..report.demo_report import SpeechGallery, Utterance

    model = load_bundled(run, "voice")
    if model is None:
        return None
    voices = sorted(model.labels, key=lambda name: name != model.defaults.default_label)
    folder, spoken = run.out / "bundled-voice", []
    with run.stage("speak with the bundled voice"):
        for number, text in enumerate(sentences[:1] if run.quick else sentences):
            voice = voices[number % len(voices)]
            started = time.monotonic()
            result = model.generate(text=text, label=voice, seed=number)
            seconds = time.monotonic() - started
            (path,) = result.save(folder / f"{number:04}.wav")
            rate = model.spec.geometry.sample_rate  # type: ignore[union-attr]
            spectrogram = spectrogram_png(result.media[0][0], rate)
            spoken.append(
                Utterance(
                    text,
                    path.read_bytes(),
                    spectrogram,
                    result.seconds,
                    seconds,
                    f"voice {voice}",
                    result.alignment.words,
                )
            )
    return SpeechGallery(f'tessera tts "{sentences[0]}" -o out.wav', spoken)


def bundled_captions(run: Run) -> CaptionSheet | None:
    """Images of the bundled model of captions, in its styles by turns."""
    from ..report.charts import image_png
    from ..report.demo_report import CaptionSheet

    model = load_bundled(run, "emoji")
    if model is None:
        return None
    captions = list(CAPTIONS[:2] if run.quick else CAPTIONS)
    styles = [model.labels[number % len(model.labels)] for number in range(len(captions))]
    with run.stage("draw captions with the bundled model"):
        started = time.monotonic()
        result = model.generate(text=captions, label=styles, seed=0)
        seconds = time.monotonic() - started
    result.save(run.out / "bundled-captions")
    drawn = [image_png(image) for image in result.media]
    command = f'tessera image "{captions[0]}" --style {styles[0]} -o out.png'
    return CaptionSheet(command, list(zip(captions, styles, drawn, strict=True)), seconds)


def load_bundled(run: Run, name: str) -> Model | None:
    """A bundled model, or None and a note if this checkout has none."""
    from ...generate.loading import load

    if not (PACKAGE / "bundled" / name / "config.json").is_file():
        run.note(f"the bundled model '{name}' is not in this checkout, so nothing was generated from it.")
        return None
    return load(name)


# Report


def write(
    run: Run,
    tokenizer: TokenizerStory,
    model: ModelStory,
    fresh: ImageGallery,
    bundled: ImageGallery | None,
    speech: SpeechGallery | None,
    captions: CaptionSheet | None,
) -> Path:
    """Write the report; returns its path."""
    from ... import __version__
    from ..report.demo_report import DemoResults, write_report

    results = DemoResults(
        version=__version__,
        machine=machine(),
        when=time.strftime("%Y-%m-%d %H:%M"),
        stages=run.stages,
        tokenizer=tokenizer,
        model=model,
        fresh=fresh,
        bundled_images=bundled,
        speech=speech,
        captions=captions,
        notes=run.notes,
    )
    return write_report(results, run.out / "report.html")


def machine() -> str:
    """A one-line description of the machine."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{platform.system()} {platform.machine()}, {cores} cores, {device}, Python {platform.python_version()}, "
        f"torch {torch.__version__}"
    )
