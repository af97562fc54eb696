"""A plan as text."""

from collections.abc import Iterator

from dash_jax.model import llama
from dash_jax.planning import estimate, plans

_GIB = 2**30
_NEEDS = (
  ('weights', 'weights'),
  ('optimizer', 'optimizer'),
  ('sampler', 'sampler'),
  ('cache', 'cache'),
  ('gradient', 'gradient'),
  ('activations', 'activations'),
)


def describe(plan: plans.Plan) -> Iterator[str]:
  """Yields the lines of a plan."""
  job = plan.job
  config, mesh = job.model.config, dict(job.mesh.shape)
  num = llama.count_params(config)
  yield (
    f'{job.config.model.preset}, {num / 1e9:.3g} billion weights in'
    f' {job.config.model.param_dtype}, computed in {job.config.model.dtype}, on'
    f' {job.devices}, mesh {" x ".join(str(n) for n in mesh.values())}'
    f' ({", ".join(mesh)})'
    + (
      f' to learn, {job.sampling_mesh.size} devices to sample'
      if job.samples_apart
      else ''
    )
  )
  yield (
    f'A step: {job.num_rows} rows, {job.num_rows // job.group_size} prompts of'
    f' {job.prompt_len} slots, completions of {job.completion_len}. Nothing ran.'
  )
  yield ''
  yield from _memory(plan)
  yield ''
  yield from _sizes(plan)
  if plan.all_fit:
    yield ''
    yield from _work(plan)
    yield ''
    yield from _seconds(plan)


def _memory(plan):
  kind = plan.job.devices.kind
  yield (
    f'GiB of a device, of {kind.memory / _GIB:.1f} of which programs may use'
    f' {plan.room / _GIB:.1f}:'
  )
  rows = [('', *(title for title, _ in _NEEDS), 'all', 'fits', 'from')]
  for name in plans.list_programs(plan):
    needs = plan.find_needs(name)
    if needs is None:
      why = 'refused by the compiler'
      rows.append((name, *('' for _ in _NEEDS), '', 'no', why))
      continue
    values = [getattr(needs, field) for _, field in _NEEDS]
    rows.append(
      (
        name,
        *(f'{x / _GIB:.2f}' if x else '' for x in values),
        f'{needs.total / _GIB:.2f}',
        'yes' if plan.fits(name) else 'NO',
        _find_source(plan, name),
      )
    )
  yield from _align(rows)


def _find_source(plan, name):
  if name not in plan.measured:
    return 'estimate'
  estimated = plan.needs[name].total / _GIB
  seconds = plan.measured[name].compile_s
  return f'compiled in {seconds:.0f} s; estimate {estimated:.2f}'


def _sizes(plan):
  job = plan.job
  if plan.rows:
    yield (
      f'sampled at once: {plan.rows} of the {job.num_rows} rows of a step;'
      f' estimated to fit: {plan.most_rows or "none"}'
    )
  yield (
    f'learned from at once: {plan.minibatch} rows; estimated to fit:'
    f' {plan.most_minibatch or "none"}'
  )


def _work(plan):
  yield 'What a device does in a step, all rows full and kept, at least:'
  rows = [
    ('', 'TFLOP', 'GB of memory', 'GB from others', 'seconds', 'bound by', '')
  ]
  for name, step in plan.steps.items():
    known = bool(plan.job.devices.kind.flops_per_s)
    rows.append(
      (
        name,
        f'{step.work.flops / 1e12:.4g}',
        f'{step.work.bytes / 1e9:.4g}',
        f'{step.work.link_bytes / 1e9:.4g}',
        f'{step.seconds:.3g}' if known else '',
        step.bound if known else '',
        _describe_links(plan, name),
      )
    )
  yield from _align(rows)


def _describe_links(plan, name):
  """Returns what a compiled program brings from other devices in a step."""
  moved = {k: x for k, x in plan.find_links(name).items() if x >= 1e4}
  if not moved:
    return ''
  return 'compiled: ' + ', '.join(
    f'{kind} {size / 1e9:.4g}' for kind, size in sorted(moved.items())
  )


def _seconds(plan):
  kind, chips = plan.job.devices.kind, len(plan.job.devices.devices)
  chips //= kind.per_chip
  if not kind.flops_per_s:
    yield f'Seconds are not known: there are no figures of a {plan.job.devices.name}.'
    return
  total, sampling, phases = plan.step_s, plan.sampling_s, []
  yield (
    f'A step takes {total:.3g} s at least: sampling {sampling:.3g} s'
    f' ({sampling / total:.0%}), learning {plan.learning_s:.3g} s'
    f' ({plan.learning_s / total:.0%})'
    + (', one beside the other.' if plan.overlaps else '.')
  )
  for phase, names in (
    ('sampling', estimate.SAMPLING),
    ('learning', estimate.LEARNING),
  ):
    if longest := plan.find_longest(names):
      name, bound = longest
      phases.append(f'{phase} by {bound}, most of it in {name}')
  yield f'It is bound in {"; in ".join(phases)}.'
  yield (
    f'That is {plan.tokens / total / chips:,.0f} completion tokens a second and'
    f' chip, {plan.tokens / total:,.0f} in all, if all'
    f' {plan.job.completion_len} are drawn.'
  )
  yield (
    f'Rates of a device: {kind.flops_per_s / 1e12:g} TFLOP/s in bfloat16,'
    f' {kind.bytes_per_s / 1e9:g} GB/s of memory, {kind.link_bytes_per_s / 1e9:g}'
    f' GB/s from others ({kind.source}).'
  )


def advise(plan: plans.Plan, changes: dict | None) -> Iterator[str]:
  """Yields what would fit, where a plan does not."""
  yield ''
  if changes:
    fields = ' '.join(f'--config.{name}={x}' for name, x in changes.items())
    if 'mesh.tensor' in changes:
      fields += ' --config.mesh.fsdp=-1'
    yield f'It does not fit. By the estimate this does: {fields}'
    return
  needed, there = plans.count_devices(plan), len(plan.job.devices.devices)
  yield (
    'It does not fit, nor with fewer rows at once, less that is kept of layers,'
    ' a larger mesh.tensor, or fewer bits.'
  )
  if needed > there:
    yield (
      f'What rests on the devices, and the gradient, need {needed} of them or'
      ' more.'
    )
  else:
    yield (
      'Its weights as they are sampled with are the largest part: take devices'
      ' with more memory, or more of them in a process, over which mesh.tensor'
      ' can split them.'
    )


def compare(found: list[tuple[str, plans.Plan]]) -> Iterator[str]:
  """Yields a table of plans by topology."""
  rows = [
    (
      'devices', 'chips', 'mesh', 'fits', 'GiB', 'rows', 'minibatch',
      'GB from others', 'compiled', 'step, s', 'sampling', 'tokens/s a chip',
      'learning bound by',
    )
  ]  # fmt: skip
  for topology, plan in found:
    kind = plan.job.devices.kind
    chips = len(plan.job.devices.devices) // kind.per_chip
    needs = [plan.find_needs(name) for name in plan.needs]
    largest = max((n.total for n in needs if n), default=0)
    links = sum(sum(plan.find_links(name).values()) for name in plan.steps)
    seconds = ('', '', '', '')
    if plan.step_s:
      seconds = (
        f'{plan.step_s:.3g}',
        f'{plan.sampling_s / plan.step_s:.0%}',
        f'{plan.tokens / plan.step_s / chips:,.0f}',
        plan.steps[estimate.GRADIENT].bound,
      )
    rows.append(
      (
        topology,
        str(chips),
        'x'.join(str(n) for n in plan.job.mesh.shape.values()),
        'yes' if plan.all_fit else 'NO',
        f'{largest / _GIB:.3g}',
        str(plan.rows),
        str(plan.minibatch),
        f'{plan.link_bytes / 1e9:.4g}',
        f'{links / 1e9:.4g}' if plan.measured else '',
        *seconds,
      )
    )
  yield from _align(rows)


def _align(rows):
  """Yields rows of a table, columns under each other, the last one as it is."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  for first, *numbers, last in rows:
    cells = [first.ljust(widths[0])]
    cells += [x.rjust(w) for x, w in zip(numbers, widths[1:-1], strict=True)]
    yield '  '.join([*cells, last]).rstrip()
