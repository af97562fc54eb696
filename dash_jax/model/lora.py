"""Low-rank adapters beside frozen weights.

  1. A `Lora` in the architecture's config makes `llama.weights` declare two
     more weights, NAME_a and NAME_b, for each linear layer that it names. The
     layer then computes x w + (x a) b * alpha / rank, in the learner and in the
     sampler: no merged copy is held.
  2. `split` parts a tree of weights into the adapters, which are trained and
     checkpointed (with a scalar head, if there is one), and the rest, which is
     frozen; `join` puts them together.
  3. `merge` adds the adapters to their weights, for an export.

b starts at zero, so that training starts from the model as it was.

Source: arXiv 2106.09685.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

# A linear layer's name at Hugging Face -> its weight's name with us, and the
# letters of its inputs and outputs (see batches.py).
TARGETS = {
  'q_proj': ('wq', 'D', 'NH'),
  'k_proj': ('wk', 'D', 'KH'),
  'v_proj': ('wv', 'D', 'KH'),
  'o_proj': ('wo', 'NH', 'D'),
  'gate_proj': ('w_gate', 'D', 'F'),
  'up_proj': ('w_up', 'D', 'F'),
  'down_proj': ('w_down', 'F', 'D'),
  'lm_head': ('unembed', 'D', 'V'),
}


@dataclasses.dataclass(frozen=True)
class Lora:
  """Which linear layers have adapters, and of what size.

  Attributes:
    rank: r, the width between a and b.
    alpha: adapters count alpha / rank.
    targets: keys of TARGETS.
    dropout: share of an adapter's inputs that is dropped where it is trained.
  """

  rank: int
  alpha: float
  targets: tuple[str, ...]
  dropout: float = 0.0

  @property
  def scale(self) -> float:
    return self.alpha / self.rank


def describe_adapters(target: str, rank: int, shape: tuple, axes: tuple):
  """Returns what the adapters of one linear layer are.

  Args:
    target: a key of TARGETS.
    rank: r.
    shape, axes: of the layer's weight, stacked over layers where it is so.

  Returns:
    For each of a and b: name, shape, axes, and the scale it starts with. a
    starts with the variance of PEFT's (Kaiming's uniform of a = sqrt(5)).
  """
  name, inputs, outputs = TARGETS[target]
  first = len(shape) - len(inputs) - len(outputs)  # the layer axis, if any
  at = first + len(inputs)
  scale = (3 * math.prod(shape[first:at])) ** -0.5
  return (
    (f'{name}_a', (*shape[:at], rank), (*axes[:at], None), scale),
    (
      f'{name}_b',
      (*shape[:first], rank, *shape[at:]),
      (*axes[:first], None, *axes[at:]),
      0.0,
    ),
  )


def split(config: Lora | None, params: dict) -> tuple[dict, dict]:
  """Returns the weights that are trained and those that are frozen.

  Args:
    config: None trains all weights, and nothing is frozen.
    params: the tree of `llama.weights`, or anything of its structure.
  """
  if config is None:
    return params, {}
  trained, frozen = {'layers': {}}, {'layers': {}}
  for name, x in params.items():
    if name != 'layers':
      (trained if _is_trained(name) else frozen)[name] = x
  for name, x in params['layers'].items():
    (trained if _is_trained(name) else frozen)['layers'][name] = x
  return trained, frozen


def join(trained: dict, frozen: dict) -> dict:
  """Returns the tree that `split` parted."""
  if not frozen:
    return trained
  return frozen | trained | {'layers': frozen['layers'] | trained['layers']}


def merge(config: Lora, params: dict, dtype) -> dict:
  """Returns the weights of the model without adapters that computes the same.

  Args:
    config: of the adapters.
    params: the tree of `llama.weights`.
    dtype: of what is returned; sums are made in float32.
  """
  _, rest = split(config, params)
  merged = rest | {'layers': dict(rest['layers'])}
  for target in config.targets:
    name, inputs, outputs = TARGETS[target]
    layer = '' if target == 'lm_head' else 'L'
    given = params['layers'] if layer else params
    w, a, b = (
      given[part].astype(jnp.float32)
      for part in (name, f'{name}_a', f'{name}_b')
    )
    rule = f'{layer}{inputs}r,{layer}r{outputs}->{layer}{inputs}{outputs}'
    held = merged['layers'] if layer else merged
    held[name] = w + jnp.einsum(rule, a, b) * config.scale
  return jax.tree.map(lambda x: x.astype(dtype), merged)


def _is_trained(name: str) -> bool:
  return name.endswith(('_a', '_b')) or name == 'score'
