"""Figures can be told apart, and say what is what."""

from dash_jax.reporting import figures


def test_labels_are_what_differs():
  """Of one line the end of its path; a dollar and an underscore are drawn."""
  assert figures._shorten(['/a/b/seed_*/dash', '/a/b/seed_*/grpo']) == [
    'seed_*/dash', 'seed_*/grpo',
  ]  # fmt: skip
  assert figures._shorten(['/a/b/c/dash']) == ['c/dash']
  assert figures._shorten(['x', '_y/$z']) == ['x', r' _y/\$z']
  (long,) = figures._shorten(['x' * 90])
  assert len(long) == 44


def test_the_first_lines_differ_without_their_colours():
  styles = [figures._style(i) for i in range(20)]
  shapes = [(style['linestyle'], style['marker']) for style in styles]
  assert len(set(shapes)) == 20
  assert len({style['color'] for style in styles[:6]}) == 6


def test_no_line_has_no_figure():
  assert figures.draw([]) == []
