"""timm's and torchvision's models of the zoo: the smallest of each kind, with fewer blocks where it takes them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import timm
import torchvision
from torch import nn

from benchmarks.zoo.entry import Entry


def _timm(name: str, side: int = 224, *, eager: bool = False, **kwargs: Any) -> Entry:
    def build() -> nn.Module:
        model = timm.create_model(name, pretrained=False, **kwargs)
        module: Any
        for module in model.modules():
            if eager and hasattr(module, "fused_attn"):
                module.fused_attn = False
        return model

    return Entry(build, (side, side))


def _torchvision(name: str, side: int = 224) -> Entry:
    return Entry(lambda: torchvision.models.get_model(name, weights=None), (side, side))


_ADDITIVE = "they weight one sum of all tokens, which multiplies each of them"
_OUTLOOK = "outlook attention: the maps are a linear of the features, without a product of q and k"
_FACTORED = "linear attention: the softmax of k over the tokens; q is multiplied by (kᵀ v)"


def _without(entry: Entry, count: int, reason: str) -> Entry:
    """Return an entry with softmaxes that are no attention."""
    return replace(entry, other_softmaxes=count, others=reason)


_PLAIN = {
    "timm vit_tiny": _timm("vit_tiny_patch16_224"),
    "timm deit_tiny (sdpa)": _timm("deit_tiny_patch16_224"),
    "timm deit_tiny (eager)": _timm("deit_tiny_patch16_224", eager=True),
    "timm deit3_small": _timm("deit3_small_patch16_224", depth=4),
    "timm dinov2_small 518": _timm("vit_small_patch14_dinov2", 518),
    "timm dinov2_small registers": _timm("vit_small_patch14_reg4_dinov2", img_size=224, depth=4),
    "timm dinov3_small": _timm("vit_small_patch16_dinov3", depth=4),
    "timm vit_little registers": _timm("vit_little_patch16_reg4_gap_256", 256, depth=4),
    "timm so150m (attention pooling)": _timm("vit_so150m_patch16_reg4_map_256", 256, depth=2),
    "timm siglip base (attention pooling)": _timm("vit_base_patch16_siglip_224", depth=2),
    "timm vit rope, mixed": _timm("vit_small_patch16_rope_mixed_224", depth=4),
    "timm pe_core": _timm("vit_pe_core_tiny_patch16_384", 384, depth=4),
    "timm vit parallel blocks": _timm("vit_dpwee_patch16_reg1_gap_256", 256, depth=4),
    "timm vit relative positions": _timm("vit_relpos_small_patch16_224", depth=4),
    "timm naflexvit": _timm("naflexvit_base_patch16_gap", depth=2, img_size=224),
    "timm eva02_tiny": _timm("eva02_tiny_patch14_224"),
    "timm eva_giant": _timm("eva_giant_patch14_224", depth=1),
    "timm beit_base": _timm("beit_base_patch16_224", depth=4),
    "timm beitv2_base": _timm("beitv2_base_patch16_224", depth=2),
    "timm samvit_base": _timm("samvit_base_patch16_224", depth=4),
    "timm cait_xxs24": _timm("cait_xxs24_224", depth=4),
    "timm xcit_nano": _timm("xcit_nano_12_p16_224", depth=4),
    "timm convit_tiny": _timm("convit_tiny", depth=3, local_up_to_layer=2),
    "timm crossvit_9": _timm("crossvit_9_240", 240),
    "timm tnt_s": _timm("tnt_s_patch16_224", depth=4),
    "timm volo_d1": _without(_timm("volo_d1_224"), 4, _OUTLOOK),
}

_PYRAMIDS = {
    "timm pit_ti": _timm("pit_ti_224"),
    "timm swin_tiny": _timm("swin_tiny_patch4_window7_224"),
    "timm swin_s3_tiny": _timm("swin_s3_tiny_224"),
    "timm swinv2_tiny": _timm("swinv2_tiny_window8_256", 256, depths=(2, 2, 2, 2)),
    "timm twins_pcpvt_small": _timm("twins_pcpvt_small", depths=(2, 2, 2, 2)),
    "timm twins_svt_small": _timm("twins_svt_small", depths=(2, 2, 2, 2)),
    "timm nest_tiny": _timm("nest_tiny"),
    "timm hiera_tiny": _timm("hiera_tiny_224"),
    "timm mvitv2_tiny": _timm("mvitv2_tiny"),
    "timm pvt_v2_b0": _timm("pvt_v2_b0"),
    "timm pvt_v2_b2_li": _timm("pvt_v2_b2_li", depths=(2, 2, 2, 2)),
    "timm davit_tiny": _timm("davit_tiny", depths=(1, 1, 2, 1)),
    "timm gcvit_xxtiny": _timm("gcvit_xxtiny"),
    "timm coat_lite_tiny": _without(_timm("coat_lite_tiny"), 8, _FACTORED),
}

_HYBRIDS = {
    "timm levit_128s": _timm("levit_128s"),
    "timm mobilevit_s": _timm("mobilevit_s", 256),
    "timm mobilevitv2_050": _without(_timm("mobilevitv2_050", 256), 9, _ADDITIVE),
    "timm vit_small_resnet26d (hybrid)": _timm("vit_small_resnet26d_224", depth=4),
    "timm maxvit_rmlp_pico": _timm("maxvit_rmlp_pico_rw_256", 256),
    "timm maxxvit_rmlp_nano": _timm("maxxvit_rmlp_nano_rw_256", 256),
    "timm coatnet_nano": _timm("coatnet_nano_rw_224"),
    "timm coatnext_nano": _timm("coatnext_nano_rw_224"),
    "timm efficientformer_l1": _timm("efficientformer_l1"),
    "timm efficientformerv2_s0": _timm("efficientformerv2_s0"),
    "timm efficientvit_b0 (mit)": _timm("efficientvit_b0"),
    "timm efficientvit_m0 (msra)": _timm("efficientvit_m0"),
    "timm fastvit_sa12": _timm("fastvit_sa12", 256),
    "timm mobilenetv4_hybrid_medium": _timm("mobilenetv4_hybrid_medium", 256),
    "timm tiny_vit_5m": _timm("tiny_vit_5m_224"),
    "timm vitamin_small": _timm("vitamin_small_224"),
    "timm nextvit_small": _timm("nextvit_small"),
    "timm visformer_tiny": _timm("visformer_tiny"),
    "timm edgenext_xx_small": _timm("edgenext_xx_small", 256),
    "timm shvit_s1": _timm("shvit_s1"),
    "timm swiftformer_xs": _timm("swiftformer_xs"),
    "timm botnet26t": _timm("botnet26t_256", 256),
    "timm poolformer_s12 (no attention)": _timm("poolformer_s12"),
    "timm repvit_m0_9 (no attention)": _timm("repvit_m0_9"),
}

_TORCHVISION = {
    "torchvision vit_b_16": _torchvision("vit_b_16"),
    "torchvision swin_t": _torchvision("swin_t"),
    "torchvision swin_v2_t": _torchvision("swin_v2_t", 256),
    "torchvision maxvit_t": _torchvision("maxvit_t"),
}

MODELS: dict[str, Entry] = {**_PLAIN, **_PYRAMIDS, **_HYBRIDS, **_TORCHVISION}
