"""What transformers computes of rows, and a GRPO loss written in torch.

Nothing of ours is used: rows run one at a time, whole and without padding.
"""

import numpy as np
import torch
import transformers

from experiments.parity import draw

_SIZES = {
  'vocab_size': 60,
  'hidden_size': 24,
  'intermediate_size': 40,
  'num_hidden_layers': 2,
  'num_attention_heads': 6,
  'num_key_value_heads': 2,
}
_SCALING = {
  'rope_type': 'llama3',
  'rope_theta': 500.0,
  'low_freq_factor': 1.0,
  'high_freq_factor': 4.0,
  'original_max_position_embeddings': 32,
}


def list_cases() -> dict[str, transformers.PretrainedConfig]:
  """Returns a small config for every architecture; sizes differ wherever they
  may, so that nothing fits by chance."""
  llama, qwen2 = transformers.LlamaConfig, transformers.Qwen2Config
  qwen3 = transformers.Qwen3Config
  stretch = [{'rope_parameters': _SCALING | {'factor': f}} for f in (8.0, 32.0)]
  return {
    'llama2': llama(
      **_SIZES | {'num_key_value_heads': 6}, tie_word_embeddings=False
    ),
    'llama3': llama(**_SIZES, head_dim=8, tie_word_embeddings=False),
    'llama3_1': llama(**_SIZES, **stretch[0], tie_word_embeddings=False),
    'llama3_2': llama(**_SIZES, **stretch[1], tie_word_embeddings=True),
    'mistral': transformers.MistralConfig(
      **_SIZES, head_dim=8, sliding_window=None, tie_word_embeddings=False
    ),
    'qwen2': qwen2(**_SIZES, tie_word_embeddings=False),
    'qwen2_tied': qwen2(**_SIZES, tie_word_embeddings=True),
    'qwen3': qwen3(**_SIZES, head_dim=8, tie_word_embeddings=False),
    'qwen3_tied': qwen3(**_SIZES, head_dim=8, tie_word_embeddings=True),
    'smollm2': llama(
      **_SIZES
      | {
        'hidden_size': 36,
        'num_attention_heads': 9,
        'num_key_value_heads': 3,
      },
      rope_parameters={'rope_type': 'default', 'rope_theta': 1e5},
      tie_word_embeddings=True,
    ),
  }


def make_model(config: transformers.PretrainedConfig, seed: int = 0):
  """Returns a model with the weights that draw.py makes."""
  model = transformers.AutoModelForCausalLM.from_config(config).eval()
  with torch.no_grad():
    # A tied tensor comes once here, as it does on disk.
    for name, x in model.named_parameters():
      x.copy_(torch.from_numpy(draw.draw_tensor(name, tuple(x.shape), seed)))
  return model


def compute_logits(model, ids: list[int]) -> np.ndarray:
  """Returns f32[T, V] of one row."""
  with torch.no_grad():
    return model(torch.tensor([ids])).logits[0].float().numpy()


def generate(
  model, prompts: list[list[int]], stop_id: int, max_len: int
) -> list[list[int]]:
  """Returns each prompt's greedy continuation, the stop id included."""
  found = []
  for prompt in prompts:
    ids = torch.tensor([prompt])
    out = model.generate(
      ids,
      attention_mask=torch.ones_like(ids),
      do_sample=False,
      max_new_tokens=max_len,
      eos_token_id=stop_id,
      pad_token_id=0,
    )
    found.append(out[0, len(prompt) :].tolist())
  return found


def _reply_logprobs(model, prompt, reply):
  logits = model(torch.tensor([prompt + reply])).logits[0].float()
  logprobs = torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1)
  return logprobs[torch.arange(len(reply)), torch.tensor(reply)]


def compute_logprobs(model, rows: draw.Rows) -> list[list[np.ndarray]]:
  """Returns the log-probabilities of each reply's tokens."""
  with torch.no_grad():
    return [
      [_reply_logprobs(model, prompt, reply).numpy() for reply in group]
      for prompt, group in zip(rows.prompts, rows.replies, strict=True)
    ]


def compute_gradient(
  model, rows: draw.Rows, old, reference=None, kl_coef: float = 0.0
) -> tuple[float, dict[str, np.ndarray], float]:
  """Returns the GRPO loss, its gradient by tensor, and the share of clipped
  tokens.

      r = exp(logprob - old_logprob),  d = ref_logprob - logprob
      loss = sum over replies of weight * sum over tokens of
             -min(r A, clip(r, 1 - low, 1 + high) A) + kl_coef (e^d - d - 1)

  Source: arXiv 2402.03300, equations 3 and 4, with the weight in place of its
    two means.
  """
  model.zero_grad()
  total, num_clipped, num_tokens = 0.0, 0, 0
  for q, prompt in enumerate(rows.prompts):
    for g, reply in enumerate(rows.replies[q]):
      logprobs = _reply_logprobs(model, prompt, reply)
      gain = float(rows.advantages[q, g])
      ratio = torch.exp(logprobs - torch.from_numpy(old[q][g]).float())
      bound = torch.clamp(ratio, 1 - draw.CLIP_LOW, 1 + draw.CLIP_HIGH)
      loss = -torch.minimum(ratio * gain, bound * gain)
      num_clipped += int((bound * gain < ratio * gain).sum())
      num_tokens += len(reply)
      if kl_coef:
        with torch.no_grad():
          ref = _reply_logprobs(reference, prompt, reply)
        d = ref - logprobs
        loss = loss + kl_coef * (torch.exp(d) - d - 1)
      total = total + float(rows.weights[q, g]) * loss.sum()
  total.backward()
  gradient = {
    name: x.grad.detach().numpy().copy() for name, x in model.named_parameters()
  }
  return float(total.detach()), gradient, num_clipped / num_tokens
