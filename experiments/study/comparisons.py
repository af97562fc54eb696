"""The questions of the study, and the claims that answer each.

Runs are named as in suites.py, which says what each of them changes. The paper
is arXiv 2505.17218; its figures are of one seed, of MATH-500 where nothing else
is said, and of Qwen2.5 0.5B where no size is. Its DASH has a KL term where ours
has none, but where the claim is on that.

Easy tasks are learned long before the end, where all runs are alike. So claims
on accuracy come twice: at the end, and of the replies that were sampled to learn
from, over the whole run.
"""

import functools
import itertools
import math
import statistics
from collections.abc import Iterator, Sequence

from experiments.study import curves, findings, intervals

QUESTIONS = {
  1: 'DASH against GRPO: time to equal accuracy',
  2: 'The best batch for sampling and for backpropagation',
  3: 'RL against SFT and rejection sampling',
  4: 'PPO-Multi and PPO-Mini against the plain policy gradient',
  5: 'The KL term',
  6: 'Filtering: thresholds and rules',
  7: 'Other rewards and group sizes',
  8: 'Staleness',
  9: 'What each part adds to the saving',
}

SHORT_STEPS = 3  # of runs whose gradients are compared, and no more
GROUP_SIZES = (2, 4, 8, 16, 32)
STALENESS = (0, 1, 2, 4)

# What is removed, one at a time, and what it acts on.
PARTS = {
  'filtering': ('Filtering', 'learn_s'),
  'packing': ('Packing', 'learn_s'),
  'sharing': ('Sharing prompts in the learner', 'learn_s'),
  'sampled_sharing': ('Sharing prompts in the sampler', 'sample_s'),
  'stopping': ('Early stopping', 'sample_s'),
}

# Seconds of a step, by their metric.
SECONDS = {
  'step_s': 'seconds',
  'sample_s': 'seconds of sampling',
  'reward_s': 'seconds of scoring',
  'learn_s': 'seconds of learning',
}


def _accuracy(*runs):
  return [run.accuracy for run in runs]


def _completion_len(*runs):
  return [run.completion_len for run in runs]


def _fall(*runs):
  """From the best to the last accuracy, of evaluations that all runs have."""
  shared = set.intersection(*(set(run.accuracies) for run in runs))
  return [
    max(run.accuracies[step] for step in shared) - run.accuracy for run in runs
  ]


def _learning(*runs):
  """Accuracy of sampled replies, mean over steps; those of stale rows count for
  the weights that sampled them."""
  shared = set.intersection(*(set(run.sampled_accuracies) for run in runs))
  return [
    statistics.fmean(run.sampled_accuracies[step] for step in shared)
    for run in runs
  ]


def _worst_fall(*runs):
  """The largest fall from an evaluation to a later one, of those that all have."""
  shared = sorted(set.intersection(*(set(run.accuracies) for run in runs)))
  shares = [[run.accuracies[step] for step in shared] for run in runs]
  return [
    max(max(found[: i + 1]) - share for i, share in enumerate(found))
    for found in shares
  ]


def _drift(*runs):
  return [run.drift for run in runs]


def _kept(*runs):
  return [run.total('kept_rows') / run.total('sampled_rows') for run in runs]


def _cosine(run):
  found = run.mean('gradient_cosine')
  return None if found is None else [found]


def _seconds(*runs, key='step_s'):
  return [run.seconds(key) for run in runs]


_LIKELY, _LEAST, _MOST = range(3)  # of Curve.seconds_to


def _seconds_to_equal(ours, theirs, key, of_ours=_LIKELY, of_theirs=_LIKELY):
  level = curves.find_level(ours, theirs)
  if level is None:
    return None
  return [
    ours.seconds_to(level, key)[of_ours],
    theirs.seconds_to(level, key)[of_theirs],
  ]


def _accuracy_in_time_of(ours, theirs):
  return [ours.accuracy_at(theirs.seconds()), theirs.accuracy]


def _saves(question, ours, theirs, of_whom, paper, *, is_main=False):
  """Yields claims that one run is faster than another: for as many replies, as
  the paper has it, and to the same accuracy.

  Args:
    question: its number.
    ours, theirs: names of runs.
    of_whom: the two as words.
    paper: by metric, the paper's saving in percent.
    is_main: of the seconds of whole steps.
  """
  for until, whole in (
    ('for as many replies', True), ('to equal accuracy', False)
  ):  # fmt: skip
    for key, name in SECONDS.items():
      value = paper.get(key) if whole else None
      to_equal = functools.partial(_seconds_to_equal, key=key)
      yield findings.Comparison(
        question,
        f'{of_whom[0]} takes fewer {name} than {of_whom[1]} {until}',
        f'{name} saved',
        (ours, theirs),
        functools.partial(_seconds, key=key) if whole else to_equal,
        'saving',
        '%',
        100.0,
        'above',
        f'{value}%' if value is not None else '',
        value,
        is_main and key == 'step_s',
        ()
        if whole
        else (
          functools.partial(to_equal, of_ours=_LEAST, of_theirs=_MOST),
          functools.partial(to_equal, of_ours=_MOST, of_theirs=_LEAST),
        ),
      )


# Measures that are shares of the held-out questions.
_OF_QUESTIONS = (_accuracy, _accuracy_in_time_of, _fall, _worst_fall)


def _differs(
  question, claim, ours, theirs, expects, paper='', value=None, **rest
):
  """Returns a claim on the difference of two runs' last accuracies, in points;
  `rest` changes fields."""
  fields = {
    'metric': 'accuracy, difference',
    'measure': _accuracy,
    'combine': 'difference',
    'unit': 'points',
    'scale': 100.0,
  } | rest
  fields['is_counted'] = (
    fields['combine'] == 'difference' and fields['measure'] in _OF_QUESTIONS
  )
  return findings.Comparison(
    question,
    claim,
    runs=(ours, theirs),
    expects=expects,
    paper=paper,
    paper_value=value,
    **fields,
  )


def _learns(question, title, ours, theirs, expects='not below', **rest):
  """Returns the claim that a run is as good on the way."""
  worse = expects == 'below'
  return _differs(
    question, f'{title} learns {"slower" if worse else "no slower"}', ours,
    theirs, expects, metric='accuracy of all sampled replies, difference',
    measure=_learning, **rest,
  )  # fmt: skip


def _time_against_grpo():
  grpo = 'GRPO a question a step'
  yield from _saves(
    1, 'dash', 'grpo', ('DASH', grpo),
    {'step_s': 83, 'sample_s': 87, 'learn_s': 63}, is_main=True,
  )  # fmt: skip
  yield from _saves(
    1, 'unfiltered', 'grpo', ('GRPO of the same batch', grpo), {'step_s': 82}
  )
  yield from _saves(
    1, 'dash', 'grpo_filtered', ('DASH', f'{grpo}, filtered,'), {}
  )
  yield from _saves(
    1, 'dash', 'unfiltered', ('DASH', 'GRPO of the same batch'),
    {'step_s': 4}, is_main=True,
  )  # fmt: skip
  yield _differs(
    1, 'DASH ends no less accurate than GRPO a question a step', 'dash', 'grpo',
    'not below', '-0.4 points', is_main=True,
  )  # fmt: skip
  yield _differs(
    1, "GRPO a question a step is less accurate than DASH in DASH's time",
    'grpo', 'dash', 'below', measure=_accuracy_in_time_of, is_main=True,
  )  # fmt: skip
  yield _differs(
    1, 'DASH ends as accurate as GRPO of the same batch (the same gradient, by'
    ' construction)', 'dash', 'unfiltered', 'near', '-0.2 points',
  )  # fmt: skip


def _against_imitation():
  yield _differs(
    3, 'The run that makes the traces, of five times the budget, ends more'
    ' accurate', 'long_kl_0', 'dash', 'above',
  )  # fmt: skip
  for equal, suffix in (('samples', ''), ('time', '_short')):
    measure = _accuracy if equal == 'samples' else _accuracy_in_time_of
    # Other data than the paper's: its figures stand beside, and are no measure.
    for name, whose, paper in (
      ('sft_data', "SFT on the data's solutions", '+23.4 points (no KL)'),
      (
        'sft_traces',
        'SFT on traces of five times the budget, whose making is not counted,',
        '+7.4 points (a larger model)',
      ),
    ):
      yield _differs(
        3, f'RL beats {whose} at equal {equal}', 'dash', name + suffix, 'above',
        paper, measure=measure, is_main=equal == 'time',
      )  # fmt: skip
  for equal, measure in (
    ('samples', _accuracy), ('time', _accuracy_in_time_of)
  ):  # fmt: skip
    yield _differs(
      3, f'Rejection sampling is worse than RL at equal {equal}', 'rejection',
      'dash', 'below', measure=measure, is_main=equal == 'time',
    )  # fmt: skip


def _ppo():
  for name, title, paper, value in (
    ('ppo_multi', 'PPO-Multi', '-2.6 points; -2.8 of 1.5B', -2.6),
    ('ppo_mini', 'PPO-Mini', '-1.6 points; -20.8 of 1.5B', -1.6),
  ):
    yield _differs(
      4, f"{title} is worse than one policy gradient step in DASH's time", name,
      'dash', 'below', paper, value, measure=_accuracy_in_time_of, is_main=True,
    )  # fmt: skip
    yield _differs(
      4, f'{title} is worse at equal samples', name, 'dash', 'below'
    )
    yield _learns(4, title, name, 'dash', 'below')
    yield _differs(
      4, f'Accuracy of {title} varies more over seeds', name, 'dash', 'above',
      metric='deviation over seeds, log2 of the ratio', measure=_accuracy,
      combine='spread', unit='', scale=1.0,
    )  # fmt: skip
    yield _differs(
      4, f'{title} falls further on its way', name, 'dash', 'above',
      metric="largest fall of accuracy, beyond DASH's", measure=_worst_fall,
    )  # fmt: skip
    yield _differs(
      4, f'{title} falls from its best accuracy', name, 'dash', 'above',
      '1.5B: GSM8K 58.8% at the start, 8.1% at the end'
      if name == 'ppo_mini'
      else '',
      metric="fall from the best to the last, beyond DASH's", measure=_fall,
    )  # fmt: skip


def _kl_term():
  for name, title in (
    ('kl_0.04', 'A KL term of 0.04'),
    ('kl_0.1', 'A KL term of 0.1'),
    ('kl_0.1_linear', 'A KL term of 0.1, falling to 0,'),
  ):
    is_paper = name == 'kl_0.04'
    yield _differs(
      5, f'{title} costs accuracy', name, 'dash', 'below',
      '-4.2 points; -2.8 of 1.5B' if is_paper else '',
      -4.2 if is_paper else None, is_main=is_paper,
    )  # fmt: skip
    yield _learns(5, title, name, 'dash', 'below')
    yield _differs(
      5, f'{title} keeps replies longer', name, 'dash', 'above',
      '600 to 640 tokens, 548 to 589 without' if is_paper else '',
      metric='tokens of a reply, difference', measure=_completion_len,
      unit='tokens', scale=1.0,
    )  # fmt: skip
    yield _differs(
      5, f'{title} keeps the policy nearer to its start', name, 'dash', 'below',
      metric='KL from the start at the end, difference', measure=_drift,
      unit='nats/token', scale=1.0,
    )  # fmt: skip
  for name, title in (
    ('long_kl_0', 'Without a KL term'), ('long_kl_0.04', 'With one of 0.04')
  ):  # fmt: skip
    yield findings.Comparison(
      5, f'{title} a run of 5 times the budget keeps its best accuracy',
      'fall from the best to the last', (name,), _fall, 'mean', 'points', 100.0,
      'near', is_main=name == 'long_kl_0', is_counted=True,
    )  # fmt: skip
    yield findings.Comparison(
      5, f'{title} a run of 5 times the budget ends so far from its start',
      'KL from the start', (name,), _drift, 'mean', 'nats/token',
    )  # fmt: skip
  yield _differs(
    5, 'A KL term costs accuracy in a run of 5 times the budget',
    'long_kl_0.04', 'long_kl_0', 'below',
  )  # fmt: skip


# Of eight replies with rewards 0 and 1 advantages are 0.35, 0.54, 0.72, 0.94, 1.21,
# 1.62, 2.47 in size: each threshold drops others than that before.
THRESHOLDS = {
  'dash': 0.0,
  'filter_0.8': 0.8,
  'filter_1.2': 1.2,
  'filter_1.5': 1.5,
  'filter_2': 2.0,
}
FILTERS = {
  name: f'the threshold {threshold:g}' for name, threshold in THRESHOLDS.items()
} | {
  'filter_largest': 'a quarter of the rows, the largest',
  'filter_pods': 'half of each group, the most varied',
}


def _learns_of(name):
  return _learns(6, f'A policy of {FILTERS[name]}', name, 'unfiltered')


def find_threshold(
  runs: findings.Runs, part: str
) -> Iterator[findings.Finding]:
  """Yields the lowest of THRESHOLDS above 0 from which on a policy surely learns
  slower.

  Args:
    runs: the finished ones of a part of the study.
    part: its name.
  """
  rows = {
    threshold: row
    for name, threshold in THRESHOLDS.items()
    if threshold and (row := findings.find(_learns_of(name), runs, part))
  }
  if not rows:
    return
  hurts = list(
    itertools.takewhile(
      lambda at: (rows[at].found.high or 0) < 0, reversed(rows)
    )
  )
  tried = ', '.join(f'{at:g}' for at in rows)
  end = '; no lower one was tried' if min(rows) in hurts else ''
  yield findings.Finding(
    6, part, 'The lowest threshold of those tried from which on learning is surely'
    ' slower, by however little', 'threshold',
    intervals.Interval(hurts[-1], None, None, rows[hurts[-1]].found.num_seeds)
    if hurts
    else None,
    '', '', f'of {tried}: the intervals are below 0{end}'
    if hurts
    else f'not decided: none of {tried}',
    ('unfiltered', *THRESHOLDS), True,
  )  # fmt: skip


def _filters():
  for name, title in FILTERS.items():
    is_main = name in ('dash', 'filter_0.8', 'filter_2')
    yield findings.Comparison(
      6, f'Rows that are kept by {title}', 'rows kept', (name,), _kept, 'mean',
      '%', 100.0,
    )  # fmt: skip
    yield findings.Comparison(
      6, f'Keeping {title} saves learning', 'seconds of learning saved',
      (name, 'unfiltered'), functools.partial(_seconds, key='learn_s'),
      'saving', '%', 100.0, 'above',
      '4% of a run; filters after the forwards' if name == 'dash' else '',
    )  # fmt: skip
    exact = ' (by construction)' if name == 'dash' else ''
    yield _differs(
      6, f'Keeping {title} costs no accuracy{exact}', name, 'unfiltered',
      'not below', '-0.2 points' if name == 'dash' else '', is_main=is_main,
    )  # fmt: skip
    yield _learns_of(name)
    yield findings.Comparison(
      6, f'Gradient of {title}, against that of all rows, in the first'
      f' {SHORT_STEPS} steps{exact}', 'cosine',
      (f'cosine_{name}',), _cosine, 'mean', '',
    )  # fmt: skip


def _rewards_and_groups():
  for name, title in (
    ('reward_format', 'A reward for the format'),
    ('reward_length', 'A penalty on length'),
    ('with_reward_model', 'A learned reward model beside the verifier'),
    ('reward_model_alone', 'A learned reward model in place of the verifier'),
  ):
    yield _differs(
      7, f'{title} costs no accuracy', name, 'dash', 'not below', is_main=True
    )
    yield _learns(
      7, f'With it ({title[0].lower()}{title[1:]}) the policy', name, 'dash'
    )
    yield findings.Comparison(
      7, f'Rows that are kept with it ({title[0].lower()}{title[1:]})',
      'rows kept', (name,), _kept, 'mean', '%', 100.0,
    )  # fmt: skip
  yield _differs(
    7, 'A penalty on length makes replies shorter', 'reward_length', 'dash',
    'below', metric='tokens of a reply, difference', measure=_completion_len,
    unit='tokens', scale=1.0,
  )  # fmt: skip
  for size in GROUP_SIZES:
    yield _differs(
      7, f"Groups of {size} end no less accurate than those of DASH's run",
      f'group_{size}', 'dash', 'not below',
    )  # fmt: skip
    yield _learns(7, f'A policy of groups of {size}', f'group_{size}', 'dash')


def _staleness():
  for steps in STALENESS[1:]:
    title = '1 step' if steps == 1 else f'{steps} steps'
    yield _differs(
      8, f'Rows of up to {title} before cost no accuracy',
      f'stale_{steps}', 'stale_0', 'not below', is_main=steps == 4,
    )  # fmt: skip
    yield _learns(
      8, f'With rows of up to {title} before the policy', f'stale_{steps}',
      'stale_0', is_main=steps == 4,
    )  # fmt: skip


def _removed():
  for name, (title, acts_on) in PARTS.items():
    without = 'unfiltered' if name == 'filtering' else f'without_{name}'
    for key in ('step_s', acts_on):
      yield findings.Comparison(
        9, f'{title} saves {SECONDS[key]}, beside a run without it',
        f'{SECONDS[key]} saved', ('dash', without),
        functools.partial(_seconds, key=key), 'saving', '%', 100.0, 'above',
        *(('4%', 4) if (name, key) == ('filtering', 'step_s') else ('', None)),
        # Filtering has its main row in question 1.
        is_main=key == 'step_s' and name != 'filtering',
      )  # fmt: skip


COMPARISONS = (
  *_time_against_grpo(),
  *_against_imitation(),
  *_ppo(),
  *_kl_term(),
  *_filters(),
  *_rewards_and_groups(),
  *_staleness(),
  *_removed(),
)


_TAKES_SECONDS = (_seconds, _seconds_to_equal, _accuracy_in_time_of)

# The jobs whose seconds a claim is about.
TIMED = frozenset(
  name
  for comparison in COMPARISONS
  if getattr(comparison.measure, 'func', comparison.measure) in _TAKES_SECONDS
  for name in comparison.runs
) | {'sizes'}


def find_sizes(
  measured: Sequence[Sequence[dict]], part: str
) -> Iterator[findings.Finding]:
  """Yields the rows of the question on batch sizes.

  Args:
    measured: for each seed the lines of its sizes.jsonl.
    part: the part of the study.
  """
  if not measured:
    return

  def make(claim, metric, values, unit, over=intervals.of_mean, **rest):
    row = findings.Comparison(
      2, claim, metric, ('sizes',), None, 'mean', unit, **rest
    )
    return findings.make_finding(row, over(values), part)

  names = {
    'sample': ('sampling', 'of keys and values'),
    'learn': ('learning', 'beside weights and optimizer'),
  }
  speeds = {side: by_size(measured, f'{side}_tokens_per_s') for side in names}
  best, largest = {}, {}
  for side, (name, whose) in names.items():
    best[side] = [max(some, key=some.get) for some in speeds[side]]
    kept = by_size(measured, f'{side}_bytes')
    for size in sorted(set.intersection(*map(set, speeds[side]))):
      for found, unit, scale in (
        (speeds[side], 'tokens/s', 1), (kept, f'MiB {whose}', 2**-20)
      ):  # fmt: skip
        values = [some[size] * scale for some in found]
        yield make(f'{size} rows of {name}', f'{name}, {unit}', values, unit)
    largest[side] = max(map(max, speeds[side]))
    yield make(
      f'Fastest size of {name}, of up to {largest[side]}', 'rows', best[side], 'rows',
      intervals.of_factors,
    )  # fmt: skip
    yield make(
      f"What 'auto' takes for {name}", 'rows',
      [rows[-1][f'auto_{name}'] for rows in measured], 'rows',
      intervals.of_factors,
    )  # fmt: skip
  crossings = [*map(_find_crossing, speeds['sample'], speeds['learn'])]
  least = min(map(min, speeds['sample']))
  yield make(
    'The size from which on sampling is faster than learning, of those tried',
    f'rows{", at most" if least in crossings else ""}', crossings, 'rows',
    lambda sizes: intervals.of_factors(sizes) if all(sizes) else None,
  )  # fmt: skip
  # Of a seed alone, the fastest of sizes that are about as fast is chance; that of
  # all is chosen by the speeds that are compared here, so that no claim is made.
  fastest = {side: _find_fastest(speeds[side]) for side in names}
  asked = [('sample', fastest['learn'], "learning's fastest")]
  autos = {rows[-1]['auto_learning'] for rows in measured}
  if len(autos) == 1:
    asked.append(('learn', *autos, "what 'auto' takes"))
  for side, other, whose in asked:
    # 'auto' may take a size that was not measured.
    if other == fastest[side] or not all(other in x for x in speeds[side]):
      continue
    seconds = [
      [1 / some[size] for some in speeds[side]]
      for size in (fastest[side], other)
    ]
    yield make(
      f'{names[side][0].capitalize()} in {fastest[side]} rows, its fastest, against'
      f' {other}, {whose}', 'seconds a token saved', seconds, '%',
      lambda both: intervals.of_savings(*both).scale(100.0),
    )  # fmt: skip
  # Where the largest is the fastest, a still larger one may be faster.
  is_known = max(best['sample']) < largest['sample']
  yield make(
    'Sampling is fastest in larger batches than learning',
    f'log2 of the ratio of the fastest sizes{"" if is_known else ", at least"}',
    [math.log2(a / b) for a, b in zip(best['sample'], best['learn'], strict=True)],
    '', expects='above', paper='256 to 8 rows: 5',
    paper_value=5.0 if is_known else None, is_main=True,
  )  # fmt: skip


def by_size(
  measured: Sequence[Sequence[dict]], key: str
) -> list[dict[int, float]]:
  """Returns a figure of each size that has it, for each seed; see `find_sizes`."""
  return [
    {row['size']: row[key] for row in rows if key in row} for rows in measured
  ]


def _find_crossing(sampling, learning):
  """Returns the smallest size from which on sampling is faster; None if learning is
  at the largest."""
  faster = itertools.takewhile(
    lambda size: sampling[size] > learning[size],
    sorted(sampling.keys() & learning.keys(), reverse=True),
  )
  return min(faster, default=None)


def _find_fastest(speeds):
  """Returns the size that is the fastest over seeds, by the mean of logarithms."""
  return max(
    set.intersection(*map(set, speeds)),
    key=lambda size: sum(math.log(some[size]) for some in speeds),
  )
