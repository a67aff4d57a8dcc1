"""The models of Hugging Face's transformers, with the weights of our objectives."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mapet.method.encoder import Block
from mapet.method.layer_scale import LayerScale
from mapet.method.mae import MAE
from mapet.method.predict import TokenPrediction
from mapet.utils.errors import MapetError

ATTENTION = ("q_proj", "k_proj", "v_proj")


class TransformersBEiT(nn.Module):
    """``BeitForMaskedImageModeling`` with learned positions, as ours, and without relative ones.

    Raises:
        MapetError: transformers of version 5 or later is not installed.
    """

    def __init__(self, ours: TokenPrediction) -> None:
        super().__init__()
        encoder, transformers = ours.encoder, installed()
        config = transformers.BeitConfig(
            **_sizes(ours.encoder),
            vocab_size=ours.vocabulary,
            use_mask_token=True,
            use_absolute_position_embeddings=True,
            use_relative_position_bias=False,
            use_shared_relative_position_bias=False,
            layer_scale_init_value=float(encoder.init_values or 0),
            drop_path_rate=0.0,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            layer_norm_eps=1e-6,
        )
        self.model = transformers.BeitForMaskedImageModeling(config)
        embeddings = self.model.beit.embeddings
        _copy(embeddings.cls_token, encoder.cls_token)
        _copy(embeddings.mask_token, ours.mask_token)
        _copy(embeddings.position_embeddings, encoder.pos_embed)
        embeddings.patch_embeddings.projection.load_state_dict(encoder.patch_embed.proj.state_dict())
        for theirs, block in zip(self.model.beit.layers, encoder.blocks, strict=True):
            _copy_block(theirs, block)
            for number in (1, 2):
                if isinstance(scale := getattr(block, f"ls{number}"), LayerScale):
                    _copy(getattr(theirs, f"lambda_{number}"), scale.gamma)
        self.model.layernorm.load_state_dict(encoder.norm.state_dict())
        self.model.lm_head.load_state_dict(ours.head.state_dict())

    def forward(self, images: Tensor, masked: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Images (B, 3, H, W), masked patches (B, L) bool, and their tokens (B, M), in the order of the patches."""
        return {"loss": self.model(images, bool_masked_pos=masked, labels=labels.flatten()).loss}


def beit_batch(batch: Mapping[str, Tensor], context: int) -> dict[str, Tensor]:
    """Our batch as ``TransformersBEiT`` takes it."""
    tokens = batch["tokens"]
    masked = torch.zeros_like(tokens, dtype=torch.bool).scatter_(1, batch["order"][:, context:] - 1, True)
    return {"images": batch["images"], "masked": masked, "labels": tokens[masked].view(len(tokens), -1)}


class TransformersMAE(nn.Module):
    """``ViTMAEForPreTraining``, which has no layer scale.

    Raises:
        MapetError: transformers of version 5 or later is not installed, or an encoder with layer scale.
    """

    def __init__(self, ours: MAE) -> None:
        super().__init__()
        encoder, transformers = ours.encoder, installed()
        if encoder.init_values:
            raise MapetError("ViTMAEForPreTraining has no layer scale: use --init-values None.")
        first = ours.decoder_blocks[0]
        assert isinstance(first, Block)
        config = transformers.ViTMAEConfig(
            **_sizes(encoder),
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            layer_norm_eps=1e-6,
            decoder_hidden_size=ours.decoder_embed.out_features,
            decoder_num_hidden_layers=len(ours.decoder_blocks),
            decoder_num_attention_heads=first.attn.heads,
            decoder_intermediate_size=first.mlp.fc1.out_features,
            mask_ratio=1 - (ours.context - 1) / encoder.length,
            norm_pix_loss=ours.normalize_pixels,
        )
        self.model = transformers.ViTMAEForPreTraining(config)
        inner, outer = self.model.vit, self.model.decoder
        _copy(inner.embeddings.cls_token, encoder.cls_token)
        _copy(inner.embeddings.position_embeddings, encoder.pos_embed)
        inner.embeddings.patch_embeddings.projection.load_state_dict(encoder.patch_embed.proj.state_dict())
        inner.layernorm.load_state_dict(encoder.norm.state_dict())
        _copy(outer.mask_token, ours.mask_token)
        _copy(outer.decoder_pos_embed, ours.decoder_pos_embed)
        for name in ("decoder_embed", "decoder_norm", "decoder_pred"):
            getattr(outer, name).load_state_dict(getattr(ours, name).state_dict())
        pairs = [(inner.layers, encoder.blocks), (outer.decoder_layers, ours.decoder_blocks)]
        for layers, blocks in pairs:
            for theirs, block in zip(layers, blocks, strict=True):
                _copy_block(theirs, block)

    def forward(self, images: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Images (B, 3, H, W), and noise (B, L) that is smallest for the visible patches."""
        return {"loss": self.model(images, noise=noise).loss}


def mae_batch(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our batch as ``TransformersMAE`` takes it: noise that sorts the patches into our order."""
    position = (batch["order"][:, 1:] - 1).argsort(dim=1)
    return {"images": batch["images"], "noise": position.float() / position.shape[1]}


def installed() -> Any:
    """The package transformers.

    Raises:
        MapetError: it is missing, or older than version 5.
    """
    try:
        import transformers
    except ImportError as error:
        raise MapetError("--baseline transformers needs the package transformers: pip install transformers.") from error
    if int(transformers.__version__.split(".")[0]) < 5:
        raise MapetError(f"--baseline transformers needs version 5, and {transformers.__version__} is installed.")
    return transformers


def _sizes(encoder: Any) -> dict[str, Any]:
    return {
        "hidden_size": encoder.embed_dim,
        "num_hidden_layers": len(encoder.blocks),
        "num_attention_heads": encoder.num_heads,
        "intermediate_size": int(encoder.embed_dim * encoder.mlp_ratio),
        "image_size": encoder.img_size[0],
        "patch_size": encoder.patch_size[0],
        "num_channels": encoder.in_chans,
    }


@torch.no_grad()
def _copy(to: Tensor, tensor: Tensor) -> None:
    to.copy_(tensor)


def _copy_block(theirs: Any, block: nn.Module) -> None:
    """Norms, projections and MLP. BEiT has no bias of the keys, which does not change attention."""
    assert isinstance(block, Block)
    for name, layer in (("layernorm_before", block.norm1), ("layernorm_after", block.norm2), ("mlp", block.mlp)):
        getattr(theirs, name).load_state_dict(layer.state_dict())
    theirs.attention.o_proj.load_state_dict(block.attn.proj.state_dict())
    for name, weight, bias in zip(ATTENTION, block.attn.qkv.weight.chunk(3), block.attn.qkv.bias.chunk(3), strict=True):
        layer = getattr(theirs.attention, name)
        _copy(layer.weight, weight)
        if layer.bias is not None:
            _copy(layer.bias, bias)
