"""A job of study_test.py: writes its cores to --out, and waits for another's."""

import argparse
import json
import os
import pathlib
import sys
import time


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--out', type=pathlib.Path)
  parser.add_argument('--other', default='')
  args = parser.parse_args()
  args.out.write_text(json.dumps(sorted(os.sched_getaffinity(0))))
  other = args.out.parent / (args.other or args.out.name)
  end = time.monotonic() + 60
  while not other.exists() and time.monotonic() < end:
    time.sleep(0.02)
  return int(not other.exists())


if __name__ == '__main__':
  sys.exit(main())
