"""Weights and rows that both sides compute with; drawn from seeds, no torch.

1. `draw_tensor` makes a tensor from its name and shape alone.
2. `draw_rows` makes prompts with several replies each, and what a GRPO loss
   needs of them.
"""

import dataclasses
import zlib

import numpy as np

PROMPT_LENGTHS = (5, 2, 7)
REPLY_LENGTHS = ((6, 3), (1, 4), (5, 6))
CLIP_LOW, CLIP_HIGH = 0.2, 0.28
MAX_REPLY_LEN = 8


@dataclasses.dataclass(frozen=True)
class Rows:
  """Prompts and replies, token by token, without padding.

  Attributes:
    prompts: a list of ids for each.
    replies: for each prompt, a list of ids for each reply.
    old_noise: for each reply, what its old log-probabilities differ by from
      the present ones: enough that some ratios are clipped.
    advantages: f32[q, s], of both signs.
    weights: f32[q, s], what each of a reply's tokens counts in the loss.
  """

  prompts: list[list[int]]
  replies: list[list[list[int]]]
  old_noise: list[list[np.ndarray]]
  advantages: np.ndarray
  weights: np.ndarray


def draw_tensor(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
  """Returns float32 noise about zero, or about one for a norm's scales."""
  rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
  noise = 0.25 * rng.normal(size=shape)
  return (noise + (1 if 'norm' in name else 0)).astype(np.float32)


def draw_direction(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """Returns a float64 direction of length one, to project a gradient on."""
  x = np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape)
  return x / np.linalg.norm(x)


def draw_rows(vocab_size: int) -> Rows:
  """Returns the same rows for the same vocabulary."""
  rng = np.random.default_rng(vocab_size)

  def draw_ids(length):
    return rng.integers(0, vocab_size, length).tolist()

  prompts = [draw_ids(n) for n in PROMPT_LENGTHS]
  replies = [[draw_ids(n) for n in lengths] for lengths in REPLY_LENGTHS]
  return make_rows(prompts, replies)


def make_rows(prompts: list, replies: list) -> Rows:
  """Returns rows of given ids, with all that a loss needs beside them."""
  rng = np.random.default_rng(1)
  shape = len(replies), len(replies[0])
  return Rows(
    prompts=prompts,
    replies=replies,
    old_noise=[
      [0.4 * rng.normal(size=len(reply)) for reply in group]
      for group in replies
    ],
    advantages=rng.normal(size=shape).astype(np.float32),
    weights=rng.uniform(0.01, 0.05, size=shape).astype(np.float32),
  )


def make_old(
  rows: Rows, logprobs: list[list[np.ndarray]]
) -> list[list[np.ndarray]]:
  """Returns old log-probabilities, some steps away from the present ones."""
  return [
    [x + noise for x, noise in zip(group, noises, strict=True)]
    for group, noises in zip(logprobs, rows.old_noise, strict=True)
  ]
