"""Named architectures, by their published configs."""

from dash_jax.model import llama

PRESETS = {
  # Small enough to train from nothing on two CPU cores; its vocabulary is
  # what the quickstart's tokenizer is trained to.
  'quickstart': llama.LlamaConfig(
    vocab_size=640,
    embed_dim=256,
    num_layers=4,
    num_heads=8,
    num_kv_heads=2,
    head_dim=32,
    ffw_dim=640,
    tied=True,
  ),
  'smollm2_135m': llama.LlamaConfig(
    vocab_size=49152,
    embed_dim=576,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    ffw_dim=1536,
    rope_theta=1e5,
    tied=True,
  ),
  'llama3_8b': llama.LlamaConfig(
    vocab_size=128256,
    embed_dim=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    ffw_dim=14336,
    rope_theta=5e5,
  ),
}
