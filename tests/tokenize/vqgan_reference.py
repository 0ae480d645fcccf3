"""Slow reference of the VQGAN family: the published formulas on the tensors of a checkpoint, under its own names.

spelling     taming (taming-transformers, IBQ), var (fused qkv, quant_conv of kernel 3), llamagen (its own names)
"""

import torch
from torch.nn import functional as F


class Reference:
    def __init__(self, tensors, spelling="taming", decoder_low_first=False):
        self.tensors, self.spelling = tensors, spelling
        llamagen = spelling == "llamagen"
        self.low_first = llamagen or decoder_low_first
        self.block_name = "res" if llamagen else "block"
        self.middle = ("0", "1", "2") if llamagen else ("block_1", "attn_1", "block_2")
        self.down, self.up = ("conv_blocks", "conv_blocks") if llamagen else ("down", "up")

    def has(self, name):
        return any(key.startswith(f"{name}.") for key in self.tensors)

    def conv(self, x, name, stride=1):
        weight = self.tensors[f"{name}.weight"]
        return F.conv2d(x, weight, self.tensors[f"{name}.bias"], stride, weight.shape[-1] // 2 if stride == 1 else 0)

    def norm(self, x, name):
        groups = x.reshape(len(x), 32, -1)
        centred = groups - groups.mean(dim=-1, keepdim=True)
        scaled = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
        weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
        return scaled.reshape(x.shape) * weight[:, None, None] + bias[:, None, None]

    def block(self, x, name):
        h = self.norm(x, f"{name}.norm1")
        h = self.conv(h * h.sigmoid(), f"{name}.conv1")
        h = self.norm(h, f"{name}.norm2")
        h = self.conv(h * h.sigmoid(), f"{name}.conv2")
        return h + (self.conv(x, f"{name}.nin_shortcut") if self.has(f"{name}.nin_shortcut") else x)

    def attention(self, x, name):
        h = self.norm(x, f"{name}.norm")
        if self.spelling == "var":
            q, k, v = self.conv(h, f"{name}.qkv").flatten(2).chunk(3, dim=1)
        else:
            q, k, v = (self.conv(h, f"{name}.{part}").flatten(2) for part in "qkv")
        weights = (q.transpose(1, 2) @ k / x.shape[1] ** 0.5).softmax(dim=-1)  # [B, query, key]
        return x + self.conv((v @ weights.transpose(1, 2)).reshape(x.shape), f"{name}.proj_out")

    def level(self, x, base):
        number = 0
        while self.has(f"{base}.{self.block_name}.{number}"):
            x = self.block(x, f"{base}.{self.block_name}.{number}")
            if self.has(f"{base}.attn.{number}"):
                x = self.attention(x, f"{base}.attn.{number}")
            number += 1
        return x

    def mid(self, x, side):
        first, attention, second = self.middle
        x = self.attention(self.block(x, f"{side}.mid.{first}"), f"{side}.mid.{attention}")
        return self.block(x, f"{side}.mid.{second}")

    def levels(self, base):
        count = 0
        while self.has(f"{base}.{count}"):
            count += 1
        return count

    def encode(self, images):
        """Images [B, 3, h, w] -> latents [B, D, rows, columns]."""
        x = self.conv(images, "encoder.conv_in")
        for number in range(self.levels(f"encoder.{self.down}")):
            base = f"encoder.{self.down}.{number}"
            x = self.level(x, base)
            if self.has(f"{base}.downsample"):
                x = self.conv(F.pad(x, (0, 1, 0, 1)), f"{base}.downsample.conv", stride=2)
        x = self.norm(self.mid(x, "encoder"), "encoder.norm_out")
        return self.conv(self.conv(x * x.sigmoid(), "encoder.conv_out"), "quant_conv")

    def decode(self, latents):
        """Latents [B, D, rows, columns] -> images [B, 3, h, w]."""
        x = self.mid(self.conv(self.conv(latents, "post_quant_conv"), "decoder.conv_in"), "decoder")
        order = range(self.levels(f"decoder.{self.up}"))
        for number in order if self.low_first else reversed(order):
            base = f"decoder.{self.up}.{number}"
            x = self.level(x, base)
            if self.has(f"{base}.upsample"):
                x = self.conv(x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3), f"{base}.upsample.conv")
        x = self.norm(x, "decoder.norm_out")
        return self.conv(x * x.sigmoid(), "decoder.conv_out")


def nearest(latents, table, normalised=False):
    """Codes [B, T] in raster order of latents [B, D, rows, columns], in float64."""
    rows, table = latents.flatten(2).transpose(1, 2).double(), table.double()
    if normalised:
        rows, table = (x / x.square().sum(dim=-1, keepdim=True).sqrt() for x in (rows, table))
    return (rows[:, :, None] - table[None, None]).square().sum(dim=-1).argmin(dim=-1)


def grid(codes, table, rows):
    """Codes [B, T] -> vectors [B, D, rows, columns]."""
    return table[codes].transpose(1, 2).unflatten(2, (rows, -1))


def fill(tensors, seed):
    """Replace the values by random ones that keep the signal's size through the network."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in tensors.items():
        spread = 0.6 / max(1, tensor[0].numel()) ** 0.5 if tensor.dim() > 1 else 0.2
        value = spread * torch.randn(tensor.shape, generator=generator)
        norm = tensor.dim() == 1 and ".norm" in name and name.endswith("weight")
        tensors[name] = 1 + value if norm else value
    return tensors


def janus_state(config, spelling):
    """State of transformers' JanusVQVAE, the same networks, under the names of another library: shapes alone if the
    model is made on the meta device."""
    import transformers

    model = transformers.JanusVQVAE(config)
    levels = len(config.channel_multiplier)
    return model, {theirs(name, spelling, levels): tensor for name, tensor in model.state_dict().items()}


def theirs(name, spelling, levels):
    """The name of a tensor of JanusVQVAE elsewhere. Janus numbers the decoder's resolutions from the lowest."""
    if spelling == "llamagen":
        for number, part in enumerate(("block_1", "attn_1", "block_2")):
            name = name.replace(f".mid.{part}.", f".mid.{number}.")
        return name.replace(".down.", ".conv_blocks.").replace(".up.", ".conv_blocks.").replace(".block.", ".res.")
    if name.startswith("decoder.up."):
        side, up, number, rest = name.split(".", 3)
        return f"{side}.{up}.{levels - 1 - int(number)}.{rest}"
    return name


def fuse(tensors):
    """q, k, v of each attention as one tensor qkv."""
    fused = {name: tensor for name, tensor in tensors.items() if name.split(".")[-2] not in ("q", "k", "v")}
    for name in tensors:
        if name.split(".")[-2] == "q":
            before, leaf = name.rsplit(".q.", 1)
            fused[f"{before}.qkv.{leaf}"] = torch.cat([tensors[f"{before}.{part}.{leaf}"] for part in "qkv"])
    return fused


def var_tensors(dim, book, scales=10, phis=4, **sizes):
    """The tensors of a VAR tokenizer: JanusVQVAE's networks with qkv fused, latent layers of kernel 3, and phi."""
    import transformers

    config = transformers.JanusVQVAEConfig(embed_dim=dim, num_embeddings=book, latent_channels=dim, **sizes)
    _, tensors = janus_state(config, "taming")
    tensors = fuse(tensors)
    shapes = {f"{name}.weight": (dim, dim, 3, 3) for name in ("quant_conv", "post_quant_conv")}
    for number in range(phis):
        name = f"quantize.quant_resi.qresi_ls.{number}"
        shapes |= {f"{name}.weight": (dim, dim, 3, 3), f"{name}.bias": (dim,)}
    like = next(iter(tensors.values()))
    tensors |= {name: like.new_zeros(shape) for name, shape in shapes.items()}
    return tensors | {"quantize.ema_vocab_hit_SV": like.new_zeros(scales, book)}
