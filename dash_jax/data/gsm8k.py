"""GSM8K, prepared and read through tensorflow_datasets, without TensorFlow.

The life of a question:
  1. The public train.jsonl and test.jsonl come from a folder or the network.
  2. `GradeSchoolMath` checks every row and writes it, in the file's order, as
     ArrayRecord files below `data_dir`, once.
  3. `load` opens them; a row is read where its question is asked.
  4. The final answer is what follows '####'. The solution is the whole answer
     without the calculator annotations <<..>>.

Source: Cobbe et al. 2021, arXiv 2110.14168,
https://github.com/openai/grade-school-math.
"""

import hashlib
import os
import pathlib
import re

import numpy as np
import tensorflow_datasets as tfds

from dash_jax import batches
from dash_jax.data import jsonl

SPLITS = ('train', 'test')
URL = (
  'https://raw.githubusercontent.com/openai/grade-school-math/master/'
  'grade_school_math/data/{split}.jsonl'
)
PUBLIC_NUM_ROWS = {'train': 7473, 'test': 1319}
# Keeps the uids of the two splits apart; a split has far fewer rows.
_UID_OFFSETS = {'train': 0, 'test': 2**30}


class GradeSchoolMath(tfds.core.GeneratorBasedBuilder):
  """GSM8K's rows as they stand in the public files.

  Not called Gsm8k: tensorflow_datasets has a builder of that name, which needs
  the network, and data prepared by it must not be taken for ours.
  """

  VERSION = tfds.core.Version('2.0.0')
  BUILDER_CONFIGS = (
    tfds.core.BuilderConfig(name='public'),
    tfds.core.BuilderConfig(name='folder'),
  )
  # Where checksums of downloads would lie. Left to itself, tensorflow_datasets
  # 4.9 imports importlib_resources to find it, which it does not require.
  code_path = None
  MANUAL_DOWNLOAD_INSTRUCTIONS = 'The folder must hold train.jsonl, test.jsonl.'

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          'question': tfds.features.Text(),
          'answer': tfds.features.Text(),
        }
      ),
      homepage='https://github.com/openai/grade-school-math',
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    if self.builder_config.name == 'public':
      urls = {s: URL.format(split=s) for s in SPLITS}
      try:
        paths = dl_manager.download(urls)
      except (OSError, tfds.download.DownloadError) as error:
        raise ConnectionError(
          f'GSM8K could not be downloaded ({error}). Without a network, fetch '
          f'{" and ".join(urls.values())} elsewhere and name their folder.'
        ) from error
    else:
      paths = {s: dl_manager.manual_dir / f'{s}.jsonl' for s in SPLITS}
    return {s: self._generate_examples(p, s) for s, p in paths.items()}

  def _generate_examples(self, path, split):
    rows = jsonl.read(path, ('question', 'answer'))
    is_public = self.builder_config.name == 'public'
    if is_public and len(rows) != PUBLIC_NUM_ROWS[split]:
      raise ValueError(
        f'{path}: {len(rows)} rows, but the public {split} file has '
        f'{PUBLIC_NUM_ROWS[split]}; delete it to download it again'
      )
    for index, (line_number, row) in enumerate(rows):
      where = f'{path}:{line_number}'
      for field in ('question', 'answer'):
        if not isinstance(row[field], str) or not row[field].strip():
          raise ValueError(f'{where}: field {field!r} must be text, not empty')
      _, mark, final = row['answer'].rpartition('####')
      if not mark or not final.strip():
        raise ValueError(f"{where}: field 'answer' must end in '#### n'")
      yield index, {name: row[name] for name in ('question', 'answer')}


def _digest_files(folder):
  """Returns a short name of the content of a folder's two files."""
  digests = b''
  for split in SPLITS:
    path = folder / f'{split}.jsonl'
    if not path.is_file():
      raise FileNotFoundError(
        f'{path}: no such file; the folder must hold train.jsonl and '
        'test.jsonl from https://github.com/openai/grade-school-math'
      )
    digests += hashlib.sha256(path.read_bytes()).digest()
  return hashlib.sha256(digests).hexdigest()[:16]


def _prepare(data_dir, manual_dir):
  """Returns the builder of prepared data, whichever process prepared it."""

  def make():
    return GradeSchoolMath(
      config='public' if manual_dir is None else 'folder',
      data_dir=data_dir,
      # The default, tfrecord, needs TensorFlow.
      file_format='array_record',
    )

  try:
    make().download_and_prepare(
      download_config=tfds.download.DownloadConfig(manual_dir=manual_dir)
    )
  except OSError:
    # Processes that share the folder prepare the same at once, and whichever is
    # first gives it its name.
    if not make().is_prepared():
      raise
  return make()


def load(
  split: str,
  data_dir: str | os.PathLike,
  manual_dir: str | os.PathLike | None = None,
) -> batches.Questions:
  """Returns the questions of a split, in the order of the public file.

  Args:
    split: 'train' or 'test'.
    data_dir: where the prepared data is kept; prepared on the first call.
    manual_dir: a folder with train.jsonl and test.jsonl; None downloads them.
      Another content of the two files is prepared anew.

  Returns:
    Questions whose `answer` is the text after '####' as it is written, commas
    included, and whose `solution` ends in the '####' line. The uid is the row's
    place in the file, plus 2**30 for the test split.

  Raises:
    FileNotFoundError: `manual_dir` lacks one of the files.
    ValueError: no such split, or a row without a question or an answer.
    ConnectionError: the files could not be downloaded.
  """
  if split not in SPLITS:
    raise ValueError(f'gsm8k: split {split!r} must be one of {SPLITS}')
  data_dir = pathlib.Path(data_dir).expanduser()
  if manual_dir is not None:
    manual_dir = pathlib.Path(manual_dir).expanduser()
    # A place of its own: prepared data is reused by its path alone, so data
    # prepared from other files would be read instead of these.
    data_dir /= f'gsm8k_{_digest_files(manual_dir)}'
  source = _prepare(data_dir, manual_dir).as_data_source(split=split)
  offset = _UID_OFFSETS[split]

  def read(uid):
    row = source[uid - offset]
    answer = row['answer'].decode()
    return batches.Question(
      prompt=row['question'].decode(),
      answer=answer.rpartition('####')[2].strip(),
      uid=uid,
      solution=re.sub('<<.*?>>', '', answer),
    )

  return batches.Questions(offset + np.arange(len(source)), read)
