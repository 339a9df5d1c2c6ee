"""The systems of the zoo: a new one is one row here (and its key map in :mod:`mllm.zoo.keys`)."""

from __future__ import annotations

from mllm.zoo.system import System

_MLP = {"type": "mlp", "depth": 2}
_LLAVA = "google/siglip-so400m-patch14-384"
_CLIP = "openai/clip-vit-large-patch14-336"

SYSTEMS: dict[str, System] = {
    system.name: system
    for system in (
        System(
            "mobilevlm", "MobileVLM-1.7B", "Chu et al. 2023, arXiv 2312.16886", ("clip-l-336",), "mobilellama-1.4b",
            {"type": "ldp"}, layers=(-2,), weights=("mtgv/MobileVLM-1.7B", _CLIP), licence="Apache-2.0",
        ),
        System(
            "mobilevlm-v2", "MobileVLM-v2-3B", "Chu et al. 2024, arXiv 2402.03766", ("clip-l-336",),
            "mobilellama-2.7b", {"type": "ldp-v2", "side": 12}, layers=(-2,),
            weights=("mtgv/MobileVLM_V2-3B", _CLIP), licence="Apache-2.0",
        ),
        System(
            "llava-phi", "LLaVA-Phi", "Zhu et al. 2024, arXiv 2401.02330", ("clip-l-336",), "phi-2", _MLP,
            layers=(-2,), weights=("zhumj34/LLaVA-Phi-3B", _CLIP), licence="research only (as its code)",
        ),
        System(
            "imp-v1", "Imp-v1-3B", "Shao et al. 2024, arXiv 2405.12107", ("siglip-so-384-cut",), "phi-2", _MLP,
            layers=(26,), weights=("MILVLG/imp-v1-3b",), licence="Apache-2.0",
        ),
        System(
            "tinyllava", "TinyLLaVA-3.1B", "Zhou et al. 2024, arXiv 2402.14289", ("siglip-so-384",), "phi-2", _MLP,
            layers=(-2,), weights=("bczhou/TinyLLaVA-3.1B", _LLAVA), licence="Apache-2.0",
        ),
        System(
            "bunny-v1", "Bunny-v1.0-3B", "He et al. 2024, arXiv 2402.11530", ("siglip-so-384-cut",), "phi-2", _MLP,
            layers=(26,), weights=("BAAI/Bunny-v1_0-3B",), licence="Apache-2.0",
        ),
        System(
            "bunny-v1.1-4b", "Bunny-v1.1-4B", "He et al. 2024, arXiv 2402.11530", ("siglip-so-384-base",),
            "phi-3-mini", _MLP, scales=(1, 2, 3), layers=(-2,), weights=("BAAI/Bunny-v1_1-4B",), licence="MIT",
        ),
        System(
            "moe-llava", "MoE-LLaVA-Phi2-2.7B-4e-384", "Lin et al. 2024, arXiv 2401.15947", ("clip-l-336",),
            "phi-2-4e", _MLP, layers=(-2,), weights=("LanguageBind/MoE-LLaVA-Phi2-2.7B-4e", _CLIP),
            licence="Apache-2.0", note="Sparse upcycling of every second layer, 4 experts, 2 a token.",
        ),
        System(
            "mm1-3b-moe", "MM1-3B-MoE-Chat", "McKinzie et al. 2024, arXiv 2403.09611", ("clip-h-378",), "mm1-3b-64e",
            {"type": "c-abstractor", "side": 12, "hidden": 1280}, layers=(-2,), fit="stretch",
            note="Weights are not published; the layout is that of its published parts, sizes of the language model "
            "are chosen to give the 64 billion parameters that the paper names.",
        ),
        System(
            "cobra", "Cobra-3B", "Zhao et al. 2024, arXiv 2403.14520", ("dinov2-l-registers-384", "siglip-so-384"),
            "mamba-2.8b", {"type": "fused-mlp"}, join="channels", layers=(-2, -2), fit="stretch",
            weights=(
                "han-zhao/cobra",
                "vision_backbone.dino_featurizer.=timm/vit_large_patch14_reg4_dinov2.lvd142m",
                "vision_backbone.siglip_featurizer.=timm/ViT-SO400M-14-SigLIP-384",
            ), licence="MIT",
        ),
        System(
            "vl-mamba", "VL-Mamba", "Qiao et al. 2024, arXiv 2403.13600", ("siglip-so-384",), "mamba-2.8b",
            {"type": "vss", "directions": 4}, layers=(-2,),
            note="Its published code names no checkpoint; the layout is read from the paper.",
        ),
        System(
            "mini-gemini", "Mini-Gemini-2B", "Li et al. 2024, arXiv 2403.18814", ("clip-l-336-low", "convnext-l-768"),
            "gemma-2b", _MLP, join="mining", layers=(-2, -1),
            weights=("YanweiLi/MGM-2B", _CLIP, "laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup"),
            licence="CC BY-NC 4.0, Gemma terms",
        ),
        System(
            "vary-toy", "Vary-toy", "Wei et al. 2024, arXiv 2401.12503", ("clip-l-224", "sam-b-1024"), "qwen-1.8b",
            {"type": "linear-per-encoder"}, join="channels", layers=(-2, -1), fit="stretch",
            weights=("Haoran-megvii/Vary-toy",), licence="CC BY-NC 4.0 (as its code)",
        ),
        System(
            "tinygpt-v", "TinyGPT-V", "Yuan et al. 2023, arXiv 2312.16862", ("eva-g-448",), "phi-2",
            {"type": "q-former", "depth": 2, "hidden": 4096, "norm": 0}, fit="stretch",
            weights=("Tyrannosaurus/TinyGPT-V",), licence="BSD-3-Clause",
            note="Published as pickled files: turn them into safetensors first.",
        ),
        System(
            "sphinx-tiny", "SPHINX-Tiny", "Gao et al. 2024, arXiv 2402.05935", ("convnext-xxl-512", "dinov2-g-224"),
            "tinyllama-1.1b", {"type": "linear-norm"}, join="channels", layers=(-1, -1),
            weights=("Alpha-VLLM/LLaMA2-Accessory",), licence="Apache-2.0",
            note="One view an image without its CLS token; the original joins five views between learned marks. "
            "Published as pickled files: turn them into safetensors first.",
        ),
        System(
            "allava-longer", "ALLaVA-3B-Longer", "Chen et al. 2024, arXiv 2402.11684", ("clip-l-336",), "phi-2", _MLP,
            layers=(-2,), weights=("FreedomIntelligence/ALLaVA-3B-Longer",), licence="Apache-2.0",
        ),
        System(
            "llava-gemma", "LLaVA-Gemma-2b", "Hinck et al. 2024, arXiv 2404.01331", ("dinov2-l-224",), "gemma-2b",
            _MLP, layers=(-2,), weights=("Intel/llava-gemma-2b",), licence="Gemma terms",
            note="The paper's DINOv2 variant; the checkpoint that is published has CLIP, which this loader also maps.",
        ),
        System(
            "mipha", "Mipha-3B", "Zhu et al. 2024, arXiv 2403.06199", ("siglip-so-384",), "phi-2", _MLP, layers=(-2,),
            weights=("zhumj34/Mipha-3B",), licence="Apache-2.0",
        ),
        System(
            "minicpm-v-2", "MiniCPM-V 2.0", "Yao et al. 2024, arXiv 2408.01800", ("siglip-so-448-cut",),
            "minicpm-2.4b", {"type": "resampler", "side": 8, "head": 128}, fit="stretch",
            weights=("openbmb/MiniCPM-V-2",), licence="MiniCPM Model Licence",
            note="One slice an image; the original cuts large images into slices.",
        ),
        System(
            "deepseek-vl", "DeepSeek-VL-1.3B", "Lu et al. 2024, arXiv 2403.05525", ("siglip-l-384",),
            "deepseek-1.3b", _MLP, weights=("deepseek-ai/deepseek-vl-1.3b-base",), licence="DeepSeek Licence",
        ),
        System(
            "karmavlm", "KarmaVLM-Qwen1.5-0.5B", "its repository", ("siglip-so-384",), "qwen1.5-0.5b", _MLP,
            layers=(-2,), weights=("X-D-Lab/KarmaVLM-Qwen1.5-0_5B", _LLAVA), licence="Apache-2.0",
        ),
        System(
            "moondream2", "moondream2", "its repository", ("siglip-so-378",), "phi-1.5",
            {"type": "mlp", "depth": 2, "hidden": 8192}, fit="stretch", weights=("vikhyatk/moondream2",),
            licence="Apache-2.0", note="The layout of the releases of spring 2024.",
        ),
    )
}  # fmt: skip
