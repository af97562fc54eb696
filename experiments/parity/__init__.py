"""Compares our models, gradients and tokenizers with transformers, torch, peft.

    pip install -e '.[parity]' && python -m experiments.parity

  draw.py       weights and rows, drawn from seeds (no torch)
  ours.py       what we compute of them (no torch)
  theirs.py     what transformers computes of them, and a GRPO loss in torch
  models.py     the two beside each other, for each architecture
  smollm2.py    the same for SmolLM2's real weights
  ...           one file for each other thing that is compared

`make_reference.py` stores some of theirs.py's values, which the tests compare
with ours.py's where there is no torch.
"""
