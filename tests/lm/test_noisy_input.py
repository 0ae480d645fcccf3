"""Input embedding `noisy`: wrong codes are read in training, and nowhere else."""

import pytest
import torch
from small_models import CARDINALITIES, make_codes, make_config, make_lm

from tessera.configs.schema import ConfigError, check_config
from tessera.lm.config import LMConfig
from tessera.lm.layers.input_embedding import CodesInputConfig, NoisyInputConfig
from tessera.lm.ops.row_rng import part_of_rows


def noisy(share=0.3, varied=False):
    """A model that reads noise, and one without noise that has its weights."""
    lm, made = make_lm(make_config()), make_lm(make_config(input=NoisyInputConfig(share=share, varied=varied)))
    made.load_state_dict(
        {name.replace("input.table", "input.inner.table"): value for name, value in lm.state_dict().items()}
    )
    return made, lm


def test_without_training_it_is_the_embedding_inside():
    made, lm = noisy()
    given = make_codes(3, 5)
    assert torch.equal(made.eval()(given).logits, lm.eval()(given).logits)


def test_in_training_a_share_of_the_codes_is_random_and_special_ids_stay():
    made, _ = noisy(share=0.3)
    ids = made.arrangement.arrange(make_codes(40, 30), None).ids
    torch.manual_seed(1)
    read = made.train().input.with_noise(ids)
    sizes = torch.tensor(CARDINALITIES)[:, None]
    special = ids >= sizes
    assert special.any() and torch.equal(read[special], ids[special])
    assert (read[~special] < sizes.expand_as(ids)[~special]).all() and (read >= 0).all()
    for size, before, after in zip(CARDINALITIES, ids.unbind(1), read.unbind(1), strict=True):
        real = before < size
        changed = float((before != after)[real].float().mean())
        assert abs(changed - 0.3 * (1 - 1 / size)) < 0.05
    assert torch.equal(made.eval().input(ids), made.input.inner(ids))


def test_each_example_has_its_own_share_of_noise():
    made, _ = noisy(share=0.8, varied=True)
    ids = made.arrangement.arrange(make_codes(200, 40), None).ids
    torch.manual_seed(1)
    read = made.train().input.with_noise(ids)
    sizes = torch.tensor(CARDINALITIES)[:, None]
    real = ids < sizes
    chance = 1 - (1 / sizes * real).sum((1, 2)) / real.sum((1, 2))  # that a random code is another one
    shares = ((read != ids) & real).sum((1, 2)) / real.sum((1, 2)) / chance
    assert abs(float(shares.mean()) - 0.4) < 0.05
    for low in (0, 0.2, 0.4, 0.6):  # uniform
        assert 0.15 < float(((shares >= low) & (shares < low + 0.2)).float().mean()) < 0.35
    assert torch.equal(read[~real], ids[~real])


def test_targets_have_no_noise():
    made, _ = noisy(share=0.9)
    given = make_codes(2, 6)
    torch.manual_seed(1)
    found = made.train()(given)
    assert torch.equal(found.targets, made.arrangement.arrange(given, None).ids)


@pytest.mark.parametrize("varied", [False, True])
def test_noise_does_not_depend_on_the_processes_that_share_a_batch(varied):
    made, _ = noisy(varied=varied)
    ids = made.arrangement.arrange(make_codes(4, 9), None).ids
    torch.manual_seed(1)
    whole = made.train().input.with_noise(ids)
    parts = []
    for first in (0, 2):
        torch.manual_seed(1)
        with part_of_rows(first, 2, 4):
            parts.append(made.input.with_noise(ids[first : first + 2]))
    assert torch.equal(torch.cat(parts), whole)


def test_config():
    assert LMConfig(input=NoisyInputConfig(input=CodesInputConfig())).needs_code_vectors
    assert not LMConfig(input=NoisyInputConfig()).needs_code_vectors
    with pytest.raises(ConfigError, match="input"):
        check_config({"input": {"kind": "noisy", "input": {"kind": "bits"}}}, LMConfig, "here")
    with pytest.raises(ConfigError, match="share"):
        check_config({"input": {"kind": "noisy", "share": 0}}, LMConfig, "here")
