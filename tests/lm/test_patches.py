"""Next-patch training against a slow reference, and the curriculum."""

import pytest
import torch
from small_models import CARDINALITIES, CONDITIONS, HEADS, make_codes, make_conditions, make_config

from tessera.configs.schema import ConfigError
from tessera.lm.models.causal import TokenLM
from tessera.lm.models.next_patch import Patches, PatchPhase, check_patches, side_at
from tessera.lm.ops.rotary import GridRopeConfig, TimeRopeConfig
from tessera.lm.patterns.pattern import DelayConfig, ParallelConfig
from tessera.tokenize.spec import AudioGeometry, ImageGeometry, TokenSpec

PICTURE = ImageGeometry(height=16, width=16, rows=4, columns=8)


def make(rope, condition="label and text", **settings) -> TokenLM:
    chosen = {"arrangement": ParallelConfig(), "rope": rope, "conditions": CONDITIONS[condition]}
    config = make_config(**chosen, variable_length=False, **settings)
    spec = TokenSpec(name="tiny", cardinalities=CARDINALITIES, geometry=PICTURE, fingerprint="0" * 64)
    torch.manual_seed(0)
    return TokenLM(config, spec).double().eval()


def test_squares_are_in_raster_order():
    patches = Patches(PICTURE, 2)
    assert patches.squares.view(4, 8).tolist() == [[0, 0, 1, 1, 2, 2, 3, 3]] * 2 + [[4, 4, 5, 5, 6, 6, 7, 7]] * 2
    x = torch.randn(2, 32, 3)
    means = patches.mean(x)
    for square in range(8):
        torch.testing.assert_close(means[:, square], x[:, patches.squares == square].mean(dim=1))
    assert torch.equal(patches.spread(means), means[:, patches.squares])


@pytest.mark.parametrize("head", HEADS[:2], ids=["parallel", "depth"])
@pytest.mark.parametrize("rope", [TimeRopeConfig(), GridRopeConfig()], ids=["time", "grid"])
def test_the_loss_is_that_of_a_model_that_reads_means(rope, head):
    """Slow reference: a picture of one frame a square, whose input vectors are the means, with as many targets a
    position as a square has frames."""
    lm = make(rope, head=head)
    codes, conditions = make_codes(3, 32), make_conditions(lm.config, 3)
    small = TokenLM(
        lm.config,
        lm.spec.model_copy(update={"geometry": PICTURE.model_copy(update={"rows": 2, "columns": 4})}),
    ).double().eval()  # fmt: skip
    small.load_state_dict(lm.state_dict())
    patches, plain = Patches(PICTURE, 2), small.input.forward
    means = patches.mean(lm.input(codes))
    small.input.forward = lambda ids: torch.cat([plain(ids[:, :, :1]), means[:, : ids.shape[2] - 1]], dim=1)
    total = torch.zeros(3, dtype=torch.float64)
    for frame in range(4):  # of each square
        chosen = patches.frames.view(8, 4)[:, frame]
        total += small.loss(codes[:, :, chosen], None, conditions).per_codebook.detach() / 4
    found = lm.loss(codes, None, conditions, side=2)
    torch.testing.assert_close(found.per_codebook.double(), total, atol=1e-6, rtol=1e-6)
    assert found.count.tolist() == [96, 96, 96]


def test_a_later_square_changes_nothing_before_it():
    lm = make(GridRopeConfig(), "nothing")
    codes = make_codes(1, 32)
    patches = Patches(PICTURE, 2)
    hidden = lm.hidden_states(codes, None, None, 2)[1]
    for square in range(8):
        other = codes.clone()
        other[:, :, patches.squares == square] = (other[:, :, patches.squares == square] + 1) % 5
        changed = (lm.hidden_states(other, None, None, 2)[1] - hidden).abs().amax(dim=(0, 2)) > 0
        assert changed.tolist() == (patches.squares > square).tolist()


def test_the_curriculum():
    phases = (PatchPhase(side=4, share=0.25), PatchPhase(side=2, share=0.25))
    assert [side_at(phases, step, 8) for step in range(8)] == [4, 4, 2, 2, 1, 1, 1, 1]
    assert side_at((), 0, 8) == 1


def test_what_cannot_be_patched_is_refused():
    lm = make(GridRopeConfig())
    check_patches(lm.arrangement, PICTURE, (PatchPhase(side=4, share=0.5),))
    with pytest.raises(ConfigError, match="patches of 3 x 3 frames do not divide a grid of 4 x 8"):
        check_patches(lm.arrangement, PICTURE, (PatchPhase(side=3, share=0.5),))
    with pytest.raises(ConfigError, match="the shares sum to 1 or more"):
        check_patches(lm.arrangement, PICTURE, (PatchPhase(side=2, share=0.5),) * 2)
    with pytest.raises(ConfigError, match="train.patches is for images"):
        check_patches(
            lm.arrangement, AudioGeometry(sample_rate=16000, samples_per_frame=4), (PatchPhase(side=2, share=0.5),)
        )
    delayed = TokenLM(lm.config.model_copy(update={"arrangement": DelayConfig()}), lm.spec).arrangement
    with pytest.raises(ConfigError, match=r"train.patches needs lm.arrangement: \{kind: parallel\}"):
        check_patches(delayed, PICTURE, (PatchPhase(side=2, share=0.5),))
    assert isinstance(lm.arrangement.config, ParallelConfig)
