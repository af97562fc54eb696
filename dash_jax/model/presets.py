"""Named architectures, by their published configs."""

import dataclasses

from dash_jax.model import llama


def _make(vocab, D, L, N, K, F, *, head_dim=0, **rest) -> llama.LlamaConfig:
  """Returns an architecture; letters as in batches.py, heads of D / N."""
  return llama.LlamaConfig(
    vocab_size=vocab,
    embed_dim=D,
    num_layers=L,
    num_heads=N,
    num_kv_heads=K,
    head_dim=head_dim or D // N,
    ffw_dim=F,
    **rest,
  )


def _stretch(config, factor) -> llama.LlamaConfig:
  """Returns the architecture with Llama 3.1's scaling to 131,072 tokens."""
  return dataclasses.replace(config, rope_scaling=llama.RopeScaling(factor))


_LLAMA3 = {'rope_theta': 5e5}
_QWEN2 = {'rope_theta': 1e6, 'norm_eps': 1e-6, 'qkv_bias': True}
_QWEN3 = {
  'rope_theta': 1e6,
  'norm_eps': 1e-6,
  'qk_norm': True,
  'head_dim': 128,
}
_LLAMA3_8B = _make(128256, 4096, 32, 32, 8, 14336, **_LLAMA3)
_LLAMA3_70B = _make(128256, 8192, 80, 64, 8, 28672, **_LLAMA3)

PRESETS = {
  # Small enough to train from nothing on two CPU cores; its vocabulary is
  # what the quickstart's tokenizer is trained to.
  'quickstart': _make(640, 256, 4, 8, 2, 640, tied=True),
  'smollm2_135m': _make(49152, 576, 30, 9, 3, 1536, rope_theta=1e5, tied=True),
  'smollm2_360m': _make(49152, 960, 32, 15, 5, 2560, rope_theta=1e5, tied=True),
  'smollm2_1_7b': _make(
    49152, 2048, 24, 32, 32, 8192, rope_theta=1.3e5, tied=True
  ),
  'llama2_7b': _make(32000, 4096, 32, 32, 32, 11008),
  'llama2_13b': _make(32000, 5120, 40, 40, 40, 13824),
  'llama2_70b': _make(32000, 8192, 80, 64, 8, 28672),
  'llama3_8b': _LLAMA3_8B,
  'llama3_70b': _LLAMA3_70B,
  'llama3_1_8b': _stretch(_LLAMA3_8B, 8.0),
  'llama3_1_70b': _stretch(_LLAMA3_70B, 8.0),
  'llama3_2_1b': _stretch(
    _make(128256, 2048, 16, 32, 8, 8192, tied=True, **_LLAMA3), 32.0
  ),
  'llama3_2_3b': _stretch(
    _make(128256, 3072, 28, 24, 8, 8192, tied=True, **_LLAMA3), 32.0
  ),
  'llama3_3_70b': _stretch(_LLAMA3_70B, 8.0),
  'mistral_7b': _make(32768, 4096, 32, 32, 8, 14336, rope_theta=1e6),
  'qwen2_5_0_5b': _make(151936, 896, 24, 14, 2, 4864, tied=True, **_QWEN2),
  'qwen2_5_1_5b': _make(151936, 1536, 28, 12, 2, 8960, tied=True, **_QWEN2),
  'qwen2_5_3b': _make(151936, 2048, 36, 16, 2, 11008, tied=True, **_QWEN2),
  'qwen2_5_7b': _make(152064, 3584, 28, 28, 4, 18944, **_QWEN2),
  'qwen3_0_6b': _make(151936, 1024, 28, 16, 8, 3072, tied=True, **_QWEN3),
  'qwen3_1_7b': _make(151936, 2048, 28, 16, 8, 6144, tied=True, **_QWEN3),
  'qwen3_4b': _make(151936, 2560, 36, 32, 8, 9728, tied=True, **_QWEN3),
  'qwen3_8b': _make(151936, 4096, 36, 32, 8, 12288, **_QWEN3),
}
