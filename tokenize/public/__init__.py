"""Public checkpoints: the tensor map that renames and reshapes their tensors."""
