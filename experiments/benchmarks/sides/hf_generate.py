"""transformers' generate, which TRL samples with, as a side of
experiments/benchmarks/sampler.py. It needs torch and transformers alone.

The weights are those of `workloads.make_params`, so that replies end as ours do,
or random ones, made on the device.
"""

import pathlib
import sys

import torch
import transformers

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import protocol


def make(
  workload, num_prompts, folder, cache=None, random_weights=False,
  **unused_options,
):  # fmt: skip
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  if random_weights:
    config = transformers.AutoConfig.from_pretrained(folder)
    with torch.device(device):
      model = transformers.AutoModelForCausalLM.from_config(
        config, dtype=torch.bfloat16
      )
  else:
    model = transformers.AutoModelForCausalLM.from_pretrained(
      folder, dtype=torch.float32
    )
  model = model.eval().to(device)
  G = workload['num_generations']
  tokens = torch.from_numpy(protocol.draw_prompts(workload, num_prompts)).long()
  rows = tokens.repeat_interleave(G, dim=0).to(device)
  more = {'cache_implementation': cache} if cache else {}
  settings = transformers.GenerationConfig(
    max_new_tokens=workload['max_new_tokens'],
    do_sample=True,
    temperature=workload['temperature'],
    top_p=workload['top_p'],
    top_k=workload['top_k'],
    eos_token_id=workload['eos_ids'] or None,
    pad_token_id=workload['pad_id'],
    **more,
  )
  stops = torch.tensor(workload['eos_ids'] or [-1], device=device)

  def sample(turn):
    torch.manual_seed(turn + 100)
    with torch.no_grad():
      out = model.generate(
        rows,
        attention_mask=torch.ones_like(rows),
        generation_config=settings,
      )[:, rows.shape[1] :]
    ended = torch.isin(out, stops)
    length = torch.where(ended.any(1), ended.int().argmax(1) + 1, out.shape[1])
    return {'tokens': int(length.sum())}  # waits for the device

  about = f'{transformers.__version__}, torch {torch.__version__}'
  return sample, {'transformers': about}


if __name__ == '__main__':
  protocol.serve(make)
