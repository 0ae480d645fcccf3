"""Names of EnCodec's tensors in transformers and in its authors' packages: the slow, obvious way."""

import re


def native_names(state, model):
    """State of an EncodecModel of transformers -> the same tensors by the names of audiocraft and `encodec`.

    Args:
        state: tensors (or shapes) by name. model: the EncodecModel, which tells the transposed convolutions.
    """
    transposed = {number for number, layer in enumerate(model.decoder.layers) if "Transpose" in type(layer).__name__}
    native = {}
    for name, tensor in state.items():
        name = name.replace("parametrizations.weight.original0", "weight_g")
        name = name.replace("parametrizations.weight.original1", "weight_v")
        name = name.replace("quantizer.layers", "quantizer.vq.layers").replace(".codebook.", "._codebook.")
        name = re.sub(r"^(encoder|decoder)\.layers\.", r"\1.model.", name)
        conv = "convtr" if name.startswith("decoder") and int(name.split(".")[2]) in transposed else "conv"
        name = re.sub(r"\.conv\.(weight|weight_g|weight_v|bias)$", rf".{conv}.{conv}.\1", name)
        native[re.sub(r"\.norm\.(weight|bias)$", rf".{conv}.norm.\1", name)] = tensor
    return native
