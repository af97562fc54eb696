"""The page in a real browser: what it shows, finds, and never does."""

import dataclasses
import json
import pathlib

import chromium
import pytest

from dash_jax.reporting import page, workdirs
from dash_jax.runs import jsonl, metrics

HOSTILE = (
  '</script><script>hit=1</script><img src=x onerror="hit=1"><!-- {{1+1}}'
)
# A character of two UTF-16 units, which a width counts once.
EMOJI = 'a\U0001f600b'

_QUESTIONS = [
  (7, 'How many apples?', '3'),
  (9, f'And pears {HOSTILE}', HOSTILE),
]


@dataclasses.dataclass(frozen=True)
class Finding:
  question: str
  found: str
  interval: tuple
  verdict: str


def _write_run(workdir, seed):
  """Three steps of two groups of two replies."""
  workdir.mkdir(parents=True)
  config = {'seed': seed, 'algorithm': {'name': 'dash', 'kl_coef': 0.1}}
  (workdir / 'config.json').write_text(json.dumps(config))
  with metrics.MetricsWriter(workdir) as writer:
    for step in (1, 2, 3):
      values = {
        'phase': 'rl', 'step_s': 2.0, 'sample_s': 1.0, 'reward_s': 0.1,
        'learn_s': 0.8, 'reward_mean': 0.5, 'completion_len_mean': 3.0,
        'sampled_rows': 4, 'kept_rows': 2, 'sampled_tokens': 12,
        'entropy': 1.0,
      }  # fmt: skip
      writer.write(step, values)
    for step, accuracy in ((0, 0.25), (3, 0.5 + 0.1 * seed)):
      evaluation = dict.fromkeys(metrics.EVAL_KEYS, 0)
      writer.write_eval(
        evaluation
        | {'step': step, 'phase': 'rl', 'split': 'test', 'accuracy': accuracy}
        | {'accuracy_low': accuracy - 0.1, 'accuracy_high': accuracy + 0.1}
        | ({'drift_kl': 0.02 + 0.01 * seed} if step else {})
      )
  for step in (1, 2, 3):
    rows = [
      {
        'step': step, 'uid': uid, 'sample': g, 'prompt': prompt,
        'answer': answer, 'completion': text, 'reward': float(g == 0),
        'advantage': 0.5 - g if uid == 7 else 0.0, 'kept': uid == 7,
        'completion_len': len(widths), 'truncated': g == 1,
        'token_widths': widths,
        'logprobs': [-0.01, -3.0, -9.0, -0.2][: len(widths)],
      }
      for uid, prompt, answer in _QUESTIONS
      for g, (text, widths) in enumerate(
        [(EMOJI, [1, 0, 1, 1]), (f'{step} {HOSTILE}', [1, 1, len(HOSTILE)])]
      )
    ]  # fmt: skip
    jsonl.write(workdir / 'rollouts' / f'step_{step:06d}.jsonl', rows)


@pytest.fixture(scope='module')
def shown(tmp_path_factory):
  """The page of a line of two seeds and one of one, with findings, opened."""
  folder = tmp_path_factory.mktemp('report')
  names = ('<b>x', 'y', 'z')
  for seed, name in enumerate(names):
    _write_run(folder / 'runs' / name, seed % 2)
  found = [workdirs.read(folder / 'runs' / name) for name in names]
  lines = workdirs.group(found)
  assert [len(line.runs) for line in lines] == [2, 1]
  rows = [
    Finding('1', f'faster {HOSTILE}', (0.25, 0.5), 'holds'),
    Finding('2', 'slower', (-1.0, 1.0), 'not decided'),
  ]
  path = page.write(
    folder / 'out', 'A <study>',
    [page.Section('All runs', lines, 'make all', findings=rows),
     page.Section('No run', [], 'make none', 'Note <i>', findings=rows)],
    'make "page"',
  )  # fmt: skip
  with chromium.open_page(path) as opened:
    opened.path = path
    yield opened


def _ask(opened, **wanted):
  """Clears the filters, sets some, and returns what is counted."""
  opened.run("document.getElementById('clear').click()")
  for name, value in wanted.items():
    opened.run(
      f"""(() => {{
        const field = document.getElementById('filters').elements['{name}'];
        field.value = {json.dumps(value)};
        field.dispatchEvent(new Event('input', {{bubbles: true}}));
      }})()"""
    )
  return opened.run("document.getElementById('count').textContent")


def _list(opened, selector):
  """Returns the texts of some elements."""
  return opened.run(
    f'[...document.querySelectorAll({json.dumps(selector)})]'
    '.map(x => x.textContent)'
  )


def test_figures_are_shown_and_lie_beside_the_page(shown):
  """Pictures that the browser could read, each with what made it."""
  sizes = shown.run('[...document.images].map(x => x.naturalWidth)')
  files = _list(shown, 'figure figcaption > code')
  assert len(files) == len(sizes) == 8
  assert min(sizes) > 100
  names = {path.name for path in shown.path.parent.iterdir()}
  assert names == {*files, page.PAGE_NAME}
  assert set(_list(shown, 'figure details code')) == {'make all'}
  assert _list(shown, 'header code') == ['make "page"']


def test_tables_have_findings_and_intervals_over_seeds(shown):
  tables = shown.run(
    '[...document.querySelectorAll("table")].map('
    't => [...t.rows].map(r => [...r.cells].map(c => c.textContent)))'
  )
  assert tables[0] == [
    ['question', 'found', 'interval', 'verdict'],
    ['1', f'faster {HOSTILE}', '[0.25, 0.5]', 'holds'],
    ['2', 'slower', '[-1, 1]', 'not decided'],
  ]
  header, first, second = tables[1]
  first, second = (
    dict(zip(header, row, strict=True)) for row in (first, second)
  )
  # Of 50% and 60% the mean is 55%, and its half 12.7 times 5 points.
  assert first['last accuracy [95%]'] == '55.0% [0.0, 100.0]'
  assert first['gain, points [95%]'] == '+30.0 [-33.5, +93.5]'
  # Of one seed: the evaluation's.
  assert second['last accuracy [95%]'] == '50.0% [40.0, 60.0]'
  assert second['gain, points [95%]'] == '+25.0'
  assert (first['seeds'], first['replies']) == ('2', '12')
  assert first['KL from the start'] == '0.025'
  assert 'Note <i>' in _list(shown, 'p.note')


@pytest.mark.parametrize(
  ('wanted', 'groups', 'replies'),
  [
    ({}, 6, 12),
    ({'step': '2'}, 2, 4),
    ({'question': 'APPLES'}, 3, 6),
    ({'question': '#9'}, 3, 6),
    ({'question': '#8'}, 0, 0),
    ({'reply': '3 </script>'}, 2, 2),
    ({'min_reward': '0.5'}, 6, 6),
    ({'max_reward': '0.5', 'step': '1'}, 2, 2),
    ({'min_length': '4'}, 6, 6),
    ({'max_length': '3', 'question': 'pears'}, 3, 3),
    ({'rows': 'kept'}, 3, 6),
    ({'rows': 'filtered', 'reply': '\U0001f600', 'step': '3'}, 1, 1),
  ],
)
def test_filters_find_what_fits_all_of_them(shown, wanted, groups, replies):
  count = _ask(shown, **wanted)
  assert count.startswith(f'{groups} of 6 groups, {replies} of 12 replies;')
  assert len(_list(shown, '.group')) == groups
  # Replies that were not asked for stay beside the others, paler.
  assert len(_list(shown, '.row:not(.other)')) == replies
  assert len(_list(shown, '.row')) == 2 * groups


def test_a_group_is_side_by_side_with_what_became_of_it(shown):
  _ask(shown, step='1')
  facts = _list(shown, '.facts')
  assert facts == [
    'reward 1advantage +0.54 tokenslearned from',
    'reward 0advantage -0.53 tokens, truncatedlearned from',
    'reward 1advantage 04 tokensfiltered out',
    'reward 0advantage 03 tokens, truncatedfiltered out',
  ]
  assert len(_list(shown, '.row.filtered')) == 2
  left, right = shown.run(
    '[...document.querySelectorAll(".row")].slice(0, 2).map('
    'x => x.getBoundingClientRect().toJSON())'
  )
  assert left['top'] == right['top']
  assert left['right'] < right['left']


def test_tokens_are_coloured_by_their_probability(shown):
  """Each with its characters, of which an emoji is one; a token without one is
  there too."""
  _ask(shown, step='1')
  tokens = shown.run(
    '[...document.querySelector(".text").children].map('
    'x => [x.textContent, x.className, x.title])'
  )
  assert [text for text, _, _ in tokens] == ['a', '', '\U0001f600', 'b']
  assert [name for _, name, _ in tokens] == ['', 'p4', 'p5', 'p1']
  assert tokens[1][2] == 'log-probability -3, probability 0.050'
  colours = shown.run(
    '[...document.querySelector(".text").children].map('
    'x => getComputedStyle(x).backgroundColor)'
  )
  assert len(set(colours)) == 4
  shown.run("document.getElementsByName('coloured')[0].click()")
  assert not _list(shown, '.text span')
  assert _list(shown, '.text')[0] == EMOJI


def test_a_question_is_followed_over_steps_and_runs(shown):
  """By its button; another run brings its own steps."""
  _ask(shown, step='2')
  shown.run("document.querySelector('.group button').click()")
  assert [text.split(',')[0] for text in _list(shown, '.group h3')] == [
    'step 1', 'step 2', 'step 3',
  ]  # fmt: skip
  assert _ask(shown, run='2').startswith('6 of 6')
  (name,) = _list(shown, '[name="run"] option:first-child')
  assert name.endswith('/<b>x')


def test_what_a_model_said_is_text(shown):
  """It ends no element, makes none, runs nothing; nor does a workdir's name."""
  _ask(shown)
  assert f'1 {HOSTILE}' in _list(shown, '.text')
  assert f'And pears {HOSTILE}' in _list(shown, '.question')
  assert (
    shown.run("typeof hit + document.querySelectorAll('[onerror], b').length")
    == 'undefined0'
  )
  assert shown.run('document.scripts.length') == 2
  assert not shown.problems
  assert shown.requests == [shown.path.as_uri()]


def test_the_policy_lets_no_other_script_run(shown):
  """Should a reply ever become an element: here one does, on purpose."""
  with chromium.open_page(shown.path) as opened:
    opened.run(
      """(() => {
        const script = document.createElement('script');
        script.textContent = 'hit = 1';
        const image = document.createElement('img');
        image.src = 'missing.png';
        document.body.append(script, image);
      })()"""
    )
    assert opened.run('typeof hit') == 'undefined'
    texts = [json.dumps(problem) for problem in opened.problems]
  assert any('script-src' in text for text in texts)
  assert any('img-src' in text for text in texts)


def test_paper_has_the_figures_and_no_buttons(shown, tmp_path):
  shown.call('Emulation.setEmulatedMedia', media='print')
  # A4 between its margins: what is wider would be shrunk until nobody can read it.
  width = 680
  shown.call(
    'Emulation.setDeviceMetricsOverride',
    width=width, height=1009, deviceScaleFactor=1, mobile=False,
  )  # fmt: skip
  hidden = shown.run(
    "['nav', '#filters', '#next'].map(x => "
    'getComputedStyle(document.querySelector(x)).display)'
  )
  cell = 'document.querySelector("tbody td").textContent'
  before = shown.run(cell)
  shown.run(f"{cell} = 'algorithm.filter_threshold='.repeat(9)")
  widest = shown.run(
    "Math.max(...[...document.querySelectorAll('table, img, .group')].map("
    'x => x.getBoundingClientRect().right))'
  )
  figure = shown.run("document.querySelector('img').clientWidth")
  shown.run(f'{cell} = {json.dumps(before)}')
  shown.call('Emulation.clearDeviceMetricsOverride')
  shown.call('Emulation.setEmulatedMedia', media='')
  assert hidden == ['none'] * 3
  assert widest <= width
  # As it was drawn, 6.4 inches: its letters have the size that they were given.
  assert figure >= 6.4 * 96
  shown.save('Page.printToPDF', tmp_path / 'page.pdf')
  assert (tmp_path / 'page.pdf').read_bytes().startswith(b'%PDF')


def test_without_a_browser_it_says_what_to_do(monkeypatch):
  monkeypatch.setenv('PATH', str(pathlib.Path(__file__).parent))
  monkeypatch.delenv('CHROME', raising=False)
  with pytest.raises(FileNotFoundError, match='apt-get install chromium'):
    chromium.find()
