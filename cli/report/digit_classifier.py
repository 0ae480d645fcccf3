"""Evaluation of generated digits: the real digits of the sample data, and a classifier trained on them.

The only file that imports scikit-learn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...tokenize.bundled import PACKAGE

if TYPE_CHECKING:
    from torch import Tensor

DIGITS = PACKAGE / "samples" / "digits"


def real_digits(split: str) -> tuple[Tensor, list[str]]:
    """All digits of a split ("train" or "test") of the sample data.

    Returns:
        images [n, 1, 8, 8] in [-1, 1], and their labels, "0" to "9". No writer is in both splits.
    """
    import torch

    from ...tokenize.data.corpus import ArraysCorpus, open_corpus
    from ...tokenize.spec import ImageGeometry

    corpus = open_corpus(ArraysCorpus(path=str(DIGITS / f"{split}.safetensors")))
    geometry = ImageGeometry(height=8, width=8, channels=1, rows=1, columns=1)
    images = torch.stack([corpus.media(number, geometry) for number in range(len(corpus))])
    return images, [str(corpus.item(number).label) for number in range(len(corpus))]


class DigitClassifier:
    """A support vector machine (RBF kernel, scikit-learn's defaults) trained on the real training digits."""

    def __init__(self):
        """Raises ImportError when scikit-learn is not installed."""
        from sklearn.svm import SVC

        images, labels = real_digits("train")
        self.classifier: Any = SVC().fit(_features(images), labels)

    def share(self, images: Tensor, labels: list[str]) -> float:
        """Share of images [n, 1, 8, 8] recognized as their labels."""
        return float(self.classifier.score(_features(images), labels))


def _features(images: Tensor) -> Any:
    # Gray values from 0 to 16, as in scikit-learn's copy of these digits.
    return ((images.flatten(1) + 1) * 8).numpy()
