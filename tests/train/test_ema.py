"""The moving average of weights."""

import torch
from torch import nn

from tessera.train.engines.ema import WeightAverage


def test_follows_the_recurrence_and_survives_saving(tmp_path):
    torch.manual_seed(0)
    model, average = nn.Linear(3, 2), WeightAverage(nn.Linear(3, 2), 0.9)
    slow = {name: parameter.detach().clone() for name, parameter in average.model.named_parameters()}
    for update in range(30):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        average.update(dict(model.named_parameters()))
        decay = min(0.9, (1 + update) / (10 + update))
        for name, parameter in model.named_parameters():
            slow[name] = decay * slow[name] + (1 - decay) * parameter.detach()
        if update == 20:
            average.save(tmp_path)
            again = WeightAverage(nn.Linear(3, 2), 0.9)
            again.load(tmp_path)
            average = again
    for name, parameter in average.model.named_parameters():
        torch.testing.assert_close(parameter, slow[name])
        assert not parameter.requires_grad


def test_decay_zero_takes_the_weights_themselves():
    model, average = nn.Linear(3, 2), WeightAverage(nn.Linear(3, 2), 0.0)
    average.update(dict(model.named_parameters()))
    assert not torch.equal(average.model.weight, model.weight)
    average.refresh(dict(model.named_parameters()))
    assert torch.equal(average.model.weight, model.weight)
