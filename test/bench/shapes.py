"""shapes.py: the shapes that are measured, and the tensors of a checkpoint of such a shape.

The values are those of the released models' config.json. Everything is made from them; nothing is downloaded.
"""
import json
import pathlib

COMMON = {
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "initializer_range": 0.02,
    "max_position_embeddings": 40960, "model_type": "qwen3", "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
    "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None, "torch_dtype": "bfloat16", "use_cache": True,
    "use_sliding_window": False, "vocab_size": 151936,
}


def _qwen3(hidden, layers, heads, intermediate, tied):
    return COMMON | {"hidden_size": hidden, "num_hidden_layers": layers, "max_window_layers": layers,
                     "num_attention_heads": heads, "intermediate_size": intermediate, "tie_word_embeddings": tied}


SHAPES = {
    "Qwen3-0.6B": _qwen3(1024, 28, 16, 3072, True),
    "Qwen3-1.7B": _qwen3(2048, 28, 16, 6144, True),
    "Qwen3-4B": _qwen3(2560, 36, 32, 9728, True),
    "Qwen3-8B": _qwen3(4096, 36, 32, 12288, False),
    "Qwen3-14B": _qwen3(5120, 40, 40, 17408, False),
}


def read_config(name):
    """The configuration of a released shape, of a config.json, or of the folder that has one."""
    if name in SHAPES:
        return SHAPES[name]
    path = pathlib.Path(name)
    config = json.loads((path / "config.json" if path.is_dir() else path).read_text())
    if config.get("model_type") not in ("qwen2", "qwen3"):
        raise SystemExit(f"{path}: model_type is {config.get('model_type')!r}; qwen2 and qwen3 are known")
    return config


def head_dim(config):
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def tensors(config):
    """Name and shape of every tensor, in the order of the forward pass."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    dim = head_dim(config)
    heads = config["num_attention_heads"]
    q, kv = heads * dim, (config.get("num_key_value_heads") or heads) * dim
    biased = config["model_type"] == "qwen2"
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        yield layer + "input_layernorm.weight", (hidden,)
        for name, n in (("q_proj", q), ("k_proj", kv), ("v_proj", kv)):
            yield layer + f"self_attn.{name}.weight", (n, hidden)
            if biased:
                yield layer + f"self_attn.{name}.bias", (n,)
        if config["model_type"] == "qwen3":
            yield layer + "self_attn.q_norm.weight", (dim,)
            yield layer + "self_attn.k_norm.weight", (dim,)
        yield layer + "self_attn.o_proj.weight", (hidden, q)
        yield layer + "post_attention_layernorm.weight", (hidden,)
        yield layer + "mlp.gate_proj.weight", (inner, hidden)
        yield layer + "mlp.up_proj.weight", (inner, hidden)
        yield layer + "mlp.down_proj.weight", (hidden, inner)
    yield "model.norm.weight", (hidden,)
    if not config.get("tie_word_embeddings", False):
        yield "lm_head.weight", (config["vocab_size"], hidden)
