"""What tests of reward workers share."""


def score(pool, completions):
  """Scores completions whose answers do not matter."""
  num_rows = len(completions)
  return pool.score(completions, [''] * num_rows, [False] * num_rows)


def is_alive(pid):
  try:
    with open(f'/proc/{pid}/stat') as file:
      return file.read().rsplit(')', 1)[1].split()[0] != 'Z'
  except FileNotFoundError:
    return False
