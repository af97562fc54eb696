"""One HTML page of runs: findings, a table, figures, and a browser of replies.

  1. A caller names sections, each of some lines (workdirs.py), with rows of
     findings if it has such.
  2. `write` draws their figures, fills page.html, and puts page.css, page.js,
     the pictures and the replies (replies.py) into it: the page asks for no
     other file, and its policy forbids that it could.

What a model said is data in the page: page.js shows it as text, nothing else.
"""

import base64
import dataclasses
import hashlib
import math
import os
import pathlib
import re
from collections.abc import Sequence

import jinja2
import jinja2.sandbox

from dash_jax.reporting import figures, replies, workdirs
from dash_jax.runs import jsonl

PAGE_NAME = 'report.html'

# The most that the page gives to replies, in bytes; its runs share it.
MOST_REPLIES = 8_000_000
_FOLDER = pathlib.Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Section:
  """A part of the page.

  Attributes:
    title: its heading.
    lines: what its table and figures show; it may have none.
    command: what makes its figures.
    note: a paragraph above its tables, or ''.
    more_figures: that the caller has drawn, before those of its lines.
    findings: dataclasses of one kind, rows of a table whose columns are their
      fields, in the caller's words.
  """

  title: str
  lines: Sequence[workdirs.Line]
  command: str
  note: str = ''
  more_figures: Sequence[figures.Figure] = ()
  findings: Sequence = ()


def write(
  out: str | os.PathLike,
  title: str,
  sections: Sequence[Section],
  command: str,
) -> pathlib.Path:
  """Writes the page, and its figures as PNG files beside it.

  Args:
    out: a folder, made if it is missing.
    title: of the page.
    sections: in order.
    command: that makes this page.

  Returns:
    The page's path.

  Raises:
    ValueError: rollouts of a run are damaged; the message names the file.
  """
  out = pathlib.Path(out)
  out.mkdir(parents=True, exist_ok=True)
  shown = []
  for section in sections:
    drawn = [*section.more_figures, *figures.draw(section.lines)]
    prefix = f'{_slug(section.title)}_' if len(sections) > 1 else ''
    for figure in drawn:
      (out / f'{prefix}{figure.name}.png').write_bytes(figure.png)
    shown.append(
      {
        'title': section.title,
        'command': section.command,
        'note': section.note,
        'findings': _show_findings(section.findings),
        'rows': _show_rows(section.lines),
        'figures': [
          {
            'title': figure.title,
            'caption': figure.caption,
            'file': f'{prefix}{figure.name}.png',
            'svg': base64.b64encode(figure.svg).decode(),
          }
          for figure in drawn
        ],
      }
    )
  packed = _pack_replies(sections)
  style, script = (
    (_FOLDER / name).read_text(encoding='utf-8')
    for name in ('page.css', 'page.js')
  )
  text = (
    _environment()
    .get_template('page.html')
    .render(
      title=title,
      sections=shown,
      command=command,
      replies=packed,
      most_replies=f'{MOST_REPLIES / 1e6:.0f} MB',
      data='[' + ',\n'.join(p.text for _, p in packed) + ']',
      style=style,
      script=script,
      style_hash=_hash(style),
      script_hash=_hash(script),
    )
  )
  path = out / PAGE_NAME
  # A reply may hold half a surrogate pair, which no UTF-8 has.
  jsonl.replace(path, text.encode('utf-8', 'replace').decode('utf-8'))
  return path


def _environment():
  return jinja2.sandbox.SandboxedEnvironment(
    loader=jinja2.FileSystemLoader(_FOLDER),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )


def _hash(text):
  """Returns what the page's policy knows an element by."""
  digest = hashlib.sha256(text.encode('utf-8')).digest()
  return f'sha256-{base64.b64encode(digest).decode()}'


def _slug(title):
  return re.sub(r'[^a-z0-9]+', '_', title.lower()).strip('_')


def _pack_replies(sections):
  """Returns a name and what the page holds of it, for each run that has kept
  replies."""
  found = {
    run.workdir: None
    for section in sections
    for line in section.lines
    for run in line.runs
    if replies.find(run.workdir)
  }
  room = MOST_REPLIES // max(1, len(found))
  return [
    (str(workdir), replies.pack(str(workdir), workdir, room))
    for workdir in found
  ]


def _show_findings(findings):
  """Returns the header and the rows of a table, or None."""
  if not findings:
    return None
  names = [field.name for field in dataclasses.fields(findings[0])]
  return {
    'header': [name.replace('_', ' ') for name in names],
    'rows': [
      [_show_value(getattr(row, name)) for name in names] for row in findings
    ],
  }


def _show_value(value):
  if isinstance(value, float):
    return f'{value:.4g}'
  if isinstance(value, tuple | list):
    return f'[{", ".join(map(_show_value, value))}]'
  return '' if value is None else str(value)


def _show_rows(lines):
  """Returns the rows of the table of lines: texts by column."""
  fields = workdirs.find_fields(lines)
  return [
    {
      'run': row.label,
      'fields': differing,
      'seeds': str(row.num_seeds),
      'replies': f'{row.samples:,.0f}',
      'first accuracy': _show_number(100 * row.first, '{:.1f}%'),
      'last accuracy [95%]': _show_number(100 * row.last, '{:.1f}%')
      + _show_interval(row.last_interval, 100, '{:.1f}'),
      'gain, points [95%]': _show_number(100 * row.gain, '{:+.1f}')
      + _show_interval(row.gain_interval, 100, '{:+.1f}'),
      'seconds of RL [95%]': _show_number(row.rl_s, '{:,.1f}')
      + _show_interval(
        (max(row.rl_s_interval[0], 0.0), row.rl_s_interval[1]), 1, '{:,.1f}'
      ),
      'rows kept': _show_number(100 * row.kept_share, '{:.0f}%'),
      'tokens a reply': _show_number(row.completion_len, '{:.1f}'),
      'KL from the start': _show_number(row.drift, '{:.3f}'),
    }
    for row, differing in zip(
      map(workdirs.find_row, lines), fields, strict=True
    )
  ]


def _show_number(value, form):
  return form.format(value) if math.isfinite(value) else ''


def _show_interval(interval, scale, form):
  if not all(map(math.isfinite, interval)):
    return ''
  return f' [{", ".join(form.format(scale * end) for end in interval)}]'
