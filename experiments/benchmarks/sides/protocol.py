"""How the sides of a comparison take turns: one process each, a line a turn.

A side says that it is ready, then answers each line with what a sampling call
took. It runs in an environment of its own, so this file needs nothing but
Python: a side imports it by its path.
"""

import json
import os
import sys
import time


def serve(make) -> None:
  """Serves turns until standard input ends.

  Args:
    make: takes the workload (a dict) and the arguments, and returns a function
      of a turn's number that samples, and returns how many tokens.
  """
  with open(sys.argv[1]) as file:
    workload = json.load(file)
  options = json.loads(sys.argv[2])
  # What libraries print must not mix with the answers.
  answers = os.fdopen(os.dup(1), 'w', buffering=1)
  os.dup2(2, 1)
  sample, about = make(workload, **options)
  for turn in range(options['warmup']):
    sample(-1 - turn)
  print(json.dumps(about), file=answers)
  for line in sys.stdin:
    cpu, start = time.process_time(), time.perf_counter()
    tokens = sample(int(line))
    answer = {
      'seconds': time.perf_counter() - start,
      'cpu_seconds': time.process_time() - cpu,
      'tokens': int(tokens),
    }
    print(json.dumps(answer), file=answers)


def draw_prompts(workload: dict, num_prompts: int):
  """Returns i32[Q, P], the same numbers in every side."""
  import numpy as np

  rng = np.random.default_rng(workload['seed'])
  shape = (num_prompts, workload['prompt_len'])
  first, last = workload['prompt_ids_from'], workload['model']['vocab_size']
  return rng.integers(first, last, shape, dtype=np.int64).astype(np.int32)
