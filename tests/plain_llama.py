"""The Llama of the paper in plain float64 NumPy, one unpadded row at a time.

It shares no code with the project: it reads weights by their names and says
what each means. Tests compare the model, the sampler and the learner with it.
"""

import numpy as np


def rope_frequencies(config):
  """Returns f64[H/2], with Llama 3.1's scaling by wavelengths."""
  H = config.head_dim
  frequencies = []
  for i in range(H // 2):
    frequency = config.rope_theta ** (-2 * i / H)
    s = config.rope_scaling
    if s is not None:
      wavelength = 2 * np.pi / frequency
      longest = s.original_max_len / s.low_freq_factor
      shortest = s.original_max_len / s.high_freq_factor
      if wavelength > longest:
        frequency = frequency / s.factor
      elif wavelength >= shortest:
        smooth = (s.original_max_len / wavelength - s.low_freq_factor) / (
          s.high_freq_factor - s.low_freq_factor
        )
        frequency = (1 - smooth) * frequency / s.factor + smooth * frequency
    frequencies.append(frequency)
  return np.array(frequencies)


def _norm(x, scale, eps):
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * scale


def _rotate(x, frequencies):
  """Turns [n, H] by its rows' positions, pairs (i, i + H/2) as complex."""
  half = x.shape[-1] // 2
  turned = (x[:, :half] + 1j * x[:, half:]) * np.exp(
    1j * np.outer(np.arange(len(x)), frequencies)
  )
  return np.concatenate([turned.real, turned.imag], axis=-1)


def _softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def forward(params, config, tokens):
  """Returns f64[n, V], the logits after each of a row's n tokens."""
  x, p = hidden(params, config, tokens)
  return x @ (p['embed'].T if config.tied else p['unembed'])


def hidden(params, config, tokens):
  """Returns f64[n, D], what logits are made of, and the top weights in f64."""
  p = {
    name: np.asarray(value, np.float64)
    for name, value in params.items()
    if name != 'layers'
  }
  frequencies = rope_frequencies(config)
  group = config.num_heads // config.num_kv_heads
  x = p['embed'][np.asarray(tokens)]
  for i in range(config.num_layers):
    w = {k: np.asarray(v[i], np.float64) for k, v in params['layers'].items()}
    y = _norm(x, w['attn_norm'], config.norm_eps)
    for head in range(config.num_heads):
      shared = head // group
      q, k, v = (
        y @ w['w' + name][:, at] + (w['b' + name][at] if config.qkv_bias else 0)
        for name, at in (('q', head), ('k', shared), ('v', shared))
      )
      if config.qk_norm:
        q = _norm(q, w['q_norm'], config.norm_eps)
        k = _norm(k, w['k_norm'], config.norm_eps)
      q, k = _rotate(q, frequencies), _rotate(k, frequencies)
      scores = q @ k.T / np.sqrt(config.head_dim)
      seen = _softmax(np.where(np.tri(len(x)), scores, -np.inf))
      x = x + seen @ v @ w['wo'][head]
    y = _norm(x, w['mlp_norm'], config.norm_eps)
    gate = y @ w['w_gate']
    x = x + (gate / (1 + np.exp(-gate)) * (y @ w['w_up'])) @ w['w_down']
  return _norm(x, p['final_norm'], config.norm_eps), p


def log_softmax(logits):
  top = logits.max(-1, keepdims=True)
  return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
