"""Where the weights of a run start: random, or from another model, with low-rank changes, frozen."""
